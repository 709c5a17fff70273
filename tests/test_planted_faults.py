"""Twenty-odd environments with one fault each, which `leafe check-env` must find, and the same world without a fault, which passes."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from leafe.digest import digest, seed_for
from leafe.envs.base import Environment, Fidelity
from leafe.envs.check import CheckReport, check_environment
from leafe.errors import UnknownName
from leafe.records import Observation, Task

SIDES = ("left", "right")


class Maze(Environment):
    """A way of turns, drawn for each task; a wrong turn leads back to the start. Nothing is wrong with it."""

    name = "maze"
    fidelity = Fidelity.REPLAY

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        if split not in ("train", "valid", "test"):
            raise UnknownName("split", split, ("train", "valid", "test"))
        ways = [list(random.Random(seed_for(split, seed, number)).choices(SIDES, k=40)) for number in range(count)]
        return [Task(f"maze-{digest(way)}", self.name, "Find the way out.", 12, {"way": way, "length": 4}) for way in ways]

    def reset(self, task: Task) -> Observation:
        self.task, self.at, self.over = task, 0, False
        self.way = list(task.payload["way"])[: task.payload["length"]]
        return Observation("You stand at the start.")

    def step(self, action: str) -> Observation:
        if not self.over and action not in SIDES:
            return Observation("Go left or right.")
        if not self.over:
            self.at = self.at + 1 if action == self.way[self.at] else 0
            self.over = self.at == len(self.way)
        return Observation(f"You are at crossing {self.at}.", self.over, self.over, float(self.over))

    def expert(self) -> Sequence[str]:
        return self.way[self.at :]

    def example_actions(self) -> Sequence[str]:
        return SIDES


class Silent(Maze):
    """Gives nobody an action to try."""

    def expert(self) -> Sequence[str]:
        return ()

    def example_actions(self) -> Sequence[str]:
        return ()


class SilentAndRandom(Silent):
    """The same, and its moves are of no kind that a replay could repeat; only text that is no action was ever tried."""

    def step(self, action: str) -> Observation:
        if action in SIDES:
            return Observation(f"You are at crossing {random.SystemRandom().random()}.")
        return super().step(action)


class Misspelt(Silent):
    """Names actions that it does not know."""

    def example_actions(self) -> Sequence[str]:
        return ("go left", "go right")


class MisspeltAndCounting(Misspelt):
    """The same, and tells the turn and what it was told."""

    def reset(self, task: Task) -> Observation:
        self.turn = 0
        return super().reset(task)

    def step(self, action: str) -> Observation:
        self.turn += 1
        return Observation(f"Turn {self.turn}: {action.strip()} is nothing that can be done.")


class InTheClass(Maze):
    """Keeps where the player stands in the class."""

    at_once: ClassVar[dict[str, int]] = {}

    def reset(self, task: Task) -> Observation:
        self.at_once["at"] = 0
        return super().reset(task)

    def step(self, action: str) -> Observation:
        self.at = self.at_once["at"]
        answer = super().step(action)
        self.at_once["at"] = self.at
        return answer


class InTheModule(Maze):
    """Draws the wind from the one generator that everybody draws from."""

    def reset(self, task: Task) -> Observation:
        random.seed(str(task.id))
        return super().reset(task)

    def step(self, action: str) -> Observation:
        answer = super().step(action)
        return answer if answer.done else replace(answer, text=f"{answer.text} Wind {random.randrange(9)}.")


class OneForAll(Maze):
    """The same tasks whatever the split."""

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        return super().tasks("train", count, seed)


class OneUnderTwoNames(Maze):
    """The same tasks in every split, each with an id of its own."""

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        return [replace(task, id=f"{split}-{number}") for number, task in enumerate(super().tasks("train", count, seed))]


class SharedInPart(Maze):
    """One task of the training split is also in the test split."""

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        drawn = list(super().tasks(split, count, seed))
        return [*super().tasks("train", 1, seed), *drawn[1:]]


class EatsItsTask(Maze):
    """Takes the way out of the task as it goes."""

    def step(self, action: str) -> Observation:
        if self.task.payload["way"]:
            self.task.payload["way"].append(self.task.payload["way"].pop(0))
        return super().step(action)


class MarksItsTask(Maze):
    """Writes into its task, where nothing looks again."""

    def reset(self, task: Task) -> Observation:
        task.payload["resets"] = task.payload.get("resets", 0) + 1  # type: ignore[index]
        return super().reset(task)


class Wandering(Maze):
    """An expert whose plan is right, and who says the other side first whenever he is asked on the way."""

    def expert(self) -> Sequence[str]:
        return self.way if self.at == 0 else [self._wrong(), *self.way]

    def _wrong(self) -> str:
        return SIDES[1 - SIDES.index(self.way[self.at])] if not self.over else SIDES[0]


class FromTheStart(Maze):
    """An expert who knows the way from the start and says it wherever he is asked."""

    def expert(self) -> Sequence[str]:
        return [] if self.over else self.way


class Meddling(Maze):
    """An expert who moves the player while he thinks."""

    def expert(self) -> Sequence[str]:
        plan = list(super().expert())
        if self.at and not self.over:
            self.at = 0
        return plan


class TwoMinds(Maze):
    """An expert who draws lots where the text is decided by more than the state."""

    def expert(self) -> Sequence[str]:
        self.asked = getattr(self, "asked", 0) + 1
        plan = list(super().expert())
        return plan if self.asked % 2 or not self.at else ["right", *plan]


class Lost(Maze):
    """An expert whose plan leads nowhere."""

    def expert(self) -> Sequence[str]:
        return ["left"] * 3


class Strict(Maze):
    """A word that is no turn ends the game, as in a contest."""

    def step(self, action: str) -> Observation:
        if not self.over and action not in SIDES:
            self.over = True
            return Observation("That is against the rules: you lose.", done=True)
        return super().step(action) if self.at < len(self.way) or not self.over else Observation("Over.", True, True, 1.0)


class Quarrelsome(Maze):
    """Takes a word that is no turn for a step back."""

    def step(self, action: str) -> Observation:
        if action not in SIDES and not self.over:
            self.at = 0
        return super().step(action)


class Clocked(Maze):
    """Tells the time."""

    def step(self, action: str) -> Observation:
        answer = super().step(action)
        return replace(answer, text=f"{answer.text} It is {time.perf_counter_ns()}.")


class Grown(Maze):
    """Draws from a generator that is made once and never seeded again."""

    def __init__(self) -> None:
        self.wind = random.Random(1)

    def step(self, action: str) -> Observation:
        answer = super().step(action)
        return answer if answer.done else replace(answer, text=f"{answer.text} Wind {self.wind.randrange(1000)}.")


class Addressed(Maze):
    """Tells where an object of its own lies in memory."""

    def reset(self, task: Task) -> Observation:
        first = super().reset(task)
        self.kept = [*getattr(self, "kept", ()), object()]
        return replace(first, text=f"{first.text} {self.kept[-1]!r}")


class Half(Maze):
    """Restores where the player stands and not whether the game is over."""

    fidelity = Fidelity.SNAPSHOT

    def snapshot(self) -> Any:
        return self.at

    def restore(self, snapshot: Any) -> None:
        self.at = snapshot


class Tuples(Maze):
    """Answers as Gymnasium's environments do."""

    def step(self, action: str) -> Any:
        answer = super().step(action)
        return answer.text, answer.reward, answer.done, False, {}


