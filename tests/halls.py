"""A small world with an expert, whose wrong turns lead to texts that are written nowhere else."""

from __future__ import annotations

import random
from collections.abc import Sequence

from leafe.envs.base import Environment, Fidelity, Placement
from leafe.records import Observation, Task

DOORS = ("open red", "open green", "open blue")


class Halls(Environment):
    """Three halls in a row; one door of each leads on, and what is behind each other one is written nowhere else."""

    name, fidelity, placement = "halls", Fidelity.REPLAY, Placement.INLINE

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        """Ways drawn by the split and the number."""
        return [halls(*random.Random(f"{split}{seed}{number}").choices(DOORS, k=3), number=number) for number in range(count)]

    def reset(self, task: Task) -> Observation:
        """At the first hall."""
        self.way, self.hall = list(task.payload["way"]), 0
        return Observation("Hall 0.")

    def step(self, action: str) -> Observation:
        """The next hall, or what is behind a wrong door."""
        if action in DOORS and self.hall < 3 and action == self.way[self.hall]:
            self.hall += 1
            return Observation(f"Hall {self.hall}.", self.hall == 3, self.hall == 3, float(self.hall == 3))
        return Observation(f"Behind {action} of hall {self.hall}: a {'bat' if action in DOORS else 'wall'}.")

    def expert(self) -> Sequence[str]:
        """The doors that lead on."""
        return self.way[self.hall :]


class Unaided(Halls):
    """The same without an expert."""

    expert = Environment.expert


class Apart(Halls):
    """The same in a process of its own."""

    placement = Placement.PROCESS


def halls(*way: str, number: int = 0, horizon: int = 4) -> Task:
    return Task(f"halls-{number}", "halls", "Get out.", horizon, {"way": list(way)})
