"""Tables as they are planned: what is refused before anything is begun, and the figures that a table prints."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import leafe.prompts
from leafe.compose import bench_of
from leafe.config import parse
from leafe.errors import UserError
from leafe.experiment import Experiment, ForestSpec
from leafe.progress import Silent
from leafe.prompts import PROFILES
from leafe.proofs import explored, measured, trained
from leafe.records import Example, Message
from leafe.reproduce.plan import Asked, Plan
from leafe.reproduce.spec import Table, load_table, parse_table
from leafe.run import RunDirectory
from leafe.settings import RunConfig
from leafe.stages import Policy

RECIPE = """
name: small
environment: {name: sokoban, args: {rows: 5, columns: 5, min_length: 1, max_length: 3, horizon: 4}}
tasks: {train: 4, test: 2}
explore: {turns: 12, max_attempts: 3, max_depth: 1}
train: {epochs: 1, batch_size: 64}
engine: {slots: 16, cache_gib: 0.2, threads: 1}
evaluate: {samples: 2, resamples: 20}
"""
LEAFE = 'method: leafe, settings: ["leafe.controls=[]", "leafe.arms=[leafe]"]'


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(RECIPE)


def table(rows: str, more: str = "against: []") -> Table:
    return parse_table(f"about: x\n{more}\nrows: {{{rows}}}", "mine")


def plan(of: Table, *overrides: str, **asked: Any) -> Plan:
    return Plan(of, Asked(recipe="small.yaml", seeds=(1,), overrides=overrides, **asked))


def bench(config: RunConfig) -> Experiment:
    return bench_of(config, Silent())


def refusal(of: Table, *overrides: str, **asked: Any) -> str:
    with pytest.raises(UserError) as told:
        plan(of, *overrides, **asked).check(bench)
    assert "\n" not in str(told.value)
    return str(told.value)


SERVER = ("engine.kind=openai", "engine.base_url=http://localhost:9/v1")


def test_a_row_that_starts_from_a_checkpoint_is_refused_where_a_server_would_play_the_base_for_it() -> None:
    rows = f"a: {{{LEAFE}}}, measured: {{start: a}}, explores: {{start: a, {LEAFE}}}"
    told = refusal(table(rows), *SERVER)
    assert "the row measured" in told and "engine.kind=vllm" in told and told.endswith("without such rows: --rows a")
    assert "the row explores" in refusal(table(rows), *SERVER, rows=("explores",))
    here = table(f"a: {{{LEAFE}}}, measured: {{start: a, in_process: true}}")
    found = plan(here, *SERVER)
    assert found.config(here.row("measured"), 1).engine.kind == "transformers" and set(found.check(bench)) == {"a", "measured"}
    served = plan(table(rows), "engine.kind=vllm").config(table(rows).row("measured"), 1)
    assert served.engine.kind == "vllm" and served.model.endswith("/seed-1/a/checkpoints/leafe")


# What is equal

OWN = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Loss:
    weight: float = 1.0


def own(builder):
    yield from ()
"""


def keys(*overrides: str, loss: object = None, explorer: Any = "tree", prompts: str = "") -> list[str | None]:
    """The keys of training with a loss, of exploring with an explorer and of measuring, the latter two with prompts of the policy's."""
    experiment = bench(parse(RECIPE, "small", list(overrides)))
    run = RunDirectory(Path("nowhere"), experiment.config, None)
    example = Example("e", "rehearsal", "t", 0, "", (Message("user", "go"),), "left", (5,))
    return [
        trained(experiment, run, "a", experiment.base, examples=[example], loss=loss).key,
        explored(experiment, run, "explore x", ForestSpec(explorer, 1, experiment.base, prompts=prompts)).key,
        measured(experiment, run, "a", Policy(experiment.base, prompts=prompts)).key,
    ]


def module(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module in the working directory, imported anew."""
    Path(f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return importlib.import_module(name)


def test_a_loss_or_an_explorer_counts_with_its_module_and_the_text_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (module(name, OWN, monkeypatch) for name in ("first_losses", "second_losses"))
    assert keys(loss=first.Loss())[0] == keys(loss=first.Loss())[0] != keys(loss=second.Loss())[0]
    before = keys(loss=first.Loss(), explorer=first.own)
    assert None not in before and before == keys(loss=first.Loss(), explorer=first.own)
    edited = module("first_losses", OWN.replace("yield from ()", "yield from (1,)"), monkeypatch)
    after = keys(loss=edited.Loss(), explorer=edited.own)
    assert None not in after and before[0] != after[0] and before[1] != after[1] and before[2] == after[2]


def test_prompts_count_by_their_texts_and_not_by_their_place() -> None:
    shipped = Path(leafe.prompts.__file__).parent / PROFILES[0]
    for name in ("mine", "moved", "edited"):
        shutil.copytree(shipped, name)
    changed = Path("edited/system.txt")
    changed.write_text(changed.read_text() + " Think.")
    assert keys() == keys("prompts=./mine") == keys("prompts=./moved")
    assert [one == other for one, other in zip(keys("prompts=./mine"), keys("prompts=./edited"), strict=True)] == [True, False, False]
    assert keys(prompts="./mine") == keys(prompts="./moved")
    assert [one == other for one, other in zip(keys(prompts="mine"), keys(prompts="edited"), strict=True)] == [True, False, False]
