"""The contract of an engine: `async generate(ask) -> Completion`, called by thousands of episodes at once.

Batching, reuse of computed prefixes and retries are the engine's business and never change what a seed draws. An engine that cannot
answer raises `EngineError`; it never invents an empty completion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from leafe.records import Ask, Completion


@dataclass
class EngineStats:
    """What an engine has done so far, in tokens and requests. `reused_tokens` are prompt tokens that were not computed again."""

    requests: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    sampled_tokens: int = 0


class Engine(Protocol):
    """Anything that draws completions. `concurrency` is how many requests in flight keep it busy."""

    stats: EngineStats
    concurrency: int

    async def generate(self, ask: Ask) -> Completion:
        """One completion, a function of the ask alone."""
        ...

    async def close(self) -> None:
        """Lets go of the model or the connection; requests in flight are cancelled."""
        ...
