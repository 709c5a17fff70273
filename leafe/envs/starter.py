"""The twenty lines of an environment of one's own and their test, written into a folder: `leafe new-env NAME`."""

from __future__ import annotations

import importlib.util
import keyword
from pathlib import Path

from leafe.errors import RunConflict, UserError

WORLD = '''"""An environment of your own; this one thinks of a number. `leafe check-env {name}:{kind}` proves what it declares."""

import random

from leafe.envs.base import Environment, Fidelity
from leafe.errors import UnknownName
from leafe.records import Observation, Task

SPLITS = ("train", "valid", "test")


class {kind}(Environment):
    name, fidelity = "{name}", Fidelity.REPLAY  # replay: reset and the same actions show the same again
    actions_help = "An action is `guess N`, N from 0 to 999."

    def tasks(self, split, count, seed=0):
        if split not in SPLITS:
            raise UnknownName("split", split, SPLITS)
        draw = random.Random(f"{{split}} {{seed}}")
        drawn = [3 * draw.randrange(333) + SPLITS.index(split) for _ in range(count)]  # so that no number is in two splits
        ids = [f"{name}-{{split}}-{{seed}}-{{place}}" for place in range(count)]
        return [Task(id, self.name, "Find the number.", 12, {{"number": number}}) for id, number in zip(ids, drawn)]

    def reset(self, task):
        self.number, self.found = task.payload["number"], False
        return Observation(f"I think of a number. {{self.actions_help}}")

    def step(self, action):
        word, _, said = action.strip().partition(" ")
        if not self.found and (word != "guess" or not said.isdecimal() or len(said) > 3):
            return Observation(f"That is no action. {{self.actions_help}}")  # nothing has changed
        self.found = self.found or int(said) == self.number  # what has ended stays ended
        hint = "That is it!" if self.found else "It is higher." if int(said) < self.number else "It is lower."
        return Observation(hint, done=self.found, success=self.found, reward=float(self.found))

    def example_actions(self):
        return [f"guess {{number}}" for number in range(0, 1000, 50)]
'''

TEST = '''"""Whether {name} keeps what it declares."""

from functools import partial

from leafe.envs.check import check_environment
from leafe.envs.registry import make

SPEC = "{name}:{kind}"


def test_{name}_keeps_what_it_declares():
    report = check_environment(partial(make, SPEC), name=SPEC, spec=SPEC)
    assert report.passed, [finding.sentence for finding in report.findings if finding.verdict == "fail"]


def test_a_right_guess_ends_{name}_with_success():
    world = make(SPEC)
    task = world.tasks("train", 1)[0]
    world.reset(task)
    assert world.step(f"guess {{task.payload['number']}}").success
'''


def write_starter(name: str, folder: Path) -> tuple[Path, Path, str]:
    """Writes `NAME.py` and `test_NAME.py`; returns both paths and the environment's name, as `maze:Maze`.

    Raises `UserError` for a name that a new module cannot have, and `RunConflict` where one of the files exists.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower() or not name.isascii():
        raise UserError(f"wanted a name of small letters, digits and _, as my_maze, found {name!r}")
    world, test = folder / f"{name}.py", folder / f"test_{name}.py"
    for path in (world, test):
        if path.exists():
            raise RunConflict(f"{path} is there already; give another name")
    if importlib.util.find_spec(name) is not None:
        raise UserError(f"there is a module {name!r} already, which yours would be taken for; give another name, as my_{name}")
    kind = "".join(part.capitalize() for part in name.split("_")) or "World"
    if not kind.isidentifier():
        raise UserError(f"wanted a name that begins with a letter, as my_maze, found {name!r}")
    world.write_text(WORLD.format(name=name, kind=kind), encoding="utf-8")
    test.write_text(TEST.format(name=name, kind=kind), encoding="utf-8")
    return world, test, f"{name}:{kind}"
