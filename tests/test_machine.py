"""What a training takes from the machine: what is refused before anything is begun, and sizes that follow from memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model

from leafe.config import parse
from leafe.errors import UserError
from leafe.settings import LoraSettings, TrainSettings
from leafe.training.machine import FEWEST, MOST, Sizes, check_machine, memory_found, plan_for, sizes_of, state_bytes
from leafe.training.sft import fine_tune, try_training

GIB = 2**30
SMALL = Sizes(494_000_000, 494_000_000, 136_000_000, 896, 4864, 24, 151_936)
LARGE = Sizes(7_616_000_000, 7_616_000_000, 545_000_000, 3584, 18_944, 28, 152_064)
ADAPTER = Sizes(LARGE.weights, LARGE.weights // 100, LARGE.largest, LARGE.hidden, LARGE.inner, LARGE.layers, LARGE.vocabulary)
LORA = {"lora": LoraSettings()}


def settings(**values: Any) -> TrainSettings:
    return TrainSettings().model_copy(update=values)


def test_on_a_processor_nothing_depends_on_the_machine() -> None:
    for sizes in (SMALL, LARGE):
        plan = plan_for(TrainSettings(), sizes, None)
        assert (plan.precision, plan.checkpointing, plan.micro_tokens) == ("float32", False, 8192)
    assert memory_found("cpu") is None


@pytest.mark.parametrize(
    ("sizes", "gib", "values", "expected"),
    [
        (SMALL, 139, {}, ("mixed", False)),
        (SMALL, 40, {}, ("mixed", False)),
        (LARGE, 139, {}, ("bfloat16", True)),
        (ADAPTER, 24, LORA, ("bfloat16", True)),
        (LARGE, 300, {}, ("mixed", True)),
        (LARGE, 139, {"dtype": "float32", "checkpointing": False}, ("float32", False)),
    ],
)
def test_a_gpu_trains_in_what_fits(sizes: Sizes, gib: int, values: dict[str, Any], expected: tuple[str, bool]) -> None:
    plan = plan_for(settings(**values), sizes, gib * GIB)
    assert (plan.precision, plan.checkpointing) == expected
    assert FEWEST <= plan.micro_tokens <= MOST


def test_a_device_without_bfloat16_trains_in_float32() -> None:
    assert plan_for(TrainSettings(), SMALL, 139 * GIB, bfloat16=False).precision == "float32"


def test_what_is_said_is_taken() -> None:
    plan = plan_for(settings(micro_tokens=512, dtype="mixed", checkpointing=True), SMALL, 139 * GIB)
    assert (plan.precision, plan.checkpointing, plan.micro_tokens) == ("mixed", True, 512)


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([SMALL, LARGE]), st.sampled_from(["mixed", "bfloat16"]))
def test_more_memory_and_checkpointing_never_make_passes_shorter(one: int, other: int, sizes: Sizes, dtype: str) -> None:
    less, more = sorted((one, other))

    def tokens(gib: int, checkpointing: bool) -> int:
        found = plan_for(settings(dtype=dtype, checkpointing=checkpointing, offload=False), sizes, gib * GIB).micro_tokens
        assert isinstance(found, int)
        return found

    assert FEWEST <= tokens(less, False) <= tokens(more, False) <= tokens(more, True) <= MOST


@pytest.mark.parametrize(
    ("sizes", "gib", "values", "main", "expected"),
    [
        (LARGE, 80, {}, 200, ("bfloat16", True)),
        (LARGE, 80, {"dtype": "bfloat16"}, None, ("bfloat16", True)),
        (LARGE, 80, {}, 40, ("bfloat16", False)),
        (LARGE, 80, {"offload": False}, 200, ("bfloat16", False)),
        (LARGE, 80, {"optimizer": "paged_adamw_8bit"}, 200, ("bfloat16", False)),
        (LARGE, 80, {"dtype": "mixed"}, 200, ("mixed", False)),
        (LARGE, 300, {"offload": True}, 200, ("bfloat16", True)),
        (SMALL, 80, {}, 200, ("mixed", False)),
        (ADAPTER, 24, LORA, 200, ("bfloat16", False)),
        (LARGE, None, {}, 200, ("float32", False)),
    ],
)
def test_a_state_that_does_not_fit_lies_in_the_main_memory(
    sizes: Sizes, gib: int | None, values: dict[str, Any], main: int | None, expected: tuple[str, bool]
) -> None:
    plan = plan_for(settings(**values), sizes, gib and gib * GIB, main_memory=main and main * GIB)
    assert (plan.precision, plan.offload) == expected
    if plan.offload:
        assert plan.micro_tokens >= 4096 and state_bytes(settings(**values), sizes, "bfloat16", offload=True) < 31 * GIB


def test_a_small_optimiser_makes_room() -> None:
    held = [state_bytes(settings(optimizer=name), LARGE, "bfloat16") for name in ("auto", "adamw_bnb_8bit", "paged_adamw_8bit")]
    assert held == sorted(held, reverse=True) and len(set(held)) == 3
    assert state_bytes(TrainSettings(), LARGE, "mixed") > held[0]


@pytest.mark.parametrize("lora", [False, True])
def test_sizes_are_those_of_the_model(lora: bool) -> None:
    model = tiny_model()
    found, weights = sizes_of(model, lora=lora), sum(weight.numel() for weight in model.parameters())
    assert (found.weights, found.hidden, found.inner, found.layers, found.vocabulary) == (weights, 64, 96, 2, 300)
    assert found.trained == (weights // 100 if lora else weights) and found.largest == 300 * 64


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"attention": "flex"}, r"train\.attention=flex wants a GPU.*train\.attention=auto"),
        ({"compile": "layers"}, r"train\.compile=layers wants a GPU.*train\.compile=none"),
        ({"optimizer": "paged_adamw_8bit"}, r"train\.optimizer=paged_adamw_8bit wants (a GPU|bitsandbytes; type pip install)"),
        ({"optimizer": "adamw_torch_8bit"}, r"train\.optimizer=adamw_torch_8bit wants (a GPU|torchao; type pip install)"),
    ],
)
def test_what_the_machine_lacks_is_refused_before_anything_is_read(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        check_machine(settings(**values))
    with pytest.raises(UserError, match=said):
        fine_tune(tmp_path / "no model", ["an example"], tmp_path / "out", settings(**values), seed=1)  # type: ignore[list-item]
    with pytest.raises(UserError, match=said):
        try_training(tmp_path / "no model", settings(**values))


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_more_processes_than_gpus_are_refused_before_anything_is_read(
    sharding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_machine(settings(processes=2, sharding=sharding))
    said = r"train\.processes=8 wants a GPU for each, and this machine has 2; set train\.processes=2"
    with pytest.raises(UserError, match=said):
        check_machine(settings(processes=8, sharding=sharding))
    with pytest.raises(UserError, match=said):
        try_training(tmp_path / "no model", settings(processes=8, sharding=sharding))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.micro_tokens=8", "train.micro_tokens: wanted auto or a whole number of at least 16, found 8"),
        ("train.micro_tokens=most", "train.micro_tokens: wanted auto or a whole number of at least 16, found 'most'"),
        ("train.checkpointing=1", "train.checkpointing: wanted auto, true or false, found 1"),
        ("train.offload=maybe", "train.offload: wanted auto, true or false, found 'maybe'"),
        ("train.offload=true train.dtype=mixed", "train.offload=true goes with train.dtype=bfloat16, found mixed"),
        ("train.offload=true train.optimizer=adafactor", "train.offload=true goes with train.optimizer=auto, found adafactor"),
        ("train.offload=true train.lora.rank=4", "train.offload=true goes with no train.lora"),
        ("train.dtype=float16", "train.dtype: wanted 'auto', 'float32', 'mixed' or 'bfloat16', found 'float16'"),
        ("train.optimizer=lion", "train.optimizer: wanted 'auto', 'adamw_torch'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_a_sentence(override: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        parse("name: trial\nenvironment: {name: sokoban}", "trial", override.split())
    assert str(refused.value).startswith(said)
