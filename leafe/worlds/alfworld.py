"""ALFWorld: the official game files, in our own engine. Nothing is downloaded and nothing but Python is needed.

Observations, commands, rewards and endings are the original's to the byte; `benchmarks/alfworld_traces.py` compares them. As there,
games with movable receptacles or sliced objects are left out, and so are those for which their makers found no solution; where a file
does not record that, a walkthrough or plan that wins decides.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from leafe.digest import digest, seed_for
from leafe.envs.seeds import split_named
from leafe.errors import CorruptFile, UnknownName, UserError
from leafe.records import Task
from leafe.worlds.pddl.environment import GameEnvironment, game_of
from leafe.worlds.pddl.game import Game
from leafe.worlds.pddl.gamefile import NAME, GameFile, read_game
from leafe.worlds.pddl.planner import plan, winning_part

# The official numbers, our short names and the official names of the task types.
TYPES = {
    "pick": "pick_and_place_simple",
    "look": "look_at_obj_in_light",
    "clean": "pick_clean_then_place_in_recep",
    "heat": "pick_heat_then_place_in_recep",
    "cool": "pick_cool_then_place_in_recep",
    "two": "pick_two_obj_and_place",
}
ALIASES = {"valid": "valid_seen", "test": "valid_unseen"}
GET_DATA = "pip install alfworld && alfworld-download"
TASK_SENTENCE = "Your task is to: "


class ALFWorld(GameEnvironment):
    """Household tasks in text. A split is a folder of the data: `train`, `valid_seen` (also `valid`), `valid_unseen` (also `test`).

    `data` is the folder that `alfworld-download` filled, or the `json_2.1.1` in it; without it the variable ALFWORLD_DATA names it.
    `types` keeps some of the six task types: names out of pick, look, clean, heat, cool and two, separated by commas. With `admissible`
    every observation ends with the commands that are possible; without it, observations are the original's. A `lenient` world reads
    commands without regard to case, articles and a final full stop; without it, a command is matched as it is typed, as in the original.
    """

    name = "alfworld"
    about = "household tasks from the official game files (data=PATH), in our own engine; exact snapshots"
    actions_help = (
        "Commands: look, inventory, go to X, open X, close X, take X from Y, move X to Y, examine X, use X, heat X with Y, "
        "clean X with Y, cool X with Y, slice X with Y."
    )

    def __init__(
        self,
        *,
        data: str | None = None,
        types: str | int | None = None,
        admissible: bool = False,
        lenient: bool = False,
        horizon: int = 50,
    ) -> None:
        super().__init__(horizon=horizon, admissible=admissible, lenient=lenient)
        if horizon < 1:
            raise UserError(f"alfworld wants a horizon of at least 1; found {horizon}")
        self._types = _chosen(types)
        self._root = _root(data)

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        """`count` games of a split, in an order that the seed draws. See `Environment.tasks`."""
        folder = self._folder(split)
        found: dict[str, Task] = {}
        unsolved = 0
        for path in self._shuffled(folder, seed):
            if len(found) == count:
                break
            file = read_game(path)
            if _solvable(path, file):
                task = self._task(path, file)
                found.setdefault(task.id, task)
            else:
                unsolved += 1
        if len(found) < count:
            kinds = "" if len(self._types) == len(TYPES) else f" of the types {', '.join(self._types)}"
            without = f" and {unsolved} without a solution" if unsolved else ""
            raise UserError(f"wanted {count} games{kinds} in {folder}, found {len(found)}{without}; ask for fewer")
        return list(found.values())

    def _folder(self, split: str) -> Path:
        folders = {path.name: path for path in sorted(self._root.iterdir()) if path.is_dir()}
        chosen = split if split in folders else ALIASES.get(split_named(split), split_named(split))
        if chosen not in folders:
            raise UnknownName(f"split of {self._root}", split, folders)
        return folders[chosen]

    def _shuffled(self, folder: Path, seed: int) -> Iterator[Path]:
        paths = [
            path
            for path in sorted(folder.rglob(NAME))
            if "movable" not in str(path.relative_to(folder)) and "Sliced" not in str(path.relative_to(folder))
        ]
        draw = random.Random(seed_for("alfworld", folder.name, seed))
        yield from (path for path in draw.sample(paths, len(paths)) if _type_of(path) in self._types)

    def _task(self, path: Path, file: GameFile) -> Task:
        sentence = _task_of(path, file)
        mark = digest(file.domain, file.problem, file.grammar)
        payload = {"game": path.parent.relative_to(self._root).as_posix(), "type": _type_of(path), "digest": mark}
        return Task(f"alfworld-{mark}", self.name, sentence.removeprefix(TASK_SENTENCE), self._horizon, payload)

    def path_of(self, task: Task) -> Path:
        """The path of the task's game file."""
        return self._root / str(task.payload.get("game", "")) / NAME

    def load(self, task: Task) -> tuple[Game, Sequence[str]]:
        """The game file that the task names, which has to be the one that it was drawn from."""
        path = self.path_of(task)
        file = read_game(path)
        if digest(file.domain, file.problem, file.grammar) != task.payload.get("digest"):
            raise UserError(f"{path} is another game than the one that task {task.id!r} was drawn from; draw the tasks anew")
        return _playable(path, file), file.walkthrough


