"""The choices of a training that depend on the machine: precision, tokens of a pass, whether activations are kept.

On a processor they are always the same. On a GPU they follow from the free memory by an estimate of bytes that errs on the high side;
if memory still runs out, passes are halved during training (`leafe.training.sft`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor

from leafe.distillation.attention import compiled_layers, tree_attention
from leafe.distillation.trial import Kind, Packing
from leafe.engines.memory import free_bytes
from leafe.engines.twin import text_config
from leafe.errors import UserError
from leafe.group import processes_here
from leafe.settings import ADAMW, TrainSettings
from leafe.training.checkpoint import device_of
from leafe.training.precision import PIECE, split_model
from leafe.training.weights import untie

Precision = Literal["float32", "mixed", "bfloat16"]
ON_A_PROCESSOR = 8192  # tokens of a pass
MOST = 32_768  # more are no faster
FEWEST = 256
ROUND = 1024
FREE = 0.85  # of the memory found; the rest is for compiled code, fragments and uncounted buffers
DENSE_SHARE = 4  # a row-by-row mask costs the square of a pass, so a pass holds that much less
LARGE = 1_000_000_000  # weights; larger models compute activations twice
LIBRARIES = {  # the library of an optimiser, and the bytes of GPU memory that its state takes for each weight
    "auto": ("", 8),
    "adamw_torch": ("", 8),
    "adamw_torch_fused": ("", 8),
    "adamw_torch_8bit": ("torchao", 2),
    "adamw_torch_4bit": ("torchao", 1),
    "adamw_bnb_8bit": ("bitsandbytes", 2),
    "paged_adamw_32bit": ("bitsandbytes", 0),
    "paged_adamw_8bit": ("bitsandbytes", 0),
    "adafactor": ("", 1),
}
NO_ROOM = (
    "this training does not fit into the memory of the GPU; type train.checkpointing=true train.dtype=bfloat16 train.offload=true,"
    " then train.lora.rank=16"
)
NO_ROOM_IN_SHARDS = "this training does not fit into the memory of the GPU; type train.checkpointing=true, then train.lora.rank=16"
OFFLOADED = 10  # bytes for each weight in the processor's memory: its lower half and two moments


@dataclass(frozen=True, slots=True)
class Plan:
    """The way in which a model is trained on this machine. `micro_tokens` is the most tokens of a pass."""

    precision: Precision
    checkpointing: bool
    micro_tokens: int
    offload: bool = False


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that memory depends on: the numbers of all weights, of trained ones and of the largest matrix, and the model's widths."""

    weights: int
    trained: int
    largest: int
    hidden: int
    inner: int
    layers: int
    vocabulary: int


def check_machine(settings: TrainSettings) -> None:
    """Raises `UserError` for settings that need a missing GPU or library."""
    gpu, (library, _) = torch.cuda.is_available(), LIBRARIES[settings.optimizer]
    if settings.attention == "flex" and not gpu:
        raise UserError("train.attention=flex wants a GPU, since FlexAttention cannot train on a CPU; set train.attention=auto")
    if settings.compile == "layers" and not gpu:
        raise UserError("train.compile=layers wants a GPU, since it goes with FlexAttention; set train.compile=none")
    if library and find_spec(library) is None:
        raise UserError(
            f"train.optimizer={settings.optimizer} wants {library}; type pip install {library}, or train.optimizer=auto"
        )
    if library and not gpu:
        raise UserError(f"train.optimizer={settings.optimizer} wants a GPU; set train.optimizer=auto")
    if settings.save_every and (library or settings.optimizer == "adafactor"):
        raise UserError(f"train.save_every goes with train.optimizer=auto, found {settings.optimizer}; set train.save_every=0")
    if gpu and settings.processes > (found := torch.cuda.device_count()):
        raise UserError(
            f"train.processes={settings.processes} wants a GPU for each, and this machine has {found}; set train.processes={found}"
        )
    if settings.sharding == "fsdp":
        _check_sharding(settings)


