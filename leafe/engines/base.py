"""The contract of an engine: `async generate(ask) -> Completion`, called by thousands of episodes at once; `score` and `load` beside it.

Batching, reuse of computed prefixes and retries are the engine's business and never change what a seed draws on a processor; on a GPU they
change how numbers are rounded, and by that now and then a token. An engine that cannot answer raises `EngineError`; it never invents an
empty completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from leafe.records import Ask, Completion, Message


@dataclass
class EngineStats:
    """What an engine has done so far, in tokens and requests. `reused_tokens` are prompt tokens that were not computed again."""

    requests: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    sampled_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model makes of given ids: `logprobs` of each at temperature 1, natural logarithms rounded to 5 decimals.

    `top` holds for each id the most probable ones in its place with their probabilities, the most probable first; empty where none were
    asked for.
    """

    logprobs: tuple[float, ...]
    top: tuple[tuple[tuple[int, float], ...], ...] = ()


class Engine(Protocol):
    """Anything that draws completions. `concurrency` is how many requests in flight keep it busy.

    An engine that goes on with a reply that is `begun` says so by an attribute `continues`; where it is missing none is asked to.
    """

    stats: EngineStats
    concurrency: int

    async def generate(self, ask: Ask) -> Completion:
        """One completion, a function of the ask alone."""
        ...

    async def score(self, messages: Sequence[Message], ids: Sequence[int], top: int = 0) -> Scores:
        """What the model makes of `ids`, had they been sampled after `messages`; with `top` of the most probable ids in each place.

        Raises `UserError` for ids that are none, for a text longer than the context, and where the engine cannot score.
        """
        ...

    async def load(self, folder: str | Path) -> None:
        """Takes the weights of the checkpoint in `folder` in place of its own, and drops what it had computed.

        What was asked for before is finished by the old weights. Raises `UserError` for a model of another kind, which changes nothing, and
        where the engine cannot load.
        """
        ...

    async def close(self) -> None:
        """Lets go of the model or the connection; requests in flight are cancelled."""
        ...


def continues(engine: Engine) -> bool:
    """Whether an engine goes on with a reply that is begun."""
    return bool(getattr(engine, "continues", False))
