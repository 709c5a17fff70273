"""A check that stops a stage whose world breaks from the start, before hours are spent on failures and before any is kept.

Until the first attempt ends without breaking, broken results are held back; once each of the first tasks has broken in every attempt, the
stage stops. The first tasks are those first in order, not those that end first, since broken ones end soonest. The results held back are
then not on the disk, and `forget_failures` removes them from the journal, so that the same command continues in a repaired world.
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
    """Passes finished items on once one of them did not break. Without `keys`, those of the first items, all pass at once.

    `mend` is the command that tries the world alone.
    """

    def __init__(self, keys: Iterable[str], mend: str) -> None:
        self._waiting = set(keys)
        self._mend, self._passed = mend, not self._waiting
        self._held: list[Item] = []
        self._errors: list[str | None] = []
        self.failed = False

    def through(self, key: str, attempts: Sequence[Attempt], item: Item) -> list[Item]:
        """The items that can be kept now that one more has ended. Raises `UserError` when the whole wave broke."""
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
        raise all_broke(self._errors, self._mend)


def all_broke(errors: Sequence[str | None], mend: str) -> UserError:
    """The error that stops a stage in which every attempt broke, each by one of `errors`."""
    return UserError(
        f"every attempt so far ({len(errors)}) broke, most often by `{commonest_error(errors)}`; none of them is kept: "
        f"repair the environment (`{mend}` tries it alone), then type the same command again"
    )


def forget_failures(journal: Path) -> None:
    """Removes every task that the world broke from a journal, so that it is played anew."""
    lines = list(read_lines(journal, SCHEMA))
    failed = {line.get("key") for line in lines if "error" in line}
    kept = [{"schema": SCHEMA}, *(line for line in lines if line.get("key") not in failed)]
    write_text_atomically(journal, "".join(canonical(line) + "\n" for line in kept))
