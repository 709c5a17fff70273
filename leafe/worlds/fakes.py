"""Two small environments for tests and for reading: one that is as simple as can be, one that breaks its promise.

`Lookup` is the pattern for an environment of one's own. `SlipperySokoban` declares exact replay and does not have it: a rollback
in it must raise `ReplayDiverged`, and `leafe check-env` must fail on it. Neither is a benchmark.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from leafe.digest import digest, seed_for
from leafe.envs.base import Environment, Fidelity
from leafe.errors import UnknownName, UserError
from leafe.records import Observation, Task
from leafe.worlds.sokoban.board import ACTIONS
from leafe.worlds.sokoban.environment import Sokoban


class Lookup(Environment):
    """A key lies in one of `places`; `open place3` looks there. Nothing hints at the key but the failures."""

    name = "lookup"
    about = "find a hidden key in one of a few places; for tests and as a pattern"
    fidelity = Fidelity.REPLAY

    def __init__(self, *, places: int = 5, horizon: int = 4) -> None:
        if places < 1 or horizon < 1:
            raise UserError(f"lookup wants at least one place and a horizon of at least 1; found {places} and {horizon}")
        self._places = [f"place{number}" for number in range(1, places + 1)]
        self._horizon = horizon
        self._key = ""
        self._found = False

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        """Keys drawn by split, seed and number."""
        if split not in ("train", "valid", "test"):
            raise UnknownName("split", split, ("train", "valid", "test"))
        return [self._task(split, number, seed) for number in range(count)]

    def _task(self, split: str, number: int, seed: int) -> Task:
        key = self._places[seed_for("lookup", split, seed, number) % len(self._places)]
        name = f"lookup-{digest(self._places, key, split, seed, number)}"
        return Task(name, self.name, "Find the key.", self._horizon, {"key": key})

    def reset(self, task: Task) -> Observation:
        """Hides the key."""
        self._key, self._found = str(task.payload["key"]), False
        return Observation(f"Places: {', '.join(self._places)}.")

    def step(self, action: str) -> Observation:
        """Opens a place. Once the key is found, it stays found."""
        if not self._found and action not in self.example_actions():
            return Observation(f"That is no action. Actions: {', '.join(self.example_actions())}.")
        self._found = self._found or action == f"open {self._key}"
        return Observation("The key!" if self._found else "Empty.", self._found, self._found, float(self._found))

    def expert(self) -> Sequence[str]:
        """Straight to the key."""
        return [] if self._found else [f"open {self._key}"]

    def example_actions(self) -> Sequence[str]:
        """Every place."""
        return [f"open {place}" for place in self._places]


class SlipperySokoban(Sokoban):
    """Sokoban on ice: with probability `slip` a move goes any way. Nothing seeds it, so no replay is exact, whatever it says."""

    name = "slippery-sokoban"
    about = "Sokoban whose moves slip at random although it declares exact replay; for tests"
    fidelity = Fidelity.REPLAY

    def __init__(self, *, slip: float = 0.2, **settings: Any) -> None:
        super().__init__(**settings)
        if not 0 <= slip <= 1:
            raise UserError(f"slippery-sokoban wants a slip from 0 to 1; found {slip}")
        self._slip = slip
        self._ice = random.SystemRandom()

    def step(self, action: str) -> Observation:
        """Moves the player, perhaps in another direction."""
        slips = action.strip().lower() in ACTIONS and self._ice.random() < self._slip
        return super().step(self._ice.choice(ACTIONS) if slips else action)
