"""The method as functions: the interface of `import leafe`.

    trees = leafe.explore("sokoban", tasks=20, turns=96)
    leafe.train("nano", leafe.distill(trees), "ckpt")
    leafe.compare({"base": leafe.evaluate("sokoban"), "leafe": leafe.evaluate("sokoban", model="ckpt")})

The functions return records, and keep on disk only what is asked for. An environment is a name (`sokoban`, `my_package.worlds:Maze`) or
a callable that makes one, such as a class. `settings` are those of a recipe, as groups (`{"sampling": {"act": {"max_tokens": 64}}}`)
or by their dotted names (`{"sampling.act.max_tokens": 64}`); the prompt profile supplies the others. An error that the command line
would report in a sentence is raised as `UserError`.
"""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

from leafe.compose import bench_of, load_local_engine
from leafe.config import configured, dump, of_one_split, parse
from leafe.differing import differing_fields
from leafe.digest import seed_for
from leafe.distillation.examples import Selection
from leafe.distillation.examples import distill as distill_trees
from leafe.engines.base import Engine
from leafe.envs import registry
from leafe.envs.base import Environment
from leafe.envs.check import CheckReport
from leafe.envs.check import check_environment as check
from leafe.errors import RunConflict, UserError
from leafe.evaluation.compare import Comparison
from leafe.evaluation.compare import compare as compare_arms
from leafe.evaluation.diagnose import Diagnosis
from leafe.evaluation.evaluate import evaluate as measure
from leafe.evaluation.outcomes import ArmOutcomes, Outcome
from leafe.evaluation.passk import Resampling
from leafe.experiment import Experiment, ForestSpec, aexplore_tasks
from leafe.folders import whole_folder
from leafe.forest import store
from leafe.forest.explore import EXPLORERS
from leafe.jsonl import write_text_atomically
from leafe.loops import wait_for
from leafe.methods.diagnose import diagnose as diagnose_bench
from leafe.model_folder import locate
from leafe.nano import CHECKPOINTS
from leafe.progress import Progress, Silent
from leafe.records import Example, Tree
from leafe.run import RunDirectory
from leafe.settings import DEFAULT_METHOD, EngineSettings, RunConfig, TrainSettings
from leafe.training.launch import ProgressCallback
from leafe.training.loss import CrossEntropy, Loss, check_examples
from leafe.training.sft import TrainReport, fine_tune

World = str | Callable[[], Environment]
SettingValues = Mapping[str, Any]


@dataclass(frozen=True)
class Forest(Sequence[Tree]):
    """The trees of an exploration, in the order of their tasks, and the configuration that they grew under."""

    trees: tuple[Tree, ...]
    config: RunConfig
    make_environment: Callable[[], Environment]

    @overload
    def __getitem__(self, index: int) -> Tree: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tree]: ...
    def __getitem__(self, index: int | slice) -> Tree | Sequence[Tree]:
        return self.trees[index]

    def __len__(self) -> int:
        return len(self.trees)

    def __iter__(self) -> Iterator[Tree]:
        return iter(self.trees)

    def __repr__(self) -> str:
        solved = sum(any(attempt.success for attempt in tree.attempts) for tree in self.trees)
        turns = sum(tree.spend.turns for tree in self.trees)
        return f"Forest({self.config.environment.name}: {solved} of {len(self)} tasks solved in {turns:,} turns)"


def explore(environment: World, **options: Any) -> Forest:
    """Runs `aexplore` to its end; works where an event loop runs already."""
    return wait_for(aexplore(environment, **options))


async def aexplore(
    environment: World,
    *,
    model: str | Path = "nano",
    tasks: int = 20,
    turns: int = 96,
    method: Literal["tree", "independent", "refine", "retry"] = "tree",
    seed: int = 1,
    out: str | Path | None = None,
    settings: SettingValues | None = None,
    progress: Progress | None = None,
) -> Forest:
    """Explores `tasks` training tasks with `turns` turns of the policy each: LEAFE's tree of attempts, or one of its controls.

    `out` is a file for the forest, with its settings beside it in `OUT.yaml`; the same call resumes an existing one. Raises
    `UserError` for unusable input and when every attempt at the first tasks broke, `EngineError` when the engine fails.
    """
    given = {"model": str(model), "seed": seed, "tasks.train": tasks, "tasks.test": 1, "explore.turns": turns}
    experiment = _bench(environment, {**given, **(settings or {})}, progress)
    experiment.check()
    if method not in EXPLORERS:
        raise UserError(f"method: wanted {', '.join(EXPLORERS)}, found {method!r}")
    kept_as = configured(
        {**experiment.config.model_dump(mode="json"), **_no_method([] if method == "tree" else [method])}, "settings"
    )
    spec = ForestSpec(method, experiment.explore_seed(1), experiment.base, _kept_in(out, kept_as))
    try:
        trees = await aexplore_tasks(experiment, "explore", spec)
    finally:
        experiment.free()
    return Forest(tuple(trees), experiment.config, experiment.make_environment)


