"""The command line: one verb a stage, and the only place that prints.

Bad input is one sentence on standard error and exit status 2. A failed engine is one sentence and status 1; what was done is
kept, and the same command goes on from there.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from transformers.utils.logging import disable_progress_bar

from leafe.address import hidden
from leafe.bench import Bench
from leafe.cli_envs import Arguments, AsJson, values
from leafe.cli_envs import app as envs_app
from leafe.compose import bench_of
from leafe.config import load_recipe, recipe_names
from leafe.distill.store import HINTS, export, read_examples
from leafe.doctor import examine, sandbox_finding
from leafe.envs.sandbox.probe import objection
from leafe.errors import LeafeError, RunConflict, UnknownName, UserError
from leafe.evaluate.compare import compare as compare_arms
from leafe.evaluate.outcomes import ArmOutcomes, of_run
from leafe.evaluate.passk import Resampling
from leafe.forest.faults import Faults
from leafe.methods import leafe as method
from leafe.methods.diagnose import diagnose as diagnose_model
from leafe.nano import CHECKPOINTS
from leafe.nano.build import Plan, Shape, build
from leafe.nano.worlds import SHIPPED, world
from leafe.progress import Progress, Silent
from leafe.records import encode
from leafe.run import RunDirectory, next_free
from leafe.settings import EvaluateSettings
from leafe.terminal import (
    Bars,
    alarm,
    diagnosis_table,
    emit,
    exploration_table,
    faults_table,
    findings_table,
    only_json,
    pass_table,
)
from leafe.train.checkpoint import locate
from leafe.viewer.report import (
    alarms_of,
    arms_of,
    comparison_of,
    ends_of,
    exploration_of,
    faults_named,
    flags_of,
    notice_of,
    rows_of,
    write_report,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train agents to recover from their own mistakes.",
)
nano_app = typer.Typer(no_args_is_help=True, help="The bundled model.")
app.add_typer(nano_app, name="nano")
app.registered_commands += envs_app.registered_commands
console = Console()
INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt

RunPath = Annotated[Path, typer.Argument(help="a run directory", show_default=False)]
RunOrRecipe = Annotated[str, typer.Argument(help="a run directory; or a recipe's name or YAML file", show_default=False)]
Recipe = Annotated[str, typer.Argument(help="a shipped recipe's name or a YAML file", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="settings as a.b=value", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="the run directory; a free one below runs/ unless said")]


def _show(run: RunDirectory, *, ends: bool = True) -> None:
    """The tables of a run, what makes them mean little, and the path of its page. `ends`: and why there was nothing to train on."""
    rows, arms = rows_of(exploration_of(run)), arms_of(run)
    if rows:
        console.print(exploration_table(rows))
        if notice := notice_of(run):
            console.print(escape(notice), highlight=False)
    if arms:
        console.print(pass_table(comparison_of(run)))
    named = faults_named(rows, arms)
    _show_faults(named, (*flags_of(run), *alarms_of(named, run.config), *(ends_of(run) if ends else ())))
    console.print(f"The page: {write_report(run)}", soft_wrap=True, highlight=False)


def _show_faults(named: Sequence[tuple[str, Faults]], sentences: Sequence[str]) -> None:
    if named:
        console.print(faults_table(named))
    for sentence in sentences:
        console.print(alarm(sentence), highlight=False)


def _shown(run: RunDirectory, work: Callable[[], None]) -> None:
    """Works on a run and shows its tables, even where its end is a `UserError`: what there is explains it."""
    try:
        work()
    except UserError:
        if run.stages:
            _show(run, ends=False)
        raise
    _show(run)


def _opened(where: str, overrides: list[str] | None, out: Path | None) -> tuple[Bench, RunDirectory]:
    """The run that an argument means, with its bench: a run directory, or a recipe, with which one is started in `out`."""
    names_recipe = where in recipe_names() or where.endswith((".yaml", ".yml"))
    told_how = bool(overrides or out)
    if names_recipe and (told_how or not (Path(where) / "config.yaml").is_file()):
        return _started(where, overrides, out)
    if not Path(where).exists():
        raise UnknownName("run directory or recipe", where, recipe_names())
    if told_how:
        raise UserError(f"{where} is no recipe, and a run keeps the settings that it was started with; leave out all but {where}")
    run = RunDirectory.existing(Path(where))
    return bench_of(run.config, Bars(console)), run


def _started(recipe: str, overrides: list[str] | None, out: Path | None, *, trains: bool = False) -> tuple[Bench, RunDirectory]:
    """A run in `out`, new or as it was left; refused before anything is made, and after a step of training where a new one `trains`."""
    config = load_recipe(recipe, overrides or [])
    bench = bench_of(config, Bars(console))
    trains = trains and bool(config.arms)
    bench.check(trains=trains)
    if trains and config.arms and not (out and (out / "stages.json").is_file()):
        bench.try_training()
    run = RunDirectory.open(out or next_free(Path("runs"), config.name), config)
    if not run.done:
        console.print(f"{config.name} in {run.path}", highlight=False, soft_wrap=True)
    return bench, run


def _stage(path: Path, work: Callable[[Bench, RunDirectory], None]) -> None:
    """One stage on a run directory, then the tables."""
    with RunDirectory.existing(path) as run:
        _shown(run, lambda: work(bench_of(run.config, Bars(console)), run))


@app.command()
def run(recipe: Recipe, overrides: Overrides = None, *, out: Out = None) -> None:
    """Does everything that a recipe names: explore, distil, train, measure, report. Killed, it goes on with the same --out."""
    bench, directory = _started(recipe, overrides, out, trains=True)

    def work() -> None:
        if not directory.done:
            method.run_recipe(bench, directory)
            directory.finish()

    with directory:
        _shown(directory, work)


@app.command()
def explore(where: RunOrRecipe, overrides: Overrides = None, *, out: Out = None) -> None:
    """Stage 1: the first round and the controls; those that are finished are left alone. With a recipe, a run is started in --out."""
    bench, directory = _opened(where, overrides, out)
    with directory:
        _shown(directory, lambda: method.explore(bench, directory))


@app.command()
def distill(path: RunPath) -> None:
    """Draws the training examples out of the first round's forest."""
    _stage(path, lambda bench, run: method.distil_round(bench, run, 1))


