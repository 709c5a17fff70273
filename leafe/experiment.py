"""The object that every method works with: a configuration, makers of engines and worlds, and a progress display.

The shared work of stages is here too: growing a forest and training an arm (`measuring.py` has measuring). Each writes one file of
a run directory and resumes after a kill; `lab.py` makes stages of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from leafe.chat import Prompts
from leafe.digest import seed_for
from leafe.distillation.examples import Selection
from leafe.engines.base import Engine
from leafe.engines.loading import load_tokenizer
from leafe.engines.openai_findings import BASE_ALONE, COMPARED_HERE, MEASURED_HERE, Findings, differing, refuse_lacking
from leafe.engines.scoring import most_probable
from leafe.envs.base import Environment, Fidelity
from leafe.envs.settled import drawn, let_go, settled
from leafe.envs.worker_pool import Terms, WorkerPool, worker_pool
from leafe.errors import RunConflict, UserError
from leafe.evaluation.pooled import own_attempts
from leafe.folders import whole_folder
from leafe.forest.builder import Rules
from leafe.forest.driver import Runtime
from leafe.forest.explore import EXPLORERS, Explorer
from leafe.forest.faults import Faults, alarms, check_command, faults_of
from leafe.forest.grow import Exploration, ForestBuilder
from leafe.history import History
from leafe.jsonl import told_if_unwritable
from leafe.known_methods import scores, trains
from leafe.loops import wait_for
from leafe.preflight import Meter, check_lengths, refuse_unscored, rehearse, short_horizons
from leafe.progress import Progress, Tracker, Untracked
from leafe.prompts import load_prompts
from leafe.proofs import done_once, explored, trained
from leafe.recall import MemoryFile
from leafe.records import Ask, Completion, Example, Task, Tree, Usage
from leafe.run import LOGS, RunDirectory
from leafe.sent import as_sent
from leafe.settings import RunConfig
from leafe.stages import PROBE, Made, Once, done_here
from leafe.tracked import exploring
from leafe.training.loss import CrossEntropy, Loss
from leafe.training.memory import give_back
from leafe.training.sft import fine_tune, try_training

Result = TypeVar("Result")
Work = Callable[[Engine], Coroutine[Any, Any, Result]]
ROLLBACK_FREE = "it cannot be rolled back (fidelity 'none'): the lesson of a failed attempt goes into the prompt of a fresh one"
UNTRAINED = "there was no example to train on, or no step for them; this arm is the model that it starts from"


@dataclass(frozen=True)
class Experiment:
    """Everything that a run needs but the place of its results. `base` is the folder of the model that the run starts from."""

    config: RunConfig
    base: Path
    load_engine: Callable[[Path], Engine]
    make_environment: Callable[[], Environment]
    progress: Progress
    threads: int = 1
    load_meter: Callable[[], Meter | None] = lambda: None
    load_here: Callable[[Path], Engine] | None = None  # set where a server is explored with: any model, in this process
    compared: bool = False  # whether its figures stand beside those of models that are trained, though its method trains none
    probe: Callable[[], Findings] | None = None  # set where a server is explored with
    require: Callable[[], None] = lambda: None  # raises where the program that serves the model is missing
    free: Callable[[], None] = lambda: None  # ends a server of the run's own, before something else needs the memory
    keep_logs_in: Callable[[Path], None] = lambda folder: None  # the folder for such a server's output
    host: Callable[[Callable[[], Environment], Terms], WorkerPool] = worker_pool
    check_workers: Callable[[], None] = lambda: None
    once: Once = done_here  # may take over stages that were done elsewhere
    tracker: Tracker = Untracked()

    @cached_property
    def prompts(self) -> Prompts:
        """The run's prompts for its environment. Where every text is an action, each reply reaches the environment."""
        return self.prompts_of(self.config.prompts)

    def prompts_of(self, profile: str) -> Prompts:
        """The prompts of a profile or a folder, as `prompts`."""
        said = self.declared
        prompts = load_prompts(profile, said.name, remind=self.config.remind, actions_help=said.actions_help)
        return replace(prompts, unread="") if said.free_text else prompts

    @cached_property
    def trains(self) -> bool:
        """Whether the recipe's method trains anything."""
        return trains(self.config.method, self.config.own)

    @property
    def measures_here(self) -> bool:
        """Whether arms are measured in this process though a server is explored with, since it cannot serve all that are compared."""
        return self.config.engine.kind == BASE_ALONE and (self.trains or self.compared)

    def check(self, *, trains: bool = False, tries: bool = False, scored: bool = False) -> None:
        """Raises `UserError` for an environment, tasks, prompts, cluster or server that is missing or unusable, before anything is begun.

        `trains` is whether the same command will also train on what is explored, `tries` whether a step of training is tried as well,
        `scored` whether the run will do stages of its method, which may have texts scored by a server.
        """
        try:
            self._check(trains, tries, scored)
        except BaseException:
            self.free()
            raise

    def _check(self, trains: bool, tries: bool, scored: bool) -> None:
        self.require()
        starts_server = self.probe is not None and self.config.engine.kind != BASE_ALONE
        self.rules(0)
        self.check_workers()
        if self.config.explore.new_luck and type(self.declared).reseed is Environment.reseed:
            why = f"an environment with reseed(seed), and {self.config.environment.name} has none"
            raise UserError(f"explore.new_luck wants {why}; set explore.new_luck=false")
        if self.config.explore.stop_when_solved and not self.can_roll_back:
            raise UserError(
                "explore.stop_when_solved wants an environment that can be rolled back, since trees go on where their turns ended, and"
                f" {self.config.environment.name} cannot (fidelity 'none'); set explore.stop_when_solved=0"
            )
        for part in ("train", "test"):
            for sentence in short_horizons(self.declared, self.tasks(part)):
                self.progress.say(sentence)
        if tries and starts_server:  # which then has to be started once
            self.try_training()
        if self.probe:
            refuse_lacking(self.probe(), trains=trains)
            if scored:
                self._try_scoring()
            if self.config.engine.kind == BASE_ALONE and (trains or self.compared):
                self.progress.say(MEASURED_HERE if trains else COMPARED_HERE)
        if meter := self.load_meter():
            self._check_lengths(meter)
        if tries and not starts_server:
            self.try_training()

    def try_training(self) -> None:
        """One step of training of which nothing is kept, so that a model that cannot be trained is refused before it has explored."""
        self.free()
        try_training(self.base, self.config.train, threads=self.threads, context=self.config.engine.max_context)

    def _try_scoring(self) -> None:
        """Has one short text scored if the method needs scores, so that a server that cannot is refused before it is explored with."""
        if wanted := scores(self.config.method, self.config.own):
            ids = load_tokenizer(self.base)("a", add_special_tokens=False)["input_ids"][:1]
            score = partial(most_probable, ids=ids, top=wanted.top)
            refuse_unscored(self.config.section, wanted, lambda: self.with_engine(self.base, score))

    def _check_lengths(self, meter: Meter) -> None:
        environment, wanted = settled(self.make_environment()), self.config.tasks
        try:
            (task,) = drawn(environment, wanted.train_split, 1, wanted.seed)
            played = rehearse(environment, self.prompts, task)
        finally:
            let_go(environment)
        for sentence in (*meter.notes, *(check_lengths(self.config, played, meter) if played else ())):
            self.progress.say(sentence)

    @cached_property
    def declared(self) -> Environment:
        """A closed instance of the environment, for its declarations."""
        environment = settled(self.make_environment())
        let_go(environment)
        return environment

    @property
    def can_roll_back(self) -> bool:
        """Whether the environment declares that it can go back. If not, each experience goes into the prompt of a fresh attempt."""
        return self.declared.fidelity is not Fidelity.NONE

    @property
    def has_expert(self) -> bool:
        """Whether the environment has an expert of its own."""
        return type(self.declared).expert is not Environment.expert or "expert" in vars(self.declared)

    def runtime(self, engine: Engine, **more: Any) -> Runtime:
        """The runtime that carries out effects; `more` are further fields of `Runtime`."""
        said, wanted = self.declared, self.config.environment
        return Runtime(
            engine,
            self.make_environment,
            placement=said.placement,
            workers=wanted.workers,
            instances=said.instances,
            timeout=wanted.timeout,
            recycle=wanted.recycle,
            computes=said.computes,
            host=self.host,
            **more,
        )

    def tasks(self, part: str) -> Sequence[Task]:
        """The tasks that are explored (`train`) or measured on (`test`)."""
        wanted = self.config.tasks
        split, count = (wanted.train_split, wanted.train) if part == "train" else (wanted.test_split, wanted.test)
        environment = settled(self.make_environment())
        try:
            return drawn(environment, split, count, wanted.seed)
        finally:
            let_go(environment)

    def rules(self, seed: int, *, notes: Sequence[str] = (), prompts: str = "", memory: MemoryFile | None = None) -> Rules:
        """The rules of exploration and play, for a policy that reads `notes` and what a `memory` holds for its task, and `prompts` other
        than the run's where they are named.
        """
        settings, sampling = self.config.explore, self.config.sampling
        return Rules(
            prompts=self.prompts_of(prompts) if prompts else self.prompts,
            seed=seed,
            turns=settings.turns,
            tokens=settings.tokens,
            act=sampling.act.sampling(),
            reflect=sampling.reflect.sampling(),
            max_attempts=settings.max_attempts,
            max_depth=settings.max_depth,
            reflect_every=settings.reflect_every,
            reflect_on_failure=settings.reflect_on_failure,
            can_roll_back=self.can_roll_back,
            history=History(self.config.history.keep, self.config.history.turns),
            new_luck=settings.new_luck,
            notes=tuple(notes),
            recall=memory.recall() if memory else None,
            stop_when_solved=settings.stop_when_solved,
            memory=settings.memory,
            closing=sampling.closing,
            free_text=self.declared.free_text,
        )

    def explore_seed(self, number: int) -> int:
        """The seed of a round's exploration; controls share the first round's."""
        return seed_for(self.config.seed, "explore", number)

    def selection(self) -> Selection:
        """The selection of turns to learn from."""
        wanted = self.config.distill
        seed = seed_for(self.config.seed, "distill")
        return Selection(**wanted.model_dump(), seed=seed)

    def keep_logs_of(self, run: RunDirectory) -> None:
        """Writes the output of the run's own server to a folder of the run from here on."""
        self.keep_logs_in(run.path / LOGS)

    def sound_alarms(self, stage: str, faults: Faults) -> None:
        """Reports at once the faults that make a stage's figures mean little."""
        for sentence in alarms(faults, self.config):
            self.progress.say(f"{stage}: {sentence}")

    def keep_server(self, run: RunDirectory) -> None:
        """Records the server's properties with a run. Raises `UserError` for an unusable one and `RunConflict` for one that has changed."""
        if not self.probe:
            return
        found = self.probe()
        refuse_lacking(found, trains=False)
        before = run.stages.get(PROBE)
        if before is None:
            run.finish_stage(PROBE, found.as_json())
        elif changes := differing(before, found):
            raise RunConflict(
                f"the server is not what it was when {run.path} was begun ({'; '.join(changes)}); start it as it was, or give another --out"
            )

    async def awith_engine(self, model: Path, work: Work[Result], *, measures: bool = False, here: bool = False) -> Result:
        """Does work with an engine on a model, which is closed whatever happens."""
        engine = ((self.load_here if here or (measures and self.measures_here) else None) or self.load_engine)(model)
        try:
            return await work(engine)
        finally:
            try:
                await engine.close()
            finally:
                del engine  # and with it the model whose memory is given back
                give_back()

    def with_engine(self, model: Path, work: Work[Result], *, measures: bool = False, here: bool = False) -> Result:
        """Runs `awith_engine` to its end."""
        return wait_for(self.awith_engine(model, work, measures=measures, here=here))


