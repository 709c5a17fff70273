"""The commands that need a model: a whole run, each of its stages, and the diagnosis of a recipe. `wanted.py` reads their arguments."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from rich.markup import escape
from transformers.utils.logging import disable_progress_bar

from leafe.cli.console import console, emit, only_json
from leafe.cli.results import show, show_faults
from leafe.compose import bench_of
from leafe.errors import UserError
from leafe.experiment import Experiment
from leafe.folders import next_free
from leafe.lab import check_method, measure_base, run_recipe, run_verb
from leafe.methods.diagnose import diagnose as diagnose_model
from leafe.progress import Progress, Silent
from leafe.records import encode
from leafe.results import alarms_of
from leafe.run import RunDirectory
from leafe.settings import RunConfig
from leafe.terminal import Bars, diagnosis_table
from leafe.trackers import opened

disable_progress_bar()  # only our own bars are shown


def run(config: RunConfig, out: Path | None) -> None:
    """Everything that a recipe names."""
    experiment, directory = _begun(config, out, verb="run")

    def work() -> None:
        if not directory.done:
            run_recipe(experiment, directory)
            directory.finish()

    with directory:
        _shown(directory, work, experiment)


def explore(where: Path | RunConfig, out: Path | None) -> None:
    """The first forests of a run, or of a recipe's."""
    if isinstance(where, Path):
        stage(where, "explore")
        return
    experiment, directory = _begun(where, out, verb="explore")
    with directory:
        _shown(directory, lambda: run_verb(experiment, directory, "explore"), experiment)


def evaluate(where: Path | RunConfig, out: Path | None) -> None:
    """Base and arms of a run on the held-out tasks, or the base of a recipe, as a run of its own that holds the base alone."""
    if isinstance(where, Path):
        stage(where, "evaluate")
        return
    experiment, directory = _begun(where, out)
    with directory:
        _shown(directory, lambda: measure_base(experiment, directory), experiment)


def stage(path: Path, verb: str) -> None:
    """The stages that a command stands for on a run directory, then the tables."""
    with RunDirectory.existing(path) as directory:
        experiment = bench_of(directory.config, Bars(console))
        _shown(directory, lambda: run_verb(experiment, directory, verb), experiment)


def diagnose(config: RunConfig, *, turns: int, as_json: bool) -> None:
    """Whether LEAFE can help with a model in an environment."""
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
    """Works on a run, ends what it started and shows its tables, even after a `UserError`, which they help to explain."""
    try:
        try:
            with nullcontext() if directory.done else opened(experiment.tracker, directory.path):
                work()
        finally:
            experiment.free()
    except UserError:
        if directory.stages:
            show(directory, ends=False)
        raise
    show(directory)


def _begun(config: RunConfig, out: Path | None, *, verb: str = "") -> tuple[Experiment, RunDirectory]:
    """A run in `out`, new or as it was left; refused before anything is made, and after a step of training where `leafe run` trains.

    `verb` is the command that is to do stages of the method.
    """
    experiment = bench_of(config, Bars(console))
    if verb:
        check_method(experiment, out or Path("runs") / config.name, verb)
    trains = verb == "run" and experiment.trains
    tries = trains and not (out and (out / "stages.json").is_file())
    experiment.check(trains=trains, tries=tries, scored=bool(verb))
    directory = RunDirectory.open(out or next_free(Path("runs"), config.name), config)
    if not directory.done:
        console.print(escape(f"{config.name} in {directory.path}"), highlight=False, soft_wrap=True)
    return experiment, directory
