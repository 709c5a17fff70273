"""The command line: one verb a stage. This file declares the commands; the files beside it do the work and are loaded when called.

Nothing is imported here that a command may do without, so that help comes at once and `leafe doctor` works where a library is broken.
Bad input is one sentence on standard error and exit status 2. A failed engine is one sentence and status 1; what was done is
kept, and the same command goes on from there.
"""

from __future__ import annotations

import errno
import gc
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from leafe.address import hidden
from leafe.controls import visible
from leafe.errors import LeafeError, UserError, is_full, unwritable
from leafe.group import launched

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train agents to recover from their own mistakes.",
)
nano_app = typer.Typer(no_args_is_help=True, help="The bundled model.")
app.add_typer(nano_app, name="nano")
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # typer gives the class of all such errors no public name
INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt


def _directory(text: str) -> Path:
    if not text.strip():
        raise typer.BadParameter("wanted a directory, found nothing")
    return Path(text)


RunPath = Annotated[Path, typer.Argument(help="a run directory", show_default=False)]
RunOrRecipe = Annotated[str, typer.Argument(help="a run directory; or a recipe's name or YAML file", show_default=False)]
Recipe = Annotated[str, typer.Argument(help="a shipped recipe's name or a YAML file", show_default=False)]
RunRecipeOrModel = Annotated[
    str, typer.Argument(help="a run directory; a recipe's name or YAML file; with --env a model", show_default=False)
]
RecipeOrModel = Annotated[str, typer.Argument(help="a recipe's name or YAML file; with --env a model", show_default=False)]
Env = Annotated[str | None, typer.Option("--env", help="an environment's name or module:Class, whose arguments are name=value")]
Overrides = Annotated[list[str] | None, typer.Argument(help="settings as a.b=value", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="the run directory; by default a free one below runs/", parser=_directory)]
Spec = Annotated[str, typer.Argument(help="a name or module:Class", show_default=False)]
Arguments = Annotated[list[str] | None, typer.Argument(help="the environment's arguments as name=value", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable output")]


@app.command()
def run(recipe: Recipe, overrides: Overrides = None, *, out: Out = None) -> None:
    """Does everything that a recipe names: explore, distil, train, measure, report. A killed run goes on with the same --out."""
    from leafe.cli import wanted

    config = wanted.recipe(recipe, overrides or [], out)
    from leafe.cli import stages

    stages.run(config, out)


@app.command()
def explore(where: RunOrRecipe, overrides: Overrides = None, *, out: Out = None) -> None:
    """Stage 1: the first round and the controls, or another method's first exploration. With a recipe, a run is started in --out.

    Finished forests are left alone.
    """
    from leafe.cli import wanted

    found = wanted.run_or_recipe(where, overrides or [], out)
    from leafe.cli import stages

    stages.explore(found, out)


@app.command()
def distill(path: RunPath) -> None:
    """Makes the training examples from the first round's forest."""
    from leafe.cli import wanted

    wanted.run(path)
    from leafe.cli import stages

    stages.stage(path, "distill")


@app.command()
def train(path: RunPath) -> None:
    """Trains on the distilled examples, further rounds and comparison arms included."""
    from leafe.cli import wanted

    wanted.run(path)
    from leafe.cli import stages

    stages.stage(path, "train")


@app.command()
def evaluate(
    where: RunRecipeOrModel,
    overrides: Overrides = None,
    *,
    out: Out = None,
    env: Env = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="held-out tasks, with --env; by default 64")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="attempts a task, with --env; by default 16")] = None,
) -> None:
    """Measures base and trained arms on the held-out tasks. With a recipe, a run is started in --out and the base alone is measured.

    With --env it measures any model there: leafe evaluate MODEL --env sokoban levels=FILE --samples 64. An instruction-tuned one
    needs prompts=full. `leafe compare` puts such runs beside others.
    """
    from leafe.cli import wanted

    if env is None:
        wanted.without_env({"--tasks": tasks, "--samples": samples})
        found = wanted.run_or_recipe(where, overrides or [], out)
    else:
        counts = {"tasks_test": tasks or 64, "evaluate_samples": samples or 16}
        found = wanted.model(where, env, overrides or [], out, part="test", tasks_train=1, **counts)
    from leafe.cli import stages

    stages.evaluate(found, out)


