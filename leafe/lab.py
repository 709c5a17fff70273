"""The interface of a method: the stages that methods share, ready to be put in order, and the execution of a recipe's own.

A stage made here resumes after a kill. Its policy may read notes or other prompts than the run's; both are part of its input
and stay the same when it is called again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from types import ModuleType

from leafe.chat import Prompts
from leafe.digest import seed_for
from leafe.distillation.causes import NOTHING
from leafe.distillation.examples import Selection
from leafe.distillation.rows import steps_an_epoch
from leafe.distillation.store import read_examples, write_examples
from leafe.distillation.writing import Writer
from leafe.engines.loading import context_of, load_config, load_tokenizer
from leafe.engines.tokens import ChatTokenizer
from leafe.errors import UnknownName, UserError
from leafe.experiment import Experiment, ForestSpec, explore_stage, train_stage
from leafe.folders import whole_folder
from leafe.forest.explore import EXPLORERS, Explorer
from leafe.forest.play import once
from leafe.forest.store import read_forest
from leafe.known_methods import asked, find
from leafe.measuring import measure_stage
from leafe.model_folder import locate
from leafe.nano import CHECKPOINTS
from leafe.progress import Progress
from leafe.proofs import explored
from leafe.records import Example, Tree
from leafe.run import RunDirectory, check_checkpoint
from leafe.settings import RunConfig
from leafe.shown import check_name
from leafe.stages import Made, Policy, Proof, Stage, all_of, carry_out, check_stages, finished, made, needed, of_verb
from leafe.training import loss as loss_module
from leafe.training.average import average_checkpoints
from leafe.training.learner import Learner
from leafe.training.loss import ClippedRatio, CrossEntropy, Loss
from leafe.training.terms import Normalise

Examples = Callable[[], Iterable[Example]]
Given = Policy | Callable[[], Policy]  # a policy, or a function that returns it once the earlier stages are finished


@dataclass(frozen=True)
class Lab:
    """Makes stages out of an experiment. A forest's place is a round's number or a name of its own."""

    experiment: Experiment

    @property
    def config(self) -> RunConfig:
        """Every setting of the run."""
        return self.experiment.config

    @property
    def base(self) -> Path:
        """The folder of the model that the run starts from."""
        return self.experiment.base

    @property
    def prompts(self) -> Prompts:
        """The run's prompts for its environment; examples are rendered with them."""
        return self.experiment.prompts

    @property
    def progress(self) -> Progress:
        """The display of progress."""
        return self.experiment.progress

    @property
    def losses(self) -> ModuleType:
        """`leafe.training.loss`, which a method's file does not import, since it loads torch."""
        return loss_module

    def selection(self) -> Selection:
        """The selection of turns to learn from, by the recipe's section `distill`."""
        return self.experiment.selection()

    def seed(self, *parts: str | int) -> int:
        """A seed of the run for the purpose that `parts` name."""
        return seed_for(self.config.seed, *parts)

    def explore(
        self,
        run: RunDirectory,
        place: int | str,
        policy: Given,
        *,
        explorer: str | Explorer = "tree",
        needs: tuple[str, ...] = (),
    ) -> Stage:
        """Explores every training task with the budget of the section `explore`: the stage `explore round N` or `explore NAME`.

        `explorer` is `tree` (reflection and rollback), `independent` (fresh attempts), `refine` and `retry` (from the first turn, with the
        lessons of all earlier attempts in the prompt, or of the latest) or a generator function of your own. Forests with a name of their
        own begin with the same attempts as round 1.
        """
        stage, kind = f"explore {_called(place)}", explorer if isinstance(explorer, str) else getattr(explorer, "__name__", "own")
        if isinstance(explorer, str) and explorer not in EXPLORERS:
            raise UnknownName("explorer", explorer, EXPLORERS)
        shown = f"{kind}, {_called(place)}" if isinstance(place, int) else place

        def spec(chosen: Policy) -> ForestSpec:
            seed = self.experiment.explore_seed(place if isinstance(place, int) else 1)
            files = run.forest(place), run.journal(place)
            return ForestSpec(explorer, seed, chosen.model, *files, chosen.notes, chosen.prompts, chosen.memory)

        def proof() -> Proof:
            return explored(self.experiment, run, stage, spec(_there(run, policy)))

        def work() -> Made:
            chosen = _there(run, policy)
            made = explore_stage(self.experiment, run, stage, spec(chosen))
            return replace(made, figures={**made.figures, **chosen.told()}, forest=shown)

        return Stage(stage, work, needs, "explore", forest=shown, proof=proof)

    def trees(self, run: RunDirectory, place: int | str) -> list[Tree]:
        """The trees at a place, in the order of their tasks' ids. Raises `UserError` where it was not explored to its end."""
        return sorted(forest_of(run.forest(place), run, f"explore {_called(place)}"), key=lambda tree: tree.task.id)

    def distill(self, run: RunDirectory, place: int | str, examples: Examples, *, needs: tuple[str, ...] = ()) -> Stage:
        """Writes the result of `examples` to `run.examples(place)` and counts its kinds: the stage `distil round N` or `distil NAME`."""
        stage = f"distil {_called(place)}"

        def work() -> Made:
            found = list(examples())
            write_examples(run.examples(place), found)
            counts: dict[str, int] = {
                kind: sum(one.kind == kind for one in found) for kind in dict.fromkeys(one.kind for one in found)
            }
            self.progress.say(f"{stage}: {', '.join(f'{count} {kind}' for kind, count in counts.items()) or 'no'} examples")
            return Made(counts or {"note": NOTHING}, [run.examples(place)])

        return Stage(stage, work, needs, "distill")

    def examples(self, run: RunDirectory, place: int | str) -> list[Example]:
        """The examples at a place, as they were written. Raises `UserError` where there are none yet."""
        return list(read_examples(made(run.examples(place), "leafe distill", run)))

    def train(
        self,
        run: RunDirectory,
        arm: str,
        examples: Examples,
        *,
        start: Given | None = None,
        needs: tuple[str, ...] = (),
        files: Sequence[Path] = (),
        loss: Callable[[], Loss] | None = None,
        steps: Callable[[], int] | None = None,
    ) -> Stage:
        """Fine-tunes the model of `start`, or the base, on examples into the checkpoint of an arm, as the section `train` says.

        Without an example the arm is a copy, and the stage notes it. `files` were made for this training alone; `loss` makes the
        loss, by default cross-entropy. `steps` returns the number of optimiser steps, in place of `train.epochs`; for 0
        the arm is a copy as well.
        """
        check_name("arm", arm)

        def work() -> Made:
            chosen, experiment = list(examples()), self.experiment
            model = _there(run, start).model if start else self.base
            if steps is not None and chosen:
                chosen, experiment = self._for_steps(chosen, steps())
            made = loss() if loss else CrossEntropy()
            return train_stage(experiment, run, arm, model, examples=chosen, files=files, loss=made)

        return Stage(f"train {arm}", work, needs, "train")

    def start(self, name: str) -> Path:
        """The folder of a model that the method's setting `start` names: an arm's checkpoint in another run, or a name; the base if empty.

        Raises `UserError` where there is none, and `CorruptFile` where it was changed since a run trained it.
        """
        if not name:
            return self.base
        try:
            folder = locate(name, CHECKPOINTS)
        except UserError as error:
            raise UserError(f"{self.config.section}.start: {error}") from None
        return check_checkpoint(folder)

    def steps(self, examples: Sequence[Example], epochs: float | None = None) -> int:
        """How many optimiser steps training on examples takes, for `epochs`, by default `train.epochs`."""
        wanted = self.config.train
        each = steps_an_epoch(examples, wanted.batch_size) if examples else 0
        return ceil((wanted.epochs if epochs is None else epochs) * each)

    def _for_steps(self, examples: list[Example], steps: int) -> tuple[list[Example], Experiment]:
        """The examples, and an experiment whose training takes exactly so many steps on them."""
        if steps < 1:
            return [], self.experiment
        # The trainer rounds a share of an epoch up to whole steps.
        epochs = (steps - 0.5) / self.steps(examples, 1.0)
        train = self.config.train.model_copy(update={"epochs": epochs})
        return examples, replace(self.experiment, config=self.config.model_copy(update={"train": train}))

    def writer(self) -> Writer:
        """Makes targets from texts that were not sampled, in the ids of the base and within its context."""
        tokens = ChatTokenizer(load_tokenizer(self.base))
        return Writer(tokens, context_of(load_config(self.base), self.config.engine.max_context))

    def clipping_learner(
        self,
        folder: Path,
        arm: str,
        start: Path,
        *,
        steps: int,
        low: float,
        high: float,
        kl: float,
        entropy: float,
        normalise: Normalise,
    ) -> Learner:
        """A learner of an arm, new or from the state in a folder, with PPO's clipped loss at the temperature of sampling."""
        draw = self.config.sampling.act
        loss = ClippedRatio(low, high, kl, normalise, temperature=draw.temperature, entropy=entropy)
        seed = self.seed("train", arm) % 2**32
        return Learner.open(folder, start, self.config.train, steps=steps, loss=loss, seed=seed, threads=self.experiment.threads)

    def average(self, run: RunDirectory, arm: str, of: str, *, share: float, needs: tuple[str, ...] = ()) -> Stage:
        """The weights between the base and a trained arm, `share` of the way, as the checkpoint of another arm.

        It is the stage `train ARM`, which takes no step.
        """
        check_name("arm", arm)

        def work() -> Made:
            first, second = self.base, _there(run, self.trained(run, of)).model
            for folder in (first, second):
                run.check(folder)
            with whole_folder(run.checkpoint(arm)) as folder:
                average_checkpoints(first, second, folder, share)
            return Made({"examples": 0, "steps": 0, "of": of, "share": share}, [run.checkpoint(arm)])

        return Stage(f"train {arm}", work, needs or (f"train {of}",), "train")

    def trained(self, run: RunDirectory, arm: str) -> Policy:
        """The policy that an arm's training produces."""
        return Policy(run.checkpoint(arm))

    def measure(self, run: RunDirectory, arm: str, policy: Given, *, player: Explorer = once, needs: tuple[str, ...] = ()) -> Stage:
        """Measures a policy on the held-out tasks as an arm, by the section `evaluate`.

        `player` takes each attempt in place of a plain one; its turns count against the same horizon, and its last attempt is graded.
        """
        check_name("arm", arm)

        def work() -> Made:
            return measure_stage(self.experiment, run, arm, _there(run, policy), player=player)

        return Stage(f"evaluate {arm}", work, needs, "evaluate")


