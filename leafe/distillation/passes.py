"""Packed rows as a device takes them: of few lengths where code is compiled for each, and sent without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from leafe.distillation.attention import Block
from leafe.distillation.pack import PackedBatch, PackedRow, collate

SHORTEST = 128  # lengths are doubles of it up to a point
DOUBLED = 4096
STEP = 1024  # and multiples of this beyond


def padded_length(tokens: int) -> int:
    """The next length that rows are padded to.

    >>> [padded_length(tokens) for tokens in (1, 129, 1000, 1025, 16_600)]
    [128, 256, 1024, 2048, 17408]
    """
    if tokens > DOUBLED:
        return -(-tokens // STEP) * STEP
    length = SHORTEST
    while length < tokens:
        length *= 2
    return length


def lengthened(batch: PackedBatch, length: int) -> PackedBatch:
    """The same terms in a row of `length` tokens; those behind the batch's own attend to themselves and bear no loss."""
    own = len(batch.ids)
    end = torch.cat([batch.end, torch.arange(own, length, device=batch.end.device) + 1])
    ids, depth = (pad(values, (0, length - own)) for values in (batch.ids, batch.depth))
    return replace(batch, ids=ids, depth=depth, end=end)


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """Values on their way to a device; what is computed there waits for them, this processor does not."""
    if torch.device(device).type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def ready(rows: Sequence[PackedRow], kind: str, device: torch.device | str) -> PackedBatch:
    """Rows as one pass on a device, for the way of attending `kind`."""
    batch = collate(rows, blocked=kind == "tree")
    if kind == "flex":
        batch = lengthened(batch, padded_length(len(batch.ids)))
    values = {item.name: getattr(batch, item.name) for item in fields(batch)}
    moved: dict[str, Any] = {name: sent(value, device) for name, value in values.items() if isinstance(value, Tensor)}
    plan = tuple(Block(one.start, one.stop, sent(one.keys, device), sent(one.mask, device)) for one in batch.blocks)
    return replace(batch, **moved, blocks=plan)