@app.command()
def diagnose(
    recipe: RecipeOrModel,
    overrides: Overrides = None,
    *,
    as_json: AsJson = False,
    turns: Annotated[int, typer.Option(min=1)] = 400,
    env: Env = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="training tasks, with --env; by default 20")] = None,
) -> None:
    """Whether LEAFE can help: readable reflections, branches against fresh attempts, the reflection gap. Trains nothing.

    Takes the model, environment, tasks and budget of a recipe, or any model with --env; `--turns` is the number of branching turns at
    which the gap is measured.
    """
    from leafe.cli import wanted
    from leafe.cli.console import only_json

    with only_json(as_json):  # an environment's module may print when it is imported
        if env is None:
            wanted.without_env({"--tasks": tasks})
            config = wanted.recipe(recipe, overrides or [])
        else:
            config = wanted.model(recipe, env, overrides or [], part="train", tasks_train=tasks or 20, tasks_test=1)
    from leafe.cli import stages

    stages.diagnose(config, turns=turns, as_json=as_json)


@app.command()
def report(path: RunPath, *, as_json: AsJson = False) -> None:
    """Writes a run's page anew from its files; with --json its figures are printed as well."""
    from leafe.cli import results

    results.report(path, as_json=as_json)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="run directories", show_default=False)],
    *,
    as_json: AsJson = False,
    k: Annotated[int | None, typer.Option(help="one more k")] = None,
    base: Annotated[
        str | None, typer.Option(help="the arm that the others are compared with, as rehearsal or RUN:leafe; by default `base`")
    ] = None,
) -> None:
    """Pass@k of the arms of one run or several, side by side, minus their run's base or another arm. Intervals are as in the first run."""
    from leafe.cli import results

    results.compare(runs, k=k, base=base, as_json=as_json)


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(help="a table's name, as table1, or a YAML file", show_default=False)],
    overrides: Overrides = None,
    *,
    model: Annotated[str, typer.Option(help="nano, a folder or a Hub name; several as A,B")] = "nano",
    env: Annotated[
        str | None, typer.Option("--env", help="an environment with a recipe for that model; by default the table's, or sokoban")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="a recipe's name or YAML file, in place of the model's and the environment's")
    ] = None,
    seeds: Annotated[str, typer.Option(help="as 1,2,3")] = "1,2,3",
    rows: Annotated[str | None, typer.Option(help="only these rows and those that they start from, as base,leafe")] = None,
    out: Annotated[Path | None, typer.Option(help="the table's directory; by default one below runs/", parser=_directory)] = None,
    jobs: Annotated[int, typer.Option(min=1, help="rows at a time, each with its share of the GPUs, cores and memory")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="prints what it would take and runs nothing")] = False,
    as_json: AsJson = False,
) -> None:
    """Makes a table of methods side by side at one budget of turns, beside the paper's figures. After a kill the same command goes on.

    table1, stage1, ablation, second-stage and others ship; docs/reproduce.md has them and how to write one.
    """
    from leafe.cli import wanted

    wanted.table(table, recipe, overrides or [])
    from leafe.cli import tables

    typed = tables.Typed(model, env, recipe, seeds, rows)
    tables.reproduce(table, tables.asked_of(typed, out, overrides or []), jobs=jobs, dry=dry_run, json_only=as_json)


@app.command("export")
def export_examples(
    path: RunPath,
    kind: Annotated[str, typer.Argument(help="trl, verl or llama-factory")],
    out: Annotated[Path, typer.Argument(help="the file to write")],
) -> None:
    """Writes the first round's examples for another trainer."""
    from leafe.cli import results

    results.export(path, kind, out)


@app.command()
def envs() -> None:
    """Lists the environments that are known by name."""
    from leafe.cli import environments

    environments.envs()


