"""ALFWorld in its original engine: the reference for ours, to compare the same game in both.

It needs the extra `alfworld-reference`, which compiles a planner when it is installed. The original's parses are cached, which
makes it twice as fast and changes none of its answers; it still takes about a second for a game and a fiftieth of one for a step. It
goes back by replay. Our engine plays along, for the expert and the list of commands; observations come from the original.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

from leafe.envs.base import Fidelity
from leafe.errors import MissingDependency
from leafe.imports import install_command
from leafe.records import Observation, Task
from leafe.worlds.alfworld import ALFWorld


class OriginalALFWorld(ALFWorld):
    """The tasks and arguments of `alfworld`, played by the package that they come from."""

    name = "alfworld-original"
    about = "the same tasks in the original engine (extra alfworld-reference), slow; exact replay"
    fidelity = Fidelity.REPLAY

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._engine = _engine()
        self._final: Observation | None = None

    def reset(self, task: Task) -> Observation:
        """Loads the game in both engines and shows the original's introduction."""
        super().reset(task)
        self._engine.load(str(self.path_of(task)))
        state = self._engine.reset()
        self._final = None
        return self._shown(state, done=False)

    def step(self, action: str) -> Observation:
        """Takes one command; after the end the last observation is repeated."""
        if self._final is not None:
            return self._final
        action = self.command_in(action)
        super().step(action)
        state, _, done = self._engine.step(action)
        return self._shown(state, done=bool(done))

    def _shown(self, state: Any, *, done: bool) -> Observation:
        text = str(state.feedback)
        if self._admissible:
            text = f"{text}\nPossible: {', '.join(sorted(state.admissible_commands))}."
        observation = Observation(text, done=done, success=done, reward=float(done))
        self._final = observation if done else None
        return observation


def _engine() -> Any:
    """The original's environment as its own loop makes it, with numbered names and nothing shuffled."""
    try:
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from textworld.envs.pddl import PddlEnv
    except ImportError:
        raise MissingDependency("the original ALFWorld", install_command("alfworld-reference")) from None
    _remember_parses()
    return AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)), shuffle=False)


@functools.cache
def _remember_parses() -> None:
    """Caches the parse of each grammar text and query. A cached parse is returned as a copy, because it is changed when it is used."""
    from textworld.envs.pddl import textgen
    from textworld.logic import Rule

    parse: Callable[..., Any] = functools.cache(textgen._parse_and_convert)
    textgen._parse_and_convert = lambda text, rule_name, trace=False: copy.deepcopy(parse(text, rule_name=rule_name))
    query: Callable[..., Any] = functools.cache(Rule.parse_conjunctive_query.__func__)
    Rule.parse_conjunctive_query = classmethod(lambda owner, expression: query(owner, expression))
