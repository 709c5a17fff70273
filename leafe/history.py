"""How much of its history a policy reads: all of it, the last turns, or as much as fits into the model's context.

Nothing is counted in tokens here. Where the engine says that a prompt leaves no room, the next shorter one is asked with: the oldest
thoughts go first, then the oldest observations. A good part goes at a time, because every shortening changes the prompt from there on and
what was computed for it is of no more use. Each turn keeps the shortening of its own prompt, so the same prompt can be rendered again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from leafe.chat import WHOLE, Prompts, reply_text
from leafe.records import Shortening, Turn

PART = 0.25  # of what is read of the history; that much goes at a time


@dataclass(frozen=True, slots=True)
class History:
    """`keep` is `all`, `last` (what is older than `turns` turns is shortened to its actions) or `fit`."""

    keep: Literal["all", "last", "fit"] = "all"
    turns: int = 4


def first_shortening(history: History, trajectory: Sequence[Turn]) -> Shortening:
    """How the prompt for the turn after `trajectory` is tried first. What was left out once stays out."""
    if history.keep == "last":
        older = max(0, len(trajectory) - history.turns)
        return Shortening(older, older)
    return trajectory[-1].shortening if trajectory and history.keep == "fit" else WHOLE


def shorter(prompts: Prompts, trajectory: Sequence[Turn], now: Shortening) -> Shortening | None:
    """The next shorter prompt for the turn after `trajectory`, None when only what always stays is left."""
    gone, reached = 0, []
    for step, gain in _steps(prompts, trajectory, now):
        gone += gain  # below 0 where an observation is shorter than what stands for it
        reached.append((step, gone))
    most = max((gone for _, gone in reached), default=0)
    if most <= 0:
        return None
    wanted = min(most, PART * (most + _staying(prompts, trajectory)))
    return next(step for step, gone in reached if gone >= wanted)


def _steps(prompts: Prompts, trajectory: Sequence[Turn], now: Shortening) -> Iterator[tuple[Shortening, int]]:
    """Every further shortening, one piece at a time, with the characters that it saves over the one before."""
    for number in range(now.thoughts, len(trajectory)):
        turn = trajectory[number]
        saved = len(reply_text(prompts, turn)) - len(reply_text(prompts, turn, thoughts=False))
        yield Shortening(number + 1, now.observations), saved
    for number in range(now.observations, len(trajectory) - 1):
        yield Shortening(len(trajectory), number + 1), len(trajectory[number].observation.text) - len(prompts.left_out)


def _staying(prompts: Prompts, trajectory: Sequence[Turn]) -> int:
    """Characters of the trajectory that are read however short the history is."""
    last = len(trajectory[-1].observation.text) if trajectory else 0
    return last + sum(len(reply_text(prompts, turn, thoughts=False)) + len(prompts.turn) for turn in trajectory)
