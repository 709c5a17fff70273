"""The in-process engine: a Hugging Face causal model, sampled by continuous batching with reuse of computed prefixes.

Requests from the event loop queue up for one worker thread, which batches them (`batching.py`). The invariant: a completion depends on
the ask and on the weights, not on its neighbours in the batch nor on reuse. On the CPUs where it was measured that is exact,
bit by bit, in float32 and bfloat16, with one thread or two (`benchmarks/engine.py` counts).

On a GPU the invariant holds for the distribution and not for the bits: seeds give the same random numbers, but kernels round differently
in another batch, so that a request may now and then draw another token than it would alone. Each token is kept with its log-probability,
and a resumed run replays its journal, so it continues with exactly the same tokens.

It does not train; new weights come through `load`, or from this process through `take`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from leafe.engines.base import EngineStats, Scores
from leafe.engines.batching import BLOCK, Batcher, Request, blocks_for
from leafe.engines.exchange import check_given, weights_for
from leafe.engines.loading import context_of, end_tokens, load_checkpoint
from leafe.engines.memory import free_bytes
from leafe.engines.pipeline import PipelinedBatcher
from leafe.engines.slots import BlockCache, Piece, forward, plan
from leafe.engines.tokens import ChatTokenizer
from leafe.engines.trial import give_back, steps_obstacle, take_over
from leafe.errors import EngineError, UserError
from leafe.records import Ask, Completion, Message, Sampling

GIB = 1 << 30
TOKENS_HERE, TOKENS_THERE = 2048, 8192  # prompt tokens in a pass on a processor and on a GPU


@dataclass(slots=True, eq=False, kw_only=True)
class _Call(Request):
    """A request and the coroutine that waits for it."""

    future: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop


@dataclass(slots=True, eq=False)
class _Exchange:
    """New weights for the model, the ids that end a message with them, and the coroutine that waits."""

    weights: Mapping[str, torch.Tensor]
    stop_ids: frozenset[int]
    future: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop


class TransformersEngine:
    """Samples from `model` with the chat template of `tokenizer`. The model belongs to the engine until `close`.

    At most `slots` requests are sampled at once. `max_context` tokens, prompt and completion together, is the longest conversation; 0 takes
    the limit of the model's configuration. The cache takes at most `cache_bytes`; 0 is half of the free memory, shared by `sharers`
    engines.
    `threads` is for torch; None leaves the process's setting. `tokens_per_pass` is for prompts, 0 for the device's default. `steps` is
    whether tokens are drawn by `steps.py`, None for only on a GPU; `obstacle` is the reason why they are not, although they should be.
    Raises `UserError` when the cache cannot hold one conversation.
    """

    continues = True

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        slots: int = 256,
        max_context: int = 1024,
        tokens_per_pass: int = 0,
        threads: int | None = 1,
        dtype: torch.dtype | None = None,
        cache_bytes: int = 0,
        sharers: int = 1,
        steps: bool | None = None,
    ) -> None:
        self.concurrency = slots
        self.tokens = ChatTokenizer(tokenizer)
        self.max_context = context_of(model.config, max_context)
        self.stop_ids = self.tokens.stop_ids | end_tokens(getattr(model.generation_config, "eos_token_id", None))
        there = model.device.type == "cuda"
        tokens_per_pass = tokens_per_pass or (TOKENS_THERE if there else TOKENS_HERE)
        if not self.stop_ids:
            raise UserError(
                "the tokenizer has no end-of-sequence token and its chat template ends messages with none; set eos_token."
            )
        self._model = model.eval() if dtype is None else model.eval().to(dtype)
        steps = there if steps is None else steps
        self.obstacle = steps_obstacle(self._model) if steps else ""
        taken = take_over(self._model)
        if steps and taken.most is not None:  # steps have no limit on the tokens of a pass
            self.obstacle = self.obstacle or "what it computes depends on the number of tokens of a pass"
        self._usual_attention = taken.attention
        self.max_context = min(self.max_context, taken.longest or self.max_context)
        slots, tokens_per_pass = (min(count, taken.most or count) for count in (slots, tokens_per_pass))
        self._threads = threads
        # `_arrived` and `_flushing` belong to the event loop, `_queue` to the holder of `_changed`, the others to the worker.
        self._arrived: list[_Call | _Exchange] = []
        self._flushing: asyncio.AbstractEventLoop | None = None
        self._changed = threading.Condition()
        self._queue: deque[_Call | _Exchange] = deque()
        self._exchange: _Exchange | None = None
        self._closed = False
        self._worker: threading.Thread | None = None
        try:
            blocks = _affordable_blocks(model, slots, self.max_context, cache_bytes or _free_bytes(model.device) // (2 * sharers))
        except BaseException:
            give_back(self._model, self._usual_attention)
            raise
        make = partial(PipelinedBatcher, longest=self.max_context) if steps and not self.obstacle else Batcher
        self._batcher: Batcher[_Call] = make(model, self.stop_ids, slots=slots, blocks=blocks, tokens_per_pass=tokens_per_pass)
        self.stats: EngineStats = self._batcher.stats

    @classmethod
    def from_folder(
        cls, path: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu", **options: Any
    ) -> TransformersEngine:
        """An engine for the checkpoint in the directory `path`: `save_pretrained` files, safetensors only, no remote code.

        Without a `dtype` it is bfloat16 on a GPU and float32 elsewhere. Raises `UserError` when there is no such folder or the model does
        not fit on the device, and `CorruptFile` when it cannot be read.
        """
        dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
        model, tokenizer = load_checkpoint(path, dtype=dtype)
        try:
            return cls(model.to(device), tokenizer, **options)
        except torch.OutOfMemoryError as error:
            found = f"{str(dtype).removeprefix('torch.')} ({str(error).strip().splitlines()[0]:.160})"
            smaller = "engine.dtype=bfloat16, or " if dtype == torch.float32 else ""
            raise UserError(
                f"wanted room on {device} for the model in {str(path)!r} in {found}; type {smaller}engine.kind=vllm with"
                " engine.tensor_parallel=N, which splits it over N GPUs"
            ) from None

    async def generate(self, ask: Ask) -> Completion:
        """One completion, a function of the ask and the weights alone. Raises `EngineError` when the forward pass fails."""
        ids = self._prompt(ask.messages) + (self.tokens.text_ids(ask.begun) if ask.begun else [])
        if len(ids) + ask.sampling.max_tokens > self.max_context:
            return Completion("", finish="context", prompt_tokens=len(ids))
        return self._completion(await self._answered(ask, ids))

    async def score(self, messages: Sequence[Message], ids: Sequence[int], top: int = 0) -> Scores:
        """Log-probabilities of `ids` after `messages`: see `Engine.score`. Prefixes are reused as in sampling."""
        prompt = self._prompt(messages)
        if len(prompt) + len(ids) > self.max_context:
            found = f"{len(prompt):,} tokens with {len(ids):,} to score"
            raise UserError(
                f"wanted a text that fits into {self.max_context:,} tokens, found {found}; type a larger engine.max_context"
            )
        rows = int(self._model.get_input_embeddings().weight.shape[0])
        wrong = next((one for one in ids if not 0 <= one < rows), None)
        if wrong is not None:
            raise UserError(f"wanted ids of tokens below {rows}, found {wrong}; score the ids that this model's tokenizer makes")
        if not ids:
            return Scores(())
        ask = Ask(tuple(messages), Sampling(max_tokens=1), 0)
        call = await self._answered(ask, [*prompt, *ids[:-1]], scored=tuple(ids), top=top)
        return Scores(tuple(logprob for logprob, _ in call.scores), tuple(tops for _, tops in call.scores) if top else ())

    async def load(self, folder: str | Path) -> None:
        """Replaces the weights by those in `folder`: see `Engine.load`. Reading them takes as much memory again as the model."""
        if self._closed:
            raise EngineError("the engine is closed")
        weights, ends = await asyncio.to_thread(weights_for, self._model, self.tokens.tokenizer, folder)
        if self._closed:
            raise EngineError("the engine was closed while the new weights were read")
        await self._exchanged(weights, self.tokens.stop_ids | ends)

    async def take(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replaces the weights by copies of others of the same model, without a file, as `load` does otherwise.

        They may be of another precision and on another device, and stay unchanged until this returns. Raises `UserError` for those of
        another model.
        """
        if self._closed:
            raise EngineError("the engine is closed")
        check_given(self._model, weights)
        await self._exchanged(weights, self.stop_ids)

    async def _exchanged(self, weights: Mapping[str, torch.Tensor], stop_ids: frozenset[int]) -> None:
        loop = asyncio.get_running_loop()
        exchange = _Exchange(weights, stop_ids, loop.create_future(), loop)
        self._arrive(exchange, loop)
        await exchange.future
        self.stop_ids = exchange.stop_ids

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        if self._closed:
            raise EngineError("the engine is closed")
        self.stats.requests += 1
        return self.tokens.prompt_ids(messages)

    async def _answered(self, ask: Ask, ids: list[int], **more: Any) -> _Call:
        loop = asyncio.get_running_loop()
        call = _Call(ask, ids, len(ids), future=loop.create_future(), loop=loop, **more)
        self._arrive(call, loop)
        try:
            await call.future
        finally:
            call.cancelled = True  # no effect on a call that was answered
        return call

    def _arrive(self, item: _Call | _Exchange, loop: asyncio.AbstractEventLoop) -> None:
        self._arrived.append(item)
        if self._flushing is not loop:  # episodes that are ready in the same turn of the loop enter the queue together
            self._flushing = loop
            loop.call_soon(self._flush)

    async def close(self) -> None:
        """Stops the worker and releases the model; requests in flight are cancelled."""
        self._flush(closing=True)
        if self._worker is not None:
            await asyncio.to_thread(self._worker.join)
        for call in self._queue:
            _notify(call.loop, call.future.cancel)
        self._queue.clear()
        self._batcher.close()
        give_back(self._model, self._usual_attention)

    def _completion(self, call: _Call) -> Completion:
        ids = tuple(call.ids[call.prompt :])
        finish: Literal["stop", "length", "repetition"] = "length" if len(ids) >= call.ask.sampling.max_tokens else "repetition"
        if ids[-1] in self.stop_ids:
            finish = "stop"
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
        """The worker thread: runs passes until the engine is closed. A pass that fails fails every queued request."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        if self._model.device.type == "cuda":
            torch.cuda.set_device(self._model.device)
        while self._receive():
            try:
                if self._exchange is not None:
                    self._take_weights(self._exchange)
                    continue
                with torch.inference_mode():
                    done = self._batcher.step()
            except Exception as error:  # on any error, no request may wait forever
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
        """Takes new requests and weights, and waits for some when there is nothing to compute. False when the engine is closed.

        Requests after new weights wait for them, and the weights wait until nothing is being computed.
        """
        with self._changed:
            while not self._closed and not self._queue and self._batcher.idle:
                self._changed.wait()
            while not self._closed and self._queue:
                item = self._queue[0]
                if isinstance(item, _Exchange):
                    if self._batcher.idle:
                        self._exchange = item
                        self._queue.popleft()
                    break
                self._batcher.waiting.append(item)
                self._queue.popleft()
            return not self._closed

    def _take_weights(self, exchange: _Exchange) -> None:
        self._exchange = None
        try:
            with torch.no_grad():
                for name, place in self._model.state_dict().items():
                    place.copy_(exchange.weights[name])
            if self._model.device.type == "cuda":
                torch.cuda.synchronize(self._model.device)  # until then the given ones are read
        except Exception as error:
            reason = EngineError(f"the new weights could not be taken: {type(error).__name__}: {error}")
            _notify(exchange.loop, partial(_refuse, exchange.future, reason))
            raise
        self._batcher.clear()
        self._batcher.stop_ids = exchange.stop_ids
        _notify(exchange.loop, partial(_resolve, [exchange.future]))

    def _fail(self, error: Exception) -> None:
        # A pass that stopped half-way may leave corrupt blocks, so the cache is dropped as well.
        for call in self._batcher.clear():
            reason = EngineError(f"the forward pass failed: {type(error).__name__}: {error}")
            reason.__cause__ = error
            _notify(call.loop, partial(_refuse, call.future, reason))


@torch.inference_mode()
def _affordable_blocks(model: Any, slots: int, max_context: int, allowed: int) -> int:
    """The blocks for `slots` conversations of any length, or as many as fit into `allowed` bytes."""
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
    except RuntimeError:  # the loop was closed, so nothing waits any more
        return


def _resolve(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def _refuse(future: asyncio.Future[None], reason: EngineError) -> None:
    if not future.done():
        future.set_exception(reason)
