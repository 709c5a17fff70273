"""The commands that need a model: a whole run, each of its stages, and the diagnosis of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from leafe.bench import Bench
from leafe.cli.console import console, emit, only_json
from leafe.cli.results import show, show_faults
from leafe.compose import bench_of
from leafe.config import load_recipe, recipe_names
from leafe.errors import UnknownName, UserError
from leafe.lab import measure_base, run_recipe, run_verb
from leafe.methods.diagnose import diagnose as diagnose_model
from leafe.progress import Progress, Silent
from leafe.records import encode
from leafe.results import alarms_of
from leafe.run import RunDirectory, next_free
from leafe.terminal import Bars, diagnosis_table

disable_progress_bar()  # ours stand alone


def run(recipe: str, overrides: Sequence[str], out: Path | None) -> None:
    """Everything that a recipe names."""
    bench, directory = _started(recipe, overrides, out, trains=True)

    def work() -> None:
        if not directory.done:
            run_recipe(bench, directory)
            directory.finish()

    with directory:
        _shown(directory, work, bench.free)


def explore(where: str, overrides: Sequence[str], out: Path | None) -> None:
    """The method's first forests."""
    bench, directory = _opened(where, overrides, out)
    with directory:
        _shown(directory, lambda: run_verb(bench, directory, "explore"), bench.free)


def distill(path: Path) -> None:
    """The training examples of the first forests."""
    _stage(path, "distill")


def train(path: Path) -> None:
    """Every arm of the run's recipe."""
    _stage(path, "train")


def evaluate(where: str, overrides: Sequence[str], out: Path | None) -> None:
    """Base and arms of a run on the held-out tasks, or the base of a recipe."""
    bench, directory = _opened(where, overrides, out)

    def work() -> None:
        if directory.path == Path(where):
            run_verb(bench, directory, "evaluate")
        else:
            measure_base(bench, directory)

    with directory:
        _shown(directory, work, bench.free)


def diagnose(recipe: str, overrides: Sequence[str], *, turns: int, as_json: bool) -> None:
    """Whether LEAFE can help with a recipe's model and environment."""
    config = load_recipe(recipe, overrides)
    progress: Progress = Silent() if as_json else Bars(console)
    bench = bench_of(config, progress)
    with only_json(as_json):
        bench.check()
        try:
            found = diagnose_model(bench, points=turns)
        finally:
            bench.free()
    if as_json:
        emit(encode(found))
        return
    console.print(diagnosis_table(found))
    named = [("tree", found.tree_faults), ("independent", found.independent_faults)]
    show_faults(named, alarms_of(named, config))


def _shown(directory: RunDirectory, work: Callable[[], None], free: Callable[[], None]) -> None:
    """Works on a run, ends what it started and shows its tables, even where its end is a `UserError`: what there is explains it."""
    try:
        try:
            work()
        finally:
            free()
    except UserError:
        if directory.stages:
            show(directory, ends=False)
        raise
    show(directory)


def _stage(path: Path, verb: str) -> None:
    """The stages that a command means on a run directory, then the tables."""
    with RunDirectory.existing(path) as directory:
        bench = bench_of(directory.config, Bars(console))
        _shown(directory, lambda: run_verb(bench, directory, verb), bench.free)


def _opened(where: str, overrides: Sequence[str], out: Path | None) -> tuple[Bench, RunDirectory]:
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


def _started(recipe: str, overrides: Sequence[str], out: Path | None, *, trains: bool = False) -> tuple[Bench, RunDirectory]:
    """A run in `out`, new or as it was left; refused before anything is made, and after a step of training where a new one `trains`."""
    config = load_recipe(recipe, overrides)
    bench = bench_of(config, Bars(console))
    trains = trains and bench.trains
    bench.check(trains=trains, tries=trains and not (out and (out / "stages.json").is_file()))
    directory = RunDirectory.open(out or next_free(Path("runs"), config.name), config)
    if not directory.done:
        console.print(f"{config.name} in {directory.path}", highlight=False, soft_wrap=True)
    return bench, directory
