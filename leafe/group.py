"""Whether a launcher such as `torchrun` started this process, and how many processes it started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Variables by which processes of one launcher find each other; and those of MPI launchers, which accelerate reads as the same.
MEETING = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAUNCHERS = ("LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_", "MPI_LOCAL", "PMI_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_")


def launched() -> bool:
    """Whether a launcher started this process: then every variable is set by which such processes find each other.

    A part of them, such as `LOCAL_RANK` from some shell, is no launcher.
    """
    found = {name: os.environ.get(name, "") for name in MEETING}
    numbers = all(found[name].isdecimal() for name in MEETING if name != "MASTER_ADDR")
    return numbers and bool(found["MASTER_ADDR"]) and ("TORCHELASTIC_RUN_ID" in os.environ or int(found["WORLD_SIZE"]) > 1)


@contextmanager
def by_hand() -> Iterator[None]:
    """Hides variables that a launcher may have left behind: accelerate would wait for processes that were never started."""
    hidden = {name: value for name, value in os.environ.items() if name in MEETING or name.startswith(LAUNCHERS)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def processes_here() -> int:
    """How many processes a launcher started with this one, itself included; 1 without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1
