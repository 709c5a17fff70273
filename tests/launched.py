"""Work for several processes that imports little, since each of them imports this file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leafe.errors import MissingDependency, UnknownName, UserError

PATIENT = 120.0  # seconds that a process waits for the others, as it would for gradients
REFUSALS: dict[str, Callable[[], Exception]] = {
    "a sentence": lambda: UserError("this does not fit"),
    "an unknown name": lambda: UnknownName("environment", "sokobn", ["sokoban"]),
    "a missing library": lambda: MissingDependency("peft", "pip install peft"),
}


def ignored(*values: Any) -> None:
    """Ignores what the first process tells."""


def fails(told: Callable[..., None], rank: int, name: str, folder: Path) -> int:
    """Fails in one process, for which the other one waits."""
    (folder / f"begun-{os.environ['RANK']}-{os.getpid()}").touch()
    if int(os.environ["RANK"]) == rank:
        raise REFUSALS[name]() if name in REFUSALS else RuntimeError(name)
    time.sleep(PATIENT)
    (folder / "waited").touch()
    return 1


def seven(told: Callable[..., None]) -> int:
    """Ends at once."""
    return 7


def waits(told: Callable[..., None]) -> None:
    """Tells that it has begun, and waits for long."""
    told(1, 1)
    time.sleep(PATIENT)


def tells(told: Callable[..., None]) -> int:
    """Tells that it has begun, and ends a little later."""
    told(1, 1)
    time.sleep(1)
    return 7