@app.command()
def train(path: RunPath) -> None:
    """Trains on the distilled examples, further rounds and comparison arms included."""
    _stage(path, method.train)


@app.command()
def evaluate(where: RunOrRecipe, overrides: Overrides = None, *, out: Out = None) -> None:
    """Measures base and trained arms on the held-out tasks. With a recipe, a run is started in --out and the base alone is measured."""
    bench, directory = _opened(where, overrides, out)
    arms = ("base", *bench.config.arms) if directory.path == Path(where) else ("base",)

    def work() -> None:
        for arm in arms:
            method.measure(bench, directory, arm)

    with directory:
        _shown(directory, work)


@app.command()
def report(path: RunPath) -> None:
    """Writes the page of a run anew, from what is there."""
    with RunDirectory.existing(path) as directory:
        _show(directory)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="run directories", show_default=False)],
    *,
    as_json: AsJson = False,
    k: Annotated[int | None, typer.Option(help="one more k")] = None,
    base: Annotated[str, typer.Option(help="the arm that the others are compared with, as rehearsal or RUN:leafe")] = "base",
) -> None:
    """Pass@k of the arms of one run or several, side by side, minus their run's base or another arm. Intervals are as in the first run."""
    arms: list[ArmOutcomes] = []
    settings: list[EvaluateSettings] = []
    sentences: list[str] = []
    for path in runs:
        with RunDirectory.existing(path, read_only=True) as directory:
            settings.append(directory.config.evaluate)
            found = arms_of(directory)
            if not found:
                raise UserError(f"{path} has measured nothing yet; type: leafe evaluate {path}")
            named = found if len(runs) == 1 else of_run(path.resolve().name, found)
            arms += named
            sentences += alarms_of(faults_named([], named), directory.config)
    shared = min(settings, key=lambda one: one.samples).ks
    ks = () if k is None else tuple(sorted({*shared, k}))
    comparison = compare_arms(arms, base=base, ks=ks, how=Resampling(settings[0].resamples, settings[0].confidence))
    if as_json:
        emit(comparison.as_json())
    else:
        console.print(pass_table(comparison))
        _show_faults([(arm.name, arm.faults) for arm in comparison.arms], sentences)


