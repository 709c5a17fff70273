"""A world in which whatever is done is right: a model of any skill has something to learn from there."""

from __future__ import annotations

from leafe.records import Observation
from leafe.worlds.fakes import Lookup


class Agreeable(Lookup):
    """`Lookup`, found at the first turn."""

    name = "agreeable"

    def step(self, action: str) -> Observation:
        """Success."""
        return Observation("The key!", done=True, success=True, reward=1.0)
