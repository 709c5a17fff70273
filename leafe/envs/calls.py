"""The calls that a world takes from outside, as data: five kinds of call, an answer, and two classes of failure.

A call and its answer mean the same wherever the world lives, in this thread or in another process: observations are converted to plain
data when they leave the world, and failures are of the two classes that a journal knows, with text that a file can hold.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Literal

from leafe.digest import canonical
from leafe.encoding import OMITTED
from leafe.envs.base import Fidelity
from leafe.envs.world import World
from leafe.errors import EnvironmentFailure, EpisodeError, ReplayDiverged, StepTimeout
from leafe.records import Observation, Task, decode, encode

START = 120.0  # extra seconds for the first call, for an overloaded machine


@dataclass(frozen=True, slots=True)
class Call:
    """`reset` takes a task, `step` an action, `rollback` a turn, `replay` a task with actions, digests and seeds as `World.replay` does.

    `seed` is the new seed that a step draws from, None for none. `expert` asks for the expert's actions and changes nothing.
    """

    verb: Literal["reset", "step", "rollback", "replay", "expert"]
    task: Task | None = None
    action: str = ""
    turn: int = 0
    actions: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    seed: int | None = None
    seeds: tuple[int | None, ...] = ()

    @property
    def plays_anew(self) -> bool:
        """Whether the environment may be reset to carry it out."""
        return self.verb not in ("step", "expert")

    @property
    def begins(self) -> bool:
        """Whether it begins an episode, so that any world can carry it out."""
        return self.verb in ("reset", "replay")


@dataclass(frozen=True, slots=True)
class Answer:
    """The observation after a call, and how many steps the environment took only to come back to a turn.

    `actions` are the expert's, where it was asked.
    """

    observation: Observation
    replayed_steps: int = 0
    actions: tuple[str, ...] = field(default=(), metadata=OMITTED)


def patience_for(call: Call, limit: float, *, first: bool = False) -> float:
    """Seconds that a call may take where a step may take `limit` seconds (0: no limit): `limit` for each step that it may take.

    A `first` call makes the environment too, and gets `START` seconds more.
    """
    steps = len(call.actions) + 1 if call.verb == "replay" else max(1, call.turn)
    return limit * steps + START if limit and first else limit * steps


def took_too_long(call: Call, limit: float) -> StepTimeout:
    """The error for a call that did not end in its time."""
    what = f"step({call.action!r:.60})" if call.verb == "step" else call.verb
    return StepTimeout(f"{what} took longer than {limit:g} s; raise environment.timeout if that can be right")


def carry_out(world: World, call: Call) -> Answer:
    """Carries out a call. Raises `EnvironmentFailure` and `ReplayDiverged`, of these classes exactly, for a lost episode."""
    before = world.replayed_steps
    try:
        observation = plain(_observe(world, call))
        actions = _plan(world) if call.verb == "expert" else ()
    except EpisodeError as failure:
        raise _plain_failure(failure) from failure
    return Answer(observation, world.replayed_steps - before, actions)


def _observe(world: World, call: Call) -> Observation:
    if call.verb == "step":
        return world.step(call.action, call.seed)
    if call.verb == "rollback":
        return world.rollback(call.turn)
    if call.verb == "expert":
        return world.observation
    assert call.task is not None, f"{call.verb} wants a task"
    if call.verb == "reset":
        return world.reset(call.task)
    if world.fidelity is Fidelity.NONE:
        # This call comes from an interrupted run. Playing the actions again would be another episode, not this one.
        raise EnvironmentFailure(f"{world.environment.name} declares fidelity 'none', so an interrupted attempt cannot go on")
    return world.replay(call.actions, call.digests, task=call.task, seeds=call.seeds)


def _plan(world: World) -> tuple[str, ...]:
    """The expert's actions, as text that a file can hold."""
    found: Any = world.expert()
    try:
        actions = None if isinstance(found, str) else tuple(action.encode(errors="replace").decode() for action in found)
    except Exception:  # from a generator that fails, or a value that holds no texts
        actions = None
    if actions is None:
        raise EnvironmentFailure(f"{world.environment.name}: wanted a list of texts from expert(), found {found!r:.80}")
    return actions


def plain(observation: Observation) -> Observation:
    """The observation as a file would return it, so that a resumed run and an uninterrupted one hold equal bytes.

    0 and 1 are read as verdicts, any number as a reward, numpy's too. Raises `EnvironmentFailure` for anything else.
    """
    if _is_plain(observation):
        return replace(observation, info=dict(observation.info)) if observation.info else observation
    try:
        done, success = _verdict("done", observation.done), _verdict("success", observation.success)
        read = replace(observation, done=done, success=success, reward=_reward(observation.reward))
        found: Observation = decode(Observation, json.loads(canonical(encode(read))))
    except (TypeError, ValueError, OverflowError) as error:
        raise EnvironmentFailure(f"the observation is not made of plain data: {error}") from error
    return found


def _verdict(name: str, value: object) -> bool:
    own = _own(value)
    if not isinstance(own, int) or own not in (0, 1):
        raise ValueError(f"wanted True or False as {name}, found {value!r:.80}")
    return bool(own)


def _reward(value: object) -> float:
    own = _own(value)
    if not isinstance(own, (int, float)):
        raise ValueError(f"wanted a number as reward, found {value!r:.80}")
    return float(own)


def _own(value: Any) -> Any:
    """A scalar of numpy or torch as Python's own, known by its shape without importing either."""
    return value.item() if getattr(value, "shape", None) == () else value


def _is_plain(observation: Observation) -> bool:
    """Whether writing to a file and reading back would change nothing, as is usual; the conversion is expensive."""
    kinds = (type(observation.text), type(observation.done), type(observation.success), type(observation.reward))
    if type(observation) is not Observation or kinds != (str, bool, bool, float) or not isfinite(observation.reward):
        return False
    info = observation.info
    return type(info) is dict and all(type(key) is str and _is_scalar(value) for key, value in info.items())


def _is_scalar(value: object) -> bool:
    return type(value) in (str, int, bool, type(None)) or (type(value) is float and isfinite(value))


def _plain_failure(failure: EpisodeError) -> EpisodeError:
    """The failure as a journal would return it."""
    kind = next((one for one in (ReplayDiverged, StepTimeout) if isinstance(failure, one)), EnvironmentFailure)
    name = "" if type(failure) is kind else f"{type(failure).__name__}: "
    return kind((name + str(failure)).encode(errors="replace").decode())
