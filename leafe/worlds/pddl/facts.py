"""The facts of one game: those that never change as plain rows, those that can as bits of an integer.

A row of a relation is the arguments and a mask; mask 0 means that the fact always holds. Bits are assigned in the order in which facts
are first mentioned, so a state has a meaning in its own game only.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence

from leafe.worlds.pddl.domain import ROOT, Domain, Problem

Row = tuple[tuple[str, ...], int]
NO_ROWS: Sequence[Row] = ()


class Facts:
    """All relations of a game. `fluent` names the predicates that some action changes."""

    def __init__(self, domain: Domain, problem: Problem, fluent: frozenset[str]) -> None:
        self.fluent = fluent
        self.kind_of = problem.objects
        self.members = members_of(domain.types, problem.objects)
        self.start = 0
        self.counts: dict[str, int] = {}  # how many facts of a predicate hold at the start
        self._always = frozenset(fact for fact in problem.facts if fact[0] not in fluent)
        self.masks: dict[str, int] = {}  # the bits of a predicate's facts
        self._bits: dict[tuple[str, ...], int] = {}
        self._spoken: list[tuple[str, ...]] = []
        self._rows: dict[str, list[Row]] = {}
        self._by_argument: dict[tuple[str, int, str], list[Row]] = {}
        for fact in sorted(problem.facts):
            predicate = fact[0]
            self.counts[predicate] = self.counts.get(predicate, 0) + 1
            if predicate in fluent:
                self.start |= self.bit(fact)
            else:
                self._place(fact, 0, sorted_already=True)

    def bit(self, fact: tuple[str, ...]) -> int:
        """The mask of a fact that can change."""
        mask = self._bits.get(fact)
        if mask is None:
            mask = self._bits[fact] = 1 << len(self._spoken)
            self._spoken.append(fact)
            self.masks[fact[0]] = self.masks.get(fact[0], 0) | mask
            self._place(fact, mask, sorted_already=False)
        return mask

    def fact(self, mask: int) -> tuple[str, ...]:
        """The fact of one bit."""
        return self._spoken[mask.bit_length() - 1]

    def holding(self, state: int) -> Iterator[tuple[int, tuple[str, ...]]]:
        """The facts of a state that can change, with their masks, in the order in which they were first mentioned."""
        while state:
            mask = state & -state
            yield mask, self.fact(mask)
            state ^= mask

    def _place(self, fact: tuple[str, ...], mask: int, *, sorted_already: bool) -> None:
        row, predicate = (fact[1:], mask), fact[0]
        places = [self._rows.setdefault(predicate, [])]
        places += [self._by_argument.setdefault((predicate, at, value), []) for at, value in enumerate(fact[1:])]
        for place in places:
            if sorted_already:
                place.append(row)
            else:
                insort(place, row)

    def rows(self, predicate: str) -> Sequence[Row]:
        """Every row of a predicate, sorted by its arguments."""
        return self._rows.get(predicate, NO_ROWS)

    def rows_with(self, predicate: str, at: int, value: str) -> Sequence[Row]:
        """The rows whose argument number `at` is `value`, sorted by their arguments."""
        return self._by_argument.get((predicate, at, value), NO_ROWS)

    def holds_always(self, fact: tuple[str, ...]) -> bool:
        """Whether a fact holds that no action changes."""
        return fact in self._always

    def objects_of(self, kind: str) -> frozenset[str]:
        """The objects of a type and of the types below it; none for a type that was never declared."""
        return self.members.get(kind, frozenset())


def members_of(types: Mapping[str, str], objects: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """The objects of each type and of the types below it."""
    members: dict[str, set[str]] = {kind: set() for kind in (*types, ROOT)}
    for name, kind in objects.items():
        for above in _above(kind, types):
            members.setdefault(above, set()).add(name)
    return {kind: frozenset(names) for kind, names in members.items()}


def _above(kind: str, types: Mapping[str, str]) -> Iterable[str]:
    seen: list[str] = []
    while kind not in seen:
        seen.append(kind)
        kind = types.get(kind, ROOT)
    return seen
