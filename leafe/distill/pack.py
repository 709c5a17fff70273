"""Examples of one tree in one row: every shared prefix stands once, and each token sees its own ancestors only.

A `Trie` grows token by token; `row` lays it out in depth-first order. Query `i` may attend to key `k` exactly when
`k <= i < end[k]`, where `end[k]` is where the subtree of `k` ends. The loss is a list of terms, each the position of a
predecessor, a target id and a weight, so several children of one node all get their loss from the same hidden state. Positions
are depths, so a packed row computes what the unpacked samples would, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

IGNORED = 0  # the id that pads a batch; masked out everywhere


@dataclass(frozen=True)
class PackedRow:
    """One trie in depth-first order. `ids`, `depth`, `end` have one entry a token; the three term lists one entry a loss term."""

    ids: list[int]
    depth: list[int]
    end: list[int]
    term_at: list[int]
    term_target: list[int]
    term_weight: list[float]


class Trie:
    """A prefix tree over token ids with weighted targets at its nodes. Node 0 is the empty prefix and carries no token."""

    def __init__(self) -> None:
        self._token, self._children, self._targets = [-1], [dict[int, int]()], [dict[int, float]()]

    def extend(self, node: int, ids: Iterable[int]) -> int:
        """The node reached from `node` along `ids`, made where it is not there yet."""
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

    def target(self, node: int, token: int, weight: float) -> None:
        """Adds a loss term: after the prefix of `node`, `token` was wanted. Equal terms add their weights."""
        if node == 0:
            raise ValueError("a target wants at least one token before it")
        self._targets[node][token] = self._targets[node].get(token, 0.0) + weight

    def sample(self, prompt: Sequence[int], target: Sequence[int], weight: float) -> None:
        """Adds one sample: a loss term for each target token. The last of them is never read, so it takes no place."""
        node = self.extend(0, prompt)
        for position, token in enumerate(target):
            self.target(node, token, weight)
            if position + 1 < len(target):
                node = self.extend(node, [token])

    def __len__(self) -> int:
        return len(self._token) - 1

    def length_with(self, ids: Sequence[int]) -> int:
        """How long the trie would be with a path for `ids`."""
        node, shared = 0, 0
        for token in ids:
            if token not in self._children[node]:
                break
            node, shared = self._children[node][token], shared + 1
        return len(self) + len(ids) - shared

    def row(self) -> PackedRow:
        """The trie in depth-first pre-order."""
        row = PackedRow([], [], [], [], [], [])
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
            for token, weight in self._targets[node].items():
                row.term_at.append(here)
                row.term_target.append(token)
                row.term_weight.append(weight)
            stack.extend((child, level + 1) for child in reversed(self._children[node].values()))
        for position, _ in closing:
            end[position] = len(ids)
        return row


def pack(samples: Iterable[tuple[Sequence[int], Sequence[int], float]]) -> PackedRow:
    """One row for samples of `(prompt ids, target ids, weight)`; a prompt has at least one token."""
    trie = Trie()
    for prompt, target, weight in samples:
        trie.sample(prompt, target, weight)
    return trie.row()


@dataclass(frozen=True)
class PackedBatch:
    """Rows padded to one length: `ids` and `depth` are `(B, T)`, `mask` is `(B, 1, T, T)` bool, terms are flat over the batch."""

    ids: Tensor
    depth: Tensor
    mask: Tensor
    term_at: Tensor  # into the flattened (B * T) positions
    term_target: Tensor
    term_weight: Tensor

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same on another device."""
        return PackedBatch(*(getattr(self, item.name).to(device) for item in fields(self)))


def collate(rows: Sequence[PackedRow]) -> PackedBatch:
    """Pads rows on the right. A padding token sees only itself, so that no softmax is empty."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), IGNORED, dtype=torch.long)
    depth = torch.zeros(len(rows), length, dtype=torch.long)
    end = torch.arange(1, length + 1).repeat(len(rows), 1)
    for number, row in enumerate(rows):
        size = len(row.ids)
        ids[number, :size] = torch.tensor(row.ids)
        depth[number, :size] = torch.tensor(row.depth)
        end[number, :size] = torch.tensor(row.end)
    place = torch.arange(length)
    mask = (place[:, None] >= place[None, :]) & (place[None, :, None] < end[:, None, :])
    at = [number * length + position for number, row in enumerate(rows) for position in row.term_at]
    targets = [token for row in rows for token in row.term_target]
    weights = [weight for row in rows for weight in row.term_weight]
    return PackedBatch(ids, depth, mask[:, None], torch.tensor(at), torch.tensor(targets), torch.tensor(weights))


def term_losses(model: Any, batch: PackedBatch) -> Tensor:
    """Minus log-probability of each term's target, `(terms,)`, unweighted, float32 or better. Works on any Hugging Face causal decoder."""
    # A four-dimensional mask is taken as it is by transformers, which would otherwise build a causal one.
    hidden = model.get_decoder()(
        input_ids=batch.ids, position_ids=batch.depth, attention_mask=batch.mask, use_cache=False
    ).last_hidden_state
    chosen = hidden.reshape(-1, hidden.shape[-1])[batch.term_at]
    logits = model.get_output_embeddings()(chosen)
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses: Tensor = torch.nn.functional.cross_entropy(precise, batch.term_target, reduction="none")
    return losses
