"""FSDP2: weights, gradients and the optimiser's moments in shards, one a process, and the proof that it is so.

A layer's weights are gathered when it computes and freed afterwards; gradients are reduced and scattered in the same way. Weights and
communication are float32. torch's `fully_shard` does this on GPUs and processors alike, where the library's own switch would silently
train copies of the whole model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import all_reduce, get_world_size
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from leafe.errors import UserError
from leafe.training.resume import Trained

SLACK = 0.05  # of all numbers, which a process may hold above its share: rows are not cut


def shard(model: Any, device: torch.device) -> None:
    """Keeps only this process's part of each weight, on the device; all processes of the group call it."""
    mesh = init_device_mesh(device.type, (get_world_size(),))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model._is_accelerate_prepared = True  # or it would be copied to all processes once more


def _layers(model: nn.Module) -> list[nn.Module]:
    """The modules that compute one after the other: those that the model marks as not to be split, or else its longest list of layers."""
    named = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    found = [module for module in model.modules() if type(module).__name__ in named]
    lists = [list(module.children()) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return found or max(lists, key=len, default=[])


def held(trained: Trained) -> float:
    """The largest share of weights and moments that any process holds.

    Raises `UserError` if they are not in shards: otherwise only a full GPU would reveal a training that should be sharded and is not.
    """
    tensors = {name: value for name, value in trained.tensors().items() if value.ndim}
    tensors |= {name: weight for name, weight in trained.model.named_parameters() if not weight.requires_grad}
    processes = get_world_size()
    whole = [name for name, value in tensors.items() if not _in_shards(value, processes)]
    shares = [
        sum(_own(value).numel() for value in tensors.values()) / sum(value.numel() for value in tensors.values()),
    ]
    device = _own(next(iter(tensors.values()))).device
    most = torch.tensor(shares, device=device)
    all_reduce(most, torch.distributed.ReduceOp.MAX)
    share = float(most)
    if whole or share > 1 / processes + SLACK:
        named = f", among them {whole[0]}" if whole else ""
        raise UserError(
            f"train.sharding=fsdp wanted all weights and moments cut into {processes} parts, and found {len(whole)} of {len(tensors)} whole"
            f"{named}, and {share:.0%} of all numbers in one process; set train.sharding=none"
        )
    return share


def _in_shards(value: Tensor, processes: int) -> bool:
    return isinstance(value, DTensor) and value.device_mesh.size() == processes and all(way.is_shard() for way in value.placements)


def _own(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def put_together(model: Any) -> dict[str, Tensor]:
    """The whole weights by name, on the CPU of the first process, empty in others; all processes call it."""
    found: dict[str, Tensor] = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return found


@contextmanager
def by_us() -> Iterator[None]:
    """Hides `accelerate launch --use_fsdp`, which would shard a second time, or on processors not at all."""
    hidden = {name: value for name, value in os.environ.items() if name == "ACCELERATE_USE_FSDP" or name.startswith("FSDP_")}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
