"""An inverted index in flat arrays: made block by block, so that memory stays small, and kept in memory or in files that are mapped.

A term is known by 64 bits of its digest, so no word list has to be held: `hashes` ascend, and the postings of term `i` are
`documents[starts[i]:starts[i + 1]]`, ascending, with `counts` beside them. A document's length is kept as the byte that Lucene rounds
it to. Nothing here ranks.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Allocate = Callable[[str, str, int], Array]  # name, dtype, length
BLOCK = 8_000_000  # postings that are sorted at once
MOST_COUNTED = 255  # a count is a byte; beyond, a term's weight has long ceased to grow
EXACT_LENGTHS = 24  # lengths below this are kept as they are


@dataclass(frozen=True, slots=True)
class Postings:
    """The arrays of an index. `tokens` is the number of all tokens, stop words left out."""

    hashes: Array
    starts: Array
    documents: Array
    counts: Array
    lengths: Array
    tokens: int


def term_hash(term: str) -> int:
    """64 bits that identify a term, the same in every process."""
    return int.from_bytes(hashlib.blake2b(term.encode(), digest_size=8).digest(), "big")


def length_to_byte(length: int) -> int:
    """A length as Lucene's one byte: exact below 40, then with four significant bits."""
    if length < EXACT_LENGTHS:
        return length
    rest = length - EXACT_LENGTHS
    shift = max(0, rest.bit_length() - 4)
    return EXACT_LENGTHS + (rest if rest < 8 else ((shift + 1) << 3) + ((rest >> shift) & 7))


def byte_to_length(code: int) -> int:
    """The length that a byte stands for: the least one that is rounded to it."""
    if code < EXACT_LENGTHS:
        return code
    rest = code - EXACT_LENGTHS
    shift = (rest >> 3) - 1
    return EXACT_LENGTHS + (rest if shift < 0 else ((rest & 7) | 8) << shift)


def in_memory(name: str, dtype: str, length: int) -> Array:
    """Allocates an array of an index in plain memory."""
    return np.zeros(length, dtype)


class PostingsMaker:
    """Takes documents one by one, in their order, and returns the index."""

    def __init__(self, allocate: Allocate = in_memory, block: int = BLOCK) -> None:
        self._allocate, self._block = allocate, block
        self._numbers: defaultdict[str, int] = defaultdict(count().__next__)
        self._blocks: list[tuple[Array, Array, Array]] = []
        self._lengths = array("B")
        self._tokens = 0
        self._clear()

    def _clear(self) -> None:
        self._terms, self._documents, self._counts = array("i"), array("i"), array("i")

    def add(self, terms: Iterable[str]) -> None:
        """The next document, as its terms."""
        counted = Counter(terms)
        total = counted.total()
        self._terms.extend(map(self._numbers.__getitem__, counted))
        self._documents.extend(repeat(len(self._lengths), len(counted)))
        self._counts.extend(counted.values())
        self._lengths.append(length_to_byte(total))
        self._tokens += total
        if len(self._terms) >= self._block:
            self._sort_block()

    def _sort_block(self) -> None:
        """Stores the postings received so far, by term; blocks are allocated like the index, so that a large one's lie in files too."""
        terms = np.frombuffer(self._terms, np.int32) if self._terms else np.zeros(0, np.int32)
        order = np.argsort(terms, kind="stable")
        kept = []
        for name, values in (("terms", terms), ("documents", self._documents), ("counts", self._counts)):
            plain = np.asarray(values)[order]
            if name == "counts":
                plain = np.minimum(plain, MOST_COUNTED).astype(np.uint8)
            store = self._allocate(f"block-{len(self._blocks)}-{name}", plain.dtype.str, len(plain))
            store[:] = plain
            kept.append(store)
        self._blocks.append((kept[0], kept[1], kept[2]))
        self._clear()

    def finish(self) -> Postings:
        """The index of all documents added. The maker is used up."""
        self._sort_block()
        hashes = np.fromiter(map(term_hash, self._numbers), np.uint64, len(self._numbers))
        order = np.argsort(hashes)
        sizes = np.zeros(len(hashes), np.int64)
        for terms, _, _ in self._blocks:
            sizes += np.bincount(terms, minlength=len(hashes))
        starts = np.concatenate([[0], np.cumsum(sizes[order])])
        free = np.empty(len(hashes), np.int64)  # by a term's number: where its next posting goes
        free[order] = starts[:-1]
        documents = self._allocate("documents", "<i4", int(starts[-1]))
        counts = self._allocate("counts", "|u1", int(starts[-1]))
        for block_terms, block_documents, block_counts in self._blocks:
            places, free = _places(block_terms, free)
            documents[places], counts[places] = block_documents, block_counts
        self._blocks.clear()
        lengths = np.frombuffer(self._lengths, np.uint8) if self._lengths else np.zeros(0, np.uint8)
        return Postings(
            self._kept("hashes", hashes[order]),
            self._kept("starts", starts),
            documents,
            counts,
            self._kept("lengths", lengths),
            self._tokens,
        )

    def _kept(self, name: str, values: Array) -> Array:
        store = self._allocate(name, values.dtype.str, len(values))
        store[:] = values
        return store


def _places(terms: Array, free: Array) -> tuple[Array, Array]:
    """The places of a block's postings, which are sorted by term, and the free places after them."""
    sizes = np.bincount(terms, minlength=len(free))
    before = np.cumsum(sizes) - sizes
    return np.arange(len(terms)) + np.repeat(free - before, sizes), free + sizes
