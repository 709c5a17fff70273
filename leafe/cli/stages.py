"""The commands that need a model: a whole run, each of its stages, and the diagnosis of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from leafe.cli.console import console, emit, only_json
from leafe.cli.results import show, show_faults
from leafe.compose import bench_of
from leafe.config import load_recipe, of_model, recipe_names
from leafe.errors import UnknownName, UserError
from leafe.experiment import Experiment
from leafe.lab import measure_base, run_recipe, run_verb
from leafe.methods.diagnose import diagnose as diagnose_model
from leafe.progress import Progress, Silent
from leafe.records import encode
from leafe.results import alarms_of
from leafe.run import RunDirectory, next_free
from leafe.settings import RunConfig
from leafe.terminal import Bars, diagnosis_table
from leafe.trackers import Trackers

disable_progress_bar()  # ours stand alone


def run(recipe: str, overrides: Sequence[str], out: Path | None) -> None:
    """Everything that a recipe names."""
    experiment, directory = _started(recipe, overrides, out, trains=True)

    def work() -> None:
        if not directory.done:
            run_recipe(experiment, directory)
            directory.finish()

    with directory:
        _shown(directory, work, experiment)


def explore(where: str, overrides: Sequence[str], out: Path | None) -> None:
    """The method's first forests."""
    experiment, directory = _opened(where, overrides, out)
    with directory:
        _shown(directory, lambda: run_verb(experiment, directory, "explore"), experiment)


def distill(path: Path) -> None:
    """The training examples of the first forests."""
    _stage(path, "distill")


def train(path: Path) -> None:
    """Every arm of the run's recipe."""
    _stage(path, "train")


def evaluate(where: str, overrides: Sequence[str], out: Path | None) -> None:
    """Base and arms of a run on the held-out tasks, or the base of a recipe."""
    experiment, directory = _opened(where, overrides, out)

    def work() -> None:
        if directory.path == Path(where):
            run_verb(experiment, directory, "evaluate")
        else:
            measure_base(experiment, directory)

    with directory:
        _shown(directory, work, experiment)


def evaluate_model(model: str, env: str, overrides: Sequence[str], out: Path | None, *, tasks: int, samples: int) -> None:
    """A model on the held-out tasks of an environment, as a run of its own that holds the base alone."""
    config = of_model(model, env, overrides, tasks_train=1, tasks_test=tasks, evaluate_samples=samples)
    experiment, directory = _begun(config, out)
    with directory:
        _shown(directory, lambda: measure_base(experiment, directory), experiment)


def without_env(given: Mapping[str, object]) -> None:
    """Refuses options that go with --env alone. Raises `UserError`."""
    if named := next((name for name, value in given.items() if value is not None), None):
        raise UserError(f"{named} goes with --env; a run or a recipe says it by its settings, as tasks.test and evaluate.samples")


def diagnose(recipe: str, overrides: Sequence[str], *, turns: int, as_json: bool, env: str | None, tasks: int) -> None:
    """Whether LEAFE can help with a recipe's model and environment, or with a model in an environment."""
    config = of_model(recipe, env, overrides, tasks_train=tasks, tasks_test=1) if env else load_recipe(recipe, overrides)
    progress: Progress = Silent() if as_json else Bars(console)
    experiment = bench_of(config, progress)
    with only_json(as_json):
        experiment.check()
        try:
            found = diagnose_model(experiment, points=turns)
        finally:
            experiment.free()
    if as_json:
        emit(encode(found))
        return
    console.print(diagnosis_table(found))
    named = [("tree", found.tree_faults), ("independent", found.independent_faults)]
    show_faults(named, alarms_of(named, config))


def _shown(directory: RunDirectory, work: Callable[[], None], experiment: Experiment) -> None:
    """Works on a run, ends what it started and shows its tables, even where its end is a `UserError`: what there is explains it."""
    tracker = experiment.tracker
    try:
        try:
            if isinstance(tracker, Trackers) and not directory.done:
                tracker.open(directory.path)
            work()
        finally:
            experiment.free()
            if isinstance(tracker, Trackers):
                tracker.close()
    except UserError:
        if directory.stages:
            show(directory, ends=False)
        raise
    show(directory)


def _stage(path: Path, verb: str) -> None:
    """The stages that a command means on a run directory, then the tables."""
    with RunDirectory.existing(path) as directory:
        experiment = bench_of(directory.config, Bars(console))
        _shown(directory, lambda: run_verb(experiment, directory, verb), experiment)


def _opened(where: str, overrides: Sequence[str], out: Path | None) -> tuple[Experiment, RunDirectory]:
    """The run that an argument means, with its bench: a run directory, or a recipe, with which one is started in `out`."""
    names_recipe = where in recipe_names() or where.endswith((".yaml", ".yml"))
    told_how = bool(overrides or out)
    if names_recipe and (told_how or not (Path(where) / "config.yaml").is_file()):
        return _started(where, overrides, out)
    if not Path(where).exists():
        raise UnknownName("run directory or recipe", where, recipe_names())
    if told_how:
        raise UserError(f"{where} is no recipe, and a run keeps the settings that it was started with; leave out all but {where}")
    directory = RunDirectory.existing(Path(where))
    return bench_of(directory.config, Bars(console)), directory


def _started(recipe: str, overrides: Sequence[str], out: Path | None, *, trains: bool = False) -> tuple[Experiment, RunDirectory]:
    """A run in `out`, new or as it was left; refused before anything is made, and after a step of training where a new one `trains`."""
    return _begun(load_recipe(recipe, overrides), out, trains=trains)


def _begun(config: RunConfig, out: Path | None, *, trains: bool = False) -> tuple[Experiment, RunDirectory]:
    experiment = bench_of(config, Bars(console))
    trains = trains and experiment.trains
    experiment.check(trains=trains, tries=trains and not (out and (out / "stages.json").is_file()))
    directory = RunDirectory.open(out or next_free(Path("runs"), config.name), config)
    if not directory.done:
        console.print(f"{config.name} in {directory.path}", highlight=False, soft_wrap=True)
    return experiment, directory
