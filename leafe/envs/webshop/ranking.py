"""BM25 over postings, with the numbers of the original's search engine, so that its rankings come out in the same order.

Lucene 8 with k1 = 0.9 and b = 0.4, which the original's search takes from Anserini. A document's score is the sum over the query's terms
of w - w / (1 + f n): w is the term's number in the query times ln(1 + (N - d + 0.5) / (d + 0.5)), with N documents that have any term and
d that have this one; f is its number in the document; n is 1 / (k1 (1 - b + b L / M)), with the document's length L as one byte holds it
and the mean length M. Arithmetic is in 32 bits and sums in 64, as there. Documents of one score stand in the order of their names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from leafe.envs.webshop.postings import Array, Postings, byte_to_length, term_hash

K1, B = np.float32(0.9), np.float32(0.4)
LONG = 20_000  # postings from which on it pays to look first whether a term can still change the result


@dataclass(frozen=True, slots=True)
class _Term:
    """One term of a query: its weight and its postings."""

    weight: np.float32
    documents: Array
    counts: Array


class Ranking:
    """Answers queries over an index whose documents are called `names`, which ascend or not."""

    def __init__(self, postings: Postings, names: Array, *, long: int = LONG) -> None:
        if len(postings.lengths) != len(names):
            raise ValueError(f"wanted a name for each of {len(postings.lengths)} documents, found {len(names)}")
        self._postings, self._names, self._long = postings, names, long
        self._filled = int(np.count_nonzero(postings.lengths))
        mean = np.float32(postings.tokens / self._filled) if self._filled else np.float32(1)
        lengths = np.array([byte_to_length(code) for code in range(256)], np.float32)
        self._inverse = np.float32(1) / (K1 * ((np.float32(1) - B) + B * lengths / mean))

    def search(self, terms: Iterable[str], count: int = 50) -> list[int]:
        """The numbers of the documents with the highest scores, best first; documents without any of the terms are never among them."""
        found = sorted(filter(None, map(self._term, *_counted(terms))), key=lambda term: len(term.documents))
        if not found:
            return []
        scores = np.zeros(len(self._names))
        candidates: Array | None = None
        left = float(sum(term.weight for term in found))
        for term in found:
            if candidates is None and len(term.documents) >= self._long:
                candidates = _candidates(scores, left, count)
            left -= float(term.weight)
            if candidates is None:
                scores[term.documents] += self._parts(term, term.documents, term.counts)
            else:
                self._add_to(scores, candidates, term)
        return self._best(scores, candidates, count)

    def _term(self, term: str, times: int) -> _Term | None:
        """A query's term with its postings, or None when no document has it."""
        kept, mark = self._postings, np.uint64(term_hash(term))
        at = int(np.searchsorted(kept.hashes, mark))
        if at == len(kept.hashes) or kept.hashes[at] != mark:
            return None
        start, end = int(kept.starts[at]), int(kept.starts[at + 1])
        rarity = np.float32(np.log1p((self._filled - (end - start) + 0.5) / ((end - start) + 0.5)))
        return _Term(np.float32(times) * rarity, kept.documents[start:end], kept.counts[start:end])

    def _parts(self, term: _Term, documents: Array, counts: Array) -> Array:
        """What a term adds to the score of some of its documents."""
        inverse = self._inverse[self._postings.lengths[documents]]
        parts: Array = term.weight - term.weight / (np.float32(1) + counts.astype(np.float32) * inverse)
        return parts

    def _add_to(self, scores: Array, candidates: Array, term: _Term) -> None:
        """Adds a term to the candidates' scores alone."""
        places = np.minimum(np.searchsorted(term.documents, candidates), len(term.documents) - 1)
        has = term.documents[places] == candidates
        scores[candidates[has]] += self._parts(term, candidates[has], term.counts[places[has]])

    def _best(self, scores: Array, candidates: Array | None, count: int) -> list[int]:
        among = np.flatnonzero(scores) if candidates is None else candidates
        exact = scores[among].astype(np.float32)
        if len(among) > count:
            least = np.partition(exact, len(exact) - count)[len(exact) - count]
            among, exact = among[exact >= least], exact[exact >= least]
        order = np.lexsort((self._names[among], -exact))[:count]
        return [int(number) for number in among[order]]


def _counted(terms: Iterable[str]) -> tuple[list[str], list[int]]:
    counted = Counter(terms)
    return list(counted), list(counted.values())


def _candidates(scores: Array, left: float, count: int) -> Array | None:
    """The documents that can still be among the best when no more than `left` can be added to any; None if any document can."""
    touched = np.flatnonzero(scores).astype(np.int32)
    if len(touched) < count:
        return None
    values = scores[touched]
    least = np.partition(values, len(values) - count)[len(values) - count] * (1 - 1e-6)
    return touched[values + left >= least] if left < least else None
