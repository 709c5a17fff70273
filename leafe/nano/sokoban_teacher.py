"""The Sokoban teacher: a careless player, and a solver that finds where it went wrong.

The player looks one move ahead. It heads for the nearest box as the crow flies and pushes whatever brings a box nearer to a target,
walls and corners notwithstanding; sometimes it takes a move at random and sometimes the right one. The shares are the same on every
board and every turn, so nothing in the history tells how well it will play. A reflection names a turn at which the level could still
be solved and the move was not among the best, states its effect, and gives up to `PLAN` moves of a shortest solution from there.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from leafe.digest import seed_for
from leafe.nano.curriculum import Lesson, Lookback, Move
from leafe.records import Experience, Task
from leafe.worlds.sokoban.board import ACTIONS, Level, Outcome, State
from leafe.worlds.sokoban.generator import Recipe, levels
from leafe.worlds.sokoban.solver import FAR, Distances, distances

INSTRUCTION = "Push every box X onto a target O."
PLAN = 4
FOLLOWED = 0.3  # share of advice that is followed in a lesson: easy to learn, and long
POOL = 64  # levels that a jumbled episode draws from
OBEDIENCE = 0.97  # how surely advice is followed; the rest is spread over all moves


@dataclass(frozen=True)
class Habits:
    """The careless player's shares: `right` for a best move, `eager` for the short-sighted one, the rest at random."""

    right: float = 0.2
    eager: float = 0.6


class _Played(NamedTuple):
    """A move of the player with the level it was made on and the states around it."""

    table: Distances
    before: State
    action: str
    outcome: Outcome
    after: State


