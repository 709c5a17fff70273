"""Tables as they are planned: what is refused before anything is begun, and the figures that a table prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leafe.compose import bench_of
from leafe.errors import UserError
from leafe.experiment import Experiment
from leafe.progress import Silent
from leafe.reproduce.plan import Asked, Plan
from leafe.reproduce.spec import Table, load_table, parse_table
from leafe.settings import RunConfig

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
