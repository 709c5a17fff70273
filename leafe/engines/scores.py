"""Attention as decoders compute it: scaled dot products, with a cap on the scores or with sinks if a model has these."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention

KNOWN = ("softcap", "s_aux")
UNKNOWN = ("position_bias",)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """The mean of `value` `(rows, shared heads, keys, width)` for each of `query` `(rows, heads, queries, width)`.

    `mask` is added to the scores, or bool; `scaling`, `dropout`, `softcap` and `s_aux` (sinks, one a head) are as transformers passes them
    to an attention function; other options are ignored.
    """
    scaling, dropout = options.get("scaling"), options.get("dropout") or 0.0
    softcap, sinks = (options.get(name) for name in KNOWN)
    shared = query.shape[1] // key.shape[1]
    if softcap is None and sinks is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=shared > 1
        )
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        beside = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)
        scores = torch.cat((scores, beside), -1)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype)
    return drop(weights[..., : key.shape[2]], dropout) @ value