@app.command()
def diagnose(
    recipe: Recipe,
    overrides: Overrides = None,
    *,
    as_json: AsJson = False,
    turns: Annotated[int, typer.Option(min=1)] = 400,
) -> None:
    """Whether LEAFE can help: readable reflections, branches against fresh attempts, the reflection gap. Trains nothing.

    Takes the model, environment, tasks and budget of a recipe; `--turns` is how many branching turns the gap is measured at.
    """
    config = load_recipe(recipe, overrides or [])
    progress: Progress = Silent() if as_json else Bars(console)
    bench = bench_of(config, progress)
    with only_json(as_json):
        bench.check()
        found = diagnose_model(bench, points=turns)
    if as_json:
        emit(encode(found))
    else:
        console.print(diagnosis_table(found))
        named = [("tree", found.tree_faults), ("independent", found.independent_faults)]
        _show_faults(named, alarms_of(named, config))


@app.command("export")
def export_examples(
    path: RunPath,
    kind: Annotated[str, typer.Argument(help="trl, verl or llama-factory")],
    out: Annotated[Path, typer.Argument(help="the file to write")],
) -> None:
    """Writes the first round's examples for another trainer."""
    with RunDirectory.existing(path, read_only=True) as directory:
        source = directory.examples(1)
        if not source.exists():
            raise UserError(f"{path} has no examples yet; type: leafe distill {path}")
        if out.exists():
            raise RunConflict(f"{out} is there already; give another file")
        console.print(f"{export(read_examples(source), kind, out)} examples in {out}; {HINTS[kind]}", highlight=False)


@app.command()
def doctor(*, as_json: AsJson = False) -> None:
    """Says what is installed, what is missing, and the command that mends it."""
    refused = objection()
    contained = sandbox_finding(refused.why, refused.mend) if refused else sandbox_finding(None)
    findings = [*examine(Path("runs")), contained]
    if as_json:
        emit([encode(finding) for finding in findings])
    else:
        console.print(findings_table(findings))
    raise SystemExit(int(any(finding.verdict == "missing" for finding in findings)))


@nano_app.command("build")
def nano_build(
    spec: Annotated[
        str, typer.Argument(help="sokoban, household, or any environment with an expert, by name or module:Class")
    ] = "sokoban",
    arguments: Arguments = None,
    *,
    out: Annotated[Path | None, typer.Option(help="where the checkpoint goes; where the shipped one lies unless said")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="of the optimiser; the world's own number unless said")] = None,
    processes: Annotated[int, typer.Option(min=1, help="one a free core; each adds a batch to every step")] = 2,
    start: Annotated[Path | None, typer.Option(help="a checkpoint to go on from")] = None,
    split: Annotated[str, typer.Option(help="whose tasks are taught, where no checkpoint ships")] = "train",
    seed: int = 0,
) -> None:
    """Trains a small model for a world from nothing, which takes hours; started again after a kill it goes on."""
    args = values(arguments)
    taught = world(spec, args, split=split)
    if out is None and (spec not in SHIPPED or args):
        raise UserError("no checkpoint ships for this world; say where the new one goes with --out DIR")
    plan = Plan(
        steps=steps or taught.steps,
        processes=processes,
        seed=seed,
        shape=Shape(vocabulary=taught.vocabulary),
        start=str(locate(str(start), CHECKPOINTS)) if start else "",
    )
    build(taught.curriculum, out or CHECKPOINTS[SHIPPED[spec].name], plan, partial(print, flush=True))


def main() -> None:
    """Runs the command line; the entry point of the `leafe` command."""
    disable_progress_bar()  # ours stand alone
    # What thousands of episodes leave behind is long-lived and holds no cycles; looking for some took a seventh of a profile of exploring.
    gc.set_threshold(100_000, 20, 20)
    try:
        app()
    except UserError as error:
        print(f"leafe: {hidden(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except LeafeError as error:
        print(f"leafe: {type(error).__name__}: {hidden(str(error))}", file=sys.stderr)
        raise SystemExit(1) from None
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            print("leafe: interrupted; the same command goes on from here", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