def read_forest(run: str | Path, *, number: int = 1) -> Forest:
    """The forest of a run directory's round. Raises `UserError` when there is none yet."""
    with RunDirectory.existing(Path(run), read_only=True) as directory:
        path = directory.forest(number)
        if not path.exists():
            raise UserError(f"{path} does not exist yet; type: leafe explore {run}")
        config = directory.config
        return Forest(tuple(store.read_forest(directory.check(path))), config, _maker(config))


def distill(forest: Forest, *, seed: int = 0, **selection: Any) -> list[Example]:
    """Training examples from a forest: revised actions without their experience, and a rehearsal of successes.

    `selection` overrides the forest's configuration: `qualify`, `branches_per_task`, `success_share`, `beta`, `rehearse`,
    `logprobs`.
    """
    wanted = forest.config.distill.model_dump() | selection
    config = configured(forest.config.model_dump(mode="json") | {"distill": wanted}, "distill").distill
    experiment = replace(bench_of(forest.config, Silent()), make_environment=forest.make_environment)
    own = Selection(**config.model_dump(), seed=seed)
    return distill_trees(forest, experiment.prompts, own)


def train(
    model: str | Path,
    examples: Sequence[Example],
    out: str | Path,
    *,
    seed: int = 1,
    threads: int = 1,
    told: ProgressCallback = lambda done, total: None,
    loss: Loss = CrossEntropy(),
    **settings: Any,
) -> TrainReport:
    """Fine-tunes a model on examples into the folder `out`; `settings` are those of a recipe's section `train`, as `epochs=6`.

    `told` is called with the steps done and their total, `loss` is one of `leafe.training.loss` or your own. Raises `UserError` where
    there is nothing to train on, the examples lack what the loss needs, the model cannot be trained, or `out` is there already.
    """
    folder = Path(out)
    if folder.exists():
        raise UserError(f"{folder} is there already; give another folder for the trained model")
    values = {"name": "train", "environment": {"name": "none"}, "train": TrainSettings().model_dump() | settings}
    wanted = configured(values, "train").train
    check_examples(loss, examples)
    base = locate(str(model), CHECKPOINTS)
    state = folder.with_name(f".{folder.name}.state")
    with whole_folder(folder) as unfinished:
        report = fine_tune(
            base, examples, unfinished, wanted, seed=seed, threads=threads, told=told, alone=True, loss=loss, state=state
        )
    if wanted.save_every:
        shutil.rmtree(state, ignore_errors=True)
    return report


def evaluate(
    environment: World,
    *,
    model: str | Path = "nano",
    tasks: int = 64,
    samples: int = 16,
    split: str = "test",
    seed: int = 1,
    out: str | Path | None = None,
    settings: SettingValues | None = None,
    progress: Progress | None = None,
) -> ArmOutcomes:
    """`samples` independent attempts at each of `tasks` held-out tasks, without reflection and without rollback.

    `out` is a file for the graded attempts, with its settings beside it in `OUT.yaml`; those that it holds already are not repeated.
    """
    given = {"model": str(model), "seed": seed, "tasks.train": 1, "tasks.test": tasks, "tasks.test_split": split}
    experiment = _bench(environment, {**given, "evaluate.samples": samples, **(settings or {})}, progress, part="test")
    experiment.check()
    chosen, rules = experiment.tasks("test"), experiment.rules(seed_for(experiment.config.seed, "evaluate"))

    async def work(engine: Engine, path: Path) -> list[Outcome]:
        with experiment.progress.stage("evaluate", len(chosen) * samples, "attempts") as gauge:
            runtime = experiment.runtime(engine)
            return await measure(chosen, rules, runtime, path, samples=samples, told=lambda one: gauge.advance())

    with tempfile.TemporaryDirectory() as folder:
        path = _kept_in(out, experiment.config) or Path(folder) / "outcomes.jsonl"
        try:
            outcomes = experiment.with_engine(experiment.base, lambda engine: work(engine, path))
        finally:
            experiment.free()
    return ArmOutcomes(str(model), tuple(outcomes), tasks=len(chosen), samples=samples)