def eager_moves(level: Level, state: State) -> list[str]:
    """The best-looking moves one step ahead: a push that brings a box nearer to a target, else a step towards the nearest loose box."""

    def apart(one: int, other: int) -> int:
        return abs(one // level.columns - other // level.columns) + abs(one % level.columns - other % level.columns)

    def gap(boxes: frozenset[int]) -> int:
        return sum(min(apart(box, target) for target in level.targets) for box in boxes)

    loose = state.boxes - level.targets
    scores = {}
    for action, step in level.steps.items():
        ahead = state.player + step
        if ahead in state.boxes:
            pushed = (state.boxes - {ahead}) | {ahead + step}
            scores[action] = 2 if gap(pushed) < gap(state.boxes) else -1
        else:
            scores[action] = int(
                bool(loose) and min(apart(ahead, box) for box in loose) < min(apart(state.player, box) for box in loose)
            )
    most = max(scores.values())
    return [action for action in ACTIONS if scores[action] == most]


class SokobanTeacher:
    """Lessons on generated levels of the `pretrain` split. `longest` bounds the turns of an episode.

    A share `jumbled` of the episodes shows an unrelated board at every turn. All that is taught stays true, and fetching an old turn
    pays at every cell, where the boards of one level differ in two or three.
    """

    def __init__(
        self,
        recipe: Recipe = Recipe(min_length=3, max_length=24),
        habits: Habits = Habits(),
        longest: int = 16,
        jumbled: float = 0.0,
    ) -> None:
        self._recipe, self._habits, self._longest, self._jumbled = recipe, habits, longest, jumbled

    def lessons(self, seed: int) -> Iterator[Lesson]:
        """An endless stream, a function of the seed; each level is played a few times."""
        draw = random.Random(seed_for("sokoban-teacher", seed))
        known: deque[Distances] = deque(maxlen=POOL)
        for level, _ in levels(self._recipe, "pretrain", seed):
            known.append(distances(level))
            for _ in range(2):
                yield self._lesson(list(known) if draw.random() < self._jumbled else [known[-1]], draw)

    def habits(self, table: Distances, state: State) -> dict[str, float]:
        """How often the careless player takes each move; sums to 1."""
        level = table.level
        eager = eager_moves(level, state)
        best = table.best(state) or eager
        rest = 1.0 - self._habits.right - self._habits.eager
        shares = dict.fromkeys(ACTIONS, rest / len(ACTIONS))
        for action in best:
            shares[action] += self._habits.right / len(best)
        for action in eager:
            shares[action] += self._habits.eager / len(eager)
        return shares

    def _lesson(self, known: Sequence[Distances], draw: random.Random) -> Lesson:
        """One episode from a random state, and the reflections on it."""
        turns = self._longest if draw.random() < 0.5 else draw.randint(1, self._longest)
        played, shown = self._play(known, turns, draw)
        ended = len(played) == turns and not _solved(played[-1])
        task = Task("lesson", "sokoban", INSTRUCTION, turns if ended else self._longest)
        moves = tuple(
            Move(self.habits(one.table, one.before), one.action, text, self._words(self._plan(one.table, one.before, draw)))
            for one, text in zip(played, shown, strict=True)
        )
        first = played[0]
        return Lesson(task, first.table.level.render(first.before), moves, tuple(self._lookbacks(task, played, draw)))

    def _play(self, known: Sequence[Distances], turns: int, draw: random.Random) -> tuple[list[_Played], list[str]]:
        """The moves, and the observation after each."""
        table, state = self._situation(known, draw)
        played: list[_Played] = []
        shown: list[str] = []
        for _ in range(turns):
            shares = self.habits(table, state)
            action = draw.choices(list(shares), list(shares.values()))[0]
            after, outcome = table.level.move(state, action)
            played.append(_Played(table, state, action, outcome, after))
            done = _solved(played[-1])
            table, state = self._situation(known, draw) if len(known) > 1 and not done else (table, after)
            shown.append(_text(table.level, outcome, state))
            if done:
                break
        return played, shown

    @staticmethod
    def _situation(known: Sequence[Distances], draw: random.Random) -> tuple[Distances, State]:
        table = draw.choice(known)
        if draw.random() < 0.5:
            return table, table.level.start
        return table, draw.choice([state for state, moves in table.moves.items() if moves])

    def _lookbacks(self, task: Task, played: Sequence[_Played], draw: random.Random) -> Iterator[Lookback]:
        failed = not _solved(played[-1])
        ends = [(len(played), len(played) == task.horizon)] if failed else []
        midway = draw.randint(1, len(played)) if len(played) > 1 else 0
        if midway and midway < len(played):
            ends.append((midway, False))
        for after_turn, ended in ends:
            faults = _faults(played[:after_turn], task.horizon)
            if not faults:
                yield Lookback(after_turn, ended, None)
                continue
            named = [faults[0], *draw.sample(faults, min(len(faults), 3 if ended else 1))]
            for number, index in enumerate(named):
                one = played[index]
                plan = self._plan(one.table, one.before, draw)
                text = f"{one.action} was wrong: {_diagnosis(one)}{self._words(plan)}"
                shown = number == 0 and ended and draw.random() < FOLLOWED
                followed = self._follow(one.table, one.before, plan, draw) if shown else ()
                yield Lookback(after_turn, ended, Experience(index + 1, text), followed)

    def _plan(self, table: Distances, state: State, draw: random.Random) -> list[str]:
        """The first `PLAN` moves of a shortest solution, none where there is no solution."""
        plan: list[str] = []
        while len(plan) < PLAN and table.best(state):
            plan.append(draw.choice(table.best(state)))
            state, _ = table.level.move(state, plan[-1])
        return plan

    @staticmethod
    def _words(plan: Sequence[str]) -> str:
        return f" Go {' '.join(plan)}." if plan else ""

    def _follow(self, table: Distances, state: State, plan: Sequence[str], draw: random.Random) -> tuple[Move, ...]:
        """Play along the plan, and one careless move after it."""
        level, moves = table.level, []
        for advised in plan:
            shares = dict.fromkeys(ACTIONS, (1.0 - OBEDIENCE) / len(ACTIONS))
            shares[advised] += OBEDIENCE
            after, outcome = level.move(state, advised)
            moves.append(Move(shares, advised, _text(level, outcome, after)))
            state = after
        if not level.solved(state):
            shares = self.habits(table, state)
            action = draw.choices(list(shares), list(shares.values()))[0]
            after, outcome = level.move(state, action)
            moves.append(Move(shares, action, _text(level, outcome, after)))
        return tuple(moves)


def _solved(one: _Played) -> bool:
    return one.table.level.solved(one.after)


def _faults(played: Sequence[_Played], horizon: int) -> list[int]:
    """Indices of moves that were not among the best, where the level could be solved: in time if there are such, else at all."""
    away = [one.table.moves.get(one.before, FAR) for one in played]
    faults = [index for index, one in enumerate(played) if away[index] < FAR and one.action not in one.table.best(one.before)]
    in_time = [index for index in faults if away[index] <= horizon - index]
    return in_time or faults


def _diagnosis(one: _Played) -> str:
    if one.outcome is Outcome.WALL:
        return "a wall was there."
    if one.outcome is Outcome.BLOCKED:
        return "the box was blocked."
    if one.after not in one.table.moves:
        return "the box got stuck."
    return "it was a detour."


def _text(level: Level, outcome: Outcome, after: State) -> str:
    return f"{outcome}\n{level.render(after)}"
