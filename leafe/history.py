"""How much of its history a policy reads: all of it, the last turns, or as much as fits into the model's context.

Where the engine reports that a prompt leaves no room, the next shorter one is tried: the oldest thoughts are left out first, then the
oldest observations. A good part is left out at a time, because every shortening changes the prompt from there on and invalidates what
was computed for it. No tokens are counted here. Each turn keeps the shortening of its own prompt, so the same prompt can be rendered again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from leafe.chat import WHOLE, Prompts, reply_text
from leafe.records import Shortening, Turn

PART = 0.25  # the share of the history's text that is left out at a time


@dataclass(frozen=True, slots=True)
class History:
    """`keep` is `all`, `last` (turns older than the last `turns` are shortened to their actions) or `fit`."""

    keep: Literal["all", "last", "fit"] = "all"
    turns: int = 4


def first_shortening(history: History, trajectory: Sequence[Turn]) -> Shortening:
    """The shortening that is tried first for the turn after `trajectory`. What was left out once stays out."""
    if history.keep == "last":
        older = max(0, len(trajectory) - history.turns)
        return Shortening(older, older)
    return trajectory[-1].shortening if trajectory and history.keep == "fit" else WHOLE


def shorter(prompts: Prompts, trajectory: Sequence[Turn], now: Shortening) -> Shortening | None:
    """The next shorter prompt for the turn after `trajectory`, None when nothing more can be left out."""
    gone, reached = 0, []
    for step, gain in _steps(prompts, trajectory, now):
        gone += gain  # below 0 where an observation is shorter than its replacement
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
    """Characters of the trajectory that stay in the shortest history."""
    last = len(trajectory[-1].observation.text) if trajectory else 0
    return last + sum(len(reply_text(prompts, turn, thoughts=False)) + len(prompts.turn) for turn in trajectory)
