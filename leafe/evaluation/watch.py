"""The first setback of a measured attempt, found by playing it again beside the environment's expert.

A setback is a turn without an action, or one after which the expert's way is longer than before it, or there is none any more. An attempt
that succeeds after a setback has recovered. The attempt itself is over when this begins, so nothing that is asked here can change it.
"""

from __future__ import annotations

from collections.abc import Sequence

from leafe.errors import EpisodeError
from leafe.forest.effects import Expert, Plan, Play, Reset, Step
from leafe.records import Observation, Task, Turn


def first_setback(task: Task, trajectory: Sequence[Turn]) -> Play[int | None]:
    """The index of the turn, 0 if there is none; None if the expert knows no way from the start, or the world is not the same again."""
    try:
        yield Reset(task)
        best = yield from _left()
        for turn in trajectory if best else ():
            if not turn.parsed:
                return turn.index
            observation: Observation = yield Step(turn.action)
            if observation.text != turn.observation.text:
                return None
            if observation.done:
                return 0 if observation.success else turn.index
            left = yield from _left()
            if not left or left > best:
                return turn.index
            best = left
    except EpisodeError:
        return None
    return 0 if best else None


def _left() -> Play[int]:
    plan: Plan = yield Expert()
    return len(plan.actions)
