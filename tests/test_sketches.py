"""Methods of other kinds as somebody else would write them: each is one file that changes nothing in the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import leafe

from leafe.distillation.store import read_examples

FEW = ("engine.threads=1", "tasks.train=4", "tasks.test=2", "explore.turns=40", "evaluate.samples=1", "distill.success_share=1")
LINES = 85


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ace", "grpo", "distribution"])
def test_a_method_of_another_kind_is_one_file_that_runs_like_the_shipped_ones(name: str, tmp_path: Path) -> None:
    source = (Path(__file__).parent / f"sketch_{name}.py").read_text(encoding="utf-8")
    assert source.count("\n") <= LINES
    run, spec = tmp_path / "run", f"sketch_{name}:Sketch{name.title()}"
    said = leafe("run", "smoke", f"method={spec}", *FEW, "--out", run)
    assert (said.status, said.err) == (0, ""), said
    shown = json.loads(leafe("report", run, "--json").out)
    assert {f"sketch_{name}", "base"} <= {one["name"] for one in shown["arms"]}
    stages = json.loads((run / "stages.json").read_text())
    if name == "grpo":
        assert stages["train sketch_grpo"]["turns"] > 0
    elif name == "ace":
        assert 1 <= len(stages["evaluate sketch_ace"]["notes"]) <= 3
    else:
        assert all(target.top for example in read_examples(run / "round-1" / "examples.jsonl") for target in example.targets)
    again = leafe("run", "smoke", f"method={spec}", *FEW, "--out", run)
    assert again.status == 0 and json.loads((run / "stages.json").read_text()) == stages
