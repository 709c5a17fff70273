"""Training in less than float32: no step is lost, what is saved is whole, and the results are near those of float32."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from leafe.errors import UserError
from leafe.records import Example, Message
from leafe.settings import LoraSettings, TrainSettings
from leafe.training import precision
from leafe.training.precision import SplitOptimizer, join, join_model, split, split_model
from leafe.training.sft import TrainReport, fine_tune

TOKENIZER = tiny_tokenizer()
PLAN = TrainSettings(epochs=4, learning_rate=1e-3, batch_size=64, micro_tokens=1024)
Weights = dict[str, torch.Tensor]


def lessons(count: int = 24) -> list[Example]:
    """Replies to a question in four tasks, after some of what was said before."""
    found = []
    for number in range(count):
        ids = (*TOKENIZER.encode("go " + ("left", "right", "up")[number % 3], add_special_tokens=False), TOKENIZER.eos_token_id)
        before = (Message("user", "you see a box and a wall"), Message("assistant", "go down", True)) * (number % 3)
        messages = (*before, Message("user", f"the door is closed {number % 7}"))
        found.append(Example(f"e{number}", "rehearsal", f"t{number % 4}", 0, f"turn{number}", messages, "go", ids))
    return found


def checkpoint(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def weights(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def changes(before: Weights, after: Weights) -> torch.Tensor:
    """What training added to each weight, in float32."""
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    return torch.cat([(after[name] - weight.float()).flatten() for name, weight in before.items()])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights."""
    return checkpoint(tiny_model("llama"), tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainReport, torch.Tensor]:
    """What training in float32 tells and changes."""
    out = tmp_path_factory.mktemp("whole")
    return fine_tune(base, lessons(), out, PLAN, seed=1), changes(weights(base), weights(out))


# Weights in two halves


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=50))
def test_two_halves_are_the_float32_weight_to_the_bit(bits: Sequence[int]) -> None:
    weight = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    high, low = split(weight)
    assert (high.dtype, low.dtype) == (torch.bfloat16, torch.int16)
    number = ~weight.isnan()
    assert torch.equal(join(high, low).view(torch.int32)[number], weight.view(torch.int32)[number])
    assert bool(join(high, low)[~number].isnan().all()) and bool(high[~number].isnan().all())
    finite = weight.isfinite() & high.isfinite()
    assert bool(((high.float() - weight).abs() <= (weight.to(torch.bfloat16).float() - weight).abs())[finite].all())


def model_of(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.LayerNorm(20), torch.nn.Linear(20, 10)).to(dtype)


def learned(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int = 200) -> None:
    """Steps along gradients that are drawn, the same for every precision since they are bfloat16 numbers."""
    source = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for weight in model.parameters():
            drawn = 1.0 + torch.randn(weight.shape, generator=source)
            weight.grad = drawn.to(torch.bfloat16).to(weight.dtype)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("piece", "decay"), [(2**26, 0.0), (64, 0.1)])
def test_steps_of_a_millionth_are_those_of_float32_to_the_bit_and_plain_bfloat16_loses_them(
    piece: int, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "PIECE", piece)
    options: dict[str, Any] = {"lr": 1e-6, "weight_decay": decay}
    reference, halves, plain = model_of(torch.float32), model_of(torch.float32), model_of(torch.bfloat16)
    before = [weight.detach().clone() for weight in plain.parameters()]
    learned(reference, torch.optim.AdamW(reference.parameters(), **options))
    low = split_model(halves, "cpu")
    assert {weight.dtype for weight in halves.parameters()} == {torch.bfloat16}
    learned(halves, SplitOptimizer(torch.optim.AdamW(halves.parameters(), **options), low))
    join_model(halves, low)
    for one, other in zip(reference.parameters(), halves.parameters(), strict=True):
        assert torch.equal(one, other)
    learned(plain, torch.optim.AdamW(plain.parameters(), **options))
    large = [(one - weight)[weight.abs() > 0.05] for one, weight in zip(plain.parameters(), before, strict=True)]
    assert not any(bool(one.any()) for one in large)  # none of them has moved, where float32 has moved by 2e-4


def test_a_schedule_reaches_the_optimiser_behind_split_weights() -> None:
    results = []
    for halves in (False, True):
        model = model_of(torch.float32)
        low = split_model(model, "cpu") if halves else {}
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        optimizer = SplitOptimizer(optimizer, low) if halves else optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        for _ in range(3):
            learned(model, optimizer, steps=1)
            schedule.step()
        join_model(model, low)
        results.append([weight.detach() for weight in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_training_on_split_weights_goes_on_where_it_was_left(tmp_path: Path) -> None:
    whole, first, second = (model_of(torch.float32) for _ in range(3))
    optimizers = []
    for model in (whole, first, second):
        low = split_model(model, "cpu")
        optimizers.append(SplitOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-6), low))
    for _ in range(2):
        learned(whole, optimizers[0], steps=3)
    learned(first, optimizers[1], steps=3)
    torch.save((first.state_dict(), optimizers[1].state_dict()), tmp_path / "state")
    weights, state = torch.load(tmp_path / "state")
    second.load_state_dict(weights)
    optimizers[2].load_state_dict(state)
    learned(second, optimizers[2], steps=3)
    ended = [torch.cat([low.flatten() for low in one.state_dict()["low"]]) for one in optimizers]
    assert torch.equal(ended[0], ended[2]) and not torch.equal(ended[0], ended[1])
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), second.parameters(), strict=True))


