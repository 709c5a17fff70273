"""Stops a stage whose world breaks from the start, before hours go into failures and before any of them is kept.

Until the first attempt comes to an end of its own, what broke is held back; once every one of the first tasks has broken in every
attempt, the stage stops. Tasks are first by their order and not by when they end, since what breaks ends soonest. What was held back is
then nowhere on the disk, and `forget_failures` takes it out of the journal, so that the same command goes on in a mended world.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from leafe.digest import canonical
from leafe.errors import UserError
from leafe.forest.faults import commonest_error
from leafe.forest.journal import SCHEMA
from leafe.jsonl import read_lines, write_text_atomically
from leafe.records import BROKEN, Attempt

Item = TypeVar("Item")
WAVE = 8  # tasks; enough that a few bad ones among good ones stop nothing


class FirstWave(Generic[Item]):
    """Lets finished items through once one of them did not break. Without `keys`, those of the first items, all pass at once.

    `mend` is what to type to try the world alone.
    """

    def __init__(self, keys: Iterable[str], mend: str) -> None:
        self._waiting = set(keys)
        self._mend, self._passed = mend, not self._waiting
        self._held: list[Item] = []
        self._errors: list[str | None] = []
        self.failed = False

    def through(self, key: str, attempts: Sequence[Attempt], item: Item) -> list[Item]:
        """What can be kept now that an item has ended. Raises `UserError` when the whole wave broke."""
        self._held.append(item)
        self._passed = self._passed or not attempts or any(attempt.stop not in BROKEN for attempt in attempts)
        if self._passed:
            kept, self._held = self._held, []
            return kept
        self._errors += [attempt.error for attempt in attempts]
        self._waiting.discard(key)
        if self._waiting:
            return []
        self.failed = True
        raise UserError(
            f"every attempt so far ({len(self._errors)}) broke, most often by `{commonest_error(self._errors)}`; none of them is kept: "
            f"mend the environment, which `{self._mend}` tries alone, then type the same command again"
        )


def forget_failures(journal: Path) -> None:
    """Takes every task out of a journal in which the world failed it, so that it is played anew."""
    lines = list(read_lines(journal, SCHEMA))
    failed = {line.get("key") for line in lines if "error" in line}
    kept = [{"schema": SCHEMA}, *(line for line in lines if line.get("key") not in failed)]
    write_text_atomically(journal, "".join(canonical(line) + "\n" for line in kept))
