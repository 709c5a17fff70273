"""Sokoban as an environment: levels drawn by the generator or read from Boxoban files, moves as words, boards as text.

A task's id is the digest of its board, so the same board is the same task wherever it comes from. An episode ends when every box
stands on a target and at nothing else: a level that can no longer be solved goes on until the explorer's horizon.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

from leafe.digest import seed_for, text_digest
from leafe.envs.base import FrozenStateEnvironment
from leafe.envs.seeds import for_too_few, split_named
from leafe.errors import UnknownName, UserError
from leafe.records import Observation, Task
from leafe.worlds.commands import without_stop
from leafe.worlds.sokoban.board import ACTIONS, Level, State, parse
from leafe.worlds.sokoban.boxoban import level_files, read_blocks, to_level
from leafe.worlds.sokoban.generator import SPLITS, Recipe, levels, split_of
from leafe.worlds.sokoban.solver import SolverLimit, fewest_pushes, solve

INSTRUCTION = "Push every box X onto a target O."
INVALID = f"That is no move. Moves: {', '.join(ACTIONS)}."
DEADLOCK = "A box can no longer reach a target."
FOLDERS = ("train", "valid", "test")
HORIZON = 15  # turns for a generated board
PATIENCE = 50_000  # random boards in a row without a wanted level, after which a recipe counts as used up


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An episode's whole state. `final` is the last observation once the level is solved; `dead` is known with feedback on only."""

    level: Level
    state: State
    final: Observation | None
    dead: bool


class Sokoban(FrozenStateEnvironment[Snapshot]):
    """Push boxes onto targets; observations are the board, from the first step on below a sentence on what the move did.

    With `levels`, the path of a Boxoban file or of a folder of them, the boards come from there and `rows` to `max_length` have no
    effect. A file in a folder named train, valid or test belongs to that split, as published; the levels of any other file are
    split by their content. `horizon` is 15 for generated boards and goes by the level for those from files. `deadlock_feedback` tells
    the policy when a state cannot be solved any more, which no player sees: it is privileged and off by default. Moves are read
    without regard to case, by a `lenient` world with a final full stop too.
    """

    name = "sokoban"
    about = "push boxes onto targets; generated levels or Boxoban files; exact snapshots"
    actions_help = f"Moves: {', '.join(ACTIONS)}."

    def __init__(
        self,
        *,
        rows: int = 6,
        columns: int = 6,
        boxes: int = 1,
        wall_share: float = 0.12,
        min_length: int = 4,
        max_length: int = 20,
        horizon: int | None = None,
        levels: str | None = None,
        deadlock_feedback: bool = False,
        lenient: bool = False,
    ) -> None:
        self._recipe = _checked(
            Recipe(rows, columns, boxes, wall_share, min_length, max_length), HORIZON if horizon is None else horizon
        )
        self._horizon = horizon
        self._levels = Path(levels).expanduser() if levels is not None else None
        self._deadlock_feedback, self._lenient = deadlock_feedback, lenient

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        """`count` boards of a split; from files, in an order that the seed draws. See `Environment.tasks`."""
        found: dict[str, Task] = {}
        split = split_named(split)
        if split not in SPLITS:
            raise UnknownName("split", split, SPLITS)
        drawn: Iterator[tuple[Level, int | None]]
        if self._levels is None:
            drawn = levels(self._recipe, split, seed, patience=PATIENCE)
        else:
            drawn = _from_files(self._levels, split, seed)
        while len(found) < count:
            level, length = next(drawn, (None, None))
            if level is None:
                where, mend = str(self._levels or "this recipe"), for_too_few(split, _held(self._levels))
                raise UserError(f"wanted {count} tasks of split {split!r}, found {len(found)} in {where}; {mend}")
            board = level.render(level.start)
            name = f"sokoban-{text_digest(board)}"
            payload = {"board": board} if length is None else {"board": board, "length": length}
            horizon = self._horizon or (HORIZON if self._levels is None else ample_turns(level))
            found.setdefault(name, Task(name, self.name, INSTRUCTION, horizon, payload))
        return list(found.values())

    def fewest_turns(self, task: Task) -> int | None:
        """The length of the shortest solution where it is known, else a lower bound on its pushes."""
        known = task.payload.get("length")
        return known if isinstance(known, int) else fewest_pushes(parse(task.payload["board"]))

    def reset(self, task: Task) -> Observation:
        """Shows the board alone. Raises `UserError` when the task holds no board."""
        try:
            level = parse(task.payload["board"])
        except (KeyError, AttributeError, ValueError) as error:
            raise UserError(f"task {task.id!r} holds no Sokoban board: {error}") from None
        observation = self._observe(level, level.start, level.render(level.start), {})
        self._now = Snapshot(level, level.start, observation if observation.done else None, False)
        return observation

    def step(self, action: str) -> Observation:
        """Moves the player. Once the level is solved nothing changes any more and the last observation is repeated."""
        now = self._present()
        if now.final is not None:
            return now.final
        level, word = now.level, (without_stop(action) if self._lenient else action.strip()).lower()
        state, words, outcome = now.state, INVALID, "INVALID"
        if word in ACTIONS:
            state, result = level.move(now.state, word)
            words, outcome = result.value, result.name
        # Walking can be undone and pushing cannot, so only a push can spoil a level, and it stays spoiled.
        dead = now.dead or (self._deadlock_feedback and state.boxes != now.state.boxes and not _solvable(level, state))
        text = f"{words}{' ' + DEADLOCK if dead else ''}\n{level.render(state)}"
        observation = self._observe(level, state, text, {"outcome": outcome})
        self._now = Snapshot(level, state, observation if observation.done else None, dead)
        return observation

    @staticmethod
    def _observe(level: Level, state: State, text: str, info: dict[str, Any]) -> Observation:
        solved = level.solved(state)
        return Observation(text, done=solved, success=solved, reward=float(solved), info=info)

    def expert(self) -> Sequence[str]:
        """An optimal solution from here; empty when solved, spoiled or beyond the solver's limit."""
        now = self._present()
        try:
            return solve(now.level, now.state) or []
        except SolverLimit:
            return []

    def example_actions(self) -> Sequence[str]:
        """The four moves."""
        return ACTIONS


