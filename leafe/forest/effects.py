"""The effects that a generator may yield and the results that it receives.

    Ask(messages, sampling, seed, purpose) -> Completion        (in `leafe.records`, since engines read it)
    Reset(task)                            -> Observation
    Step(action, seed)                     -> Observation
    Rollback(trajectory, seeds)            -> Restored
    Expert()                               -> Plan

A generator plays one task in one world at a time, so the world is not named. Failures come back as exceptions thrown at the `yield`:
`EnvironmentFailure` and `ReplayDiverged`. An engine that fails is not thrown here: it stops the stage.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from leafe.records import Ask, Observation, Task, Turn

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Reset:
    """Start the task anew."""

    task: Task


@dataclass(frozen=True, slots=True)
class Step:
    """Take one action, with the world's randomness drawn anew from `seed` if there is one."""

    action: str
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Rollback:
    """Restore the world to the end of `trajectory`, verified turn by turn. An empty trajectory is the root.

    `seeds` are those of its steps, empty if there were none.
    """

    task: Task
    trajectory: tuple[Turn, ...]
    seeds: tuple[int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of a rollback: the observation at its end, and how many steps were replayed."""

    observation: Observation
    replayed_steps: int


@dataclass(frozen=True, slots=True)
class Expert:
    """Ask the world for the actions that solve the task from its present state, which does not change."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The actions of an environment's expert, in order; empty if none are known."""

    actions: tuple[str, ...] = ()


Effect = Ask | Reset | Step | Rollback | Expert
Play = Generator[Effect, Any, Result]
