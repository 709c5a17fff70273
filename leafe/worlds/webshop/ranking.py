"""BM25 over postings, with the numbers of the original's search engine, so that its rankings come out in the same order.

Lucene 8 with k1 = 0.9 and b = 0.4, which the original's search takes from Anserini. A document's score is the sum over the query's terms
of w - w / (1 + f n): w is the term's number in the query times ln(1 + (N - d + 0.5) / (d + 0.5)), with N documents that have any term and
d that have this one; f is its number in the document; n is 1 / (k1 (1 - b + b L / M)), with the document's length L as one byte holds it
and the mean length M. Arithmetic is in 32 bits and sums in 64, as there. Documents of one score are in the order of their names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from leafe.worlds.webshop.postings import Array, Postings, byte_to_length, term_hash

K1, B = np.float32(0.9), np.float32(0.4)
STRETCH = 1024  # documents of which only the best one is looked at first


@dataclass(frozen=True, slots=True)
class _Term:
    """One term of a query: its weight and its postings."""

    weight: np.float32
    documents: Array
    counts: Array


class Ranking:
    """Answers queries over an index whose documents are called `names`, ascending or not."""

    def __init__(self, postings: Postings, names: Array, *, stretch: int = STRETCH) -> None:
        if len(postings.lengths) != len(names):
            raise ValueError(f"wanted a name for each of {len(postings.lengths)} documents, found {len(names)}")
        self._postings, self._names, self._stretch = postings, names, stretch
        self._filled = int(np.count_nonzero(postings.lengths))
        mean = np.float32(postings.tokens / self._filled) if self._filled else np.float32(1)
        lengths = np.array([byte_to_length(code) for code in range(256)], np.float32)
        self._inverse = np.float32(1) / (K1 * ((np.float32(1) - B) + B * lengths / mean))

    def search(self, terms: Iterable[str], count: int = 50) -> list[int]:
        """The numbers of the documents with the highest scores, best first; documents without any of the terms are never among them."""
        scores = np.zeros(-(-len(self._names) // self._stretch) * self._stretch)
        for term, times in Counter(terms).items():
            if (found := self._term(term, times)) is not None:
                scores[found.documents] += self._parts(found)
        return self._best(scores.astype(np.float32), count)

    def _term(self, term: str, times: int) -> _Term | None:
        """A query's term with its postings, or None when no document has it."""
        kept, mark = self._postings, np.uint64(term_hash(term))
        at = int(np.searchsorted(kept.hashes, mark))
        if at == len(kept.hashes) or kept.hashes[at] != mark:
            return None
        start, end = int(kept.starts[at]), int(kept.starts[at + 1])
        rarity = np.float32(np.log1p((self._filled - (end - start) + 0.5) / ((end - start) + 0.5)))
        return _Term(np.float32(times) * rarity, kept.documents[start:end], kept.counts[start:end])

    def _parts(self, term: _Term) -> Array:
        """A term's part in the scores of its documents."""
        inverse = self._inverse[self._postings.lengths[term.documents]]
        parts: Array = term.weight - term.weight / (np.float32(1) + term.counts.astype(np.float32) * inverse)
        return parts

    def _best(self, scores: Array, count: int) -> list[int]:
        """The best documents with a score. At least `count` of them reach the least of the `count` best stretches' best scores."""
        tops = scores.reshape(-1, self._stretch).max(axis=1, initial=0)
        least = np.partition(tops, len(tops) - count)[len(tops) - count] if len(tops) > count else 0
        among = np.flatnonzero(scores >= least) if least > 0 else np.flatnonzero(scores > 0)
        exact = scores[among]
        if len(among) > count:
            least = np.partition(exact, len(exact) - count)[len(exact) - count]
            among, exact = among[exact >= least], exact[exact >= least]
        order = np.lexsort((self._names[among], -exact))[:count]
        return [int(number) for number in among[order]]
