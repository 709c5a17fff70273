"""The command line inside this process. It loads no library for models: processes of worlds import it with their test file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from leafe.cli import main

WORLD = ("environment.name=lookup", "environment.args={places: 3, horizon: 2}")
QUICK = ("engine.threads=1", "sampling.act.max_tokens=6", "sampling.reflect.max_tokens=12")


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str


@contextmanager
def _typed(arguments: tuple[str, ...], stdin: str) -> Iterator[None]:
    before = sys.argv, sys.stdin
    sys.argv, sys.stdin = ["leafe", *arguments], StringIO(stdin)
    try:
        yield
    finally:
        sys.argv, sys.stdin = before


def leafe(*arguments: str | Path, stdin: str = "") -> Said:
    """Runs `leafe ARGUMENTS` as the entry point does."""
    out, err, status = StringIO(), StringIO(), 0
    with _typed(tuple(map(str, arguments)), stdin), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
    return Said(status, out.getvalue(), err.getvalue())
