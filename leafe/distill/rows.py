"""Examples to packed rows: prompts tokenised exactly as they were sampled from, the examples of one task sharing one trie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from leafe.distill.pack import PackedRow, Trie
from leafe.engines.tokens import ChatTokenizer
from leafe.records import Example


def pack_examples(examples: Iterable[Example], tokenizer: ChatTokenizer, *, row_tokens: int) -> list[PackedRow]:
    """Rows of at most `row_tokens` tokens where examples allow it; an example longer than that gets a row of its own."""
    by_task: defaultdict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_task[example.task].append(example)
    return [trie.row() for task in sorted(by_task) for trie in _tries(by_task[task], tokenizer, row_tokens)]


def _tries(examples: Iterable[Example], tokenizer: ChatTokenizer, row_tokens: int) -> Iterator[Trie]:
    samples = sorted((tokenizer.prompt_ids(example.messages), example.target_ids, example.weight) for example in examples)
    trie = Trie()
    for prompt, target, weight in samples:
        if len(trie) and trie.length_with([*prompt, *target[:-1]]) > row_tokens:
            yield trie
            trie = Trie()
        trie.sample(prompt, target, weight)
    if len(trie):
        yield trie