@dataclass(frozen=True)
class ForestSpec:
    """The place of a forest and the policy that it grows from. Without a path only the answer is kept.

    `method` is the explorer, a shipped one by its name; the rest is the policy's, as in `leafe.stages.Policy`.
    """

    method: str | Explorer
    seed: int
    model: Path
    path: Path | None = None
    journal: Path | None = None
    notes: tuple[str, ...] = ()
    prompts: str = ""
    memory: MemoryFile | None = None


def explore_tasks(experiment: Experiment, stage: str, spec: ForestSpec) -> list[Tree]:
    """Runs `aexplore_tasks` to its end."""
    return wait_for(aexplore_tasks(experiment, stage, spec))


async def aexplore_tasks(experiment: Experiment, stage: str, spec: ForestSpec) -> list[Tree]:
    """Explores every training task with an explorer; trees already on the disk are kept, a half-grown one is resumed.

    Raises `UserError` when every attempt at the first tasks broke; the broken ones are not kept then.
    """
    rules = experiment.rules(spec.seed, notes=spec.notes, prompts=spec.prompts, memory=spec.memory)
    tasks = experiment.tasks("train")
    if not experiment.can_roll_back:
        experiment.progress.say(f"{experiment.config.environment.name}: {ROLLBACK_FREE}")
    explorer = EXPLORERS[spec.method] if isinstance(spec.method, str) else spec.method
    mend, told = check_command(experiment.config), partial(exploring, experiment.tracker, stage, total=len(tasks))
    exploration = Exploration(tasks, rules, explorer, spec.path, spec.journal, mend, told)

    async def work(engine: Engine) -> None:
        with experiment.progress.stage(stage, len(forest.missing) * rules.turns, "turns") as gauge:

            def noticed(ask: Ask, completion: Completion) -> None:
                gauge.advance(ask.purpose == "act")

            await forest.grow(experiment.runtime(engine, noticed=noticed))

    with ForestBuilder(exploration) as forest:
        if forest.missing:
            await experiment.awith_engine(spec.model, work)
        return forest.trees


