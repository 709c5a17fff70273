"""A program, its limits and its outcome: frozen records, no behaviour.

A limit holds for one run of a program on one input, all its processes together. Nothing here knows of problems, tests and answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds and bytes. `memory_bytes` is the most resident memory, `file_bytes` both the largest file and all of `/tmp`."""

    cpu_seconds: float = 2.0
    wall_seconds: float = 8.0
    memory_bytes: int = 256 * MIB
    processes: int = 16  # threads count as processes
    file_bytes: int = 16 * MIB
    output_bytes: int = MIB


@dataclass(frozen=True, slots=True)
class Program:
    """Python source. With a `runner` that source is what is started; it finds the program beside it as `program.py`."""

    source: str
    runner: str | None = None


class Verdict(StrEnum):
    """How a run ended. Only `EXITED` can be a right answer."""

    EXITED = "exited"  # with status 0
    ERROR = "error"  # another status, or a signal
    TIME = "time"  # over its CPU seconds, or still there after its wall seconds
    MEMORY = "memory"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. `status` is the exit status, negative for a signal; `stderr` is the end of standard error.

    `wall_seconds` leaves out the time that a program ready to run waited for a core, and so does the limit.
    """

    verdict: Verdict
    stdout: str = ""
    stderr: str = ""
    status: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    memory_bytes: int = 0