def compare(
    arms: Mapping[str, ArmOutcomes],
    *,
    base: str | None = None,
    ks: Sequence[int] = (),
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Comparison:
    """Pass@k of each arm, and its difference to `base` (by default the first one), paired over tasks, with intervals."""
    named = [replace(arm, name=name) for name, arm in arms.items()]
    first = base if base is not None else next(iter(arms), None)
    return compare_arms(named, base=first, ks=ks, how=Resampling(resamples, confidence))


def diagnose(
    environment: World,
    *,
    model: str | Path = "nano",
    tasks: int = 20,
    turns: int = 96,
    points: int = 400,
    seed: int = 1,
    settings: SettingValues | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Whether LEAFE can help: readable reflections, branches against fresh attempts, and the gap at `points` branching turns."""
    given = {"model": str(model), "seed": seed, "tasks.train": tasks, "tasks.test": 1, "explore.turns": turns}
    experiment = _bench(environment, {**given, **(settings or {})}, progress)
    experiment.check()
    try:
        return diagnose_bench(experiment, points=points)
    finally:
        experiment.free()


def check_environment(
    environment: World,
    arguments: Mapping[str, Any] | None = None,
    *,
    rollbacks: int = 200,
    tasks: int = 8,
    split: str = "train",
    seed: int = 0,
) -> CheckReport:
    """Proves what an environment declares; `report.passed` is whether it holds."""
    if isinstance(environment, str):
        spec, name = environment, environment
    else:
        spec, name = None, _name_of(environment)
    return check(
        _made_by(environment, arguments or {}),
        name=name,
        rollbacks=rollbacks,
        seed=seed,
        split=split,
        count=tasks,
        spec=spec,
        arguments=arguments,
    )


def make(environment: str, **arguments: Any) -> Environment:
    """A fresh environment by its name or `module:Class`."""
    return registry.make(environment, arguments)


def load_engine(model: str | Path = "nano", **settings: Any) -> Engine:
    """An engine on a model in this process; `settings` are those of a recipe's section `engine`, as `threads=1`."""
    values = {"name": "engine", "environment": {"name": "none"}, "engine": EngineSettings().model_dump() | settings}
    config = configured(values, "engine")
    if config.engine.kind != "transformers":
        raise UserError("load_engine loads a model here; for a server use leafe.engines.openai.OpenAIEngine")
    return load_local_engine(config.engine, locate(str(model), CHECKPOINTS))


def _bench(
    environment: World, settings: SettingValues, progress: Progress | None, *, part: Literal["train", "test"] = "train"
) -> Experiment:
    """The experiment of an environment under the settings of a recipe that trains nothing and reads the tasks of one part."""
    values: dict[str, Any] = {"name": "api", **_no_method([]), "environment": {"name": _name_of(environment)}}
    for name, value in settings.items():
        _put(values, name, value)
    config = of_one_split(configured(values, "settings"), part)
    experiment = bench_of(config, progress or Silent())
    if isinstance(environment, str):
        return experiment
    return replace(experiment, make_environment=_made_by(environment, config.environment.args))


def _no_method(controls: Sequence[str]) -> dict[str, Any]:
    """The section of a recipe that trains nothing, with the controls that explore."""
    return {DEFAULT_METHOD: {"arms": [], "controls": list(controls)}}


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    """Lays a setting over others, by its dotted name or group by group."""
    *groups, last = name.split(".")
    for group in groups:
        values = values.setdefault(group, {})
    if isinstance(value, Mapping) and isinstance(values.get(last), dict):
        for inner, one in value.items():
            _put(values[last], inner, one)
    else:
        values[last] = dict(value) if isinstance(value, Mapping) else value


def _made_by(environment: World, arguments: Mapping[str, Any]) -> Callable[[], Environment]:
    if isinstance(environment, str):
        return lambda: registry.make(environment, arguments)
    if not callable(environment):
        raise UserError(f"wanted the name of an environment, or a callable that makes one, found {environment!r:.80}")
    return lambda: environment(**arguments)


def _maker(config: RunConfig) -> Callable[[], Environment]:
    return _made_by(config.environment.name, config.environment.args)


def _name_of(environment: World) -> str:
    if isinstance(environment, str):
        return environment
    if not callable(environment):
        raise UserError(f"wanted the name of an environment, or a callable that makes one, found {environment!r:.80}")
    named = environment if inspect.isclass(environment) or inspect.isfunction(environment) else type(environment)
    return f"{named.__module__}:{named.__qualname__}"


def _kept_in(out: str | Path | None, config: RunConfig) -> Path | None:
    """The file `out`, with its settings written beside it. Raises `RunConflict` where it was made with others."""
    if out is None:
        return None
    path, beside = Path(out), Path(f"{out}.yaml")
    if not beside.is_file():
        if path.exists():
            raise RunConflict(f"{path} is there already, without {beside.name} that holds its settings; give another out")
        beside.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(beside, dump(config))
    elif differing := differing_fields(parse(beside.read_text(encoding="utf-8"), str(beside), whole=True), config):
        raise RunConflict(f"{path} was made with other settings ({'; '.join(differing)}); give another out")
    return path
