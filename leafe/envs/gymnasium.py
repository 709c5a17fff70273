"""Gymnasium environments whose observations can be read and whose actions are text or one of a list.

Needs the extra `gymnasium`. A task is a seed of `reset`. Texts come from a text observation, else from the `ansi` rendering, colours
named in brackets, else from the numbers themselves; see `gymnasium_texts`. The registered limit of steps is left out: the task's horizon
counts turns. Whether a seed decides everything depends on the wrapped environment, so the user declares the fidelity (`replay` by
default), and `leafe check-env` proves it.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from leafe.envs.base import Environment, Fidelity, Placement
from leafe.envs.gymnasium_texts import described, in_words, uncoloured
from leafe.envs.seeds import seeded_tasks, split_seed
from leafe.envs.settled import one_of
from leafe.errors import MissingDependency, UserError
from leafe.imports import import_here, install_command
from leafe.records import Observation, Task

HORIZON = 50  # turns, where no limit is registered
LONGEST = 20_000  # characters of an observation
TRIED = 20  # steps that are taken to see the reward of a step that ends nothing
# The actions' names in the documentation of the environments that come with Gymnasium, in order.
NAMES: dict[str, tuple[str, ...]] = {
    "FrozenLake": ("left", "down", "right", "up"),
    "FrozenLake8x8": ("left", "down", "right", "up"),
    "CliffWalking": ("up", "right", "down", "left"),
    "CliffWalkingSlippery": ("up", "right", "down", "left"),
    "Taxi": ("south", "north", "east", "west", "pickup", "dropoff"),
    "Blackjack": ("stick", "hit"),
}


class Gymnasium(Environment):
    """`id` and `kwargs` are passed to `gymnasium.make`, `options` to every `reset`.

    `actions` names the actions of a discrete space in order. An attempt succeeds when the environment terminates it with a last reward of
    at least `success_reward`, or sets `success` or `is_success` in its last info. Where a step that ends nothing pays as much, the last
    reward cannot show success, and the environment is refused (`UserError`). A negative `success_reward` is exempt: it means that steps
    cost and every termination is a success. `horizon` 0 is the registered limit of steps.
    """

    name = "gymnasium"
    about = "any Gymnasium environment of text or discrete actions by id=NAME (extra gymnasium); replay as declared"
    fidelity = Fidelity.REPLAY

    def __init__(
        self,
        *,
        id: str,
        kwargs: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        actions: list[str] | None = None,
        instruction: str = "",
        horizon: int = 0,
        success_reward: float = 1.0,
        fidelity: str = "replay",
        placement: str = "inline",
    ) -> None:
        if horizon < 0:
            raise UserError(f"gymnasium wants a horizon of at least 1 turn, or 0 for the registered one; found {horizon}")
        self.fidelity, self.placement = one_of(Fidelity, fidelity), one_of(Placement, placement)
        self._id, self._kwargs, self._options = id, dict(kwargs or {}), options
        spec = _spec(id)
        self._env = _made(spec, self._kwargs)
        self._names = self._action_names(actions)
        self._instruction = instruction or " ".join(filter(None, (f"Play {spec.id}.", described(self._env), self.actions_help)))
        self._horizon = horizon or spec.max_episode_steps or HORIZON
        self._success_reward = success_reward
        self._final: Observation | None = None

    def _action_names(self, given: Sequence[str] | None) -> tuple[str, ...]:
        """The names of a discrete space's actions; none for text, where anything may be an action."""
        from gymnasium.spaces import Discrete, Text

        space = self._env.action_space
        self.free_text = isinstance(space, Text)
        if isinstance(space, Text):
            self.actions_help = f"An action is text of {space.min_length} to {space.max_length} characters."
            return ()
        if not isinstance(space, Discrete):
            raise UserError(f"{self._id} takes actions of {space}; only text and discrete actions can be typed: wrap it in a class")
        names = tuple(map(str, given or NAMES.get(self._env.spec.name, ()) or self._numbers(space)))
        if len(set(names)) != int(space.n):
            raise UserError(f"{self._id} has {int(space.n)} actions and wants as many different names; found actions={list(names)}")
        self.actions_help = f"Actions: {', '.join(names)}."
        return names

    def _numbers(self, space: Any) -> list[int]:
        return list(range(int(space.start), int(space.start) + int(space.n)))

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        """One task for each seed; see `seeds`. Raises `UserError` where a last reward cannot show success."""
        self._try_rewards()
        like = Task("", self.name, self._instruction, self._horizon)
        identity = {"id": self._id, "kwargs": self._kwargs, "options": self._options}
        return seeded_tasks(like, [split_seed(split, number, seed) for number in range(count)], identity)

    def _try_rewards(self) -> None:
        """Takes a few steps, so that an environment whose success cannot be recognised is refused before it is played."""
        self._env.action_space.seed(0)
        self._env.reset(seed=0, options=copy.deepcopy(self._options))
        for _ in range(TRIED):
            _, reward, terminated, truncated, _ = self._env.step(self._env.action_space.sample())
            if terminated or truncated:
                return
            self._check_reward(float(reward))

    def _check_reward(self, reward: float) -> None:
        """Raises `UserError` for the reward of a step that ends nothing and is as good as success."""
        if reward >= self._success_reward >= 0:
            raise UserError(
                f"{self._id} pays {reward:g} for a step that does not end the episode, so a last reward of at least "
                f"success_reward={self._success_reward:g} is no success; give a success_reward above what such a step pays, and where "
                "none is paid let a wrapper of yours say info['success']"
            )

    def reset(self, task: Task) -> Observation:
        """Resets with the task's seed."""
        self._final = None
        found, _ = self._env.reset(seed=int(task.payload["seed"]), options=copy.deepcopy(self._options))
        return Observation(self._text(found))

    def step(self, action: str) -> Observation:
        """Takes one action; after the end the last observation is repeated."""
        if self._final is not None:
            return self._final
        read = self._read(action)
        if read is None:
            return Observation(f"That is no action. {self.actions_help}")
        found, reward, terminated, truncated, info = self._env.step(read)
        value, done = float(reward), bool(terminated or truncated)
        if not math.isfinite(value):
            raise ValueError(f"the reward is {value}")
        if not done:
            self._check_reward(value)
        said = any(bool(info.get(key, False)) for key in ("success", "is_success"))
        success = done and (said or (bool(terminated) and value >= self._success_reward))
        ending = " The episode is over." if done else ""
        text = f"{self._text(found)}\nReward: {in_words(value)}.{ending}"
        observation = Observation(text, done, success, value)
        self._final = observation if done else None
        return observation

    def _read(self, action: str) -> Any:
        """The action that a text means, None where it means none."""
        text, space = action.strip(), self._env.action_space
        if not self._names:
            return text if space.contains(text) else None
        same = [at for at, name in enumerate(self._names) if name == text]
        alike = same or [at for at, name in enumerate(self._names) if name.casefold() == text.casefold()]
        if len(alike) == 1:  # two names may differ in case alone
            return int(space.start) + alike[0]
        number = int(text) if text.isdecimal() and text.isascii() and len(text) < 10 else -1
        return number if number in self._numbers(space) else None

    def _text(self, found: Any) -> str:
        rendered = self._env.render() if self._env.render_mode == "ansi" and not isinstance(found, str) else None
        text = uncoloured(rendered) if isinstance(rendered, str) and rendered.strip() else in_words(found)
        if len(text) > LONGEST:
            raise ValueError(f"an observation of {len(text):,} characters is no text to read; wrap the environment")
        return text.strip("\n") or "(nothing)"

    def snapshot(self) -> Any:
        """A deep copy, with the generators of random numbers; exact where deep copies of the environment are."""
        return copy.deepcopy(self._env), self._final

    def restore(self, snapshot: Any) -> None:
        """Continues in a copy of the snapshot."""
        kept, self._final = snapshot
        self._env = copy.deepcopy(kept)

    def reseed(self, seed: int) -> None:
        """Gives the environment another generator of random numbers."""
        from gymnasium.utils import seeding

        self._env.unwrapped.np_random = seeding.np_random(seed)[0]

    def example_actions(self) -> Sequence[str]:
        """All actions of a discrete space; for text, a few that the space draws."""
        if self._names:
            return self._names
        return [str(self._env.action_space.sample()) for _ in range(3)]

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


