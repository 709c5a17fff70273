"""Examples to packed rows: prompts tokenised exactly as they were sampled from, the examples of one task sharing one trie.

What one optimiser step holds is decided here in bundles, which do not depend on how long a row may be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from leafe.distillation.pack import PackedRow, Sample, pack
from leafe.engines.tokens import ChatTokenizer
from leafe.errors import UserError
from leafe.records import Example


@dataclass(frozen=True)
class Bundle:
    """Examples of one task that go into one optimiser step together. `target_tokens` counts equal terms as often as they occur."""

    rows: tuple[PackedRow, ...]
    examples: int
    target_tokens: int


def pack_examples(examples: Iterable[Example], tokenizer: ChatTokenizer, *, row_tokens: int, most: int = 128) -> list[Bundle]:
    """Bundles of at most `most` examples, in rows of at most `row_tokens` tokens; an example longer than that gets a row of its own.

    Raises `UserError` for an example without sampled ids.
    """
    by_task: defaultdict[str, list[Sample]] = defaultdict(list)
    for example in examples:
        if not example.target_ids:
            raise UserError(
                f"the example {example.id} of task {example.task} holds no sampled ids; explore with a server that returns them"
            )
        prompt = tokenizer.prompt_ids(example.messages)
        by_task[example.task].append(Sample(prompt, example.target_ids, example.weight, example.kind))
    # Sorted as texts, so that what shares a prefix stands together.
    ordered = (sorted(by_task[task], key=_text) for task in sorted(by_task))
    return [_bundle(part, row_tokens) for one in ordered for part in _parts(one, most)]


def _parts(samples: Sequence[Sample], most: int) -> Iterator[Sequence[Sample]]:
    yield from (samples[start : start + most] for start in range(0, len(samples), most))


def _bundle(samples: Sequence[Sample], row_tokens: int) -> Bundle:
    return Bundle(tuple(split(samples, row_tokens)), len(samples), sum(len(sample.target) for sample in samples))


def split(samples: Sequence[Sample], row_tokens: int) -> Iterator[PackedRow]:
    """Sorted samples as rows of at most `row_tokens` tokens, cut where the least is computed twice; a longer sample is a row by itself.

    A cut between two neighbours costs the prefix that they share. The cheapest cuts follow from the cheapest cuts of every beginning.
    """
    read = [[*sample.prompt, *sample.target[:-1]] for sample in samples]
    shared = [0, *(_common(one, other) for one, other in pairwise(read))]  # with the sample before
    cost, cut = [0], [0]  # of the cheapest rows for the first n samples, and where the last of these rows begins
    for stop in range(1, len(samples) + 1):
        best, tokens = (cost[stop - 1] + shared[stop - 1], stop - 1), len(read[stop - 1])
        for start in range(stop - 2, -1, -1):
            tokens += len(read[start]) - shared[start + 1]
            if tokens > row_tokens:
                break
            best = min(best, (cost[start] + shared[start], start))
        cost.append(best[0])
        cut.append(best[1])
    ends = [len(samples)]
    while ends[-1]:
        ends.append(cut[ends[-1]])
    yield from (pack(samples[start:stop]) for stop, start in pairwise(ends))


def _text(sample: Sample) -> tuple[list[int], float, str]:
    return [*sample.prompt, *sample.target], sample.weight, sample.kind


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two samples share from the start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def shares(rows: Sequence[PackedRow], processes: int, tokens: int) -> list[list[list[PackedRow]]]:
    """For each process its passes, of at most `tokens` tokens each or a single row. Processes get about the same number of tokens."""
    loads: list[list[PackedRow]] = [[] for _ in range(processes)]
    sizes = [0] * processes
    for row in sorted(rows, key=lambda row: len(row.ids), reverse=True):
        lightest = sizes.index(min(sizes))
        loads[lightest].append(row)
        sizes[lightest] += len(row.ids)
    return [_passes(load, tokens) for load in loads]


def _passes(rows: Sequence[PackedRow], tokens: int) -> list[list[PackedRow]]:
    """Rows, longest first, each into the first pass that has room."""
    passes: list[list[PackedRow]] = []
    room: list[int] = []
    for row in rows:
        size = len(row.ids)
        place = next((number for number, left in enumerate(room) if left >= size), len(passes))
        if place == len(passes):
            passes.append([])
            room.append(tokens)
        passes[place].append(row)
        room[place] -= size
    return passes
