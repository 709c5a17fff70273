"""The verbs about environments: list, check, play, begin one of one's own. `cli` puts them beside the others."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from leafe.envs import registry
from leafe.envs.check import check_environment
from leafe.envs.person import person_plays
from leafe.envs.settled import drawn
from leafe.envs.starter import write_starter
from leafe.errors import UserError
from leafe.records import encode
from leafe.terminal import check_table, emit, only_json

app = typer.Typer()
console = Console()

Spec = Annotated[str, typer.Argument(help="a name or module:Class")]
Arguments = Annotated[list[str] | None, typer.Argument(help="the environment's arguments as name=value", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable output")]


def values(texts: list[str] | None) -> dict[str, Any]:
    """`name=value` texts, each value read as YAML."""
    read = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"wanted name=value, as boxes=2, found {text!r}")
        try:
            read[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"cannot read the value in {text!r}; quote it") from None
    return read


@app.command()
def envs() -> None:
    """Lists the environments that are known by name."""
    for name, line in sorted(registry.known().items()):
        console.print(f"[bold]{name}[/]  {line}", highlight=False, soft_wrap=True)


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
    args = values(arguments)
    made = partial(registry.make, spec, args)
    with only_json(as_json):
        result = check_environment(made, name=spec, rollbacks=rollbacks, count=tasks, split=split, spec=spec, arguments=args)
    if as_json:
        emit(encode(result) | {"passed": result.passed})
    else:
        console.print(check_table(result))
    raise SystemExit(0 if result.passed else 1)


@app.command()
def play(
    spec: Spec,
    arguments: Arguments = None,
    *,
    split: str = "train",
    number: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """A person plays. `back N` rolls back to turn N, an empty line or end of input leaves."""
    environment = registry.make(spec, values(arguments))
    task = drawn(environment, split, number, 0)[-1]
    for line in person_plays(environment, task, iter(sys.stdin.readline, "")):
        typer.echo(line)


@app.command("new-env")
def new_env(name: Annotated[str, typer.Argument(help="a module's name, as my_maze", show_default=False)]) -> None:
    """Writes the twenty lines of an environment of your own, NAME.py, and their test, test_NAME.py, to change as you like."""
    world, test, spec = write_starter(name, Path())
    console.print(
        f"{world} and {test}; type: leafe check-env {spec}, leafe play {spec}, pytest {test}", highlight=False, soft_wrap=True
    )
