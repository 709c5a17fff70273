"""The reflection gap before and after a training, at turns that reflections on the model's own attempts named.

Before it is how much more often the first action is one of the best with the advice than without it. After it is the same against the
trained model, which acts without advice: what was learned of the advice has closed the gap. Best actions are the expert's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leafe.jsonl import read_records, write_lines
from leafe.records import encode

SCHEMA = "leafe.gap/1"


@dataclass(frozen=True, slots=True)
class Gap:
    """One such turn of a training task: whether the advised action was a best one, and the shares of best actions that were drawn there
    without advice, by the model that explored and by the trained one."""

    task: str
    turn: str
    advised: bool
    before: float
    after: float

    def __post_init__(self) -> None:
        if not (0 <= self.before <= 1 and 0 <= self.after <= 1):
            raise ValueError(f"before is {self.before}, after is {self.after}")


def write_gaps(path: Path, found: Sequence[Gap]) -> None:
    """Writes a whole file, one turn a line, or nothing."""
    write_lines(path, SCHEMA, map(encode, found))


def read_gaps(path: Path) -> tuple[Gap, ...]:
    """The turns of a file. Raises `CorruptFile` with the line's number for a line that is none."""
    return tuple(read_records(path, SCHEMA, Gap, what="turn with its best actions", mend="restore the file"))
