"""A world: one environment instance that records its history, so that it can roll back and prove that it did.

Turns count from 1; `turn` is the one about to be taken. Going back by replay compares the digest of every observation, the reset's
included, and raises `ReplayDiverged` at the first that differs. Going back by snapshot compares nothing, because an environment
shows its state only when it is reset or stepped: `leafe check-env` proves that a class restores exactly what it saved, by playing on
after a restore and after a replay. After any failure the world refuses calls until `reset` or `replay`.
It knows nothing of policies, budgets and horizons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from leafe.digest import digest
from leafe.envs.alarm import ENDS_MORE
from leafe.envs.base import Environment, Fidelity
from leafe.envs.differences import difference, shown
from leafe.envs.settled import settled
from leafe.errors import EnvironmentFailure, LeafeError, ReplayDiverged
from leafe.records import Observation, Task

Answer = TypeVar("Answer")


def observation_digest(observation: Observation) -> str:
    """The digest by which two observations are the same: text, done, success and reward. `info` is left out.

    An int reward and a numpy bool give the digest of what a file would give back: the float and the bool.
    """
    return _digest(observation.text, bool(observation.done), bool(observation.success), repr(float(observation.reward)))


@lru_cache(maxsize=1024)  # world and driver ask for the same one in succession; the reward is text because 0.0 equals -0.0
def _digest(text: str, done: bool, success: bool, reward: str) -> str:
    return digest(text, done, success, float(reward))


@dataclass(frozen=True, slots=True)
class Past:
    """One action, its observation, and the environment's snapshot after it (None without snapshots). The reset has the action None.

    `seed` is the new seed of randomness, set just before the action, None for none.
    """

    action: str | None
    observation: Observation
    digest: str
    snapshot: Any = None
    seed: int | None = None


class World:
    """One environment instance with the history of its present episode. Not to be shared by two episodes at once."""

    def __init__(self, environment: Environment) -> None:
        self.environment = settled(environment)
        self.replayed_steps = 0  # environment steps taken only to come back to a turn, over the world's life
        self.rollbacks = 0
        self._task: Task | None = None
        self._past: list[Past] = []  # the reset, then one entry per turn
        self._usable = False

    @property
    def fidelity(self) -> Fidelity:
        """The declared fidelity. Ask before `rollback`: `none` cannot go back."""
        return self.environment.fidelity

    @property
    def turn(self) -> int:
        """The turn about to be taken, from 1."""
        return max(1, len(self._past))

    @property
    def observation(self) -> Observation:
        """The present observation."""
        self._require()
        return self._past[-1].observation

    @property
    def history(self) -> tuple[Past, ...]:
        """The turns taken, oldest first, without the reset."""
        return tuple(self._past[1:])

    @property
    def actions(self) -> tuple[str, ...]:
        """The actions taken; with `digests` they are the arguments of `replay`."""
        return tuple(past.action for past in self._past if past.action is not None)

    @property
    def observations(self) -> tuple[Observation, ...]:
        """The observations, the first one included."""
        return tuple(past.observation for past in self._past)

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of the observations, the first one's included: one more than there are actions."""
        return tuple(past.digest for past in self._past)

    def reset(self, task: Task) -> Observation:
        """Starts a task anew and forgets the history."""
        self._task, self._past, self._usable = task, [], False
        first = self._observe(self.environment.reset, task)
        self._remember(None, first)
        self._usable = True
        return first

    def step(self, action: str, seed: int | None = None) -> Observation:
        """Takes the present turn, with randomness drawn anew from `seed` where one is given."""
        self._require()
        self._usable = False
        observation = self._taken(action, seed)
        self._remember(action, observation, seed)
        self._usable = True
        return observation

    def rollback(self, turn: int) -> Observation:
        """Goes back to where `turn` is about to be taken and returns what the policy saw there.

        Raises `ReplayDiverged` when a replay differs, `EnvironmentFailure` when the environment raises or can do neither, and
        `ValueError` for a turn outside `1 .. self.turn`.
        """
        self._require()
        if not 1 <= turn <= self.turn:
            raise ValueError(f"wanted a turn in 1..{self.turn}, found {turn}")
        if self.fidelity is Fidelity.NONE:
            raise EnvironmentFailure(f"{self.environment.name} declares fidelity 'none' and cannot go back; start a fresh attempt")
        self.rollbacks += 1
        kept = self._past[:turn]
        if self.fidelity is Fidelity.SNAPSHOT:
            self._usable = False
            self._guard(self.environment.restore, kept[-1].snapshot)
            self._past, self._usable = kept, True
        else:
            self._walk(kept)
        return self.observation

    def replay(
        self,
        actions: Sequence[str],
        digests: Sequence[str],
        *,
        task: Task | None = None,
        seeds: Sequence[int | None] = (),
    ) -> Observation:
        """Resets and takes recorded actions, comparing with `digests` (the reset's first, so one more than actions).

        `task` is the task of the last `reset` unless given; `seeds` are those that the actions were taken with, none unless given. Raises
        `ReplayDiverged` at the first observation that differs.
        """
        if len(digests) != len(actions) + 1:
            raise ValueError(f"wanted {len(actions) + 1} digests for {len(actions)} actions, found {len(digests)}")
        self._task = task or self._task
        blank = Observation("")
        recorded = zip((None, *actions), digests, (None, *(seeds or [None] * len(actions))), strict=True)
        self._walk([Past(action, blank, mark, seed=seed) for action, mark, seed in recorded])
        return self.observation

    def repeat(self, task: Task, actions: Sequence[str], observations: Sequence[Observation]) -> Observation:
        """`replay` where the observations are at hand (the reset's first), so that a difference can be shown."""
        self._task = task
        recorded = zip((None, *actions), observations, strict=True)
        self._walk([Past(action, seen, observation_digest(seen)) for action, seen in recorded])
        return self.observation

    def expert(self) -> Sequence[str]:
        """The environment's plan. Raises `EnvironmentFailure`."""
        return self._guard(self.environment.expert)

    def example_actions(self) -> Sequence[str]:
        """The environment's example actions. Raises `EnvironmentFailure`."""
        return self._guard(self.environment.example_actions)

    def close(self) -> None:
        """Closes the environment."""
        self._usable = False
        self._guard(self.environment.close)

    def _walk(self, recorded: Sequence[Past]) -> None:
        """Resets and takes every recorded action, comparing on the way."""
        if self._task is None:
            raise RuntimeError("no task to replay: call reset first or give one")
        self._past, self._usable = [], False
        for past in recorded:
            if past.action is None:
                observation = self._observe(self.environment.reset, self._task)
            else:
                self.replayed_steps += 1
                observation = self._taken(past.action, past.seed)
            self._remember(past.action, observation, past.seed)
            if self._past[-1].digest != past.digest:
                raise ReplayDiverged(_difference(len(self._past) - 1, past, observation))
        self._usable = True

    def _taken(self, action: str, seed: int | None) -> Observation:
        if seed is not None:
            self._guard(self.environment.reseed, seed)
        return self._observe(self.environment.step, action)

    def _remember(self, action: str | None, observation: Observation, seed: int | None = None) -> None:
        snapshot = self._guard(self.environment.snapshot) if self.fidelity is Fidelity.SNAPSHOT else None
        self._past.append(Past(action, observation, self._guard(observation_digest, observation), snapshot, seed))

    def _observe(self, call: Callable[[Any], Observation], argument: Any) -> Observation:
        observation = self._guard(call, argument)
        if not isinstance(observation, Observation):
            raise EnvironmentFailure(f"{self.environment.name} answered with {type(observation).__name__}; wanted an Observation")
        return observation

    def _guard(self, call: Callable[..., Answer], *arguments: Any) -> Answer:
        try:
            return call(*arguments)
        except (LeafeError, *ENDS_MORE):
            raise
        except SystemExit as error:  # which would end the run and all other attempts
            status = "" if error.code is None else repr(error.code)
            raise EnvironmentFailure(f"{self.environment.name} called sys.exit({status})") from error
        except BaseException as error:  # a Rust extension's panic and a CancelledError are no Exception; none is meant for the run
            raise EnvironmentFailure(f"{self.environment.name}: {type(error).__name__}: {error}") from error

    def _require(self) -> None:
        if not self._usable:
            raise EnvironmentFailure(f"this {self.environment.name} world was not reset, or something in it failed; reset it first")


def _difference(turn: int, recorded: Past, found: Observation) -> str:
    """The turn at which a replay left its record, and the difference there."""
    where = f"at turn {turn} ({recorded.action!r:.60})" if turn else "at the reset"
    if not recorded.observation.text:
        return f"replay diverged {where}: recorded the digest {recorded.digest}, replayed {shown(found)}"
    return f"replay diverged {where}: {difference(recorded.observation, found)}"
