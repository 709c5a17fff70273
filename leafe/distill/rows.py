"""Examples to packed rows: prompts tokenised exactly as they were sampled from, the examples of one task sharing one trie.

What one optimiser step holds is decided here in bundles, which do not depend on how long a row may be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from leafe.distill.pack import PackedRow, Trie
from leafe.engines.tokens import ChatTokenizer
from leafe.errors import UserError
from leafe.records import Example

Sample = tuple[list[int], tuple[int, ...], float]  # prompt ids, target ids, weight


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
        by_task[example.task].append((tokenizer.prompt_ids(example.messages), example.target_ids, example.weight))
    # Sorted, so that what shares a prefix stands together.
    return [_bundle(part, row_tokens) for task in sorted(by_task) for part in _parts(sorted(by_task[task]), most)]


def _parts(samples: Sequence[Sample], most: int) -> Iterator[Sequence[Sample]]:
    yield from (samples[start : start + most] for start in range(0, len(samples), most))


def _bundle(samples: Sequence[Sample], row_tokens: int) -> Bundle:
    rows = tuple(trie.row() for trie in _tries(samples, row_tokens))
    return Bundle(rows, len(samples), sum(len(target) for _, target, _ in samples))


def _tries(samples: Sequence[Sample], row_tokens: int) -> Iterator[Trie]:
    trie = Trie()
    for prompt, target, weight in samples:
        if len(trie) and trie.length_with([*prompt, *target[:-1]]) > row_tokens:
            yield trie
            trie = Trie()
        trie.sample(prompt, target, weight)
    if len(trie):
        yield trie
