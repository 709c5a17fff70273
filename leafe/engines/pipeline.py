"""Continuous batching for an asynchronous device: while a pass runs, the next one is planned and the last one's tokens are read.

It works as `batching.py` does, with the same prompts, prefixes and seeds, except that tokens are drawn on the device and stay there, so
that the next pass need not wait for them. The end of a request is noticed one pass late; the token computed for it meanwhile is dropped.
Short prompts are rows of a step; long ones are computed ahead of it in tiles, all but their last tokens, which are rows as well.

Passes run one after another in the order in which they are started, so a freed block may still be written to by a pass that was started
before, but never after its next owner has written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isnan
from typing import Any, Generic

import numpy as np

from leafe.engines.batching import BLOCK, AnyRequest, Batcher, blocks_for
from leafe.engines.prefixes import Match
from leafe.engines.sampling import BROKEN_LOGITS, LOGPROB_DIGITS, uniform
from leafe.engines.slots import Piece
from leafe.engines.steps import Landing, Rows, Steps
from leafe.errors import EngineError


@dataclass(slots=True)
class _Flight(Generic[AnyRequest]):
    """A pass in progress: the requests that draw in it, and the tokens drawn."""

    requests: list[AnyRequest]
    landing: Landing


class PipelinedBatcher(Batcher[AnyRequest]):
    """A batcher by `steps.py`. `longest` is the longest conversation in tokens."""

    def __init__(self, model: Any, stop_ids: Iterable[int], *, slots: int, blocks: int, tokens_per_pass: int, longest: int) -> None:
        super().__init__(model, stop_ids, slots=slots, blocks=blocks, tokens_per_pass=tokens_per_pass)
        self.steps = Steps(model, self._cache, slots)
        self._tables = np.zeros((slots + 1, blocks_for(longest)), dtype=np.int64)
        self._flight: _Flight[AnyRequest] | None = None
        self._seats = list(range(slots))

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute and no pass in progress."""
        return super().idle and self._flight is None

    def clear(self) -> list[AnyRequest]:
        """Forgets every request, the whole cache and the pass in progress; returns the requests."""
        self._flight = None
        self._seats = list(range(len(self._tables) - 1))
        return super().clear()

    def close(self) -> None:
        """Frees the cache, the steps and their graphs."""
        super().close()
        self.steps.forget()

    def step(self) -> list[AnyRequest]:
        """Starts a pass; returns the requests that the one before it finished."""
        room = self._turn()
        self._copy_blocks()
        done, counts = self._prompts(room)
        landed, self._flight = self._flight, self._launch(counts)
        return done if landed is None else [*done, *self._land(landed)]

    def _prompts(self, room: int) -> tuple[list[AnyRequest], dict[AnyRequest, int]]:
        """Computes prompts that are too long for a step. Returns the scored requests, and the prompt tokens that are left for the step."""
        pieces = [(request, piece) for request, piece in self._pieces(room) if not request.sampling]
        counts = {request: len(piece.ids) for request, piece in pieces if not request.scored}
        depth = max(((piece.start + len(piece.ids)) // BLOCK + 1 for _, piece in pieces), default=1)
        if not pieces or (len(counts) == len(pieces) and sum(counts.values()) <= self.steps.most_rows(depth)):
            return [], counts
        ahead, left = [], {}
        for request, piece in pieces:
            count = len(piece.ids) - (len(piece.ids) == request.left and not request.scored)
            if count < len(piece.ids):
                left[request] = 1
            if count:
                ahead.append((request, Piece(piece.ids[:count], piece.start, piece.blocks, piece.kept)))
        logits = self._compute(ahead) if ahead else None
        return self._score(ahead, logits), left

    def _launch(self, counts: dict[AnyRequest, int]) -> _Flight[AnyRequest] | None:
        """Starts a step with a row for each request that samples and `counts` rows of the prompts of others."""
        rows, drawing = Rows(), []
        for request in self.active:
            if request.sampling and request.drawn < request.ask.sampling.max_tokens:
                self._add_row(rows, request, -1)
            elif request in counts:
                for token in request.ids[request.computed : request.computed + counts[request]]:
                    self._add_row(rows, request, token)
                self._register(request)
            else:
                continue
            if request.sampling or request.computed == request.prompt:
                self._add_draw(rows, request)
                drawing.append(request)
        return _Flight(drawing, self.steps.launch(rows, self._tables)) if rows.given else None

    def _add_row(self, rows: Rows, request: AnyRequest, token: int) -> None:
        """Adds a row for the next token; -1 stands for the last token drawn."""
        at = request.computed
        rows.given.append(token)
        rows.tables.append(request.session)
        rows.positions.append(at)
        rows.places.append(int(self._tables[request.session, at // BLOCK]) * BLOCK + at % BLOCK)
        request.computed += 1

    def _add_draw(self, rows: Rows, request: AnyRequest) -> None:
        sampling = request.ask.sampling
        rows.last.append(len(rows.given) - 1)
        rows.sessions.append(request.session)
        rows.temperatures.append(sampling.temperature)
        rows.masses.append(sampling.top_p if sampling.temperature else 1.0)
        rows.numbers.append(uniform(request.ask.seed, request.drawn))
        request.pending += 1

    def _land(self, flight: _Flight[AnyRequest]) -> list[AnyRequest]:
        """Records the tokens that a pass has drawn; returns the requests that end with it."""
        ids, logprobs = flight.landing.read()
        done: list[AnyRequest] = []
        for request, token, logprob in zip(flight.requests, ids, logprobs, strict=False):
            if request.lease is None:  # it has ended meanwhile, or was cancelled
                continue
            if isnan(logprob):
                raise EngineError(BROKEN_LOGITS)
            self.stats.sampled_tokens += 1
            request.pending -= 1
            request.ids.append(int(token))
            request.logprobs.append(round(logprob, LOGPROB_DIGITS))
            if request.ends(self.stop_ids):
                done.append(request)
                request.computed = len(request.ids) - 1
                self._register(request)
                self._leave(request)
        return done

    def _seat(self, request: AnyRequest, match: Match) -> None:
        super()._seat(request, match)
        request.session = self._seats.pop()
        self._update(request)

    def _register(self, request: AnyRequest) -> None:
        super()._register(request)
        self._update(request)

    def _leave(self, request: AnyRequest) -> None:
        super()._leave(request)
        self._seats.append(request.session)

    def _update(self, request: AnyRequest) -> None:
        """Gives the next pass the request's blocks; one that another request computed as well may have replaced its own."""
        assert request.lease is not None
        self._tables[request.session, : len(request.lease.blocks)] = request.lease.blocks
