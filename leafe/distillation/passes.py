"""Packed rows for a device: of few lengths if code is compiled for each, and sent without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from math import log2, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from leafe.distillation.attention import Block
from leafe.distillation.pack import PackedBatch, PackedRow, collate

SHORTEST = 128  # tokens of the shortest row
MOST_PARTS = 8
COMPILED = 25  # passes that take as long as compiling for one more length: tenths of a second against seconds, on one H200


def parts_for(passes: float) -> int:
    """The number of parts into which each doubling of the length is cut, for so many passes: more lengths waste less but compile longer.

    With rows of any length between two doublings a share of about 1 / (2 parts) of all passes is padding, and about two doublings occur.

    >>> [parts_for(passes) for passes in (1, 100, 400, 2_000, 100_000)]
    [1, 1, 2, 4, 8]
    """
    wanted = sqrt(passes / (4 * COMPILED))
    return max(1, min(MOST_PARTS, 1 << round(log2(wanted)))) if wanted > 1 else 1


def padded_length(tokens: int, parts: int = 1, most: int = 0) -> int:
    """The next length that rows are padded to: a doubling of the shortest, or one of the `parts` steps to the next one.

    A row that has at most `most` tokens is not padded beyond them.

    >>> [padded_length(tokens) for tokens in (1, 129, 1000, 1025, 16_600)]
    [128, 256, 1024, 2048, 32768]
    >>> [padded_length(tokens, 4, 20_000) for tokens in (1000, 1025, 16_600, 20_000, 20_001)]
    [1024, 1280, 20000, 20000, 20480]
    """
    doubled = SHORTEST
    while doubled < tokens:
        doubled *= 2
    half = doubled // 2
    step = max(SHORTEST, half // parts)
    length = doubled if doubled == SHORTEST else half + -(-(tokens - half) // step) * step
    return most if tokens <= most < length else length


def lengthened(batch: PackedBatch, length: int) -> PackedBatch:
    """The same terms in a row of `length` tokens; the padding tokens attend to themselves and have no loss."""
    own = len(batch.ids)
    end = torch.cat([batch.end, torch.arange(own, length, device=batch.end.device) + 1])
    ids, depth = (pad(values, (0, length - own)) for values in (batch.ids, batch.depth))
    return replace(batch, ids=ids, depth=depth, end=end)


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """Values copied to a device asynchronously; the device's computations wait for them, the CPU does not."""
    if torch.device(device).type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def ready(rows: Sequence[PackedRow], kind: str, device: torch.device | str, *, parts: int = 1, most: int = 0) -> PackedBatch:
    """Rows as one pass on a device, for attention of `kind`; `parts` and `most` are those of `padded_length`."""
    batch = collate(rows, blocked=kind == "tree")
    if kind == "flex":
        batch = lengthened(batch, padded_length(len(batch.ids), parts, most))
    values = {item.name: getattr(batch, item.name) for item in fields(batch)}
    moved: dict[str, Any] = {name: sent(value, device) for name, value in values.items() if isinstance(value, Tensor)}
    plan = tuple(Block(one.start, one.stop, sent(one.keys, device), sent(one.mask, device)) for one in batch.blocks)
    return replace(batch, **moved, blocks=plan)