def _playable(path: Path, file: GameFile) -> Game:
    try:
        return game_of(file)
    except ValueError as error:
        raise CorruptFile(f"{path} cannot be played: {error}; fetch the game file again") from None


def _solvable(path: Path, file: GameFile) -> bool:
    """Whether a game can be solved: by the file's own record, else by whether its walkthrough or a plan of ours wins."""
    if file.solvable is not None:
        return file.solvable
    game = _playable(path, file)
    return bool(winning_part(game, file.walkthrough) or plan(game, game.start))


def _task_of(path: Path, file: GameFile) -> str:
    """The task, in the game's words."""
    try:
        return _playable(path, file).tell("task")
    except CorruptFile:
        raise
    except (ValueError, KeyError) as error:
        raise CorruptFile(f"{path} does not say what is wanted ({error}); fetch the game file again") from None


def _type_of(path: Path) -> str | None:
    """The short name of the task type, which the folder of the task starts with."""
    folder = path.parent.parent.name
    return next((short for short, official in TYPES.items() if folder.startswith(f"{official}-")), None)


def _chosen(types: str | int | None) -> tuple[str, ...]:
    if types is None:
        return tuple(TYPES)
    numbered = dict(zip("123456", ("pick", "look", "clean", "heat", "cool", "two"), strict=True))
    known = {**{short: short for short in TYPES}, **{official: short for short, official in TYPES.items()}, **numbered}
    words = [word.strip() for word in str(types).split(",") if word.strip()]
    for word in words:
        if word not in known:
            raise UnknownName("task type", word, known)
    if not words:
        raise UserError(f"types wants some of {', '.join(TYPES)}, separated by commas, found {types!r}")
    return tuple(dict.fromkeys(known[word] for word in words))


def _root(data: str | None) -> Path:
    """The folder whose folders are the splits."""
    given = data or os.environ.get("ALFWORLD_DATA")
    if not given:
        raise UserError(f"alfworld wants the folder with its games, as data=PATH or in ALFWORLD_DATA; to get them type: {GET_DATA}")
    path = Path(given).expanduser().resolve()
    if not path.is_dir():
        raise UserError(f"alfworld finds no folder {path}; give the one that `alfworld-download` filled as data=PATH")
    inner = path / "json_2.1.1"
    root = inner if inner.is_dir() else path
    if next(root.rglob(NAME), None) is None:
        raise UserError(f"{path} holds no {NAME}; give the folder that `alfworld-download` filled as data=PATH")
    return root
