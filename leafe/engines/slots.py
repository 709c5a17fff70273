"""The key-value cache in blocks, and the attention that reads it: one flat row of tokens from many requests per forward pass.

The invariant: the numbers computed for a token depend on its conversation alone. Each token attends to whole blocks up to its own,
whatever else is in the batch; query rows are padded to multiples of four, because matrix products of one to three rows are summed in
another order; and masked keys add exact zeros. A prefix that was computed by another request, or token by token, therefore has the same
bits. `benchmarks/engine.py` and the tests measure that.

The attention is registered with transformers under `ATTENTION` and is plain scaled-dot-product attention for any other caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from leafe.engines import scores
from leafe.engines.prefixes import Copy
from leafe.errors import EngineError

ATTENTION = "leafe_blocks"
QUERY_MULTIPLE = 4
TOKEN_MULTIPLE = 16
# A tile's keys and values should stay in the processor's cache between being gathered and being read.
TILE_BYTES = 3 << 20
TILE_BYTES_THERE = 256 << 20  # on a GPU, where launches are the cost


@dataclass(slots=True)
class Piece:
    """Tokens of one request to compute: `ids` stand at positions `start ..`, and `blocks` is the request's block table.

    Logits are wanted after the last `kept` of them.
    """

    ids: Sequence[int]
    start: int
    blocks: Sequence[int]
    kept: int = 1


@dataclass(slots=True)
class Tile:
    """Rows of queries that all end in block number `depth` of their requests and so attend to the same number of keys."""

    rows: int
    queries: int
    keys: int
    start: int  # where its queries begin among those of all tiles
    positions: torch.Tensor  # (rows * queries)
    blocks: torch.Tensor  # (rows * (depth + 1))
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """(rows, 1, queries, keys): zero where a key may be seen, minus infinity elsewhere."""
        if window not in self.masks:
            key = torch.arange(self.keys, device=self.positions.device)
            hidden = key > self.positions[:, None]
            if window is not None:
                hidden |= key <= self.positions[:, None] - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
            self.masks[window] = mask.view(self.rows, 1, self.queries, self.keys)
        return self.masks[window]


class BlockCache:
    """Keys and values of every layer, `blocks` blocks of `size` tokens each. Block 0 takes writes that are never read."""

    def __init__(self, blocks: int, size: int) -> None:
        self.blocks = blocks
        self.size = size
        self.layers: dict[int, torch.Tensor] = {}
        self._gathered: torch.Tensor | None = None  # reused: fresh memory of this size costs more than the copy

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's keys and values in one layer; 1 before anything was stored."""
        some = next(iter(self.layers.values()), None)
        return 1 if some is None else some[0, 0].nbytes

    def store(self, layer: int, key: torch.Tensor, value: torch.Tensor, places: torch.Tensor) -> None:
        """Writes keys and values (1, heads, tokens, width) at flat places (tokens)."""
        both = torch.cat((key[0], value[0]), dim=-1).transpose(0, 1)
        if layer not in self.layers:
            self.layers[layer] = _lazy_zeros((self.blocks, self.size, *both.shape[1:]), both)
        self.layers[layer].view(-1, *both.shape[1:]).index_copy_(0, places, both)

    def read(self, layer: int, tile: Tile, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (rows, heads, keys, width) of a tile; `width` is that of a key."""
        data = self.layers[layer]
        count = tile.blocks.shape[0]
        fits = self._gathered is not None and self._gathered.shape[1:] == data.shape[1:] and self._gathered.shape[0] >= count
        if self._gathered is None or not fits:
            self._gathered = data.new_empty(max(count, TILE_BYTES // data[0].nbytes), *data.shape[1:])
        torch.index_select(data, 0, tile.blocks, out=self._gathered[:count])
        both = self._gathered[:count].view(tile.rows, tile.keys, *data.shape[2:]).transpose(1, 2)
        return both[..., :width], both[..., width:]

    def copy(self, copies: Sequence[Copy]) -> None:
        """Copies the beginnings of blocks, in every layer."""
        if not copies or not self.layers:
            return
        some = next(iter(self.layers.values()))
        counts = torch.tensor([copy.count for copy in copies])
        starts = torch.tensor([[copy.source, copy.target] for copy in copies]) * self.size
        offsets = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        source, target = sent(starts.repeat_interleave(counts, 0) + offsets[:, None], some.device).unbind(1)
        for data in self.layers.values():
            rows = data.view(-1, *data.shape[2:])
            rows.index_copy_(0, target, rows.index_select(0, source))


class Layout(Protocol):
    """The layout of the tokens of a forward pass in one flat row, and the attention that goes with it."""

    ids: torch.Tensor  # (1, tokens)
    positions: torch.Tensor  # (1, tokens)
    last: torch.Tensor  # the tokens after which logits are wanted

    def attend(self, layer: int, states: Sequence[torch.Tensor], options: Mapping[str, Any]) -> torch.Tensor:
        """Attention of query, key and value (1, heads, tokens, width); the result is (1, tokens, heads, width)."""
        ...


@dataclass(slots=True)
class Batch:
    """One forward pass: the flat row of tokens, where their keys go, and the tiles that attention works in."""

    cache: BlockCache
    ids: torch.Tensor  # (1, tokens)
    positions: torch.Tensor  # (1, tokens)
    places: torch.Tensor  # (tokens)
    last: torch.Tensor  # the tokens after which logits are wanted: the last ones of each piece
    tiles: list[Tile]
    take: torch.Tensor  # (queries of all tiles) the token of each, padding included
    back: torch.Tensor  # (tokens) the query of each; padding tokens have some query

    def attend(self, layer: int, states: Sequence[torch.Tensor], options: Mapping[str, Any]) -> torch.Tensor:
        """Attention of query, key and value (1, heads, tokens, width), tile by tile; the result is (1, tokens, heads, width)."""
        query, key, value = states
        heads, tokens, width = query.shape[1:]
        self.cache.store(layer, key, value, self.places)
        queries = query[0].transpose(0, 1).reshape(tokens, heads * width).index_select(0, self.take)
        parts = []
        for tile in self.tiles:
            keys, values = self.cache.read(layer, tile, width)
            count = tile.rows * tile.queries
            shaped = queries[tile.start : tile.start + count].view(tile.rows, tile.queries, heads, width).transpose(1, 2)
            mask = tile.mask(options.get("sliding_window"), query.dtype)
            if query.is_cuda and keys.shape[1] < heads and not any(options.get(name) is not None for name in scores.KNOWN):
                part = _grouped(shaped, keys, values, mask, **options)
            else:
                part = scores.attend(shaped, keys, values, mask, **options)
            parts.append(part.transpose(1, 2).reshape(count, -1))
        output = torch.cat(parts).index_select(0, self.back)
        return output.view(1, tokens, heads, -1)


@dataclass(slots=True)
class _Span:
    """The part of a piece that lies in one block."""

    first: int
    start: int
    count: int
    blocks: Sequence[int]


def plan(pieces: Sequence[Piece], cache: BlockCache, device: torch.device) -> Batch:
    """Lays pieces out for one forward pass."""
    size, row_bytes = cache.size, cache.row_bytes
    ids: list[int] = []
    positions: list[int] = []
    places: list[int] = []
    last: list[int] = []
    spans: dict[tuple[int, bool], list[_Span]] = {}
    for piece in pieces:
        first, stop = len(ids), piece.start + len(piece.ids)
        ids += piece.ids
        positions += range(piece.start, stop)
        last += range(len(ids) - piece.kept, len(ids))
        for depth in range(piece.start // size, (stop - 1) // size + 1):
            start, end = max(piece.start, depth * size), min(stop, (depth + 1) * size)
            here = piece.blocks[depth] * size - depth * size
            places += range(here + start, here + end)
            span = _Span(first + start - piece.start, start, end - start, piece.blocks[: depth + 1])
            spans.setdefault((depth, end - start <= QUERY_MULTIPLE), []).append(span)
    for group in spans.values():
        group.sort(key=lambda span: span.count)  # tiles of like rows need less padding
    padding = TOKEN_MULTIPLE - len(ids) % TOKEN_MULTIPLE  # at least one, for the padded queries of a tile
    nowhere = len(ids)
    for padded in (ids, positions, places):
        padded += [0] * padding
    tiles: list[Tile] = []
    take: list[int] = []
    for depth, few in sorted(spans):
        rows = max(1, (TILE_BYTES if device.type == "cpu" else TILE_BYTES_THERE) // ((depth + 1) * size * row_bytes))
        group = spans[depth, few]
        for index in range(0, len(group), rows):
            tiles.append(_tile(group[index : index + rows], take, nowhere, size=size, device=device))
    back = [0] * len(ids)
    for query, token in enumerate(take):
        back[token] = query
    last += last[-1:] * max(0, QUERY_MULTIPLE - len(last))
    flat = sent(torch.tensor([ids, positions, places, back]), device)
    chosen, taken = sent(torch.tensor(last), device), sent(torch.tensor(take), device)
    return Batch(cache, flat[0:1], flat[1:2], flat[2], chosen, tiles, taken, flat[3])


def _tile(spans: Sequence[_Span], take: list[int], nowhere: int, *, size: int, device: torch.device) -> Tile:
    """A tile of these spans, whose queries it appends to `take`."""
    queries = max(span.count for span in spans)
    queries += -queries % QUERY_MULTIPLE
    start = len(take)
    positions: list[int] = []
    for span in spans:
        padding = queries - span.count
        take += [*range(span.first, span.first + span.count), *([nowhere] * padding)]
        positions += [*range(span.start, span.start + span.count), *([span.start] * padding)]
    blocks = sent(torch.tensor([block for span in spans for block in span.blocks]), device)
    keys = len(spans[0].blocks) * size
    return Tile(len(spans), queries, keys, start, sent(torch.tensor(positions), device), blocks)


def attend(module: Any, *states: Any, **options: Any) -> tuple[torch.Tensor, None]:
    """Attention over the blocks of `options["batch"]`, a `Layout`; without one, transformers' own scaled-dot-product attention.

    `states` are query, key and value, (1, heads, tokens, width) each, and a mask; the result is (1, tokens, heads, width).
    """
    batch: Layout | None = options.pop("batch", None)
    if batch is None:
        mask = states[3] if len(states) > 3 else options.get("attention_mask")
        if mask is not None and mask.numel() == 1 < states[0].shape[2]:  # the mask of `forward`, so a layer has dropped the batch
            raise EngineError("its layers do not hand on what attention over blocks needs")
        output, _ = sdpa_attention_forward(module, *states, **options)
        return output, None
    unknown = [name for name in scores.UNKNOWN if options.get(name) is not None]
    if unknown:
        raise EngineError(f"its attention needs {unknown[0]}")
    # A mask may follow, or be named, and is not needed.
    return batch.attend(module.layer_idx, states[:3], options), None


def _grouped(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
    """As `scores.attend`; queries that share a head of keys become rows of one head, as the fused GPU kernels require with a mask."""
    rows, heads, queries, width = query.shape
    group = heads // key.shape[1]
    together = query.reshape(rows, key.shape[1], group * queries, width)
    output = scores.attend(together, key, value, mask.repeat(1, 1, group, 1), **options)
    return output.reshape(rows, heads, queries, -1)


def forward(model: Any, batch: Layout) -> torch.Tensor:
    """Logits (at least as many rows as are wanted, vocabulary) after the tokens `batch.last`, by a model set to `ATTENTION`."""
    output = model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        attention_mask=batch.ids.new_ones(1, 1, 1, 1),  # of four dimensions: transformers hands it on, and `attend` ignores it
        use_cache=False,
        logits_to_keep=batch.last,
        batch=batch,
    )
    logits: torch.Tensor = output.logits[0]
    return logits


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a CPU tensor on a device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _lazy_zeros(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Zeros that take no memory on a CPU until they are written to."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    bits = np.zeros(shape, dtype=np.dtype(f"u{like.element_size()}"))
    return torch.from_numpy(bits.view(np.int8)).view(like.dtype)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
