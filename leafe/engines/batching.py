"""Continuous batching: which tokens of which requests the next forward pass computes, and what is drawn after it.

Each pass computes one token for every request that is being sampled, with guesses of the next ones (`drafts.py`), and as many prompt
tokens of the others as it has room for. Prompt tokens that any request has computed before are not computed again, and of two requests
that are about to compute the same tokens the second waits a pass and reuses the first's. The invariant is that of `slots.py` and
`sampling.py`: the tokens that a request draws do not depend on the other requests in the batch, nor on what was guessed.

It runs in one thread and knows nothing of event loops.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, zip_longest
from typing import Any, Generic, TypeVar

from leafe.engines.base import EngineStats
from leafe.engines.drafts import Drafts
from leafe.engines.prefixes import Lease, Match, PrefixTree
from leafe.engines.repetition import repeats
from leafe.engines.sampling import Score, draw, score, uniform
from leafe.engines.slots import BlockCache, Piece, forward, plan
from leafe.records import Ask

BLOCK = 64
# Requests that share this many next tokens are computed one after the other.
SHARED = 16
SCORED = 256  # tokens of one request that are scored in one pass
GUESSED = 1 << 24  # probabilities for guesses in a pass: a row of them for each, in float64


def blocks_for(tokens: int) -> int:
    """The most blocks that a request of so many tokens, drawn ones included, may hold at once."""
    return -(-tokens // BLOCK) + 1


@dataclass(slots=True, eq=False)
class Request:
    """One ask in progress: `ids` are the prompt and the tokens drawn so far, of which the first `computed` are in the cache.

    A request to be scored draws nothing: all of `ids` are its prompt, and `scored` are the ids whose probabilities are wanted, the last of
    which need not be computed. `pending` tokens were drawn on the device and are not among `ids` yet.
    """

    ask: Ask
    ids: list[int]
    prompt: int
    cancelled: bool = False
    lease: Lease | None = None
    computed: int = 0
    logprobs: list[float] = field(default_factory=list)
    scored: tuple[int, ...] = ()
    top: int = 0
    scores: list[Score] = field(default_factory=list)
    pending: int = 0
    session: int = 0
    draft: list[int] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Tokens to compute before the next one can be drawn."""
        return len(self.ids) - self.computed

    @property
    def drawn(self) -> int:
        """Tokens drawn so far."""
        return len(self.logprobs) + self.pending

    def ends(self, stop_ids: Container[int]) -> bool:
        """Whether the last recorded token ends the reply."""
        wanted = self.ask.sampling
        if self.ids[-1] in stop_ids or len(self.logprobs) >= wanted.max_tokens:
            return True
        return repeats(self.ids, wanted.max_repeats, self.prompt)

    @property
    def known(self) -> int:
        """The number of tokens that may be reused: those before the first one after which logits are wanted."""
        return self.prompt - max(1, len(self.scored))

    @property
    def blocks(self) -> int:
        """The most blocks that it may hold, including one that it has yet to copy from."""
        return blocks_for(self.prompt + self.ask.sampling.max_tokens)

    @property
    def sampling(self) -> bool:
        """Whether the prompt is done."""
        return self.drawn > 0


AnyRequest = TypeVar("AnyRequest", bound=Request)


