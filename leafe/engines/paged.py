"""Attention of single queries over keys and values in blocks, as kernels for a GPU; nothing is gathered first.

The keys of a row are divided among programs, each of which sums up its part as FlashDecoding does; a second kernel joins the parts. The
kernels need triton, which comes with torch for CUDA and is imported on a GPU only. They do not compute caps on scores, sinks or odd
widths, and a kernel that fails once is not tried again: `steps.py` gathers the keys instead.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from leafe.engines import scores

SPLIT = 256  # keys of one program, or more if there would be too many programs
MOST_SPLITS = 32
LEAST_BLOCK = 16  # the narrowest product of matrices
ENDLESS = 1 << 30  # a window without a limit
tl: Any = None  # triton.language, once it is needed; kernels may name no other global
failures: list[str] = []  # the reasons why the kernels are no longer used


def available(device: torch.device) -> bool:
    """Whether the kernels are available on a device."""
    return device.type == "cuda" and not failures and _installed()


def suits(query: torch.Tensor, data: torch.Tensor, options: Mapping[str, Any]) -> bool:
    """Whether the kernels compute this: `query` is (1, heads, rows, width), `data` the blocks (blocks, tokens, shared heads, 2 * width)."""
    width, size = query.shape[-1], data.shape[1]
    even = width in (32, 64, 128, 256) and data.shape[-1] == 2 * width and size >= LEAST_BLOCK and size & (size - 1) == 0
    return even and available(query.device) and all(options.get(name) is None for name in scores.KNOWN)


def attend(
    queries: torch.Tensor,
    data: torch.Tensor,
    tables: torch.Tensor,
    positions: torch.Tensor,
    *,
    scaling: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """(rows, heads, width): each of `queries` (rows, heads, width) over the keys of its row up to its own position.

    `tables` (rows, depth) are numbers of blocks of `data` (blocks, tokens, shared heads, keys and values); `positions` is (rows,).
    """
    rows, heads, width = queries.shape
    size, shared, depth = data.shape[1], data.shape[2], tables.shape[1]
    each = max(SPLIT // size, -(-depth // MOST_SPLITS), 1)
    splits = -(-depth // each)
    parts = torch.empty(rows, splits, heads, width, dtype=torch.float32, device=queries.device)
    sums = torch.empty(2, rows, splits, heads, dtype=torch.float32, device=queries.device)
    result = torch.empty(rows, heads, width, dtype=queries.dtype, device=queries.device)
    scale = width**-0.5 if scaling is None else scaling
    part, join = _kernels()
    pool = max(16, 1 << (heads // shared - 1).bit_length())
    sizes = {"GROUP": heads // shared, "LANES": pool, "WIDTH": width, "SIZE": size}
    inputs = (queries.contiguous(), data, tables, positions, parts, sums[0], sums[1])
    with torch.cuda.device_of(queries):  # triton starts kernels on the current device, not on that of their arguments
        part[(rows, shared, splits)](*inputs, ENDLESS if window is None else window, scale, depth, each, shared, **sizes)
        join[(rows, heads)](parts, sums[0], sums[1], result, splits, WIDTH=width, SPLITS=1 << (splits - 1).bit_length())
    return result


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


@cache
def _kernels() -> tuple[Any, Any]:
    global tl
    tl = importlib.import_module("triton.language")
    jit = importlib.import_module("triton").jit
    return jit(_part), jit(_join)


# fmt: off
def _part(
    queries: tl.tensor, data: tl.tensor, tables: tl.tensor, positions: tl.tensor, parts: tl.tensor, peaks: tl.tensor,
    totals: tl.tensor, window: tl.tensor, scale: tl.tensor, depth: tl.tensor, each: tl.tensor, shared: tl.tensor,
    GROUP: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr,
) -> None:
    # fmt: on
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    own = tl.load(positions + row)
    lowest = tl.maximum(own - window + 1, 0)
    start = tl.maximum(split * each, lowest // SIZE)
    stop = tl.minimum(split * each + each, own // SIZE + 1)
    pool, dims, keys = tl.arange(0, LANES), tl.arange(0, WIDTH), tl.arange(0, SIZE)
    asked = pool < GROUP
    mine = row * shared * GROUP + head * GROUP + pool
    query = tl.load(queries + mine[:, None] * WIDTH + dims[None, :], mask=asked[:, None], other=0.0)
    peak = tl.full((LANES,), float("-inf"), tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    sums = tl.zeros((LANES, WIDTH), tl.float32)
    for index in range(start, stop):
        block = tl.load(tables + row * depth + index)
        places = data + ((block * SIZE + keys) * shared + head)[:, None] * (2 * WIDTH) + dims[None, :]
        at = index * SIZE + keys
        seen = (at <= own) & (at >= lowest)
        products = tl.dot(query, tl.trans(tl.load(places)), input_precision="ieee") * scale
        products = tl.where(seen[None, :], products, float("-inf"))
        top = tl.maximum(peak, tl.max(products, 1))
        weights, fade = tl.exp(products - top[:, None]), tl.exp(peak - top)
        value = tl.load(places + WIDTH)
        sums = sums * fade[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        total = total * fade + tl.sum(weights, 1)
        peak = top
    here = (row * tl.num_programs(2) + split) * shared * GROUP + head * GROUP + pool
    tl.store(parts + here[:, None] * WIDTH + dims[None, :], sums, mask=asked[:, None])
    tl.store(peaks + here, peak, mask=asked)
    tl.store(totals + here, total, mask=asked)


def _join(
    parts: tl.tensor, peaks: tl.tensor, totals: tl.tensor, result: tl.tensor, splits: tl.tensor, WIDTH: tl.constexpr, SPLITS: tl.constexpr
) -> None:  # fmt: skip
    row, head, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    pool, dims = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    there = pool < splits
    at = (row * splits + pool) * heads + head
    peak = tl.load(peaks + at, mask=there, other=float("-inf"))
    total = tl.load(totals + at, mask=there, other=0.0)
    factor = tl.exp(peak - tl.max(peak, 0))
    part = tl.load(parts + at[:, None] * WIDTH + dims[None, :], mask=there[:, None], other=0.0)
    joined = tl.sum(part * factor[:, None], 0) / tl.sum(total * factor, 0)
    tl.store(result + (row * heads + head) * WIDTH + dims, joined.to(result.dtype.element_ty))
