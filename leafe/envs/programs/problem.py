"""A problem with public and hidden tests, and the comparison of outputs. Frozen records; nothing is run here.

Hidden tests are those that are not public: a case that stands among the public ones is dropped from the hidden, so that what a policy is
shown never decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from leafe.digest import digest


class Excluded(Exception):
    """A problem that cannot be judged here; the message is the reason, one of a few, by which it is counted."""


@dataclass(frozen=True, slots=True)
class Case:
    """One test: what the program reads, what it must answer, and how the first is shown to a person."""

    input: str
    expected: str
    shown: str


@dataclass(frozen=True, slots=True)
class Problem:
    """`kind` says what a program is: one that reads standard input (`stdin`) or one that defines a function (`call`)."""

    name: str
    statement: str
    public: tuple[Case, ...]
    hidden: tuple[Case, ...]
    kind: Literal["stdin", "call"] = "stdin"
    cpu_seconds: float = 5.0
    memory_bytes: int = 256 * 2**20
    solutions: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        """A digest of what is asked and tested, by which a problem is known wherever its file lies."""
        cases = [[case.input, case.expected] for case in (*self.public, *self.hidden)]
        return digest(self.name, self.statement, self.kind, len(self.public), cases)


def parted(public: Iterable[Case], hidden: Iterable[Case], most: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Both sets of cases without repetition, the hidden ones without public ones, and at most `most` of these (0: all).

    Raises `Excluded` when either is empty.
    """
    shown = tuple({case.input: case for case in public}.values())
    inputs = {case.input.strip() for case in shown}
    kept = tuple({case.input: case for case in hidden if case.input.strip() not in inputs}.values())
    if not shown or not kept:
        raise Excluded("no public tests" if not shown else "no hidden tests")
    return shown, kept[: most or None]


def same_answer(expected: str, found: str) -> bool:
    """Whether two outputs are the same word by word, whatever stands between the words.

    >>> same_answer("1 2\\n3\\n", "1 2 3")
    True
    """
    return expected.split() == found.split()
