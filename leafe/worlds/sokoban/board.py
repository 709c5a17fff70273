"""The rules of Sokoban: levels, states and moves as small integers and sets, and their text.

A cell is `row * columns + column`. A state is the player's cell and the set of box cells; walls and targets belong to the level and
never change. Nothing here counts turns or knows of tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

ACTIONS = ("up", "down", "left", "right")

# Symbols of the text boards that verl-agent and RAGEN show to language models.
WALL, FLOOR, TARGET, BOX, BOX_ON_TARGET, PLAYER, PLAYER_ON_TARGET = "#", "_", "O", "X", "√", "P", "S"


class Outcome(StrEnum):
    """The effect of a move, in the words that the policy reads."""

    MOVED = "You moved."
    WALL = "A wall blocks you."
    BLOCKED = "The box is blocked."
    PUSHED = "You pushed the box."
    ON_TARGET = "You pushed the box onto a target."
    CORNER = "You pushed the box. It is stuck in a corner."


@dataclass(frozen=True, slots=True)
class State:
    """The player's cell and the cells of the boxes."""

    player: int
    boxes: frozenset[int]


@dataclass(frozen=True)
class Level:
    """A board: `rows * columns` cells, the outermost of them walls, as many targets as boxes."""

    rows: int
    columns: int
    walls: frozenset[int]
    targets: frozenset[int]
    start: State

    @cached_property
    def steps(self) -> dict[str, int]:
        """The number that each action adds to a cell."""
        return {"up": -self.columns, "down": self.columns, "left": -1, "right": 1}

    @cached_property
    def corners(self) -> frozenset[int]:
        """Floor cells that are no target and have walls on two sides that meet: a box there can never be moved again."""
        column, row = self.columns, 1
        return frozenset(
            cell
            for cell in range(self.rows * self.columns)
            if cell not in self.walls | self.targets
            and (cell - column in self.walls or cell + column in self.walls)
            and (cell - row in self.walls or cell + row in self.walls)
        )

    def solved(self, state: State) -> bool:
        """Whether every box stands on a target."""
        return state.boxes == self.targets

    def move(self, state: State, action: str) -> tuple[State, Outcome]:
        """The state after an action of `ACTIONS`, and what happened."""
        step = self.steps[action]
        ahead = state.player + step
        if ahead in self.walls:
            return state, Outcome.WALL
        if ahead not in state.boxes:
            return State(ahead, state.boxes), Outcome.MOVED
        beyond = ahead + step
        if beyond in self.walls or beyond in state.boxes:
            return state, Outcome.BLOCKED
        moved = State(ahead, (state.boxes - {ahead}) | {beyond})
        if beyond in self.targets:
            return moved, Outcome.ON_TARGET
        return moved, Outcome.CORNER if beyond in self.corners else Outcome.PUSHED

    def symbol(self, state: State, cell: int) -> str:
        """The one character that shows a cell."""
        if cell in self.walls:
            return WALL
        on_target = cell in self.targets
        if cell == state.player:
            return PLAYER_ON_TARGET if on_target else PLAYER
        if cell in state.boxes:
            return BOX_ON_TARGET if on_target else BOX
        return TARGET if on_target else FLOOR

    def render(self, state: State) -> str:
        """The board as `rows` lines of `columns` characters."""
        cells = [self.symbol(state, cell) for cell in range(self.rows * self.columns)]
        return "\n".join("".join(cells[row * self.columns : (row + 1) * self.columns]) for row in range(self.rows))


def parse(text: str) -> Level:
    """The level that a board shows: the inverse of `Level.render` at its start.

    Raises `ValueError` when the text is no closed board with one player and as many boxes as targets.
    """
    lines = text.strip("\n").split("\n")
    columns = len(lines[0])
    if any(len(line) != columns for line in lines):
        raise ValueError("a board wants lines of one length")
    cells = dict(enumerate("".join(lines)))
    unknown = set(cells.values()) - {WALL, FLOOR, TARGET, BOX, BOX_ON_TARGET, PLAYER, PLAYER_ON_TARGET}
    if unknown:
        raise ValueError(f"a board cannot show {''.join(sorted(unknown))!r}")

    def where(symbols: str) -> frozenset[int]:
        return frozenset(cell for cell, symbol in cells.items() if symbol in symbols)

    walls, players = where(WALL), where(PLAYER + PLAYER_ON_TARGET)
    targets, boxes = where(TARGET + BOX_ON_TARGET + PLAYER_ON_TARGET), where(BOX + BOX_ON_TARGET)
    if len(players) != 1 or len(boxes) != len(targets) or not boxes:
        raise ValueError(
            f"a board wants one player and as many boxes as targets; found {len(players)}, {len(boxes)}, {len(targets)}"
        )
    if any(cell not in walls for cell in _rim(len(lines), columns)):
        raise ValueError("a board wants walls all around")
    return Level(len(lines), columns, walls, targets, State(next(iter(players)), boxes))


def _rim(rows: int, columns: int) -> Iterator[int]:
    for cell in range(rows * columns):
        if cell < columns or cell >= (rows - 1) * columns or cell % columns in (0, columns - 1):
            yield cell


def symmetries(level: Level) -> Iterator[str]:
    """The level's text under the eight symmetries of the square."""
    lines = level.render(level.start).split("\n")
    for _ in range(4):
        lines = ["".join(column) for column in zip(*lines[::-1], strict=True)]
        yield "\n".join(lines)
        yield "\n".join(line[::-1] for line in lines)


def canonical_text(level: Level) -> str:
    """One text for a level and all its rotations and reflections, so that a split can keep them together."""
    return min(symmetries(level))
