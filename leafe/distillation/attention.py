"""Attention over packed trees, for models as they come from Hugging Face.

Inside `tree_attention(model)` a packed row is attended in blocks of queries: a block gathers the keys that any of its tokens may see,
which are its tokens and the path above them, and leaves all other branches out. Time and memory grow with the sum of path lengths and
no row-by-row mask is ever built. Outside of it the same loss is computed with such a mask: slower, the reference, and
possible on every decoder that takes a four-dimensional mask. On a GPU `tree_attention(model, "flex")` uses FlexAttention.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from leafe.engines import scores
from leafe.engines.twin import decoder
from leafe.errors import UserError

TREE = "leafe_tree"
FLEX = "leafe_flex"
COMPILED = {
    "automatic_dynamic_shapes": False,  # rows have few lengths, and code for one length is faster
    "recompile_limit": 64,  # combinations of length and precision; beyond, FlexAttention would silently hold whole matrices of scores
    "accumulated_recompile_limit": 512,
}
BLOCK = 256  # queries at a time: larger blocks see more of their neighbours' branches, smaller ones start more kernels


class Block(NamedTuple):
    """Queries `start` to `stop` of a row; `keys` is `(K,)` long, `mask` is `(1, 1, stop - start, K)` bool."""

    start: int
    stop: int
    keys: Tensor
    mask: Tensor

    def within(self, window: int | None) -> Tensor:
        """The mask of a layer with a window. A query's keys are its path in order, so the window is counted from the path's end."""
        if window is None:
            return self.mask
        return self.mask & (self.mask.flip(-1).cumsum(-1).flip(-1) <= window)

    def to(self, device: torch.device | str) -> Block:
        """The same on another device."""
        return Block(self.start, self.stop, self.keys.to(device), self.mask.to(device))


def blocks(end: Tensor, size: int = BLOCK) -> tuple[Block, ...]:
    """The keys that each block of queries may attend to; `end` is `(T,)`, the end of each token's subtree."""
    place = torch.arange(len(end))
    found = []
    for start in range(0, len(end), size):
        stop = min(start + size, len(end))
        keys = torch.nonzero(end[:stop] > start)[:, 0]
        queries = place[start:stop, None]
        found.append(Block(start, stop, keys, ((keys <= queries) & (queries < end[keys]))[None, None]))
    return tuple(found)


def dense_mask(end: Tensor) -> Tensor:
    """`(1, 1, T, T)` bool: query `i` may attend to key `k` when `k <= i < end[k]`."""
    place = torch.arange(len(end), device=end.device)
    return ((place[None, :] <= place[:, None]) & (place[:, None] < end[None, :]))[None, None]


@contextmanager
def tree_attention(model: Any, kind: Literal["tree", "flex", "dense"] = "tree") -> Iterator[None]:
    """While the context is open `model` attends in blocks or with FlexAttention, also in backward passes; `dense` changes nothing.

    Raises `UserError` for a model that does not take an attention function from outside.
    """
    inner = decoder(_plain(model))
    if kind == "dense":
        yield
        return
    if not inner._supports_attention_backend or (kind == "flex" and not inner._supports_flex_attn):
        name = type(_plain(model)).__name__
        raise UserError(f"{name} takes no attention function from outside, so '{kind}' is not possible; set train.attention=dense")
    if kind == "flex" and any(_drops_out(module) for module in inner.modules()):
        raise UserError("its attention has dropout, which FlexAttention does not know; set train.attention=tree")
    before = inner.config._attn_implementation
    inner.set_attn_implementation({"tree": TREE, "flex": FLEX}[kind])
    with ExitStack() as stack:
        stack.callback(inner.set_attn_implementation, before)
        if kind == "flex":
            stack.enter_context(torch._dynamo.config.patch(**COMPILED))
        yield


@contextmanager
def compiled_layers(model: Any) -> Iterator[None]:
    """While the context is open each layer of `model` is compiled by itself, anew for each length of a row.

    Raises `UserError` for a model whose layers are not found.
    """
    layers = getattr(decoder(_plain(model)), "layers", None)
    if not layers:
        raise UserError(f"{type(_plain(model)).__name__} has no list of layers to compile; set train.compile=none")
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _drops_out(module: Any) -> bool:
    rate = getattr(module, "attention_dropout", 0.0)
    return isinstance(rate, float) and rate > 0