class Unrewarding(Maze):
    """Gives a reward that is no number."""

    def step(self, action: str) -> Observation:
        return replace(super().step(action), reward=float("nan"))


class Immortal(Maze):
    """Goes on after its end."""

    def step(self, action: str) -> Observation:
        if self.over:
            self.at, self.over = 0, False
        return super().step(action)


class Leaving(Maze):
    """Leaves the process where it should answer."""

    def step(self, action: str) -> Observation:
        if action not in SIDES:
            raise SystemExit(3)
        return super().step(action)


PLANTED: dict[type[Environment], tuple[str, str]] = {
    Silent: ("actions", "nothing that was tried changed anything; give example_actions()"),
    SilentAndRandom: ("actions", "nothing that was tried changed anything; give example_actions()"),
    Misspelt: ("actions", "nothing that was tried changed anything; give example_actions() that fit the state: 'go left'"),
    MisspeltAndCounting: ("actions", "nothing that was tried changed anything; give example_actions()"),
    InTheClass: ("together", "two instances in one process disturb each other"),
    InTheModule: ("together", "or set placement = Placement.PROCESS"),
    OneForAll: ("splits", "32 tasks are both in 'train' and in 'valid', first: maze-"),
    OneUnderTwoNames: ("splits", "both in 'train' and in 'valid' under two ids, first: train-0 and valid-0"),
    SharedInPart: ("splits", "1 task is both in 'train' and in 'valid', first: maze-"),
    EatsItsTask: ("payload", "reset or step changes the task that it was given: payload['way'] was"),
    MarksItsTask: ("payload", "payload['resets'] was None and is"),
    Wandering: ("expert", "expert()"),
    FromTheStart: ("expert", "expert()"),
    Meddling: ("expert", "expert()"),
    TwoMinds: ("expert", "expert()"),
    Lost: ("expert", "expert episodes do not end in success"),
    Strict: ("invalid_action", "set free_text = True"),
    Quarrelsome: ("invalid_action", "differs: recorded 'You are at crossing"),
    Clocked: ("replay", "recorded 'You are at crossing"),
    Grown: ("replay", "Wind"),
    Addressed: ("reset", "starts otherwise when it is reset again: first 'You stand at the start. <object object at"),
    Half: ("rollback", "rollbacks went wrong"),
    Tuples: ("episodes", "answered with tuple; wanted an Observation"),
    Unrewarding: ("episodes", "Out of range float values"),
    Immortal: ("after_end", "an ended episode goes on"),
    Leaving: ("invalid_action", "maze called sys.exit(3)"),
}


def checked(kind: type[Environment], **settings: Any) -> CheckReport:
    return check_environment(kind, name=kind.__name__, rollbacks=40, **settings)


def failures(report: CheckReport) -> dict[str, str]:
    return {finding.name: finding.sentence for finding in report.findings if finding.verdict == "fail"}


def test_the_world_without_a_fault_passes_every_check() -> None:
    report = checked(Maze)
    assert failures(report) == {} and report.measured is Fidelity.REPLAY
    verdicts = {finding.name: finding.verdict for finding in report.findings}
    assert {name for name, verdict in verdicts.items() if verdict != "pass"} == {"second_process"}
    sentences = {finding.name: finding.sentence for finding in report.findings}
    assert "plans from other states do" in sentences["expert"]


@pytest.mark.parametrize("kind", PLANTED, ids=lambda kind: str(kind.__name__))
def test_a_planted_fault_is_found_and_named(kind: type[Environment]) -> None:
    check, sentence = PLANTED[kind]
    found = failures(checked(kind))
    assert check in found and sentence in found[check], found
