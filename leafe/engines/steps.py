"""A decode step on fixed tensors: one token of each of many rows, from keys and values in blocks to the ids that are drawn.

A row is the next token of a request that is being sampled, or a token of a prompt; rows of one request lie on the same blocks, and what
they store is stored before any of them attends. All that differs between two passes lies in `Step.inputs`, so that a CUDA graph, captured
once for a shape, is replayed for any requests that fit. A request's last id stays on the device, in `drawn`, where the next pass reads it.
On a processor, and where a model's forward pass cannot be captured, the same step is a plain call.

Nothing here waits for the device except `Landing.read`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from leafe.engines import paged, scores
from leafe.engines.sampling import draw_there
from leafe.engines.slots import BlockCache, Piece, forward, sent

LEAST = 8  # rows and draws of the smallest shape
LEAST_DEPTH = 4
MOST_SHAPES = 48  # shapes whose steps, and on a GPU their graphs, are kept
# Limits for prompts in a step: rows, tokens that these may attend to, bytes of keys and values gathered at once. Longer prompts
# are computed ahead of it.
MOST_ROWS, MOST_READ, MOST_GATHERED = 512, 1 << 21, 256 << 20


def rung(count: int, least: int) -> int:
    """The smallest `least * 2^k` that is at least `count`."""
    return max(least, 1 << (count - 1).bit_length())


@dataclass(frozen=True, slots=True)
class Shape:
    """The capacity of a step: rows, draws, the blocks that a row may attend to; and whether any draw is truncated by top-p."""

    rows: int
    draws: int
    depth: int
    nucleus: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of values of each part of a step's inputs."""
        return (*(self.rows,) * 4, *(self.draws,) * 5, self.rows * self.depth)


