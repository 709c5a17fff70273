"""The shared part of the environments on planning games: episodes, snapshots, the expert and the list of admissible commands.

An episode ends when the goal holds, and at nothing else; the last observation is repeated from then on. Each environment decides where
it finds its games, and how it answers text that is no command.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakValueDictionary

from leafe.envs.base import FrozenStateEnvironment
from leafe.records import Observation, Task
from leafe.worlds.commands import understood
from leafe.worlds.pddl.game import Game
from leafe.worlds.pddl.gamefile import GameFile
from leafe.worlds.pddl.planner import plan, winning_part

KEPT = 32  # games that are kept beside those in play, the latest used

# Hundreds of trees grow side by side, each of which returns to its game again and again: a game is kept as long as any tree uses it.
_played: WeakValueDictionary[GameFile, Game] = WeakValueDictionary()


@lru_cache(maxsize=KEPT)
def game_of(file: GameFile) -> Game:
    """The game of a file's texts, made once while it is in use. Raises `ValueError` when they are no game."""
    game = _played.get(file)
    if game is None:
        game = _played[file] = _made(file)
    return game


def _made(file: GameFile) -> Game:
    try:
        return Game(file)
    except (IndexError, KeyError, TypeError, RecursionError) as error:  # texts that are cut short in one of countless ways
        raise ValueError(f"its texts do not fit together ({type(error).__name__}: {error})") from None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An episode's whole state: an integer of this game. `final` is the last observation once the goal was reached."""

    game: Game
    state: int
    final: Observation | None


class GameEnvironment(FrozenStateEnvironment[Snapshot]):
    """Plays game files. A subclass maps a task to its game with `load`."""

    def __init__(self, *, horizon: int, admissible: bool, lenient: bool) -> None:
        self._horizon, self._admissible, self._lenient = horizon, admissible, lenient
        self._walkthrough: tuple[str, ...] = ()
        self._way: tuple[str, ...] | None = None  # the winning part of the walkthrough, once it was played
        self._plans: dict[int, list[str]] = {}

    @abstractmethod
    def load(self, task: Task) -> tuple[Game, Sequence[str]]:
        """The game of a task, and a walkthrough from its start where one is known. Raises `UserError` when there is none."""

    def refusal(self, text: str) -> str:
        """The answer in place of `text`, which is the engine's answer to anything but an admissible command."""
        return text

    def reset(self, task: Task) -> Observation:
        """Shows the game's introduction."""
        game, walkthrough = self.load(task)
        self._walkthrough, self._way, self._plans = tuple(walkthrough), None, {}
        return self._observe(game, game.start, game.tell("intro"))

    def command_in(self, action: str) -> str:
        """The command that a text means in the present state: a lenient world reads it without regard to case, articles and a full stop."""
        now = self._present()
        return understood(action, now.game.commands(now.state)) if self._lenient else action

    def step(self, action: str) -> Observation:
        """Takes one command."""
        now = self._present()
        if now.final is not None:
            return now.final
        action = self.command_in(action)
        state, text = now.game.step(now.state, action)
        if action.strip() not in now.game.commands(now.state):
            text = self.refusal(text)
        return self._observe(now.game, state, text)

    def _observe(self, game: Game, state: int, text: str) -> Observation:
        won = game.won(state)
        if self._admissible:
            text = f"{text}\nPossible: {', '.join(sorted(game.commands(state)))}."
        observation = Observation(text, done=won, success=won, reward=float(won))
        self._now = Snapshot(game, state, observation if won else None)
        return observation

    def expert(self) -> Sequence[str]:
        """At the start the walkthrough, where there is one that wins; else a plan. One plan serves all the states that it leads through."""
        now = self._present()
        if now.state == now.game.start and now.final is None:
            if self._way is None:
                self._way = winning_part(now.game, self._walkthrough)
            if self._way:
                return self._way
        if now.state not in self._plans:
            self._keep(now.game, now.state, plan(now.game, now.state) or [])
        return self._plans[now.state]

    def _keep(self, game: Game, state: int, commands: list[str]) -> None:
        self._plans[state] = commands
        for number, command in enumerate(commands, start=1):
            state, _ = game.step(state, command)
            self._plans[state] = commands[number:]

    def example_actions(self) -> Sequence[str]:
        """The admissible commands, sorted."""
        now = self._present()
        return sorted(now.game.commands(now.state))
