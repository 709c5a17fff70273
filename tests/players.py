"""Policies without a model, and a hand that carries out effects without a driver.

A policy is a function of the ask alone, so whatever plays it twice gets the same. `Hand` feeds a generator from an environment and a
policy with nothing in between: no event loop, no journal, no world.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from leafe.chat import Prompts
from leafe.envs.base import Environment, Placement
from leafe.errors import EnvironmentFailure, EpisodeError
from leafe.forest.builder import Rules, TreeBuilder
from leafe.forest.effects import Effect, Expert, Plan, Play, Reset, Restored, Rollback, Step
from leafe.prompts import load_prompts
from leafe.records import Ask, Completion, Observation, Sampling, Task, Tree
from leafe.worlds.fakes import Lookup
from leafe.worlds.sokoban.board import ACTIONS

Result = TypeVar("Result")
Policy = Callable[[Ask], str]

TERSE = load_prompts("terse", "lookup")
FULL = load_prompts("full", "lookup")
PLACES = [f"open place{number}" for number in range(1, 6)]
MOVES = list(ACTIONS)


def turns_in(ask: Ask) -> int:
    """How many turns the history of a prompt holds."""
    return sum(message.sampled for message in ask.messages)


def erratic(actions: Sequence[str]) -> Policy:
    """A policy that does everything that a bad one may do: nonsense, unreadable reflections, turns out of range."""

    def answer(ask: Ask) -> str:
        draw = random.Random(ask.seed)
        if ask.purpose == "act":
            return draw.choice([*actions, *actions, "", "what\nnow", "fly {turn}"])
        turn = draw.randint(0, turns_in(ask) + 1)
        return draw.choice([f"turn {turn}: {draw.choice(actions)} {{advice}}", f"turn {turn}: try another", "turn none", "hm?"])

    return answer


def steady(action: str, reflection: str) -> Policy:
    """Always the same action and the same reflection."""
    return lambda ask: action if ask.purpose == "act" else reflection


def scripted(*answers: str) -> Policy:
    """A policy that gives each answer once, in order."""
    left = iter(answers)
    return lambda ask: next(left)


def completion(text: str, ask: Ask) -> Completion:
    """A reply as `ScriptedEngine` would give it, however long it is."""
    ids = tuple(text.encode())
    prompt = sum(len(message.content.encode()) for message in ask.messages)
    return Completion(text, ids, (0.0,) * len(ids), prompt_tokens=prompt)


class Hand:
    """Carries out effects and keeps them in `effects`. `spoil` may answer an effect with a failure instead, by its number."""

    def __init__(
        self,
        environment: Environment,
        policy: Policy,
        spoil: Callable[[int, Effect], EpisodeError | None] = lambda number, effect: None,
    ) -> None:
        self.environment, self.policy, self.spoil = environment, policy, spoil
        self.effects: list[Effect] = []
        self.failed: list[Effect] = []

    def finish(self, play: Play[Result]) -> Result:
        """What the generator returns in the end."""
        answer: Any = None
        while True:
            try:
                effect = play.throw(answer) if isinstance(answer, EpisodeError) else play.send(answer)
            except StopIteration as stop:
                result: Result = stop.value
                return result
            self.effects.append(effect)
            answer = self.spoil(len(self.effects) - 1, effect)
            if answer is None:
                answer = self._result(effect)
            else:
                self.failed.append(effect)

    @property
    def asks(self) -> list[Ask]:
        """Every request to the policy."""
        return [effect for effect in self.effects if isinstance(effect, Ask)]

    @property
    def steps(self) -> list[str]:
        """Every action that the environment was given, replays left out."""
        return [effect.action for effect in self.effects if isinstance(effect, Step)]

    def _result(self, effect: Effect) -> Completion | Observation | Restored | Plan:
        if isinstance(effect, Ask):
            return completion(self.policy(effect), effect)
        if isinstance(effect, Step):
            return self.environment.step(effect.action)
        if isinstance(effect, Expert):
            return Plan(tuple(self.environment.expert()))
        observation = self.environment.reset(effect.task)
        if isinstance(effect, Reset):
            return observation
        assert isinstance(effect, Rollback)
        for turn in effect.trajectory:
            observation = self.environment.step(turn.action)
        return Restored(observation, len(effect.trajectory))


def key_in(place: int, *, horizon: int = 3, number: int = 0) -> Task:
    """A `Lookup` task with the key in a known place."""
    return Task(f"lookup-{place}-{number}", "lookup", "Find the key.", horizon, {"key": f"place{place}"})


def rules(prompts: Prompts = TERSE, **settings: Any) -> Rules:
    """Rules with a large budget unless told otherwise."""
    room = Sampling(max_tokens=1 << 20)  # a script may say what it likes
    return Rules(**{"prompts": prompts, "seed": 1, "turns": 100, "max_attempts": 3, "act": room, "reflect": room, **settings})


def grown(explorer: Callable[[TreeBuilder], Play[Tree]], hand: Hand, task: Task, **settings: Any) -> Tree:
    """The tree of a task, grown by hand."""
    return hand.finish(explorer(TreeBuilder(task, rules(**settings))))


class Breaking(Lookup):
    """A `Lookup` that raises at some of its steps, always the same ones for the same task and actions."""

    name = "breaking"

    def __init__(self, *, odds: float = 0.1, **settings: Any) -> None:
        super().__init__(**settings)
        self._odds = odds
        self._past: list[str] = []

    def reset(self, task: Task) -> Observation:
        """As `Lookup`."""
        self._past = [task.id]
        return super().reset(task)

    def step(self, action: str) -> Observation:
        """As `Lookup`, or a crash."""
        self._past.append(action)
        if random.Random(repr(self._past)).random() < self._odds:
            raise OSError("the server went away")
        return super().step(action)


class Deadly(Lookup):
    """A `Lookup` that ends the process that it lives in when the third place is opened."""

    name = "deadly"
    placement = Placement.THREAD

    def step(self, action: str) -> Observation:
        """As `Lookup`, or the end."""
        if action == PLACES[2]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def breaks(numbers: set[int], kind: type[EpisodeError] = EnvironmentFailure) -> Callable[[int, Effect], EpisodeError | None]:
    """Fails the effects of these numbers, unless they are requests to the policy."""
    return lambda number, effect: kind(f"broken at {number}") if number in numbers and not isinstance(effect, Ask) else None
