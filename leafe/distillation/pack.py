"""Examples of one tree in one row: every shared prefix occurs once, and each token attends to its ancestors only.

A `Trie` grows token by token; `row` lays it out in depth-first order. Query `i` may attend to key `k` exactly when
`k <= i < end[k]`, where `end[k]` is where the subtree of `k` ends. The loss is a list of terms, each the position of a
predecessor, a target id and a weight, so several children of one node all get their loss from the same hidden state. Positions
are depths, so a packed row computes what the unpacked samples would, to rounding.

Terms at one node are added up if they agree in target, kind and `Detail`, which is right for a loss that is linear in the weight. The
samples for any other loss have details that name their source, and share no term with another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leafe.distillation.attention import Block, attention_inputs, blocks


class Source(NamedTuple):
    """The example, sequence and group of a term, as numbers that are unique among all examples that are packed together.

    A sequence is all examples of one attempt of a group; an example without a group is a sequence and a group by
    itself. `length` is how many targets the sequence has, `size` how many sequences the group has.
    """

    example: int
    sequence: int
    group: int
    length: int
    size: int


class Detail(NamedTuple):
    """The fields of a term that a loss may read beside target, weight and kind: see `records.Target`."""

    logprob: float | None = None
    reference: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    source: Source | None = None


PLAIN = Detail()


class Sample(NamedTuple):
    """One turn to learn from: the ids of `target` should follow those of `prompt`. `kind` is the group that losses are reported for.

    `weights` and `details` have one entry a target, or none if all are 1 and plain; `weight` multiplies every one.
    """

    prompt: Sequence[int]
    target: Sequence[int]
    weight: float = 1.0
    kind: str = ""
    weights: Sequence[float] = ()
    details: Sequence[Detail] = ()


@dataclass(frozen=True)
class PackedRow:
    """One trie in depth-first order. `ids`, `depth`, `end` have one entry a token; the five term lists one entry a loss term."""

    ids: list[int]
    depth: list[int]
    end: list[int]
    term_at: list[int]
    term_target: list[int]
    term_weight: list[float]
    term_kind: list[str]
    term_detail: list[Detail]


class Trie:
    """A prefix tree over token ids with weighted targets at its nodes. Node 0 is the empty prefix and carries no token."""

    def __init__(self) -> None:
        self._token, self._children, self._targets = [-1], [dict[int, int]()], [dict[tuple[int, str, Detail], float]()]

    def extend(self, node: int, ids: Iterable[int]) -> int:
        """The node reached from `node` along `ids`, made if missing."""
        for token in ids:
            child = self._children[node].get(token)
            if child is None:
                child = len(self._token)
                self._token.append(token)
                self._children.append({})
                self._targets.append({})
                self._children[node][token] = child
            node = child
        return node

    def target(self, node: int, token: int, weight: float, *, kind: str = "", detail: Detail = PLAIN) -> None:
        """Adds a loss term: `token` should follow the prefix of `node`. Equal terms of a kind and detail add their weights."""
        if node == 0:
            raise ValueError("a target wants at least one token before it")
        term = (token, kind, detail)
        self._targets[node][term] = self._targets[node].get(term, 0.0) + weight

    def sample(self, sample: Sample) -> None:
        """Adds one sample: a loss term for each target token. The last target is never an input, so it takes no position."""
        node = self.extend(0, sample.prompt)
        weights = [sample.weight * weight for weight in sample.weights] or [sample.weight] * len(sample.target)
        details = sample.details or [PLAIN] * len(sample.target)
        for position, (token, weight, detail) in enumerate(zip(sample.target, weights, details, strict=True)):
            self.target(node, token, weight, kind=sample.kind, detail=detail)
            if position + 1 < len(sample.target):
                node = self.extend(node, [token])

    def __len__(self) -> int:
        return len(self._token) - 1

    def row(self) -> PackedRow:
        """The trie in depth-first pre-order."""
        row = PackedRow([], [], [], [], [], [], [], [])
        ids, depth, end = row.ids, row.depth, row.end
        stack = [(child, 0) for child in reversed(self._children[0].values())]
        closing: list[tuple[int, int]] = []  # (position, depth) of nodes whose subtree is open
        while stack:
            node, level = stack.pop()
            here = len(ids)
            while closing and closing[-1][1] >= level:
                end[closing.pop()[0]] = here
            ids.append(self._token[node])
            depth.append(level)
            end.append(0)
            closing.append((here, level))
            for (token, kind, detail), weight in self._targets[node].items():
                row.term_at.append(here)
                row.term_target.append(token)
                row.term_weight.append(weight)
                row.term_kind.append(kind)
                row.term_detail.append(detail)
            stack.extend((child, level + 1) for child in reversed(self._children[node].values()))
        for position, _ in closing:
            end[position] = len(ids)
        return row


def pack(samples: Iterable[Sample | tuple[Sequence[int], Sequence[int], float]]) -> PackedRow:
    """One row for samples, or plain tuples of `(prompt ids, target ids, weight)`; a prompt has at least one token."""
    trie = Trie()
    for sample in samples:
        trie.sample(Sample(*sample))
    return trie.row()


@dataclass(frozen=True)
class PackedBatch:
    """Rows one after the other in a single flat row of `T` tokens, without padding: `ids`, `depth` and `end` are `(T,)`.

    The five about terms have one entry each; `term_kind` and `term_detail` are not moved to a device.
    """

    ids: Tensor
    depth: Tensor
    end: Tensor
    term_at: Tensor
    term_target: Tensor
    term_weight: Tensor
    term_kind: tuple[str, ...]
    term_detail: tuple[Detail, ...]
    blocks: tuple[Block, ...]

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same on another device."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved, blocks=tuple(block.to(device) for block in self.blocks))


def collate(rows: Sequence[PackedRow], *, blocked: bool = True) -> PackedBatch:
    """Rows of any lengths as one: no token attends to another row, since every subtree ends within its row.

    Only attention in blocks needs it `blocked`.
    """
    starts = list(accumulate((len(row.ids) for row in rows), initial=0))[:-1]
    end = torch.tensor([start + stop for start, row in zip(starts, rows, strict=True) for stop in row.end])
    return PackedBatch(
        ids=torch.tensor([token for row in rows for token in row.ids]),
        depth=torch.tensor([depth for row in rows for depth in row.depth]),
        end=end,
        term_at=torch.tensor([start + place for start, row in zip(starts, rows, strict=True) for place in row.term_at]),
        term_target=torch.tensor([token for row in rows for token in row.term_target]),
        term_weight=torch.tensor([weight for row in rows for weight in row.term_weight]),
        term_kind=tuple(kind for row in rows for kind in row.term_kind),
        term_detail=tuple(detail for row in rows for detail in row.term_detail),
        blocks=blocks(end) if blocked else (),
    )


def term_logits(model: Any, batch: PackedBatch) -> Tensor:
    """Logits (terms, vocabulary) that predict each term's target. Works on any Hugging Face causal decoder that passes its trial.

    Fast inside `leafe.distillation.attention.tree_attention(model)`, with a mask of `T` by `T` outside of it.
    """
    logits: Tensor = model(
        input_ids=batch.ids[None],
        position_ids=batch.depth[None],
        logits_to_keep=batch.term_at,
        use_cache=False,
        **attention_inputs(model, batch.end, batch.depth, batch.blocks),
    ).logits[0]
    return logits


def term_losses(model: Any, batch: PackedBatch) -> Tensor:
    """Minus log-probability of each term's target, `(terms,)`, unweighted, float32 or better."""
    logits = term_logits(model, batch)
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses: Tensor = torch.nn.functional.cross_entropy(precise, batch.term_target, reduction="none")
    return losses
