"""The in-process engine: a Hugging Face causal model, sampled by continuous batching with reuse of computed prefixes.

Requests from the event loop queue up for one worker thread, which batches them (`batching.py`). The invariant: a completion depends on
the ask and on the weights, not on its neighbours in the batch nor on what was reused. On the CPUs where it was measured that is exact,
bit by bit, in float32 and bfloat16, with one thread or two (`benchmarks/engine.py` counts).

It does not train and does not follow changes of the weights: load another engine after a training step.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from leafe.engines.base import EngineStats
from leafe.engines.batching import BLOCK, Batcher, Request, blocks_for
from leafe.engines.loading import context_of, end_tokens, load_checkpoint
from leafe.engines.memory import free_bytes
from leafe.engines.slots import BlockCache, Piece, forward, plan
from leafe.engines.tokens import ChatTokenizer
from leafe.engines.trial import give_back, take_over
from leafe.errors import EngineError, UserError
from leafe.records import Ask, Completion

GIB = 1 << 30


@dataclass(slots=True, eq=False, kw_only=True)
class _Call(Request):
    """A request and the coroutine that waits for it."""

    future: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop


class TransformersEngine:
    """Samples from `model` with the chat template of `tokenizer`. The model belongs to the engine until `close`.

    At most `slots` requests are sampled at once. `max_context` tokens, prompt and completion together, is the longest conversation; 0 is
    what the model's configuration says. The cache takes at most `cache_bytes`; 0 is half of what is free, which `sharers` engines share.
    `threads` is for torch; None leaves the process's setting. Raises `UserError` when the cache cannot hold one conversation.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        slots: int = 256,
        max_context: int = 1024,
        tokens_per_pass: int = 2048,
        threads: int | None = 1,
        dtype: torch.dtype | None = None,
        cache_bytes: int = 0,
        sharers: int = 1,
    ) -> None:
        self.concurrency = slots
        self.tokens = ChatTokenizer(tokenizer)
        self.max_context = context_of(model.config, max_context)
        self.stop_ids = self.tokens.stop_ids | end_tokens(getattr(model.generation_config, "eos_token_id", None))
        if not self.stop_ids:
            raise UserError(
                "the tokenizer has no end-of-sequence token and its chat template ends messages with none; set eos_token."
            )
        self._model = model.eval() if dtype is None else model.eval().to(dtype)
        taken = take_over(self._model)
        self._usual_attention = taken.attention
        self.max_context = min(self.max_context, taken.longest or self.max_context)
        slots, tokens_per_pass = (min(count, taken.most or count) for count in (slots, tokens_per_pass))
        self._threads = threads
        # `_arrived` and `_flushing` belong to the event loop, `_queue` to who holds `_changed`, `_batcher` to the worker.
        self._arrived: list[_Call] = []
        self._flushing: asyncio.AbstractEventLoop | None = None
        self._changed = threading.Condition()
        self._queue: list[_Call] = []
        self._closed = False
        self._worker: threading.Thread | None = None
        try:
            blocks = _affordable_blocks(model, slots, self.max_context, cache_bytes or _free_bytes(model.device) // (2 * sharers))
        except BaseException:
            give_back(self._model, self._usual_attention)
            raise
        self._batcher: Batcher[_Call] = Batcher(model, self.stop_ids, slots=slots, blocks=blocks, tokens_per_pass=tokens_per_pass)
        self.stats: EngineStats = self._batcher.stats

    @classmethod
    def load(
        cls, path: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", **options: Any
    ) -> TransformersEngine:
        """An engine for the checkpoint in the directory `path`: `save_pretrained` files, safetensors only, no remote code.

        Raises `UserError` when there is none and `CorruptFile` when it cannot be read.
        """
        model, tokenizer = load_checkpoint(path, dtype=dtype)
        return cls(model.to(device), tokenizer, **options)

    async def generate(self, ask: Ask) -> Completion:
        """One completion, a function of the ask and the weights alone. Raises `EngineError` when the forward pass fails."""
        if self._closed:
            raise EngineError("the engine is closed")
        ids = self.tokens.prompt_ids(ask.messages)
        self.stats.requests += 1
        if len(ids) + ask.sampling.max_tokens > self.max_context:
            return Completion("", finish="context", prompt_tokens=len(ids))
        loop = asyncio.get_running_loop()
        call = _Call(ask, ids, len(ids), future=loop.create_future(), loop=loop)
        self._arrived.append(call)
        if self._flushing is not loop:  # episodes that are ready in the same turn of the loop enter the queue together
            self._flushing = loop
            loop.call_soon(self._flush)
        try:
            await call.future
        finally:
            call.cancelled = True  # of no effect on a call that was answered
        return self._completion(call)

    async def close(self) -> None:
        """Stops the worker and gives the model back; requests in flight are cancelled."""
        self._flush(closing=True)
        if self._worker is not None:
            await asyncio.to_thread(self._worker.join)
        for call in self._queue:
            _notify(call.loop, call.future.cancel)
        self._queue = []
        give_back(self._model, self._usual_attention)

    def _completion(self, call: _Call) -> Completion:
        ids = tuple(call.ids[call.prompt :])
        finish: Literal["stop", "length"] = "stop" if ids[-1] in self.stop_ids else "length"
        return Completion(self.tokens.decode(ids), ids, tuple(call.logprobs), finish, call.prompt)

    def _flush(self, closing: bool = False) -> None:
        with self._changed:
            self._queue += self._arrived
            self._arrived, self._flushing = [], None
            self._closed = self._closed or closing
            self._changed.notify()
            if self._worker is None and not self._closed:
                self._worker = threading.Thread(target=self._work, name="leafe-engine", daemon=True)
                self._worker.start()

    def _work(self) -> None:
        """The worker thread: passes until the engine is closed. A pass that fails fails every request that it knows of."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        while self._receive():
            try:
                with torch.inference_mode():
                    done = self._batcher.step()
            except Exception as error:  # whatever went wrong, nobody may wait for ever
                self._fail(error)
            else:
                by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
                for call in done:
                    by_loop.setdefault(call.loop, []).append(call.future)
                for loop, futures in by_loop.items():
                    _notify(loop, partial(_resolve, futures))
        for call in self._batcher.clear():
            _notify(call.loop, call.future.cancel)

    def _receive(self) -> bool:
        """Takes in what has arrived, and waits for it when there is nothing else to do. False when the engine is closed."""
        with self._changed:
            while not self._closed and not self._queue and self._batcher.idle:
                self._changed.wait()
            if not self._closed:
                self._batcher.waiting += self._queue
                self._queue = []
            return not self._closed

    def _fail(self, error: Exception) -> None:
        # A pass that stopped half-way leaves blocks that nobody can vouch for: the cache goes as well.
        for call in self._batcher.clear():
            reason = EngineError(f"the forward pass failed: {type(error).__name__}: {error}")
            reason.__cause__ = error
            _notify(call.loop, partial(_refuse, call.future, reason))


@torch.inference_mode()
def _affordable_blocks(model: Any, slots: int, max_context: int, allowed: int) -> int:
    """Blocks for `slots` conversations of any length, or as many as `allowed` bytes hold."""
    trial = BlockCache(2, BLOCK)
    forward(model, plan([Piece([0], 0, [1])], trial, model.device))
    block_bytes = sum(layer[0].nbytes for layer in trial.layers.values()) or 1
    least, most = blocks_for(max_context) + 1, slots * blocks_for(max_context) + 1
    if least * block_bytes > allowed:
        wanted, found = least * block_bytes / GIB, allowed / GIB
        fits = max(BLOCK, (allowed // block_bytes - 2) * BLOCK)
        raise UserError(
            f"a conversation of {max_context:,} tokens takes {wanted:.1f} GiB of keys and values, and {found:.1f} GiB are for them; "
            f"type engine.max_context={fits}, or give more with engine.cache_gib"
        )
    return int(min(most, allowed // block_bytes))


def _free_bytes(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_bytes()


def _notify(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:  # the loop was closed and nobody waits any more
        return


def _resolve(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def _refuse(future: asyncio.Future[None], reason: EngineError) -> None:
    if not future.done():
        future.set_exception(reason)
