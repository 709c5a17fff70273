"""Solves a game from any of its states: a short plan, found by searching among the few operators that a relaxed plan may need.

First every fact gets a price, as if nothing that became true could become false again and as if costs added up. Then, for the
cheapest ways to reach the goal, a breadth-first search runs over the operators that lead to a fact which the cheapest supporters of
that goal need. Its plan is the shortest among these operators, which for a household is nearly always the shortest of all; no proof
of that is given. Meant to be called once for a game, not in a loop.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence

from leafe.worlds.pddl.game import Game
from leafe.worlds.pddl.grounding import Check, Operator

GOALS = 16  # ways to reach the goal that are searched, cheapest first
STATES = 20_000  # states that one search may visit


def _bits(mask: int) -> Iterator[int]:
    while mask:
        bit = mask & -mask
        yield bit
        mask ^= bit


def _conditions(check: Check) -> list[int]:
    """A mask of its own for each fact that has to hold, and the negative of one for each that must not."""
    need, ban = check
    return [*_bits(need), *(-bit for bit in _bits(ban))]


def _results(operator: Operator) -> list[int]:
    always, conditional = operator.changes
    changes = (always, *conditional)
    return [result for change in changes for result in (*_bits(change.gain), *(-bit for bit in _bits(change.lose)))]


class _Waiting:
    """An operator of which some conditions are still missing."""

    __slots__ = ("missing", "operator", "price")

    def __init__(self, operator: Operator, missing: int) -> None:
        self.operator, self.missing, self.price = operator, missing, 1


class _Prices:
    """The price of each fact from a state, and the operators that bring it about."""

    def __init__(self, game: Game, state: int) -> None:
        self._game, self._state = game, state
        self.price: dict[int, int] = {}
        self.bringers: dict[int, list[tuple[int, Operator]]] = defaultdict(list)
        self._waiting: dict[int, list[_Waiting]] = defaultdict(list)
        self._heap: list[tuple[int, int]] = []
        self._add(game.operators(0, None))
        for mask, fact in game.facts.holding(state):
            if game.is_key(fact):
                self._add(game.operators(mask, fact))
        self._spread()

    def given(self, condition: int) -> bool:
        """Whether a condition holds in the state already."""
        return bool(self._state & condition) if condition > 0 else not self._state & -condition

    def of(self, condition: int) -> int | None:
        """The price of a condition; None when nothing can bring it about."""
        return 0 if self.given(condition) else self.price.get(condition)

    def _add(self, operators: Sequence[Operator]) -> None:
        for operator in operators:
            missing = [one for one in _conditions((operator.need, operator.ban)) if not self.given(one)]
            waiting = _Waiting(operator, len(missing))
            for condition in missing:
                known = self.price.get(condition)
                if known is None:
                    self._waiting[condition].append(waiting)
                else:
                    waiting.missing -= 1
                    waiting.price += known
            if not waiting.missing:
                self._take(waiting)

    def _take(self, taken: _Waiting) -> None:
        for result in _results(taken.operator):
            self.bringers[result].append((taken.price, taken.operator))
            if not self.given(result) and result not in self.price:
                heapq.heappush(self._heap, (taken.price, result))

    def _spread(self) -> None:
        while self._heap:
            price, result = heapq.heappop(self._heap)
            if result in self.price:
                continue
            self.price[result] = price
            for waiting in self._waiting.pop(result, ()):
                waiting.missing -= 1
                waiting.price += price
                if not waiting.missing:
                    self._take(waiting)
            if result > 0 and self._game.is_key(fact := self._game.facts.fact(result)):
                self._add(self._game.operators(result, fact))

    def wanted(self, goal: Check) -> set[int]:
        """The goal's conditions, and those of the cheapest operators that bring them about, and so on."""
        found = set(_conditions(goal))
        queue = list(found)
        while queue:
            condition = queue.pop()
            if self.given(condition):
                continue
            for price, operator in self.bringers[condition]:
                if price == self.price[condition]:
                    fresh = set(_conditions((operator.need, operator.ban))) - found
                    found |= fresh
                    queue += fresh
        return found

    def useful(self, wanted: set[int]) -> list[Operator]:
        """The operators that bring about a wanted condition and need only wanted ones."""
        found: dict[int, Operator] = {}
        for result in sorted(wanted):
            for _, operator in self.bringers.get(result, ()):
                if id(operator) not in found and wanted.issuperset(_conditions((operator.need, operator.ban))):
                    found[id(operator)] = operator
        return list(found.values())


def winning_part(game: Game, commands: Sequence[str]) -> tuple[str, ...]:
    """The commands up to the one that reaches the goal, none where they do not.

    They are played because recorded ones may name things by identifiers that no player can type.
    """
    state = game.start
    for number, command in enumerate(commands, start=1):
        state, _ = game.step(state, command)
        if game.won(state):
            return tuple(commands[:number])
    return ()


def plan(game: Game, state: int) -> list[str] | None:
    """Commands that reach the goal from a state, none where it is reached already; None where no plan was found."""
    if game.won(state):
        return []
    prices = _Prices(game, state)
    priced = []
    for goal in game.goals:
        costs = [prices.of(condition) for condition in _conditions(goal)]
        if None not in costs:
            priced.append((sum(cost for cost in costs if cost is not None), goal))
    best: list[Operator] | None = None
    for _, goal in heapq.nsmallest(GOALS, priced):
        found = _search(state, goal, prices.useful(prices.wanted(goal)), longest=len(best) - 1 if best else None)
        best = found or best
    return None if best is None else [game.command(operator) for operator in best]


def _search(state: int, goal: Check, operators: Sequence[Operator], longest: int | None) -> list[Operator] | None:
    """The shortest plan of these operators, of at most `longest` steps."""
    need, ban = goal
    came_from: dict[int, tuple[int, Operator] | None] = {state: None}
    layer, depth = [state], 0
    while layer and len(came_from) < STATES and (longest is None or depth < longest):
        depth, following = depth + 1, []
        for here in layer:
            for operator in operators:
                if here & operator.need != operator.need or here & operator.ban:
                    continue
                after = operator.applied(here)
                if after in came_from:
                    continue
                came_from[after] = (here, operator)
                if after & need == need and not after & ban:
                    return _way(came_from, after)
                following.append(after)
        layer = following
    return None


def _way(came_from: dict[int, tuple[int, Operator] | None], state: int) -> list[Operator]:
    steps: list[Operator] = []
    while (step := came_from[state]) is not None:
        state, operator = step
        steps.append(operator)
    return steps[::-1]
