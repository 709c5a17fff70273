"""The shipped fake: an engine whose answers are given beforehand or made by a function of the ask.

It needs no model and no torch, and answers in the order in which it is asked. A token is `token_bytes` UTF-8 bytes, each of log-probability
zero. Like a real engine it cuts an answer at `max_tokens` and refuses a prompt that leaves no room for these in `max_context`.

>>> import asyncio
>>> from leafe.records import Ask, Message, Sampling
>>> engine = ScriptedEngine(["go left"])
>>> asyncio.run(engine.generate(Ask((Message("user", "where to?"),), Sampling(max_tokens=16), seed=0))).text
'go left'
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from leafe.engines.base import EngineStats, Scores
from leafe.engines.repetition import repetition_end
from leafe.errors import EngineError, UserError
from leafe.growing import Growing
from leafe.records import Ask, Completion, Message


class ScriptedEngine:
    """Answers each ask with `answer(ask)`, or with the next of a sequence; keeps every ask in `asks`.

    `fail_after` is the number of requests that are answered before each further one raises `EngineError`; a sequence that is used up
    raises the same. `max_context` is in tokens, 0 for an unlimited context.
    """

    continues = True

    def __init__(
        self,
        answer: Callable[[Ask], str] | Sequence[str],
        *,
        fail_after: int | None = None,
        concurrency: int = 64,
        token_bytes: int = 1,
        max_context: int = 0,
    ) -> None:
        self.stats = EngineStats()
        self.concurrency = concurrency
        self.asks: list[Ask] = []
        self.loaded: list[Path] = []
        self._answer = answer
        self._fail_after = fail_after
        self._closed = False
        self._token_bytes = token_bytes
        self.max_context = max_context
        self._lengths: Growing[int] = Growing(0, lambda length, message: length + self._length(message.content))

    async def generate(self, ask: Ask) -> Completion:
        """The next answer of the script."""
        if self._closed:
            raise EngineError("the engine is closed")
        index = len(self.asks)
        if self._fail_after is not None and index >= self._fail_after:
            raise EngineError(f"the script says to fail after {self._fail_after} requests")
        self.asks.append(ask)
        prompt = self._lengths.of(ask.messages) + self._length(ask.begun)
        self.stats.requests += 1
        if self.max_context and prompt + ask.sampling.max_tokens > self.max_context:
            return Completion("", finish="context", prompt_tokens=prompt)
        ids = self._ids(self._text(ask, index))
        await asyncio.sleep(0)  # as with a real engine, others run while an episode waits
        finish: Literal["stop", "length", "repetition"] = "stop" if len(ids) <= ask.sampling.max_tokens else "length"
        ids = ids[: ask.sampling.max_tokens]
        if (end := repetition_end(ids, ask.sampling.max_repeats)) < len(ids):
            ids, finish = ids[:end], "repetition"
        self.stats.prompt_tokens += prompt
        self.stats.sampled_tokens += len(ids)
        return Completion(self._decoded(ids), ids, (0.0,) * len(ids), finish, prompt)

    async def score(self, messages: Sequence[Message], ids: Sequence[int], top: int = 0) -> Scores:
        """Log-probability zero for each id, which with `top` is the only one in its place."""
        if self._closed:
            raise EngineError("the engine is closed")
        prompt = self._lengths.of(tuple(messages))
        self.stats.requests += 1
        self.stats.prompt_tokens += prompt
        if self.max_context and prompt + len(ids) > self.max_context:
            found = f"{prompt} tokens with {len(ids)} to score"
            raise UserError(f"wanted a text that fits into {self.max_context} tokens, found {found}; set a larger max_context")
        return Scores((0.0,) * len(ids), tuple(((one, 1.0),) for one in ids) if top else ())

    async def load(self, folder: str | Path) -> None:
        """Keeps the folder in `loaded`; the script continues."""
        if self._closed:
            raise EngineError("the engine is closed")
        if not Path(folder).is_dir():
            raise UserError(f"no checkpoint in {str(folder)!r}: wanted a folder")
        self.loaded.append(Path(folder))

    async def close(self) -> None:
        """Refuses every later request."""
        self._closed = True

    def _text(self, ask: Ask, index: int) -> str:
        if callable(self._answer):
            return self._answer(ask)
        if index >= len(self._answer):
            raise EngineError(f"the script holds {len(self._answer)} answers and was asked for one more")
        return self._answer[index]

    def _length(self, text: str) -> int:
        return -(-len(text.encode()) // self._token_bytes)

    def _ids(self, text: str) -> tuple[int, ...]:
        data, size = text.encode(), self._token_bytes
        # A byte of one precedes those of a token, so that leading zero bytes are not lost.
        return (
            tuple(int.from_bytes(b"\1" + data[at : at + size], "big") for at in range(0, len(data), size))
            if size > 1
            else tuple(data)
        )

    def _decoded(self, ids: Sequence[int]) -> str:
        parts = (
            bytes([one]) if self._token_bytes == 1 else one.to_bytes(self._token_bytes + 1, "big").lstrip(b"\0")[1:] for one in ids
        )
        return b"".join(parts).decode("utf-8", "ignore")