def _spec(id: str) -> Any:
    """The registered specification of an id, after importing the module before its colon. Raises `UserError`."""
    try:
        import gymnasium
    except ImportError:
        raise MissingDependency("gymnasium", install_command("gymnasium")) from None
    module, colon, name = id.rpartition(":")
    try:
        if colon:
            import_here(module)
        return gymnasium.spec(name)
    except ImportError as error:
        raise UserError(f"cannot import {module!r} for the Gymnasium environment {id!r}: {error}") from error
    except gymnasium.error.Error as error:
        close = difflib.get_close_matches(name, list(gymnasium.registry), n=1)
        mend = f"did you mean {close[0]!r}?" if close else "write module:Name-v0 for one that a module of yours registers"
        raise UserError(f"Gymnasium knows no environment {id!r}; {mend}") from error


def _made(spec: Any, kwargs: Mapping[str, Any]) -> Any:
    """The environment without its limit of steps, with a rendering as text where it has one. Raises `UserError`."""
    import gymnasium

    try:
        named = isinstance(spec.entry_point, str)
        made_by = gymnasium.envs.registration.load_env_creator(spec.entry_point) if named else spec.entry_point
        modes = getattr(made_by, "metadata", {}).get("render_modes", ())
        mode = {"render_mode": "ansi"} if "ansi" in modes and "render_mode" not in kwargs else {}
        return gymnasium.make(spec, max_episode_steps=-1, disable_env_checker=True, **mode, **kwargs)
    except Exception as error:  # whatever a foreign constructor raises: the arguments do not fit
        what = " ".join(str(error).split())
        raise UserError(
            f"Gymnasium cannot make {spec.id!r} with kwargs={dict(kwargs)}: {type(error).__name__}: {what:.300}"
        ) from error
