"""The commands' console, a standard output that holds JSON alone, and typed values."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

from rich.console import Console

from leafe.yaml_text import read_values

console = Console()


def emit(value: Any) -> None:
    """Prints a value as JSON."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


@contextmanager
def only_json(asked: bool) -> Iterator[None]:
    """Keeps standard output free of what worlds, libraries and child processes write meanwhile; it goes to standard error."""
    if not asked:
        yield
        return
    real = sys.stdout is sys.__stdout__ and sys.stdout is not None
    sys.stdout.flush()
    kept = os.dup(1) if real else -1
    if real:
        os.dup2(2, 1)
    # A file of its own, which a world may close without harm.
    with open(os.dup(2), "w") if real else nullcontext(sys.stderr) as other, redirect_stdout(other):
        try:
            yield
        finally:
            if real:
                os.dup2(kept, 1)
                os.close(kept)


def values_of(texts: Sequence[str]) -> dict[str, Any]:
    """`name=value` texts, each value read as YAML. Raises `UserError` for any other text."""
    return read_values(texts)