def attention_inputs(model: Any, end: Tensor, depth: Tensor, plan: Sequence[Block]) -> dict[str, Any]:
    """The arguments of `model` with which each token of one flat row attends to its ancestors only. `end` and `depth` are `(T,)`.

    Raises `UserError` for a model that cannot: without position ids, with recurrent layers, with a window shorter than a path.
    """
    inner = _plain(model)
    implementation = decoder(inner).config._attn_implementation
    _check(inner, depth, windows=implementation != FLEX)
    if implementation == TREE:
        return {"tree": plan}
    return {"attention_mask": _flex_mask(end) if implementation == FLEX else _masks(inner, end, depth)}


def _masks(model: Any, end: Tensor, depth: Tensor) -> Tensor | dict[str, Tensor]:
    """A row-by-row mask, or one for each kind of layer if some have a window."""
    config = model.config.get_text_config()
    full, window = dense_mask(end), getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    near = full if window is None else full & (depth[:, None] - depth[None, :] < window)
    masks = {kind: near if kind == "sliding_attention" else full for kind in kinds or ("sliding_attention",)}
    if decoder(model).config._attn_implementation != "sdpa":
        masks = {kind: _added(mask, model.dtype) for kind, mask in masks.items()}
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _plain(model: Any) -> Any:
    """The transformers model inside wrappers for adapters and for several processes."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _check(model: Any, depth: Tensor, *, windows: bool) -> None:
    name, config = type(model).__name__, model.config.get_text_config()
    if "position_ids" not in inspect.signature(model.get_decoder().forward).parameters:
        raise UserError(f"{name} takes no position ids, which packed trees need; choose a decoder with rotary positions")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention", "sliding_attention"])
    if strange := kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        raise UserError(f"{name} has layers of the kind {', '.join(sorted(strange))}; packed trees need attention over whole paths")
    for kind, field in (("sliding_attention", "sliding_window"), ("chunked_attention", "attention_chunk_size")):
        window = getattr(config, field, None)
        known = windows and kind == "sliding_attention"
        # Reading the depths waits for the device, so it is done for such models only.
        if kind in kinds and not known and window and (longest := int(depth.max()) + 1) > window:
            raise UserError(
                f"{name} sees {window} tokens back, and the longest example has {longest}; choose a model with a longer window"
            )


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask in the form that is added to the scores, for attention without `scaled_dot_product_attention`."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _flex_mask(end: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def ancestor(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end[key])

    make = _compiled_block_mask() if end.is_cuda else create_block_mask
    return make(ancestor, None, None, len(end), len(end), device=str(end.device))


@cache
def _compiled_block_mask() -> Any:
    """The compiled function: uncompiled it makes a matrix of the whole row first, which takes longer than the pass itself."""
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask)


def _attend_flex(module: Any, query: Tensor, key: Tensor, *inputs: Any, **extras: Any) -> tuple[Tensor, Any]:
    """FlexAttention. Under autocast rotary positions produce float32 queries and keys beside bfloat16 values."""
    value, *mask = inputs
    found: tuple[Tensor, Any] = flex_attention_forward(module, query.to(value.dtype), key.to(value.dtype), value, *mask, **extras)
    return found


def _attend(module: Any, *inputs: Any, tree: Sequence[Block] | None = None, **extras: Any) -> tuple[Tensor, None]:
    """The attention function of a layer: queries are `(1, heads, T, size)`, the result `(1, T, heads, size)`."""
    query, key, value = inputs[:3]  # a mask may follow, or be named, and is not needed
    if tree is None:
        raise UserError("its layers do not hand on what attention in blocks needs; set train.attention=dense")
    for extra in scores.UNKNOWN:
        if extras.get(extra) is not None:
            raise UserError(
                f"this model's attention needs '{extra}', which attention in blocks does not know; set train.attention=dense"
            )
    parts = [
        scores.attend(
            query[:, :, block.start : block.stop],
            key.index_select(2, block.keys),
            value.index_select(2, block.keys),
            block.within(extras.get("sliding_window")),
            **extras,
        )
        for block in tree
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(TREE, _attend)
AttentionInterface.register(FLEX, _attend_flex)
for name in (TREE, FLEX):
    AttentionMaskInterface.register(name, lambda **_: None)