def _check_sharding(settings: TrainSettings) -> None:
    if processes_here() == 1 and settings.processes == 1:
        raise UserError(
            "train.sharding=fsdp wants two processes or more, and found one; set train.processes=2, or start this command with torchrun"
            " (`accelerate launch --cpu` starts one process, whatever its --num_processes says)"
        )
    for name, value, allowed in (
        ("dtype", settings.dtype, ("auto", "float32", "mixed")),
        ("optimizer", settings.optimizer, ("auto", "adamw_torch", "adamw_torch_fused")),
        ("compile", settings.compile, ("none",)),
    ):
        if value not in allowed:
            wanted = " or ".join(allowed)
            raise UserError(f"train.sharding=fsdp goes with train.{name}={wanted}, found {value}; set train.{name}={allowed[0]}")


@contextmanager
def room_for(settings: TrainSettings) -> Iterator[None]:
    """Raises `UserError`, with what to set, where the memory of the GPU runs out."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(no_room(sharded=settings.sharding == "fsdp")) from error


def no_room(*, sharded: bool = False) -> str:
    """The sentence for memory that ran out, which advises only what the training goes with."""
    return NO_ROOM_IN_SHARDS if sharded else NO_ROOM


def sizes_of(model: Any, *, lora: bool) -> Sizes:
    """The sizes of a model, from its configuration if that has them."""
    config, counts = text_config(model.config), [weight.numel() for weight in model.parameters()]
    hidden = int(getattr(config, "hidden_size", 0) or model.get_input_embeddings().weight.shape[1])
    return Sizes(
        weights=sum(counts),
        trained=sum(counts) // 100 if lora else sum(counts),
        largest=max(counts),
        hidden=hidden,
        inner=int(getattr(config, "intermediate_size", 0) or 4 * hidden),
        layers=int(getattr(config, "num_hidden_layers", 0) or 32),
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
    )


def gpu_memories() -> tuple[int, ...]:
    """The bytes of each GPU that this process sees, used or not; empty where it sees none."""
    return tuple(int(torch.cuda.get_device_properties(number).total_memory) for number in range(torch.cuda.device_count()))


def memory_found(device: str) -> int | None:
    """The bytes of a GPU that are free, None on a processor.

    Several processes all have to find the same, so for them it is the whole memory of the smallest GPU.
    """
    if not device.startswith("cuda"):
        return None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return min(gpu_memories())
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by this process, for later use
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def plan_for(
    settings: TrainSettings, sizes: Sizes, memory: int | None, *, bfloat16: bool = True, main_memory: int | None = None
) -> Plan:
    """The plan for a model of these sizes with `memory` free bytes; without `bfloat16` the device does not compute in it.

    Of `main_memory`, the processor's, an optimiser's state takes no more than is free, where that is known and the setting leaves it open.
    """
    checkpointing = settings.checkpointing
    if checkpointing == "auto":
        checkpointing = memory is not None and sizes.weights > LARGE
    precision = settings.dtype
    if precision == "auto":
        precision = "bfloat16" if settings.offload is True else "float32"
        if memory is not None and bfloat16 and settings.offload is not True:
            # An adapter has separate weights in float32, so more than bfloat16 below it gains nothing.
            fits = settings.lora is None and _is_room(settings, sizes, memory, Plan("mixed", checkpointing, 0))
            precision = "mixed" if fits or settings.sharding == "fsdp" else "bfloat16"
    plan = Plan(precision, checkpointing, 0, settings.offload is True)
    if settings.offload == "auto" and memory is not None and _can_offload(settings, sizes, precision, main_memory):
        plan = replace(plan, offload=not _is_room(settings, sizes, memory, plan))
    if settings.micro_tokens != "auto":
        return replace(plan, micro_tokens=settings.micro_tokens)
    return replace(plan, micro_tokens=ON_A_PROCESSOR if memory is None else _tokens(settings, sizes, memory, plan))


def _can_offload(settings: TrainSettings, sizes: Sizes, precision: Precision, main_memory: int | None) -> bool:
    able = precision == "bfloat16" and settings.lora is None and settings.sharding == "none" and settings.optimizer in ADAMW
    # Several processes have to find the same, and what is free is not.
    return able and processes_here() == 1 and (main_memory is None or OFFLOADED * sizes.trained < FREE * main_memory)


def _is_room(settings: TrainSettings, sizes: Sizes, memory: int, plan: Plan) -> bool:
    """Whether a plan leaves room for passes of some length."""
    return _tokens(settings, sizes, memory, plan) >= 4 * ROUND


def _tokens(settings: TrainSettings, sizes: Sizes, memory: int, plan: Plan) -> int:
    parts = processes_here() if settings.sharding == "fsdp" else 1
    room = FREE * memory - state_bytes(settings, sizes, plan.precision, offload=plan.offload) / parts
    tokens = max(FEWEST, min(MOST, int(room // token_bytes(sizes, plan.precision, checkpointing=plan.checkpointing))))
    return tokens - (tokens % ROUND if tokens > ROUND else 0)


def state_bytes(settings: TrainSettings, sizes: Sizes, precision: Precision, *, offload: bool = False) -> int:
    """The bytes of weights, gradients and the optimiser's state, and of a step of the optimiser."""
    optimizer = LIBRARIES[settings.optimizer][1]
    frozen = sizes.weights - sizes.trained
    if offload:
        return (2 + 2) * sizes.trained
    if precision == "bfloat16" and settings.lora is None:
        return (2 + 2 + 2 + optimizer) * sizes.trained + 12 * max(sizes.largest, PIECE)
    return (4 + 4 + optimizer) * sizes.trained + (2 if precision == "bfloat16" else 4) * frozen


