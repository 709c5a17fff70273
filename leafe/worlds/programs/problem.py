"""A problem with public and hidden tests, and the comparison of outputs. Frozen records; nothing is run here.

Hidden tests are those that are not public: a case that is also public is dropped from the hidden ones, so that a test that the policy
saw never decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Literal

from leafe.digest import digest

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_ARITHMETIC = Context(prec=60, traps=[])  # exact where it matters: an error may be the tolerance itself


class Excluded(Exception):
    """A problem that cannot be judged here; the message is the reason, one of a few, by which it is counted."""


@dataclass(frozen=True, slots=True)
class Case:
    """One test: the program's input, the answer that it must give, and the input as shown to a person."""

    input: str
    expected: str
    shown: str


@dataclass(frozen=True, slots=True)
class Answers:
    """How outputs are compared, word by word: letters in `any_case`, numbers within a `tolerance`.

    The tolerance bounds the absolute error, the relative one, or the smaller of them (`either`).
    """

    any_case: bool = False
    tolerance: Decimal | None = None
    measure: Literal["absolute", "relative", "either"] = "either"


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
    answers: Answers = Answers()

    @property
    def mark(self) -> str:
        """A digest of the task and its tests, which identifies a problem wherever its file lies."""
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


def same_answer(expected: str, found: str, answers: Answers = Answers()) -> bool:
    """Whether two outputs are the same word by word, whatever stands between the words.

    >>> same_answer("1 2\\n3\\n", "1 2 3")
    True
    """
    wanted, given = expected.split(), found.split()
    if answers.any_case:
        wanted, given = [word.casefold() for word in wanted], [word.casefold() for word in given]
    if wanted == given or len(wanted) != len(given) or answers.tolerance is None:
        return wanted == given
    return all(one == other or _close(one, other, answers) for one, other in zip(wanted, given, strict=True))


def _close(expected: str, found: str, answers: Answers) -> bool:
    """Whether two words are numbers that differ by no more than the tolerance."""
    if answers.tolerance is None or not _NUMBER.fullmatch(expected) or not _NUMBER.fullmatch(found):
        return False
    wanted, given = _ARITHMETIC.create_decimal(expected), _ARITHMETIC.create_decimal(found)
    size = _ARITHMETIC.abs(wanted)
    scale = {"absolute": Decimal(1), "relative": size, "either": max(Decimal(1), size)}[answers.measure]
    return _ARITHMETIC.abs(_ARITHMETIC.subtract(wanted, given)) <= _ARITHMETIC.multiply(answers.tolerance, scale)