@app.command()
def methods(
    name: Annotated[
        str | None, typer.Argument(help="a method's name or module:Class, to see its settings", show_default=False)
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Lists the methods that a recipe may choose with method=NAME, and where each comes from; of one, its settings."""
    from leafe.cli import method_list

    method_list.methods(name, as_json=as_json)


@app.command("check-env")
def check_env(
    spec: Spec,
    arguments: Arguments = None,
    *,
    as_json: AsJson = False,
    rollbacks: Annotated[int, typer.Option(min=1)] = 200,
    tasks: Annotated[int, typer.Option(min=1, help="each is played up to three times")] = 8,
    split: str = "train",
) -> None:
    """Proves what an environment declares; exit status 1 when it does not hold."""
    from leafe.cli import environments

    passed = environments.check_env(spec, arguments or [], environments.Thoroughness(rollbacks, tasks, split), as_json=as_json)
    raise SystemExit(0 if passed else 1)


@app.command()
def play(
    spec: Spec,
    arguments: Arguments = None,
    *,
    split: str = "train",
    number: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """A person plays. `back N` rolls back to turn N, an empty line or end of input leaves."""
    from leafe.cli import environments

    environments.play(spec, arguments or [], split, number)


@app.command("new-env")
def new_env(name: Annotated[str, typer.Argument(help="a module's name, as my_maze", show_default=False)]) -> None:
    """Writes the twenty lines of an environment of your own, NAME.py, and their test, test_NAME.py, to change as you like."""
    from leafe.cli import environments

    environments.new_env(name)


@app.command()
def doctor(*, as_json: AsJson = False) -> None:
    """Prints what is installed, what is missing, and the command that fixes it."""
    from leafe.cli import health

    raise SystemExit(health.doctor(as_json=as_json))


@nano_app.command("build")
def nano_build(
    spec: Annotated[
        str, typer.Argument(help="sokoban, household, or any environment with an expert, by name or module:Class")
    ] = "sokoban",
    arguments: Arguments = None,
    *,
    out: Annotated[Path | None, typer.Option(help="the checkpoint's directory; by default the shipped one's")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="optimiser steps; by default the world's own number")] = None,
    processes: Annotated[int, typer.Option(min=1, help="one a free core; each adds a batch to every step")] = 2,
    start: Annotated[Path | None, typer.Option(help="a checkpoint to start from")] = None,
    size: Annotated[str, typer.Option(help="small, medium or large; the shipped ones are medium")] = "medium",
    split: Annotated[str, typer.Option(help="the split whose tasks are taught, where no checkpoint ships")] = "train",
    seed: int = 0,
) -> None:
    """Trains a small model for a world from nothing, which takes hours; a killed build goes on when it is started again."""
    from leafe.cli import nano

    taught = nano.Taught(spec, tuple(arguments or ()), split)
    nano.build_nano(taught, out, start, nano.Effort(steps, processes, seed, size))


def main() -> None:
    """Runs the command line; the entry point of the `leafe` command."""
    # The records of thousands of episodes are long-lived and hold no cycles; searching for cycles took a seventh of a profile of exploring.
    gc.set_threshold(100_000, 20, 20)
    try:
        raise SystemExit(_together() if launched() else app(standalone_mode=False))
    except USAGE_ERROR as error:
        _typed_wrongly(error)
    except typer.Abort:
        raise SystemExit(1) from None
    except UserError as error:
        print(f"leafe: {visible(hidden(str(error)))}", file=sys.stderr)
        raise SystemExit(2) from None
    except LeafeError as error:
        print(f"leafe: {type(error).__name__}: {visible(hidden(str(error)))}", file=sys.stderr)
        raise SystemExit(1) from None
    except ImportError as error:
        _broken(error)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG and not is_full(error):
            raise
        print(f"leafe: {unwritable(str(error.filename or 'a file')[:200], error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            print("leafe: interrupted; the same command goes on from here", file=sys.stderr)
        raise


def _typed_wrongly(error: Any) -> None:
    """Reports a wrong option or argument and exits; an error without a message has shown the help already."""
    command = getattr(error.ctx, "command_path", "leafe")
    words = (
        " ".join(error.format_message().split()).rstrip(".").replace("Input should be greater than or equal to", "wanted at least")
    )
    if words:
        print(f"leafe: {words[:1].lower()}{words[1:]}{'' if words.endswith('?') else ';'} type: {command} --help", file=sys.stderr)
    raise SystemExit(2) from None


def _together() -> Any:
    """One process of several that a launcher started: the first runs the typed command, the others help it to train."""
    from leafe.training import follow, sft

    if follow.is_first():
        with follow.Leader():
            return app(standalone_mode=False)
    return follow.follow(sft.help_training)


def _broken(error: ImportError) -> None:
    """Reports a library that cannot be imported, perhaps one that typer needs to read the command line; the doctor needs none."""
    if sys.argv[1:2] == ["doctor"]:
        from leafe.cli import health

        raise SystemExit(health.doctor(as_json="--json" in sys.argv)) from None
    print(f"leafe: a library cannot be imported: {error}; type: leafe doctor", file=sys.stderr)
    raise SystemExit(1) from None
