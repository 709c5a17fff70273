"""Memory of a GPU, simulated: it is free for other processes after each use, and where it runs out a sentence says what to set."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from test_precision import PLAN, Narrow, checkpoint, lessons, narrow
from tiny import tiny_model
from transformers import LlamaForCausalLM

from leafe.config import parse
from leafe.engines.base import Engine
from leafe.engines.scripted import ScriptedEngine
from leafe.errors import UserError
from leafe.experiment import Experiment
from leafe.progress import Silent
from leafe.training.launch import in_processes
from leafe.training.learner import Learner
from leafe.training.sft import fine_tune, try_training
from leafe.worlds.fakes import Lookup

CONFIG = parse("{name: trial, environment: {name: lookup}}", "trial")


def models() -> set[int]:
    """The models that this process holds."""
    return {id(found) for found in gc.get_objects() if isinstance(found, LlamaForCausalLM)}


@pytest.fixture
def freed(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The models that were held each time that memory was given back, as if a GPU were in use."""
    found: list[set[int]] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: found.append(models()))
    return found


def test_memory_is_given_back_after_a_training_and_after_its_trial(tmp_path: Path, freed: list[set[int]]) -> None:
    base, before = checkpoint(tiny_model("llama"), tmp_path / "base"), models()
    fine_tune(base, lessons(), tmp_path / "out", PLAN.model_copy(update={"epochs": 1.0}), seed=1)
    assert freed and freed[-1] <= before
    freed.clear()
    try_training(base, PLAN)
    assert freed and freed[-1] <= before


@pytest.mark.parametrize("fails", [False, True])
def test_memory_is_given_back_after_an_engine_is_closed_and_gone(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[Any] = []
    alive: list[bool] = []

    def load(folder: Path) -> Engine:
        engine = ScriptedEngine([])
        engines.append(weakref.ref(engine))
        return engine

    async def work(engine: Engine) -> int:
        return 7

    async def broken(engine: Engine) -> int:
        raise UserError("broken")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(engines[0]() is not None))
    experiment = Experiment(CONFIG, Path("none"), load, Lookup, Silent())
    if fails:
        with pytest.raises(UserError, match="broken"):
            experiment.with_engine(Path("none"), broken)
        assert len(alive) == 1
    else:
        assert experiment.with_engine(Path("none"), work) == 7
        assert alive == [False]


def ends(told: Any) -> int:
    """Ends at once."""
    return 7


@pytest.mark.slow
def test_memory_is_given_back_before_other_processes_train(freed: list[set[int]]) -> None:
    assert in_processes(1, ends, lambda *values: None) == 7
    assert len(freed) == 1


def runs_out(*values: Any, **more: Any) -> Any:
    """Finds no memory."""
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_learner_whose_weights_do_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = narrow(tmp_path / "base", 1000)
    monkeypatch.setattr(Narrow, "to", runs_out)
    with pytest.raises(UserError, match=r"does not fit into the memory.*train\.offload=true, then train\.lora\.rank=16$"):
        Learner(base, PLAN, steps=2, threads=1)


def test_a_learner_whose_moments_do_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(narrow(tmp_path / "base", 1000), PLAN, steps=2, threads=1)
    monkeypatch.setattr(torch.optim.AdamW, "step", runs_out)
    with pytest.raises(UserError, match=r"does not fit into the memory.*train\.offload=true, then train\.lora\.rank=16$"):
        learner.step(lessons())
    assert learner.done == 0 and all(weight.grad is None for weight in learner.model.parameters())
