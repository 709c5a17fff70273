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
    """The work of an engine so far, in tokens and requests. `reused_tokens` are prompt tokens that were not computed again, and
    `guessed_tokens` sampled ones that needed no pass of their own.
    """

    requests: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    sampled_tokens: int = 0
    guessed_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Scores:
    """A model's scores of given ids: the log-probability of each at temperature 1, a natural logarithm rounded to 5 decimals.

    `top` holds, for each position, the most probable ids with their probabilities, the most probable first; it is empty if none were
    requested.
    """

    logprobs: tuple[float, ...]
    top: tuple[tuple[tuple[int, float], ...], ...] = ()


class Engine(Protocol):
    """Anything that draws completions. `concurrency` is how many requests in flight keep it busy.

    An engine that can continue a reply that is `begun` has a true attribute `continues`; other engines are not asked to. One in this
    process may have `take(weights)`, which is `load` without a file.
    """

    stats: EngineStats
    concurrency: int

    async def generate(self, ask: Ask) -> Completion:
        """One completion, a function of the ask alone."""
        ...

    async def score(self, messages: Sequence[Message], ids: Sequence[int], top: int = 0) -> Scores:
        """Log-probabilities of `ids` as if they had been sampled after `messages`, and the `top` most probable ids at each position.

        Raises `UserError` for invalid ids, for a text longer than the context, and if the engine cannot score.
        """
        ...

    async def load(self, folder: str | Path) -> None:
        """Replaces the weights by those of the checkpoint in `folder`, and drops what the old ones computed.

        Earlier requests are finished with the old weights. Raises `UserError` for a model of another kind, which changes nothing, and
        if the engine cannot load.
        """
        ...

    async def close(self) -> None:
        """Releases the model or the connection; requests in flight are cancelled."""
        ...


UNCONTINUED = Completion("", finish="length")  # the answer to an ask that is begun, where it cannot be continued


def continues(engine: Engine) -> bool:
    """Whether an engine can continue a reply that is begun."""
    return bool(getattr(engine, "continues", False))
