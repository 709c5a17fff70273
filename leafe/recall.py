"""Notes that depend on the task: a file of remembered texts, of which an attempt reads those that match it best.

Matching is by words (BM25) over the instruction and the first observation, so the same file gives the same notes in every process, and
no model is involved. A line that is mostly not words, as the row of a board, counts as one word.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from leafe.digest import canonical
from leafe.encoding import OMITTED, encode
from leafe.jsonl import read_records, write_text_atomically
from leafe.records import Observation, Task

SCHEMA = "leafe.memory/1"
K1, B = 1.2, 0.75  # the usual constants of BM25: the saturation of a repeated word, and the penalty on a long text
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Remembered:
    """One remembered text: a note for a policy, and the `key` that a task is compared with. The best of each `group` are read.

    `source` is the task that it was learned from, or all those whose lessons were read together. `helpful` and `harmful` count how often it
    was judged so.
    """

    id: str
    text: str
    key: str = field(default="", metadata=OMITTED)
    group: str = field(default="", metadata=OMITTED)
    source: str = field(default="", metadata=OMITTED)
    helpful: int = field(default=0, metadata=OMITTED)
    harmful: int = field(default=0, metadata=OMITTED)


def write_memory(path: Path, items: Sequence[Remembered]) -> None:
    """Writes a whole memory, one text a line."""
    lines = [{"schema": SCHEMA}, *(encode(item) for item in items)]
    write_text_atomically(path, "".join(canonical(line) + "\n" for line in lines))


def read_memory(path: Path) -> tuple[Remembered, ...]:
    """The texts of a file. Raises `CorruptFile` with the line's number for an unreadable line."""
    return tuple(read_records(path, SCHEMA, Remembered, what="remembered text", mend="remove that line"))


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """A file of remembered texts, of which an attempt reads `count` of each group."""

    path: Path
    count: int

    def recall(self) -> Recall:
        """The recall over the file's texts."""
        return Recall(read_memory(self.path), self.count)


def task_key(task: Task, root: Observation) -> str:
    """The text by which a task is matched: its instruction and its first observation."""
    return f"{task.instruction}\n{root.text}"


def terms(text: str) -> tuple[str, ...]:
    """The words of a text, in lower case; a line of which less than half is letters and digits is one word more."""
    return (*(word.casefold() for word in _WORD.findall(text)), *_drawn(text))


def _drawn(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        bare = line.strip()
        if bare and 2 * sum(character.isalnum() for character in bare) < len(bare):
            yield bare


def likeness(one: str, other: str) -> float:
    """The share of their different words that two texts have in common, from 0 to 1."""
    mine, theirs = set(terms(one)), set(terms(other))
    return len(mine & theirs) / len(mine | theirs) if mine or theirs else float(one == other)


def renewed(last: Recall | None, items: Sequence[Remembered], count: int) -> Recall:
    """A recall over `items`: the last one where nothing has changed since, which has counted their words already."""
    return last if last is not None and last.items == tuple(items) else Recall(items, count)


class Recall:
    """The `count` best matching texts of each group for a task, the best first. A text that shares no word with the task is left out.

    Of two that match equally well the one that was learned later comes first.

    >>> recall = Recall([Remembered("m1", "look in the sink", "wash a mug"), Remembered("m2", "open it", "warm an egg")], 1)
    >>> recall(Task("t", "house", "wash a cup", 8), Observation("You see a sink."))
    ('look in the sink',)
    """

    def __init__(self, items: Sequence[Remembered], count: int) -> None:
        self.items, self._count = tuple(items), count
        self._terms = [Counter(terms(item.key)) for item in self.items]
        self._length = sum(counted.total() for counted in self._terms) / max(1, len(self.items)) or 1.0
        self._spread = Counter(term for counted in self._terms for term in counted)

    def __call__(self, task: Task, root: Observation) -> tuple[str, ...]:
        """The notes for an attempt."""
        return tuple(item.text for item in self.best(task_key(task, root)))

    def best(self, query: str) -> list[Remembered]:
        """The items themselves, group by group in the order in which groups came up first."""
        asked = sorted(set(terms(query)))
        scores = [self._score(number, asked) for number in range(len(self.items))]
        chosen = []
        for group in dict.fromkeys(item.group for item in self.items):
            ours = [number for number, item in enumerate(self.items) if item.group == group and scores[number] > 0]
            ours.sort(key=lambda number: (-scores[number], -number))
            chosen += [self.items[number] for number in ours[: self._count]]
        return chosen

    def _score(self, number: int, asked: Sequence[str]) -> float:
        counted, total = self._terms[number], len(self.items)
        long = K1 * (1 - B + B * counted.total() / self._length)
        return math.fsum(
            math.log(1 + (total - self._spread[term] + 0.5) / (self._spread[term] + 0.5))
            * counted[term]
            * (K1 + 1)
            / (counted[term] + long)
            for term in asked
            if term in counted
        )
