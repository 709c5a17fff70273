"""Optimal play in moves: A* over pushes for a single answer, a distance table for everything about a small level.

A* states are those right after a push; an edge is a walk and a push and costs its moves, so the answer is optimal in moves. The
bound is the cheapest matching of boxes to targets in pushes; cells from which no target can be reached by pushing are dead.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations

from leafe.worlds.sokoban.board import ACTIONS, Level, State

FAR = 10**6


class SolverLimit(RuntimeError):
    """The search was given up after its limit of states, with no answer either way."""


@dataclass
class Distances:
    """For every state that can be reached from the level's start and still be solved: the moves that it takes at best."""

    level: Level
    moves: dict[State, int] = field(default_factory=dict)

    def best(self, state: State) -> list[str]:
        """The optimal actions in a state, none where it is solved or cannot be solved any more."""
        here = self.moves.get(state)
        if not here:
            return []
        return [action for action in ACTIONS if self.moves.get(self.level.move(state, action)[0], FAR) == here - 1]


def distances(level: Level) -> Distances:
    """The table for a small level: all states forward from the start, then breadth first back from the solved ones."""
    before: dict[State, list[State]] = {level.start: []}
    queue = deque([level.start])
    while queue:
        state = queue.popleft()
        if level.solved(state):
            continue
        for action in ACTIONS:
            after, _ = level.move(state, action)
            if after not in before:
                before[after] = []
                queue.append(after)
            if after != state:
                before[after].append(state)
    table = {state: 0 for state in before if level.solved(state)}
    queue = deque(table)
    while queue:
        state = queue.popleft()
        for earlier in before[state]:
            if earlier not in table:
                table[earlier] = table[state] + 1
                queue.append(earlier)
    return Distances(level, table)


def solve(level: Level, state: State | None = None, limit: int = 500_000) -> list[str] | None:
    """A shortest sequence of moves from `state` (or the start), or None when there is none.

    Raises `SolverLimit` after `limit` expanded states.
    """
    start = state or level.start
    bound = _PushBound(level)
    best = {start: 0}
    came: dict[State, tuple[State, list[str]]] = {}
    heap = [(bound(start.boxes), 0, 0, start)]
    tick = expanded = 0
    while heap:
        _, cost, _, here = heapq.heappop(heap)
        if cost > best[here]:
            continue
        if level.solved(here):
            return _path(came, start, here)
        expanded += 1
        if expanded > limit:
            raise SolverLimit(f"no answer within {limit} states")
        for after, moves in _pushes(level, here):
            total, left = cost + len(moves), bound(after.boxes)
            if left < FAR and total < best.get(after, FAR):
                best[after], came[after], tick = total, (here, moves), tick + 1
                heapq.heappush(heap, (total + left, total, tick, after))
    return None


def fewest_pushes(level: Level) -> int | None:
    """A lower bound on the pushes of a solution; None where a box can never come to a target."""
    least = _PushBound(level)(level.start.boxes)
    return least if least < FAR else None


def _path(came: dict[State, tuple[State, list[str]]], start: State, state: State) -> list[str]:
    moves: list[str] = []
    while state != start:
        state, last = came[state]
        moves = last + moves
    return moves


def _pushes(level: Level, state: State) -> list[tuple[State, list[str]]]:
    """Each push that the player can walk to, with the shortest walk and the push itself."""
    walks: dict[int, list[str]] = {state.player: []}
    queue, found = deque([state.player]), []
    while queue:
        cell = queue.popleft()
        for action, step in level.steps.items():
            ahead = cell + step
            if ahead in level.walls or ahead in walks:
                continue
            if ahead in state.boxes:
                after, _ = level.move(State(cell, state.boxes), action)
                if after.player != cell:
                    found.append((after, [*walks[cell], action]))
                continue
            walks[ahead] = [*walks[cell], action]
            queue.append(ahead)
    return found


class _PushBound:
    """The fewest pushes that bring boxes to targets if they did not stand in each other's way; `FAR` where one never gets there."""

    def __init__(self, level: Level) -> None:
        self._targets: Sequence[int] = sorted(level.targets)
        self._pushes = [self._from(level, target) for target in self._targets]
        self._known: dict[frozenset[int], int] = {}

    @staticmethod
    def _from(level: Level, target: int) -> dict[int, int]:
        """Pushes from each cell to the target, by pulling backwards from it."""
        pushes, queue = {target: 0}, deque([target])
        while queue:
            cell = queue.popleft()
            for step in level.steps.values():
                box, player = cell - step, cell - 2 * step
                if box not in pushes and box not in level.walls and player not in level.walls:
                    pushes[box] = pushes[cell] + 1
                    queue.append(box)
        return pushes

    def __call__(self, boxes: frozenset[int]) -> int:
        if boxes not in self._known:
            rows = [[pushes.get(box, FAR) for pushes in self._pushes] for box in boxes]
            if len(rows) <= 4:
                cost = min(
                    sum(row[column] for row, column in zip(rows, order, strict=True)) for order in permutations(range(len(rows)))
                )
            else:
                cost = sum(min(row) for row in rows)
            self._known[boxes] = min(cost, FAR)
        return self._known[boxes]
