"""The commands about environments: a list of them, a check of what one declares, and a game for a person."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.markup import escape

from leafe.cli.console import console, emit, only_json, values_of
from leafe.controls import visible
from leafe.envs import registry
from leafe.envs.check import check_environment
from leafe.envs.person import person_plays
from leafe.envs.settled import drawn, let_go
from leafe.envs.starter import write_starter
from leafe.records import encode
from leafe.terminal import check_table


@dataclass(frozen=True, slots=True)
class Thoroughness:
    """The effort of a check: rollbacks, and tasks of a split."""

    rollbacks: int
    tasks: int
    split: str


def envs() -> None:
    """The environments that are known by name."""
    for name, line in sorted(registry.known().items()):
        console.print(f"[bold]{escape(name)}[/]  {escape(line)}", highlight=False, soft_wrap=True)


def check_env(spec: str, arguments: Sequence[str], how: Thoroughness, *, as_json: bool) -> bool:
    """Whether an environment's declarations hold."""
    args = values_of(arguments)
    made = partial(registry.make, spec, args)
    with only_json(as_json):
        found = check_environment(
            made, name=spec, rollbacks=how.rollbacks, count=how.tasks, split=how.split, spec=spec, arguments=args
        )
    if as_json:
        emit(encode(found) | {"passed": found.passed})
    else:
        console.print(check_table(found))
    return found.passed


def play(spec: str, arguments: Sequence[str], split: str, number: int) -> None:
    """Lets a person play the task of this number."""
    environment = registry.make(spec, values_of(arguments))
    try:
        task = drawn(environment, split, number, 0)[-1]
        for line in person_plays(environment, task, iter(sys.stdin.readline, "")):
            print(visible(line), flush=True)
    finally:
        let_go(environment)


def new_env(name: str) -> None:
    """Writes a starter environment and its test."""
    world, test, spec = write_starter(name, Path())
    told = f"{world} and {test}; type: leafe check-env {spec}, leafe play {spec}, pytest {test}"
    console.print(escape(told), highlight=False, soft_wrap=True)