def forest_of(path: Path, run: RunDirectory, stage: str) -> Iterator[Tree]:
    """The trees of a forest that an earlier stage should have grown to its end."""
    finished(run, stage, "leafe explore")
    return read_forest(made(path, "leafe explore", run))


def _called(place: int | str) -> str:
    if isinstance(place, int):
        return f"round {place}"
    check_name("forest", place)
    return place


def _there(run: RunDirectory, given: Given) -> Policy:
    """The given policy. Raises `UserError` where the run has not trained it yet."""
    policy = given() if callable(given) else given
    if policy.model.is_relative_to(run.path):
        made(policy.model / "config.json", "leafe train", run)
    if policy.memory and policy.memory.path.is_relative_to(run.path):
        made(policy.memory.path, "leafe explore", run)
    return policy


def stages_of(experiment: Experiment, run: RunDirectory) -> tuple[Stage, ...]:
    """The stages of a recipe's method. Raises `UserError` where it cannot name them."""
    method, settings = find(experiment.config.method), experiment.config.own
    named = asked(method, "stages()", lambda: list(method.stages(Lab(experiment), run, settings)))
    return check_stages(named, method.name)


def run_recipe(experiment: Experiment, run: RunDirectory) -> None:
    """Everything that the recipe names, in the order of its method."""
    stages = stages_of(experiment, run)
    carry_out(stages, run, all_of(stages))


