"""The in-process engine: a Hugging Face causal model, sampled by continuous batching with reuse of computed prefixes.

Requests from the event loop queue up; one worker thread computes, in each pass, one token for every conversation that is being sampled
and as many prompt tokens of waiting ones as the pass has room for, leaving out every token whose keys and values some request has
computed before. The invariant: a completion depends on the ask and on the weights, not on its neighbours in the batch nor on
what was reused (see `slots.py`; exact in float32 on a CPU, measured elsewhere).

It does not train and does not follow changes of the weights: load another engine after a training step.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from leafe.engines.base import EngineStats
from leafe.engines.prefixes import Lease, Match, PrefixTree
from leafe.engines.sampling import draw, uniform
from leafe.engines.slots import ATTENTION, BlockCache, Piece, plan
from leafe.engines.tokens import ChatTokenizer
from leafe.errors import CorruptFile, EngineError, UserError
from leafe.records import Ask, Completion

BLOCK = 64
# Two requests that will compute these many first tokens alike are computed one after the other, and the second reuses the first.
SHARED = 16


@dataclass(slots=True, eq=False)
class _Request:
    """One ask on its way: `ids` are the prompt and what was sampled so far, of which `computed` are in the cache."""

    ask: Ask
    ids: list[int]
    prompt: int
    future: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop
    lease: Lease | None = None
    computed: int = 0
    logprobs: list[float] = field(default_factory=list)

    @property
    def given_up(self) -> bool:
        return self.future.cancelled() or self.loop.is_closed()


class TransformersEngine:
    """Samples from `model` with the chat template of `tokenizer`. The model belongs to the engine until `close`.

    `slots` requests are sampled at once; `max_context` tokens, prompt and completion together, is the longest conversation.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        slots: int = 256,
        max_context: int = 1024,
        tokens_per_pass: int = 1024,
        threads: int | None = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.stats = EngineStats()
        self.concurrency = slots
        self.tokens = ChatTokenizer(tokenizer)
        self.max_context = min(max_context, getattr(model.config, "max_position_embeddings", max_context))
        self.model = model.eval() if dtype is None else model.eval().to(dtype)
        self._own_attention = model.config._attn_implementation
        model.set_attn_implementation(ATTENTION)
        self._stop_ids = self.tokens.stop_ids | _ids(getattr(getattr(model, "generation_config", None), "eos_token_id", None))
        blocks = slots * -(-self.max_context // BLOCK) + 1
        self._tree, self._cache = PrefixTree(blocks, BLOCK), BlockCache(blocks, BLOCK)
        self._room, self._threads = tokens_per_pass, threads
        # `_arrived` belongs to the event loop, `_queue` to whoever holds `_changed`, the rest to the worker.
        self._arrived: list[_Request] = []
        self._flushing: asyncio.AbstractEventLoop | None = None
        self._queue: list[_Request] = []
        self._changed = threading.Condition()
        self._closed = False
        self._worker: threading.Thread | None = None
        self._waiting: deque[_Request] = deque()
        self._active: list[_Request] = []

    @classmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> TransformersEngine:
        """An engine for the checkpoint in the directory `path`: `save_pretrained` files, safetensors only, no remote code.

        Raises `UserError` when there is none and `CorruptFile` when it cannot be read.
        """
        place = Path(path)
        if not (place / "config.json").is_file():
            raise UserError(f"no checkpoint in {str(path)!r}: wanted a directory with config.json, model.safetensors and a tokenizer.")
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                place, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # from_pretrained lets the errors of json, safetensors and its own code through
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise CorruptFile(f"the checkpoint in {str(path)!r} cannot be loaded: {reason}") from error
        if found["missing_keys"] or found["mismatched_keys"]:
            name = sorted([*found["missing_keys"], *(str(key) for key in found["mismatched_keys"])])[0]
            raise CorruptFile(f"the checkpoint in {str(path)!r} does not hold the weights that its config.json describes: {name}.")
        return cls(model, tokenizer, **options)

    async def generate(self, ask: Ask) -> Completion:
        """One completion, a function of the ask and the weights alone. Raises `EngineError` when the forward pass fails."""
        if self._closed:
            raise EngineError("the engine is closed")
        ids = self.tokens.prompt_ids(ask.messages)
        self.stats.requests += 1
        if len(ids) + ask.sampling.max_tokens > self.max_context:
            return Completion("", finish="context", prompt_tokens=len(ids))
        loop = asyncio.get_running_loop()
        request = _Request(ask, ids, len(ids), loop.create_future(), loop)
        self._arrived.append(request)
        if self._flushing is not loop:  # episodes that are ready in the same turn of the loop enter the queue together
            self._flushing = loop
            loop.call_soon(self._flush)
        await request.future
        return self._completion(request)

    async def close(self) -> None:
        """Stops the worker and gives the model back; requests in flight are cancelled."""
        self._flush(closing=True)
        if self._worker is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._worker.join)
        self.model.set_attn_implementation(self._own_attention)

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
                    self._pass()
            except Exception as error:  # whatever went wrong, nobody may wait for ever
                self._fail(error)
        self._give_up()

    def _receive(self) -> bool:
        """Takes in what has arrived, waiting for it when there is nothing else to do. False when the engine is closed."""
        with self._changed:
            while not (self._closed or self._queue or self._waiting or self._active):
                self._changed.wait()
            self._waiting += self._queue
            self._queue = []
            return not self._closed

    def _pass(self) -> None:
        """One forward pass: admits, computes, samples, and answers what is finished."""
        for request in [request for request in self._active if request.given_up]:
            self._leave(request)
        room = self._admit(self._room - sum(len(request.ids) - request.computed == 1 for request in self._active))
        pieces, sampled = self._pieces(room)
        if not pieces:
            return
        logits = self._forward([piece for _, piece in pieces])
        for request, piece in pieces:
            request.computed = piece.start + len(piece.ids)
            if request.computed == len(request.ids) and len(request.ids) == request.prompt:
                self._register(request)
        self._sample([pieces[index][0] for index in sampled], logits[: len(pieces)][sampled])

    def _admit(self, room: int) -> int:
        """Moves waiting requests into slots while the pass has room for their prompts; returns the room for prompt tokens."""
        left = room - sum(len(request.ids) - request.computed for request in self._active if not request.logprobs)
        computing = {self._key(request, request.computed) for request in self._active if not request.logprobs}
        postponed: list[_Request] = []
        while self._waiting and left > 0 and len(self._active) < self.concurrency:
            request = self._waiting.popleft()
            if request.given_up:
                continue
            ids = tuple(request.ids)
            match = self._tree.match(ids, len(ids) - 1)
            known = match.length(BLOCK)
            key = (id(match.node), ids[match.depth * BLOCK : known + SHARED])
            if len(ids) - known > SHARED and key in computing:
                postponed.append(request)
                continue
            if not self._seat(request, match):
                postponed.append(request)
                break
            computing.add(key)
            left -= len(ids) - known
        self._waiting.extendleft(reversed(postponed))
        return room

    def _key(self, request: _Request, known: int) -> tuple[int, tuple[int, ...]]:
        assert request.lease is not None
        return id(request.lease.node), tuple(request.ids[request.lease.depth * BLOCK : known + SHARED])

    def _seat(self, request: _Request, match: Match) -> bool:
        request.lease = self._tree.lease(match, request.prompt + request.ask.sampling.max_tokens)
        if request.lease is None:
            return False
        request.computed = match.length(BLOCK)
        self.stats.prompt_tokens += request.prompt
        self.stats.reused_tokens += request.computed
        self._active.append(request)
        return True

    def _pieces(self, room: int) -> tuple[list[tuple[_Request, Piece]], list[int]]:
        """What to compute in this pass, and which of the pieces end where a token is to be sampled."""
        pieces: list[tuple[_Request, Piece]] = []
        sampled: list[int] = []
        for request in self._active:
            assert request.lease is not None
            wanted = len(request.ids) - request.computed
            count = wanted if request.logprobs else min(wanted, room)
            if count <= 0:
                continue
            room -= 0 if request.logprobs else count
            if count == wanted:
                sampled.append(len(pieces))
            piece = Piece(request.ids[request.computed : request.computed + count], request.computed, request.lease.blocks)
            pieces.append((request, piece))
        return pieces, sampled

    def _forward(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """Logits (at least `len(pieces)`, vocabulary) after the last token of each piece."""
        leases = [request.lease for request in self._active if request.lease is not None and request.lease.copy is not None]
        self._cache.copy([lease.copy for lease in leases if lease.copy is not None])
        for lease in leases:
            self._tree.copied(lease)
        device = self.model.device
        batch = plan(pieces, self._cache, device)
        output = self.model(
            input_ids=batch.ids,
            position_ids=batch.positions,
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),  # four dimensions: taken as it is, and not read
            use_cache=False,
            logits_to_keep=batch.last,
            batch=batch,
        )
        return output.logits[0]

    def _sample(self, requests: Sequence[_Request], logits: torch.Tensor) -> None:
        if not requests:
            return
        numbers = [uniform(request.ask.seed, len(request.logprobs)) for request in requests]
        chosen, logprobs = draw(logits, [request.ask.sampling for request in requests], numbers)
        done: list[_Request] = []
        for request, token, logprob in zip(requests, chosen, logprobs, strict=True):
            request.ids.append(token)
            request.logprobs.append(logprob)
            if token in self._stop_ids or len(request.logprobs) == request.ask.sampling.max_tokens:
                done.append(request)
        self.stats.sampled_tokens += len(requests)
        for request in done:
            self._register(request)
            self._leave(request)
        self._answer(done)

    def _register(self, request: _Request) -> None:
        assert request.lease is not None
        self._tree.register(request.lease, request.ids, request.computed)

    def _leave(self, request: _Request) -> None:
        self._active.remove(request)
        if request.lease is not None:
            self._tree.release(request.lease)

    def _answer(self, requests: Iterable[_Request]) -> None:
        """Tells the loops whose requests are finished, one call per loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for request in requests:
            by_loop.setdefault(request.loop, []).append(request.future)
        for loop, futures in by_loop.items():
            _call(loop, partial(_resolve, futures))

    def _completion(self, request: _Request) -> Completion:
        ids = tuple(request.ids[request.prompt :])
        return Completion(
            text=self.tokens.decode(ids),
            token_ids=ids,
            logprobs=tuple(request.logprobs),
            finish="stop" if ids[-1] in self._stop_ids else "length",
            prompt_tokens=request.prompt,
        )

    def _fail(self, error: Exception) -> None:
        failed = [*self._active, *self._waiting]
        self._active, self._waiting = [], deque()
        self._tree.clear()  # a pass that stopped half-way leaves blocks that nobody can vouch for
        for request in failed:
            reason = EngineError(f"the forward pass failed: {type(error).__name__}: {error}")
            reason.__cause__ = error
            _call(request.loop, partial(_refuse, request.future, reason))

    def _give_up(self) -> None:
        with self._changed:
            left = [*self._active, *self._waiting, *self._queue]
            self._active, self._waiting, self._queue = [], deque(), []
        for request in left:
            _call(request.loop, request.future.cancel)


def _ids(value: int | Iterable[int] | None) -> frozenset[int]:
    return frozenset(() if value is None else [value] if isinstance(value, int) else value)


def _call(loop: asyncio.AbstractEventLoop, callback: Any) -> None:
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