@dataclass(slots=True)
class Rows:
    """The rows that one step computes. `tables` holds, for each row, the row of the block tables that belongs to its request."""

    given: list[int] = field(default_factory=list)  # the id, or -1: the last one drawn in seat `tables`
    tables: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)  # rows after which an id is drawn
    sessions: list[int] = field(default_factory=list)  # the seat in which each is kept
    temperatures: list[float] = field(default_factory=list)
    masses: list[float] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)

    def shape(self, block: int) -> Shape:
        """The smallest shape that has room for the rows."""
        depth = rung(max(self.positions) // block + 1, LEAST_DEPTH)
        return Shape(rung(len(self.given), LEAST), rung(len(self.last), LEAST), depth, any(mass < 1 for mass in self.masses))

    def packed(self, shape: Shape, tables: np.ndarray[Any, Any], nobody: int) -> np.ndarray[Any, Any]:
        """All inputs of a step one after another, (numbers,) in int64; floats are stored by their bits.

        `tables` are all block tables, (seats, blocks); row and seat `nobody` are for padding.
        """
        flat = np.zeros(sum(shape.sizes), dtype=np.int64)
        parts = np.split(flat, np.cumsum(shape.sizes)[:-1])
        sessions = np.full(shape.rows, nobody)
        sessions[: len(self.tables)] = self.tables
        parts[5][:] = nobody
        for part, values in zip(
            parts[:6], (self.given, self.tables, self.positions, self.places, self.last, self.sessions), strict=True
        ):
            part[: len(values)] = values
        for part, floats in zip(parts[6:9], (self.temperatures, self.masses, self.numbers), strict=True):
            part.view(np.float64)[: len(floats)] = floats
        depth = min(shape.depth, tables.shape[1])
        parts[9].reshape(shape.rows, shape.depth)[:, :depth] = tables[sessions, :depth]
        return flat


class Step:
    """The fixed tensors of one shape, as a layout for `slots.forward`. `drawn` (seats + 1) holds the last id of each seat."""

    def __init__(self, shape: Shape, cache: BlockCache, drawn: torch.Tensor) -> None:
        self.shape, self._cache, self._drawn = shape, cache, drawn
        self.inputs = torch.zeros(sum(shape.sizes), dtype=torch.long, device=drawn.device)
        parts = self.inputs.split(shape.sizes)
        self._given, self._reads, positions, self._places, self.last, self._writes = parts[:6]
        self._temperatures, self._masses, self._numbers = (part.view(torch.float64) for part in parts[6:9])
        self._tables = parts[9].view(shape.rows, shape.depth)
        self.positions = self.ids = positions[None]
        self._masks: dict[int | None, torch.Tensor] = {}

    def compute(self, model: Any) -> torch.Tensor:
        """(2, draws) in float64: the ids drawn and their log-probabilities."""
        self.ids = torch.where(self._given >= 0, self._given, self._drawn.index_select(0, self._reads))[None]
        self._masks = {}
        masses = self._masses if self.shape.nucleus else self._masses[:0]
        found = draw_there(forward(model, self), self._temperatures, masses, self._numbers)
        self._drawn.index_copy_(0, self._writes, found[0].long())
        return found

    def attend(self, layer: int, states: Sequence[torch.Tensor], options: Mapping[str, Any]) -> torch.Tensor:
        """Attention of query, key and value (1, heads, rows, width) over the blocks of each row; (1, rows, heads, width)."""
        query, key, value = states
        self._cache.store(layer, key, value, self._places)
        data, queries = self._cache.layers[layer], query[0].transpose(0, 1)
        if paged.suits(query, data, options):
            try:
                how = {"scaling": options.get("scaling"), "window": options.get("sliding_window")}
                return paged.attend(queries, data, self._tables, self.positions[0], **how)[None]
            except Exception as error:  # a compiler of kernels may raise anything
                paged.failures.append(f"{type(error).__name__}: {error}")
        each = max(1, MOST_GATHERED // (self.shape.depth * data[0].nbytes))
        parts = [self._gathered(slice(start, start + each), queries, data, options) for start in range(0, len(queries), each)]
        return torch.cat(parts)[None]

    def _gathered(self, some: slice, queries: torch.Tensor, data: torch.Tensor, options: Mapping[str, Any]) -> torch.Tensor:
        """(rows, heads, width) of some of the rows, whose keys and values are gathered first."""
        queries, tables = queries[some], self._tables[some]
        rows, heads, width = queries.shape
        both = data.index_select(0, tables.reshape(-1)).view(rows, -1, *data.shape[2:]).transpose(1, 2)
        keys, values, seen = both[..., :width], both[..., width:], self._seen(options.get("sliding_window"))[some]
        if any(options.get(name) is not None for name in scores.KNOWN):
            return scores.attend(queries[:, :, None], keys, values, seen, **options).reshape(rows, heads, -1)
        # The queries of one head of keys are adjacent, so that the keys need not be repeated.
        shared = keys.shape[1]
        grouped, seen = queries.reshape(rows, shared, heads // shared, width), seen.expand(-1, 1, heads // shared, -1)
        return scores.attend(grouped, keys, values, seen, **options).reshape(rows, heads, -1)

    def _seen(self, window: int | None) -> torch.Tensor:
        """(rows, 1, 1, keys): true where a key may be seen."""
        if window not in self._masks:
            key = torch.arange(self.shape.depth * self._cache.size, device=self.inputs.device)
            own = self.positions[0][:, None]
            seen = key <= own if window is None else (key <= own) & (key > own - window)
            self._masks[window] = seen[:, None, None]
        return self._masks[window]


@dataclass(slots=True)
class Landing:
    """The draws of a pass, on their way from the device."""

    found: torch.Tensor
    event: Any = None

    def read(self) -> list[list[float]]:
        """Ids and log-probabilities, as soon as the pass is over."""
        if self.event is not None:
            self.event.synchronize()
        numbers: list[list[float]] = self.found.tolist()
        return numbers


@dataclass(slots=True, eq=False)
class _Kept:
    """A step, and on a GPU its graph and the tensor for its draws."""

    step: Step
    met: int = 0
    graph: Any = None
    found: Any = None


class Steps:
    """The steps of an engine: the `MOST_SHAPES` most recently used. `seats` requests can be sampled at once.

    On a GPU a shape is computed by a plain call when it is first met, which also loads its kernels, and captured as a graph when it is met
    again. All graphs share the same memory, `graph_bytes`, since one runs at a time. `obstacle` is the reason why there are none.
    """

    def __init__(self, model: Any, cache: BlockCache, sessions: int) -> None:
        self.graph_bytes, self.captured, self.obstacle = 0, 0, ""
        self._model, self._cache, self._nobody = model, cache, sessions
        self._device: torch.device = model.device
        self._drawn = torch.zeros(sessions + 1, dtype=torch.long, device=self._device)
        self._kept: OrderedDict[Shape, _Kept] = OrderedDict()
        self._pool: Any = None
        self._stream: Any = None

    def forget(self) -> None:
        """Frees all steps, graphs and their memory."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # a graph may be running
        self._kept.clear()
        self.graph_bytes = 0

    def most_rows(self, depth: int) -> int:
        """The most prompt tokens that a step may have as rows that attend to `depth` blocks."""
        read = rung(depth, LEAST_DEPTH) * self._cache.size
        most = MOST_READ // read if paged.available(self._device) else MOST_GATHERED // (read * self._cache.row_bytes)
        return min(MOST_ROWS, most)

    def launch(self, rows: Rows, tables: np.ndarray[Any, Any]) -> Landing:
        """Starts a pass over rows, of requests whose block tables are `tables` (seats + 1, blocks)."""
        shape = rows.shape(self._cache.size)
        kept = self._kept.pop(shape, None) or _Kept(Step(shape, self._cache, self._drawn))
        self._kept[shape] = kept
        if len(self._kept) > MOST_SHAPES:
            self._kept.popitem(last=False)
        packed = torch.from_numpy(rows.packed(shape, tables, self._nobody))
        kept.step.inputs.copy_(sent(packed, self._device), non_blocking=True)
        found = self._run(kept)
        if self._device.type != "cuda":
            return Landing(found)
        landing = Landing(torch.empty(found.shape, dtype=found.dtype, pin_memory=True), torch.cuda.Event())
        landing.found.copy_(found, non_blocking=True)
        landing.event.record()
        return landing

    def _run(self, kept: _Kept) -> torch.Tensor:
        kept.met += 1
        if kept.graph is None and self._device.type == "cuda" and kept.met > 1 and not self.obstacle:
            self._capture(kept)
        if kept.graph is None:
            return kept.step.compute(self._model)
        kept.graph.replay()
        found: torch.Tensor = kept.found
        return found

    def _capture(self, kept: _Kept) -> None:
        torch.cuda.synchronize(self._device)
        before = torch.cuda.memory_reserved(self._device)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        self._stream = self._stream or torch.cuda.Stream(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            # Not by `torch.cuda.graph`, which empties the allocator's cache each time.
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    kept.found = kept.step.compute(self._model)
                finally:
                    graph.capture_end()
        except Exception as error:  # a forward pass that reads numbers from the device, as routing by counts does
            self.obstacle = (str(error).strip() or type(error).__name__).split("\n")[0]
            return
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        kept.graph = graph
        self.captured += 1
        self.graph_bytes += max(0, torch.cuda.memory_reserved(self._device) - before)


def step_of(pieces: Sequence[Piece], cache: BlockCache, device: torch.device) -> Step:
    """Pieces as the rows of one step, for trials: a layout for `slots.forward`, like that of `slots.plan`."""
    rows, tables = Rows(), np.zeros((len(pieces) + 1, max(len(piece.blocks) for piece in pieces)), dtype=np.int64)
    for session, piece in enumerate(pieces):
        tables[session, : len(piece.blocks)] = piece.blocks
        positions = range(piece.start, piece.start + len(piece.ids))
        rows.given += piece.ids
        rows.tables += [session] * len(piece.ids)
        rows.positions += positions
        rows.places += [piece.blocks[at // cache.size] * cache.size + at % cache.size for at in positions]
        rows.last.append(len(rows.given) - 1)
    shape = rows.shape(cache.size)
    step = Step(shape, cache, torch.zeros(len(tables), dtype=torch.long, device=device))
    step.inputs.copy_(sent(torch.from_numpy(rows.packed(shape, tables, len(pieces))), device))
    step.ids = step.inputs[None, : shape.rows]
    return step