def token_bytes(sizes: Sizes, precision: Precision, *, checkpointing: bool) -> int:
    """The bytes that a pass holds for each of its tokens.

    A layer of a current decoder keeps about 18 times its hidden and 4 times its inner width, and its backward pass as much again for a
    moment. Each token is counted as a target, of which several copies of logits are held in float32.
    """
    number = {"float32": 4, "mixed": 3, "bfloat16": 2}[precision]
    layer = number * (18 * sizes.hidden + 4 * sizes.inner)
    kept = sizes.layers * (number * sizes.hidden if checkpointing else layer)
    return kept + 2 * layer + 16 * sizes.vocabulary


def placed(model: Any, settings: TrainSettings, *, share: float = 1.0) -> tuple[Plan, dict[Tensor, Tensor]]:
    """Moves a float32 model to the device on which it is tried and trained, in the precision of its plan for a `share` of the memory.

    Returns the lower halves of its weights, none unless they are in bfloat16. A model that is to be sharded is not moved, since the whole
    of it may be more than a GPU holds.
    """
    device, lora = device_of("auto", int(os.environ.get("LOCAL_RANK", "0"))), settings.lora
    memory = memory_found(device)
    able = memory is None or torch.cuda.is_bf16_supported(including_emulation=False)
    memory = memory if memory is None else int(share * memory)
    plan = plan_for(settings, sizes_of(model, lora=lora is not None), memory, bfloat16=able, main_memory=free_bytes())
    if plan.precision != "bfloat16":
        if tried_on(settings) is None:
            model.to(device)
        return plan, {}
    if lora is not None:
        untie(model, lora.targets)  # a weight created later would have no lower half
    return plan, split_model(model, device, frozen=lora is not None, offload=plan.offload)


def tried_on(settings: TrainSettings) -> str | None:
    """The GPU on which a small copy of a model is tried in its place, None if the model itself is tried on its device."""
    device = device_of("auto", int(os.environ.get("LOCAL_RANK", "0")))
    return device if settings.sharding == "fsdp" and device != "cpu" else None


def pass_tokens(plan: Plan, packing: Packing) -> int:
    """The most tokens of a pass, by its plan and by the trial."""
    return int(min(plan.micro_tokens // (DENSE_SHARE if packing.kind == "dense" else 1), packing.cap.tokens or inf))


@contextmanager
def attending(model: Any, settings: TrainSettings, plan: Plan, kind: Kind) -> Iterator[None]:
    """While the context is open `model` attends to packed trees, compiled and in mixed precision if the settings ask for it.

    Raises `UserError` if layers are to be compiled and the model does not work with FlexAttention.
    """
    with ExitStack() as stack:
        stack.enter_context(tree_attention(model, kind))
        if settings.compile == "layers":
            if kind != "flex":
                raise UserError(
                    f"train.compile=layers goes with FlexAttention, and this model is trained with train.attention={kind};"
                    " set train.compile=none"
                )
            stack.enter_context(compiled_layers(model))
        if plan.precision == "mixed":
            model.forward = torch.autocast(model.device.type, torch.bfloat16)(model.forward)
            stack.callback(delattr, model, "forward")
        yield
