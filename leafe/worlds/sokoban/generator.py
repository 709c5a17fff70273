"""Seeded levels: walls strewn over a room, boxes and targets placed forward, kept when the solver finds them as wanted.

The split a level belongs to is a function of its content up to rotation and reflection, so no level of one split is a mirror image
of a level of another, whatever the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from leafe.digest import digest, seed_for
from leafe.worlds.sokoban.board import Level, State, canonical_text
from leafe.worlds.sokoban.solver import SolverLimit, solve

# Parts of ten. `pretrain` is for the bundled model's curriculum.
SPLITS = {"pretrain": range(0, 5), "train": range(5, 7), "valid": range(7, 8), "test": range(8, 10)}


@dataclass(frozen=True)
class Recipe:
    """The wanted levels: sizes in cells with the outer walls, `length` as the band of optimal solutions in moves."""

    rows: int = 6
    columns: int = 6
    boxes: int = 1
    wall_share: float = 0.12
    min_length: int = 4
    max_length: int = 20


def split_of(level: Level) -> str:
    """The split that a level belongs to, the same for all its rotations and reflections."""
    part = int(digest(canonical_text(level)), 16) % 10
    return next(name for name, parts in SPLITS.items() if part in parts)


def scatter(recipe: Recipe, draw: random.Random) -> Level | None:
    """One random level, solvable or not; None when the walls left too little room."""
    rows, columns = recipe.rows, recipe.columns
    inner = [row * columns + column for row in range(1, rows - 1) for column in range(1, columns - 1)]
    walls = set(range(rows * columns)) - set(inner)
    walls |= {cell for cell in inner if draw.random() < recipe.wall_share}
    free = [cell for cell in inner if cell not in walls]
    if len(free) < 2 * recipe.boxes + 1:
        return None
    spots = draw.sample(free, 2 * recipe.boxes + 1)
    boxes, targets = frozenset(spots[1 : recipe.boxes + 1]), frozenset(spots[recipe.boxes + 1 :])
    return Level(rows, columns, frozenset(walls), targets, State(spots[0], boxes))


def levels(recipe: Recipe, split: str, seed: int, patience: int = 50_000) -> Iterator[tuple[Level, int]]:
    """Distinct levels of a split, each with the length of its shortest solution.

    Ends after `patience` random boards in a row without a new level: small rooms hold few.
    """
    draw = random.Random(seed_for("sokoban", seed, split))
    seen: set[str] = set()
    idle = 0
    while (idle := idle + 1) <= patience:
        level = scatter(recipe, draw)
        if level is None or split_of(level) != split:
            continue
        name = canonical_text(level)
        if name in seen:
            continue
        seen.add(name)
        try:
            moves = solve(level, limit=20_000)
        except SolverLimit:
            continue
        if moves is not None and recipe.min_length <= len(moves) <= recipe.max_length:
            idle = 0
            yield level, len(moves)
