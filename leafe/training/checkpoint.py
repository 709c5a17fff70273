"""The precision and device of a model, and the number of processes that hold it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from leafe.errors import UserError
from leafe.hardware import PROCESSOR, multiplies_bfloat16

SMALL_MODEL = 100_000_000  # bytes


def dtype_of(name: Literal["float32", "bfloat16", "auto"], processor: Path = PROCESSOR) -> torch.dtype:
    """The precision of a name; `auto` is bfloat16 if the processor multiplies it in hardware, as `leafe doctor` reports, else float32."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    return torch.bfloat16 if multiplies_bfloat16(processor) else torch.float32


def device_of(name: str, number: int = 0) -> str:
    """The device of a name for process `number` of several; `auto` is a GPU if there is one, and that and `cuda` one after another in turn.

    Raises `UserError` for a name that torch cannot use on this machine.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{number % torch.cuda.device_count()}"
    if name == "auto":
        return "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the second is what a torch without CUDA raises
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"torch cannot use engine.device={name!r} here ({reason:.120}); type engine.device=auto") from None
    return name


def processes_of(device: str, folder: Path, cores: int) -> int:
    """The number of engine processes for a model: one a GPU; on a processor one a core, at most two, if copies of the model are small."""
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        return max(1, torch.cuda.device_count() if device in ("auto", "cuda") else 1)
    small = sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= SMALL_MODEL
    return min(2, cores) if small else 1
