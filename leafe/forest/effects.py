"""What a generator may ask of the world outside: effects out, results in, nothing else.

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
    """Take one action, with the world's randomness drawn anew from `seed` where one is given."""

    action: str
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Rollback:
    """Bring the world to where `trajectory` ends, verified turn by turn. An empty trajectory is the root.

    `seeds` are those that its steps were taken with, empty where there were none.
    """

    task: Task
    trajectory: tuple[Turn, ...]
    seeds: tuple[int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """What a rollback came to: the observation there, and how many steps were replayed to reach it."""

    observation: Observation
    replayed_steps: int


@dataclass(frozen=True, slots=True)
class Expert:
    """Ask the world what it knows: the actions that solve the task from where it stands, which stays as it is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an environment's expert would do, in order; nothing where none is known."""

    actions: tuple[str, ...] = ()


Effect = Ask | Reset | Step | Rollback | Expert
Play = Generator[Effect, Any, Result]
