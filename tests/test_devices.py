"""Engines on GPUs that are not there: which process goes where, what it takes of the memory, and what is said where there is no room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command import leafe
from tiny import tiny_tokenizer

from leafe import compose
from leafe.engines import transformers
from leafe.engines.transformers import TransformersEngine
from leafe.errors import UserError
from leafe.settings import EngineSettings

Placed = list[tuple[str, int]]


def placed(monkeypatch: pytest.MonkeyPatch, folder: Path, **settings: Any) -> Placed:
    """The device of each process on a machine of four GPUs, and the number of processes that share its memory."""
    found: Placed = []

    class Noted:
        def __init__(self, loads: list[Any]) -> None:
            found.extend((load.keywords["device"], load.keywords["sharers"]) for load in loads)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(compose, "ReplicatedEngine", Noted)
    compose.load_local_engine(EngineSettings(**settings), folder)
    return found


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_process_takes_a_gpu_of_its_own_and_shares_only_that(
    device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpus = [f"cuda:{number}" for number in range(4)]
    assert placed(monkeypatch, tmp_path, device=device, processes=0) == [(gpu, 1) for gpu in gpus]
    assert placed(monkeypatch, tmp_path, device=device, processes=2) == [(gpu, 1) for gpu in gpus[:2]]
    shared = placed(monkeypatch, tmp_path, device=device, processes=6)
    assert shared == [("cuda:0", 2), ("cuda:1", 2), ("cuda:2", 1), ("cuda:3", 1), ("cuda:0", 2), ("cuda:1", 2)]


def test_processes_on_a_processor_share_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert placed(monkeypatch, tmp_path, device="cpu", processes=3) == [("cpu", 3)] * 3


class Large:
    """A model that no device has room for."""

    def to(self, device: str) -> Large:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total capacity of 23.6 GiB\nmore")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_does_not_fit_is_refused_with_what_to_type(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "load_checkpoint", lambda path, dtype: (Large(), tiny_tokenizer()))
    with pytest.raises(
        UserError, match=r"room on cuda:0 .* \(CUDA out of memory.*engine\.kind=vllm with engine\.tensor_parallel"
    ) as refused:
        TransformersEngine.from_folder("large", device="cuda:0", dtype=dtype)
    assert ("engine.dtype=bfloat16" in str(refused.value)) == (dtype == torch.float32) and "\n" not in str(refused.value)
    said = leafe("evaluate", "nano", "--env", "lookup", "--tasks", "1", "--samples", "1", "engine.processes=1")
    assert said.status == 2 and "wanted room on" in said.err and said.err.count("\n") == 1
