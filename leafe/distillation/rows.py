"""Examples to packed rows: prompts are tokenised exactly as in sampling, and the examples of one task share one trie.

The contents of an optimiser step are decided here in bundles, which do not depend on the length of rows. The examples of a group are never
split between bundles.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from math import ceil

from leafe.distillation.pack import Detail, PackedRow, Sample, Source, pack
from leafe.engines.tokens import ChatTokenizer
from leafe.errors import UserError
from leafe.records import Example

Unit = list[tuple[Source, Sample]]  # samples that are not separated


@dataclass(frozen=True)
class Bundle:
    """Examples of one task that go into one optimiser step together. `target_tokens` counts equal terms as often as they occur.

    `sequences` and `groups` are those of `pack.Source`; none of them is in another bundle too.
    """

    rows: tuple[PackedRow, ...]
    examples: int
    target_tokens: int
    sequences: int
    groups: int


def pack_examples(
    examples: Iterable[Example],
    tokenizer: ChatTokenizer,
    *,
    row_tokens: int,
    most: int = 128,
    merges: bool = True,
    whole_groups: bool = False,
) -> list[Bundle]:
    """Bundles of at most `most` examples, in rows of at most `row_tokens` tokens; an example longer than that gets a separate row.

    A group of more than `most` examples is a bundle by itself. With `merges` terms that a loss linear in the weight cannot tell apart are
    one; without, each stays separate with all details of its target. With `whole_groups` a group is in one row, however long.
    Raises `UserError` for an example without sampled ids.
    """
    every = list(examples)
    by_task: defaultdict[str, Unit] = defaultdict(list)
    for example, source in zip(every, sources(every), strict=True):
        if not example.target_ids:
            raise UserError(
                f"the example {example.id} of task {example.task} holds no sampled ids; explore with a server that returns them"
            )
        by_task[example.task].append((source, _sample(example, tokenizer.prompt_ids(example.messages), None if merges else source)))
    bundles = []
    for task in sorted(by_task):
        for part in _parts(_grouped(sorted(by_task[task], key=_text)), most):
            inner = part if whole_groups else [[one] for one in sorted((one for unit in part for one in unit), key=_text)]
            bundles.append(_bundle(inner, row_tokens))
    return bundles


def steps_an_epoch(examples: Sequence[Example], batch_size: int) -> int:
    """The number of optimiser steps of about `batch_size` examples in one epoch of examples without groups."""
    tasks = Counter(example.task for example in examples)
    sizes = [min(batch_size, count - start) for count in tasks.values() for start in range(0, count, batch_size)]
    return ceil(len(sizes) / bundles_a_step(sizes, batch_size))


def bundles_a_step(sizes: Sequence[int], batch_size: int) -> int:
    """The number of bundles of these sizes that make about `batch_size` examples, by their mean."""
    return max(1, round(batch_size * len(sizes) / sum(sizes)))


def sources(examples: Sequence[Example]) -> list[Source]:
    """The sequence and group of each example; a group is the examples of one task that name it."""
    sequences: list[Hashable] = []
    groups: list[Hashable] = []
    for number, example in enumerate(examples):
        groups.append((example.task, example.group) if example.group else number)
        sequences.append((example.task, example.group, example.attempt) if example.group else number)
    lengths: Counter[Hashable] = Counter()
    for sequence, example in zip(sequences, examples, strict=True):
        lengths[sequence] += len(example.target_ids)
    group_of = dict(zip(sequences, groups, strict=True))
    sizes = Counter(group_of.values())
    sequence_number = {sequence: number for number, sequence in enumerate(group_of)}
    group_number = {group: number for number, group in enumerate(sizes)}
    return [
        Source(number, sequence_number[sequence], group_number[group], lengths[sequence], sizes[group])
        for number, (sequence, group) in enumerate(zip(sequences, groups, strict=True))
    ]


def _sample(example: Example, prompt: Sequence[int], source: Source | None) -> Sample:
    """An example as a sample; with a `source` its terms are never merged with others."""
    weights = [target.weight for target in example.targets]
    if source is None:
        details = [Detail(top=target.top) for target in example.targets]
    else:
        details = [Detail(target.logprob, target.reference, target.top, source) for target in example.targets]
        details = details or [Detail(source=source)] * len(example.target_ids)
    return Sample(prompt, example.target_ids, example.weight, example.kind, weights, details)


def _grouped(sorted_samples: Unit) -> list[Unit]:
    """Samples by their groups, in the order of the first of each."""
    groups: defaultdict[int, Unit] = defaultdict(list)
    for source, sample in sorted_samples:
        groups[source.group].append((source, sample))
    return list(groups.values())


def _parts(units: Sequence[Unit], most: int) -> Iterator[list[Unit]]:
    """Units in parts of at most `most` samples, or of a single unit."""
    part: list[Unit] = []
    size = 0
    for unit in units:
        if part and size + len(unit) > most:
            yield part
            part, size = [], 0
        part.append(unit)
        size += len(unit)
    if part:
        yield part


def _bundle(units: Sequence[Unit], row_tokens: int) -> Bundle:
    """Whole units as rows; sorted as texts, so that samples with a shared prefix are adjacent."""
    found = [source for unit in units for source, _ in unit]
    samples = [[sample for _, sample in unit] for unit in units]
    return Bundle(
        rows=tuple(split_units(samples, row_tokens)),
        examples=len(found),
        target_tokens=sum(len(sample.target) for unit in samples for sample in unit),
        sequences=len({source.sequence for source in found}),
        groups=len({source.group for source in found}),
    )


def split(samples: Sequence[Sample], row_tokens: int) -> Iterator[PackedRow]:
    """Sorted samples as rows of at most `row_tokens` tokens, cut where least is computed twice; a longer sample is a row by itself."""
    return split_units([[sample] for sample in samples], row_tokens)


def split_units(units: Sequence[Sequence[Sample]], row_tokens: int) -> Iterator[PackedRow]:
    """The same, with the samples of a unit in one row.

    A cut between two neighbours costs the prefix that they share. Dynamic programming over the first n units finds the cheapest cuts.
    """
    read = [[[*sample.prompt, *sample.target[:-1]] for sample in unit] for unit in units]
    sizes = [sum(map(len, unit)) - sum(_common(one, other) for one, other in pairwise(unit)) for unit in read]
    shared = [0, *(_common(one[-1], other[0]) for one, other in pairwise(read))]  # with the unit before
    cost, cut = [0], [0]  # of the cheapest rows for the first n units, and where the last of these rows begins
    for stop in range(1, len(units) + 1):
        best, tokens = (cost[stop - 1] + shared[stop - 1], stop - 1), sizes[stop - 1]
        for start in range(stop - 2, -1, -1):
            tokens += sizes[start] - shared[start + 1]
            if tokens > row_tokens:
                break
            best = min(best, (cost[start] + shared[start], start))
        cost.append(best[0])
        cut.append(best[1])
    ends = [len(units)]
    while ends[-1]:
        ends.append(cut[ends[-1]])
    yield from (pack(sample for unit in units[start:stop] for sample in unit) for stop, start in pairwise(ends))


def _text(one: tuple[Source, Sample]) -> tuple[list[int], float, str]:
    _, sample = one
    return [*sample.prompt, *sample.target], sample.weight, sample.kind


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the prefix that two samples share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def shares(rows: Sequence[PackedRow], processes: int, tokens: int) -> list[list[list[PackedRow]]]:
    """The passes of each process, of at most `tokens` tokens or a single row each. Processes get about the same number of tokens."""
    loads: list[list[PackedRow]] = [[] for _ in range(processes)]
    sizes = [0] * processes
    for row in sorted(rows, key=lambda row: len(row.ids), reverse=True):
        lightest = sizes.index(min(sizes))
        loads[lightest].append(row)
        sizes[lightest] += len(row.ids)
    return [_passes(load, tokens) for load in loads]


def _passes(rows: Sequence[PackedRow], tokens: int) -> list[list[PackedRow]]:
    """First-fit packing of rows into passes, longest row first."""
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