def test_a_frozen_model_keeps_lower_halves_only_of_weights_that_have_some() -> None:
    exact, rest = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    exact.to(torch.bfloat16).float()
    before = [weight.detach().clone() for weight in rest.parameters()]
    assert split_model(exact, "cpu", frozen=True) == {}
    low = split_model(rest, "cpu", frozen=True)
    join_model(rest, low)
    assert low and all(torch.equal(one, other) for one, other in zip(before, rest.parameters(), strict=True))


# Whole trainings


@pytest.mark.parametrize("dtype", ["mixed", "bfloat16"])
def test_a_training_in_bfloat16_is_near_the_one_in_float32(
    dtype: Any, base: Path, whole: tuple[TrainReport, torch.Tensor], tmp_path: Path
) -> None:
    report = fine_tune(base, lessons(), tmp_path, PLAN.model_copy(update={"dtype": dtype}), seed=1)
    assert (report.dtype, report.steps, report.attention) == (dtype, whole[0].steps, whole[0].attention)
    assert report.loss == pytest.approx(whole[0].loss, rel=0.01) and report.loss != whole[0].loss
    found = changes(weights(base), weights(tmp_path))
    assert torch.cosine_similarity(found, whole[1], 0) > 0.97
    assert float((found - whole[1]).norm() / whole[1].norm()) < 0.25


def test_offloading_trains_in_bfloat16_and_changes_nothing_where_there_is_one_memory(base: Path, tmp_path: Path) -> None:
    for name, values in {"beside": {"dtype": "bfloat16", "offload": False}, "away": {"offload": True}}.items():
        plan = PLAN.model_copy(update={"optimizer": "adamw_torch_fused", **values})
        assert fine_tune(base, lessons(), tmp_path / name, plan, seed=1).dtype == "bfloat16"
    one, other = weights(tmp_path / "beside"), weights(tmp_path / "away")
    assert all(torch.equal(weight, other[name]) for name, weight in one.items()) and changes(weights(base), one).any()


def test_small_steps_are_saved_by_a_training_in_bfloat16(base: Path, tmp_path: Path) -> None:
    small = PLAN.model_copy(update={"learning_rate": 1e-6})
    found = {}
    for dtype in ("float32", "bfloat16"):
        fine_tune(base, lessons(), tmp_path / dtype, small.model_copy(update={"dtype": dtype}), seed=1)
        found[dtype] = changes(weights(base), weights(tmp_path / dtype))
    assert 1e-7 < float(found["bfloat16"].abs().max()) < 1e-5
    assert torch.cosine_similarity(found["float32"], found["bfloat16"], 0) > 0.97


def test_an_adapter_on_a_model_in_bfloat16_is_float32_and_leaves_the_rest_as_it_was_to_the_bit(base: Path, tmp_path: Path) -> None:
    settings = PLAN.model_copy(update={"dtype": "bfloat16", "lora": LoraSettings(rank=4, targets=("q_proj", "lm_head"))})
    report = fine_tune(base, lessons(), tmp_path, settings, seed=1)
    before, after = weights(base), weights(tmp_path)
    assert report.dtype == "bfloat16" and {weight.dtype for weight in after.values()} == {torch.float32}
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed == {name for name in before if "q_proj" in name or "lm_head" in name}
    moved = max(float((after[name] - before[name]).abs().max()) for name in changed)
    assert 0 < moved < 0.01  # less than bfloat16 tells apart in weights of about one


# Memory that runs out


class NarrowConfig(LlamaConfig):
    """Of a model for a small device."""

    model_type = "narrow"
    room: int = 300


class Narrow(LlamaForCausalLM):
    """A model whose device has room for passes of so many tokens in training."""

    config_class = NarrowConfig

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        if self.training and input_ids.shape[1] > self.config.room:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(input_ids, **options)


@cache
def known() -> None:
    AutoConfig.register("narrow", NarrowConfig)
    AutoModelForCausalLM.register(NarrowConfig, Narrow)


def narrow(folder: Path, room: int) -> Path:
    known()
    config = NarrowConfig(**{**tiny_model("llama").config.to_dict(), "model_type": "narrow", "room": room})
    torch.manual_seed(0)
    return checkpoint(Narrow(config), folder)


def test_a_step_that_does_not_fit_is_taken_in_smaller_passes_and_the_report_says_so(tmp_path: Path) -> None:
    base, plan = narrow(tmp_path / "base", 260), PLAN.model_copy(update={"epochs": 2.0})
    report = fine_tune(base, lessons(), tmp_path / "out", plan, seed=1)
    assert (report.halved, report.micro_tokens) == (2, 256)
    small = fine_tune(base, lessons(), tmp_path / "small", plan.model_copy(update={"micro_tokens": 256}), seed=1)
    assert (small.halved, small.loss, small.by_kind) == (0, report.loss, report.by_kind)
    assert all(torch.equal(one, weights(tmp_path / "small")[name]) for name, one in weights(tmp_path / "out").items())


def test_a_model_that_fits_with_no_pass_is_refused_with_what_to_type(tmp_path: Path) -> None:
    base = narrow(tmp_path / "base", 30)
    with pytest.raises(UserError, match=r"does not fit into the memory.*train\.checkpointing=true.*train\.lora\.rank"):
        fine_tune(base, lessons(), tmp_path / "out", PLAN, seed=1)
    assert not list((tmp_path / "out").glob("*"))
