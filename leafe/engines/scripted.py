"""The shipped fake: an engine whose answers are written down beforehand or made by a function of the ask.

It needs no model and no torch, and answers in the order in which it is asked. Token ids are the UTF-8 bytes of the answer, each of
log-probability zero. It does not cut answers at `max_tokens`: what the script says is what the policy said.

>>> import asyncio
>>> from leafe.records import Ask, Message, Sampling
>>> engine = ScriptedEngine(["go left"])
>>> asyncio.run(engine.generate(Ask((Message("user", "where to?"),), Sampling(), seed=0))).text
'go left'
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from leafe.engines.base import EngineStats
from leafe.errors import EngineError
from leafe.records import Ask, Completion


class ScriptedEngine:
    """Answers each ask with `answer(ask)`, or with the next of a sequence; keeps every ask in `asks`.

    `fail_after` is the number of requests that are answered before each further one raises `EngineError`; a sequence that is used up
    raises the same.
    """

    def __init__(
        self, answer: Callable[[Ask], str] | Sequence[str], *, fail_after: int | None = None, concurrency: int = 64
    ) -> None:
        self.stats = EngineStats()
        self.concurrency = concurrency
        self.asks: list[Ask] = []
        self._answer = answer
        self._fail_after = fail_after
        self._closed = False

    async def generate(self, ask: Ask) -> Completion:
        """The next answer of the script."""
        if self._closed:
            raise EngineError("the engine is closed")
        index = len(self.asks)
        if self._fail_after is not None and index >= self._fail_after:
            raise EngineError(f"the script says to fail after {self._fail_after} requests")
        self.asks.append(ask)
        text = self._text(ask, index)
        await asyncio.sleep(0)  # as with a real engine, others run while an episode waits
        ids = tuple(text.encode())
        prompt = sum(len(message.content.encode()) for message in ask.messages)
        self.stats.requests += 1
        self.stats.prompt_tokens += prompt
        self.stats.sampled_tokens += len(ids)
        return Completion(text, ids, (0.0,) * len(ids), prompt_tokens=prompt)

    async def close(self) -> None:
        """Refuses every later request."""
        self._closed = True

    def _text(self, ask: Ask, index: int) -> str:
        if callable(self._answer):
            return self._answer(ask)
        if index >= len(self._answer):
            raise EngineError(f"the script holds {len(self._answer)} answers and was asked for one more")
        return self._answer[index]