@done_once(explored)
def explore_stage(experiment: Experiment, run: RunDirectory, stage: str, spec: ForestSpec) -> Made:
    """`explore_tasks` as a stage of a run. The journal is deleted once the forest is complete, which holds everything in it."""
    experiment.keep_logs_of(run)
    if spec.model == experiment.base:
        experiment.keep_server(run)
    run.check(spec.model)
    trees = explore_tasks(experiment, stage, spec)
    solved = sum(any(attempt.success for attempt in own_attempts(tree)) for tree in trees)
    if spec.journal:
        spec.journal.unlink(missing_ok=True)
    figures = {"tasks": len(trees), "solved": solved, **sum((tree.spend for tree in trees), Usage()).figures}
    note = {} if experiment.can_roll_back else {"note": f"{experiment.config.environment.name}: {ROLLBACK_FREE}"}
    experiment.progress.say(f"{stage}: {solved} of {len(trees)} tasks solved")
    experiment.sound_alarms(stage, faults_of(trees))
    return Made(figures | note, [spec.path] if spec.path else [])


@done_once(trained)
def train_stage(
    experiment: Experiment,
    run: RunDirectory,
    arm: str,
    model: Path,
    *,
    examples: Sequence[Example],
    files: Sequence[Path] = (),
    loss: Loss = CrossEntropy(),
) -> Made:
    """Fine-tunes a model into the checkpoint of an arm. Where there are no examples, the arm is a copy and its stage notes it.

    `files` were made for this training alone.
    """
    stage = f"train {arm}"
    run.check(model)
    served = model == experiment.base or experiment.config.engine.kind != BASE_ALONE
    examples = as_sent(run, model, examples) if served else examples
    files = [run.checkpoint(arm), *files]
    if not examples:
        with told_if_unwritable(run.checkpoint(arm)), whole_folder(run.checkpoint(arm)) as folder:
            shutil.copytree(model, folder, dirs_exist_ok=True)
        experiment.progress.say(f"{stage}: {UNTRAINED}")
        return Made({"examples": 0, "steps": 0, "note": UNTRAINED}, files)
    experiment.free()
    with experiment.progress.stage(stage, 1.0, "share") as gauge, whole_folder(run.checkpoint(arm)) as folder:

        def told(done: int, total: int) -> None:
            gauge.advance(1 / total)

        seed, state = seed_for(experiment.config.seed, "train", arm), run.training(arm)
        report = fine_tune(
            model,
            examples,
            folder,
            experiment.config.train,
            seed=seed,
            threads=experiment.threads,
            told=told,
            alone=True,
            loss=loss,
            state=state,
            noticed=partial(experiment.tracker.log, stage) if experiment.tracker.active else None,
        )
    shutil.rmtree(state, ignore_errors=True)
    losses = {"loss": round(report.loss, 4), **{f"{kind}_loss": round(loss, 4) for kind, loss in report.by_kind.items()}}
    cost = {"examples": sum(example.counts for example in examples), "steps": report.steps}
    return Made({**cost, "attention": report.attention, **report.machine, **losses}, files)