def ample_turns(level: Level) -> int:
    """Turns that are enough for a level and some detours, without solving it: they go by its pushes, its boxes and its longest walk.

    Of 89 published levels that were solved, the hardest to fit took three quarters of them.
    """
    walks, cells = {level.start.player: 0}, [level.start.player]
    for cell in cells:
        for ahead in (cell + step for step in level.steps.values()):
            if ahead not in level.walls and ahead not in walks:
                walks[ahead] = walks[cell] + 1
                cells.append(ahead)
    return 4 * (fewest_pushes(level) or 1) + ceil(1.25 * (len(level.targets) + 1) * max(walks.values()))


def _checked(recipe: Recipe, horizon: int) -> Recipe:
    """The recipe. Raises `UserError` for the first value that does not fit."""
    room, needed = (recipe.rows - 2) * (recipe.columns - 2), 2 * recipe.boxes + 1
    for ok, wish in (
        (recipe.rows >= 3 and recipe.columns >= 3, "rows and columns of at least 3"),
        (recipe.boxes >= 1, "at least one box"),
        (needed <= room, f"{needed} inner cells for boxes, targets and player"),
        (0 <= recipe.wall_share < 1, "a wall_share of at least 0 and below 1"),
        (1 <= recipe.min_length <= recipe.max_length, "1 <= min_length <= max_length"),
        (horizon >= 1, "a horizon of at least 1"),
    ):
        if not ok:
            given = ", ".join(f"{name}={value}" for name, value in [*asdict(recipe).items(), ("horizon", horizon)])
            raise UserError(f"sokoban wants {wish}; found {given}")
    return recipe


def _solvable(level: Level, state: State) -> bool:
    """Whether a solution exists; a state that the solver gives up on counts as solvable, for feedback must not be wrong."""
    try:
        return solve(level, state, limit=50_000) is not None
    except SolverLimit:
        return True


def _held(path: Path | None) -> list[str]:
    """The splits of which files hold an unsolved level."""
    return [split for split in ("train", "valid", "test") if next(_from_files(path, split, 0), None)] if path else []


def _from_files(path: Path, split: str, seed: int) -> Iterator[tuple[Level, int | None]]:
    """The unsolved levels of a split: files in a seeded order, the levels of each in a seeded order, read as they are needed.

    Lengths are None, because an optimal solution of a hard level takes minutes.
    """
    draw = random.Random(seed_for("boxoban", seed, split))
    files = level_files(path.resolve())
    for file in draw.sample(files, len(files)):
        folder = split_named(file.parent.name) if split_named(file.parent.name) in FOLDERS else None
        if folder not in (None, split):
            continue
        blocks = read_blocks(file)
        for block in draw.sample(blocks, len(blocks)):
            level = to_level(block, file)
            if not level.solved(level.start) and (folder == split or split_of(level) == split):
                yield level, None
