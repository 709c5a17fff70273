"""The part of `leafe check-env` that plays: episodes by the expert, at random and mixed, recorded with their irregularities.

A recorder judges nothing; `check` turns its notes into findings. Actions come from `example_actions`, else from the expert's.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any

from leafe.envs.calls import plain
from leafe.envs.world import World
from leafe.errors import EnvironmentFailure, EpisodeError
from leafe.records import Observation, Task

NO_ACTIONS = ("", "   ", "xyzzy plugh", "up down; rm", "\n\n", "é 漢 🙂", "word " * 500)
KINDS = ("expert", "random", "mixed")
SHOWN = "\n\t\u200c\u200d"  # the last two join letters and emoji, or keep them apart
LONGEST = 100  # turns of a random episode, where the horizon is longer


@dataclass(frozen=True, slots=True)
class Episode:
    """A played episode: `observations` and `digests` are the reset's and one for each action."""

    kind: str
    task: Task
    actions: tuple[str, ...]
    observations: tuple[Observation, ...]
    digests: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether the environment itself ended it."""
        return bool(self.observations[-1].done)

    @property
    def success(self) -> bool:
        """Whether its last observation is a success."""
        return bool(self.observations[-1].success)


class Recorder:
    """Plays in one world and notes episodes, seconds, improper observations, and ended episodes that went on."""

    def __init__(self, world: World, draw: random.Random) -> None:
        self.episodes: list[Episode] = []
        self.improper: list[str] = []
        self.went_on: list[str] = []
        self.seconds: dict[str, list[float]] = {"reset": [], "step": [], "rollback": [], "replay": []}
        self.step_work = 0.0  # processor seconds of all steps
        self._world, self._draw = world, draw
        self._vocabulary: list[str] = []

    def record(self, tasks: Sequence[Task]) -> None:
        """Each task as the expert, at random, and as the expert for a while and then at random."""
        for task in tasks:
            self._world.reset(task)
            self._vocabulary += [action for action in self._world.environment.expert() if action not in self._vocabulary]
        for task in tasks:
            for kind in KINDS:
                self._play(task, kind)

    def _play(self, task: Task, kind: str) -> None:
        world = self._world
        self.see(self.timed("reset", world.reset, task))
        plan = list(world.environment.expert()) if kind != "random" else []
        if kind == "expert" and not plan:
            return
        if kind == "mixed":
            plan = plan[: self._draw.randrange(len(plan) + 1)]
        longest = len(plan) if kind == "expert" else min(max(task.horizon, len(plan)), LONGEST)
        while not world.observation.done and len(world.actions) < longest:
            turn = len(world.actions)
            action, start = plan[turn] if turn < len(plan) else self.any_action(), process_time()
            self.see(self.timed("step", world.step, action))
            self.step_work += process_time() - start
        self.episodes.append(Episode(kind, task, world.actions, world.observations, world.digests))
        if world.observation.done:
            self._play_past_the_end(world.observation)

    def _play_past_the_end(self, last: Observation) -> None:
        """Acts in an ended episode. The world is reset before it is used again, so a failure here affects nothing else."""
        for action in (*self._world.actions[-1:], NO_ACTIONS[2], self.any_action()):
            try:
                after = self._world.step(action)
            except EpisodeError as error:
                self.went_on.append(f"{action!r:.60} after the end: {error}")
                return
            if (after.done, after.success) != (last.done, last.success):
                self.went_on.append(f"{action!r:.60} after the end gave done={after.done}, success={after.success}")

    def any_action(self) -> str:
        """One action for the world's present state."""
        return self._draw.choice(list(self._world.environment.example_actions()) or self._vocabulary or list(NO_ACTIONS))

    def see(self, observation: Observation) -> None:
        """Notes faults in an observation's form."""
        text = observation.text
        if not isinstance(text, str) or not text.strip():
            self.improper.append(f"wanted some text, found {text!r:.80}")
            return
        strange = [character for character in text if not _can_be_shown(character)]
        if strange:
            self.improper.append(f"the character {strange[0]!r} is not printable, in {text[:80]!r}")
        try:
            plain(observation)
        except EnvironmentFailure as error:
            self.improper.append(f"{error}, in {observation!r:.160}")

    def timed(self, kind: str, call: Callable[..., Observation], *arguments: Any, **named: Any) -> Observation:
        """Makes a call and records its seconds."""
        start = perf_counter()
        answer = call(*arguments, **named)
        self.seconds[kind].append(perf_counter() - start)
        return answer


def _can_be_shown(character: str) -> bool:
    """Whether a terminal shows it, or its neighbours by it: `isprintable` is false for the blanks of many scripts and for joiners."""
    return character.isprintable() or character in SHOWN or unicodedata.category(character) == "Zs"