class Batcher(Generic[AnyRequest]):
    """The waiting requests, the active ones (at most `slots`), and the cache of `blocks` blocks that they share.

    A request starts when the blocks that it may come to need are free or no longer needed by others.
    """

    def __init__(self, model: Any, stop_ids: Iterable[int], *, slots: int, blocks: int, tokens_per_pass: int) -> None:
        self.stats = EngineStats()
        self.waiting: deque[AnyRequest] = deque()
        self.active: list[AnyRequest] = []
        self._model, self.stop_ids = model, frozenset(stop_ids)
        self._slots, self._tokens_per_pass = slots, tokens_per_pass
        self._unreserved = blocks - 1  # the first belongs to no request
        self._drafts, self._vocabulary = Drafts(), 1
        self._tree, self._cache = PrefixTree(blocks, BLOCK), BlockCache(blocks, BLOCK)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not (self.waiting or self.active)

    def clear(self) -> list[AnyRequest]:
        """Forgets every request and the whole cache; returns the requests."""
        left = [*self.active, *self.waiting]
        self.active, self.waiting = [], deque()
        self._tree.clear()
        self._drafts.clear()
        self._unreserved = self._tree.blocks - 1
        return left

    def close(self) -> None:
        """Frees the cache's memory; nothing can be computed any more."""
        self._cache.layers.clear()

    def step(self) -> list[AnyRequest]:
        """One forward pass; returns the requests that it finished."""
        pieces = self._pieces(self._turn())
        if not pieces:
            return []
        self._copy_blocks()
        logits = self._compute(pieces)
        scored = [request for request, _ in pieces if request.scored]
        if not scored:
            return self._draw(*self._ready(pieces, logits))
        return [*self._score(pieces, logits), *self._draw(*self._ready(pieces, logits))]

    def _turn(self) -> int:
        """Drops cancelled requests and admits waiting ones; returns how many prompt tokens the pass has room for."""
        for request in [request for request in self.active if request.cancelled]:
            self._leave(request)
        room = self._tokens_per_pass - sum(request.sampling for request in self.active)
        self._admit(room - sum(request.left for request in self.active if not request.sampling))
        return room

    def _compute(self, pieces: Sequence[tuple[AnyRequest, Piece]]) -> Any:
        """Logits (tokens kept of all pieces, vocabulary)."""
        logits = forward(self._model, plan([piece for _, piece in pieces], self._cache, self._model.device))
        self._vocabulary = logits.shape[-1]
        for request, piece in pieces:
            request.computed += len(piece.ids) - len(request.draft)
            if not request.sampling:
                self._register(request)
        return logits

    def _ready(self, pieces: Sequence[tuple[AnyRequest, Piece]], logits: Any) -> tuple[list[AnyRequest], Any]:
        """The requests that can draw, and the logits that they draw from: one row each, and one for each guess."""
        ends = accumulate(piece.kept for _, piece in pieces)
        ready = [
            (request, range(end - 1 - len(request.draft), end))
            for (request, _), end in zip(pieces, ends, strict=True)
            if request.left == 0 and not request.scored
        ]
        return [request for request, _ in ready], logits[[row for _, rows in ready for row in rows]]

    def _score(self, pieces: Sequence[tuple[AnyRequest, Piece]], logits: Any) -> list[AnyRequest]:
        """Records the scores of the requests to be scored; returns those that are done."""
        done: list[AnyRequest] = []
        for (request, piece), row in zip(pieces, accumulate(piece.kept for _, piece in pieces), strict=True):
            if not request.scored:
                continue
            first = max(0, request.computed - request.known - piece.kept)
            wanted = request.scored[first : max(0, request.computed - request.known)]
            request.scores += score(logits[row - len(wanted) : row], wanted, request.top)
            if request.left == 0:
                done.append(request)
                self._leave(request)
        return done

    def _admit(self, room: int) -> None:
        """Gives slots to waiting requests while there is room to compute their prompts."""
        computing = {self._next_tokens(request) for request in self.active if not request.sampling}
        postponed: list[AnyRequest] = []
        while self.waiting and room > 0 and len(self.active) < self._slots:
            request = self.waiting.popleft()
            if request.cancelled:
                continue
            if request.blocks > self._unreserved:
                self.waiting.appendleft(request)
                break
            ids = tuple(request.ids)
            match = self._tree.match(ids, request.known)
            known = match.length(BLOCK)
            upcoming = (id(match.node), ids[match.depth * BLOCK : known + SHARED])
            if len(ids) - known > SHARED and upcoming in computing:
                postponed.append(request)
                continue
            self._seat(request, match)
            computing.add(upcoming)
            room -= request.left
        self.waiting.extendleft(reversed(postponed))

    def _next_tokens(self, request: AnyRequest) -> tuple[int, tuple[int, ...]]:
        assert request.lease is not None
        return id(request.lease.node), tuple(request.ids[request.lease.depth * BLOCK : request.computed + SHARED])

    def _seat(self, request: AnyRequest, match: Match) -> None:
        request.lease = self._tree.lease(match, request.prompt + request.ask.sampling.max_tokens)
        self._unreserved -= request.blocks
        request.computed = match.length(BLOCK)
        self.stats.prompt_tokens += request.prompt
        self.stats.reused_tokens += request.computed
        self.active.append(request)

    def _pieces(self, room: int) -> list[tuple[AnyRequest, Piece]]:
        """The tokens to compute in this pass: up to `room` prompt tokens, one per request that samples, and guesses while there is room."""
        pieces: list[tuple[AnyRequest, Piece]] = []
        spare = min(room - sum(request.left for request in self.active if not request.sampling), GUESSED // self._vocabulary)
        for request in self.active:
            if request.sampling:
                pieces.append((request, self._next(request, spare)))
                spare -= len(request.draft)
            elif (count := min(request.left, room)) > 0:
                room -= count
                pieces.append((request, self._piece(request, count)))
        return pieces

    def _next(self, request: AnyRequest, most: int) -> Piece:
        """The last token of a request that samples, and at most so many guesses of the next ones."""
        assert request.lease is not None
        request.draft = self._drafts.after(request.ids, min(most, request.ask.sampling.max_tokens - request.drawn - 1))
        return Piece([request.ids[-1], *request.draft], request.computed, request.lease.blocks, 1 + len(request.draft))

    def _piece(self, request: AnyRequest, count: int) -> Piece:
        """The next `count` tokens of a request, or fewer of one to be scored: the logits of a whole text would take too much memory."""
        assert request.lease is not None
        start, kept = request.computed, 1
        if request.scored:
            count = min(count, max(0, request.known - start) + SCORED)
            kept = min(count, max(1, start + count - request.known))
        return Piece(request.ids[start : start + count], start, request.lease.blocks, kept)

    def _copy_blocks(self) -> None:
        leases = [request.lease for request in self.active if request.lease is not None]
        self._cache.copy([lease.copy for lease in leases if lease.copy is not None])
        for lease in leases:
            self._tree.copied(lease)

    def _draw(self, requests: Sequence[AnyRequest], logits: Any) -> list[AnyRequest]:
        if not requests:
            return []
        rows = [(request, request.drawn + ahead) for request in requests for ahead in range(len(request.draft) + 1)]
        numbers = [uniform(request.ask.seed, index) for request, index in rows]
        drawn = iter(zip(*draw(logits, [request.ask.sampling for request, _ in rows], numbers), strict=True))
        return [request for request in requests if self._take(request, [next(drawn) for _ in range(len(request.draft) + 1)])]

    def _take(self, request: AnyRequest, drawn: Sequence[tuple[int, float]]) -> bool:
        """Records what was drawn up to the first token that was not guessed; whether the request ends with it."""
        draft, request.draft = request.draft, []
        for (token, logprob), guess in zip_longest(drawn, draft):
            request.ids.append(token)
            request.logprobs.append(logprob)
            self._drafts.learn(request.ids)
            self.stats.sampled_tokens += 1
            self.stats.guessed_tokens += token == guess
            request.computed += token == guess
            if request.ends(self.stop_ids):
                self._register(request)
                self._leave(request)
                return True
            if token != guess:
                break
        return False

    def _register(self, request: AnyRequest) -> None:
        assert request.lease is not None
        self._tree.register(request.lease, request.ids, request.computed)

    def _leave(self, request: AnyRequest) -> None:
        assert request.lease is not None
        self.active.remove(request)
        self._tree.release(request.lease)
        request.lease = None
        self._unreserved += request.blocks