def run_verb(experiment: Experiment, run: RunDirectory, verb: str) -> None:
    """The stages that a command stands for (`explore`, `distill`, `train`, `evaluate`). Raises `UserError` where the method has none."""
    stages = stages_of(experiment, run)
    whole = f"leafe run {run.path / 'config.yaml'} --out {run.path}"
    carry_out(stages, run, _stages_for(verb, stages, experiment.config.method, whole))


def check_method(experiment: Experiment, path: Path, verb: str) -> None:
    """Raises `UserError` where the method cannot name its stages for a run in `path`, or has none for a command. Makes nothing there."""
    stages = stages_of(experiment, RunDirectory(path, experiment.config, None))
    if verb != "run":
        _stages_for(verb, stages, experiment.config.method, "leafe run")


def _stages_for(verb: str, stages: Sequence[Stage], method: str, whole: str) -> list[Stage]:
    chosen = of_verb(stages, verb)
    if not chosen:
        raise UserError(f"the method {method!r} has no stage for `leafe {verb}`; type: {whole}")
    return chosen


def run_stage(experiment: Experiment, run: RunDirectory, name: str) -> None:
    """One stage by its name, with what it needs. Raises `UserError` for a stage that the method does not have."""
    stages = stages_of(experiment, run)
    for stage in stages:
        if stage.name == name:
            carry_out(stages, run, [*needed(stages, stage), stage])
            return
    raise UserError(
        f"the method {experiment.config.method!r} has no stage {name!r}; its stages: {', '.join(one.name for one in stages)}"
    )


def measure_base(experiment: Experiment, run: RunDirectory) -> None:
    """Measures the model that the run starts from, and nothing else."""
    stage = Lab(experiment).measure(run, "base", Policy(experiment.base))
    carry_out([stage], run, [stage])
