"""The contract of an environment: one class with `tasks`, `reset` and `step`, which declares the rollback that it supports.

An instance holds one episode at a time. Limits are not its business: the task holds the horizon, and the explorer counts turns.
`leafe check-env` proves what a class declares.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, ClassVar, Generic, TypeVar

from leafe.records import Observation, Task

State = TypeVar("State")


class Fidelity(StrEnum):
    """How an environment can be brought back to an earlier turn."""

    SNAPSHOT = "snapshot"  # `restore(snapshot())` is exact; reset and replay is exact too
    REPLAY = "replay"  # reset and the same actions give the same observations
    NONE = "none"  # neither: exploration falls back to fresh attempts


class Placement(StrEnum):
    """Where an environment's calls are made while many episodes are played at once. It changes how long things take, nothing else."""

    INLINE = "inline"  # at once, between two requests to the engine: for calls that take a millisecond
    THREAD = "thread"  # on a thread of its own: for calls that wait, as for a program or a server
    PROCESS = "process"  # in a process of its own: for calls that compute long or may crash, or a world that exists only once in a process


class Environment(ABC):
    """A text world.

    A complete environment:

        class Lookup(Environment):
            name, fidelity = "lookup", Fidelity.REPLAY

            def tasks(self, split, count, seed=0):
                return [Task(id=f"lookup-{i}", env="lookup", instruction="Find the key.", horizon=5) for i in range(count)]

            def reset(self, task):
                return Observation("You see a box and a jar.")

            def step(self, action):
                found = action == "open jar"
                return Observation("The key!" if found else "Nothing.", done=found, success=found, reward=float(found))
    """

    name: ClassVar[str]
    about: ClassVar[str] = ""  # one line for lists of environments
    # Class attributes as a rule; an instance that wraps somebody else's world may set its own.
    fidelity: Fidelity
    placement: Placement = Placement.INLINE
    instances: int = 0  # how many instances may exist at once; 0 is any number
    computes: bool = False  # on threads: whether a call keeps a core busy, so that no more are made at once than there are cores
    free_text: bool = False  # whether every text is an action, as an answer is; then no text can be called invalid
    several_lines: bool = False  # whether an action may have several lines, as a program has; a person who plays then marks its end
    actions_help: str = ""  # one line for a person who plays, and for prompts

    @abstractmethod
    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        """`count` tasks of a split (`train`, `test`, ...): the same for the same arguments in every process.

        Raises `UserError` when the split is unknown or holds fewer tasks.
        """

    @abstractmethod
    def reset(self, task: Task) -> Observation:
        """Starts the task anew and shows its first state."""

    @abstractmethod
    def step(self, action: str) -> Observation:
        """Takes one action. Text that is no action changes nothing; the observation then names valid actions."""

    def fewest_turns(self, task: Task) -> int | None:
        """A lower bound on the turns that solve the task, where one is known at once and without an episode, else None."""
        return None

    def snapshot(self) -> Any:
        """The whole state of the episode, as a copy. Only where `fidelity` is `snapshot`."""
        raise NotImplementedError(f"{type(self).__name__} takes no snapshots")

    def restore(self, snapshot: Any) -> None:
        """Returns to a state that `snapshot` returned. Only where `fidelity` is `snapshot`."""
        raise NotImplementedError(f"{type(self).__name__} takes no snapshots")

    def reseed(self, seed: int) -> None:
        """Draws all further randomness from another seed; equal seeds give equal draws. Only where something is random."""
        raise NotImplementedError(f"{type(self).__name__} draws nothing anew")

    def expert(self) -> Sequence[str]:
        """Actions that solve the task from the present state, fewest first; empty where none is known or none is left."""
        return ()

    def example_actions(self) -> Sequence[str]:
        """Actions worth trying in the present state; they need not be all. `leafe check-env` draws its random play from them."""
        return ()

    def close(self) -> None:
        """Releases whatever the environment holds."""
        return None


class FrozenStateEnvironment(Environment, Generic[State]):
    """A world whose whole state is one frozen record, which `reset` and `step` put in `_now`: snapshots are exact and cost nothing."""

    fidelity = Fidelity.SNAPSHOT
    _now: State | None = None

    def _present(self) -> State:
        if self._now is None:
            raise RuntimeError("no episode: call reset first")
        return self._now

    def snapshot(self) -> State:
        """The record, which is immutable."""
        return self._present()

    def restore(self, snapshot: State) -> None:
        """Returns to a snapshot, of this task or of another."""
        self._now = snapshot
