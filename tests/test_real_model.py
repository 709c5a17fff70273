"""The README's own command with a real instruction-tuned model; `LEAFE_TEST_MODEL` is the folder of a small one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command import leafe

from leafe.forest.store import read_forest
from leafe.records import Completion, Tree

MODEL = os.environ.get("LEAFE_TEST_MODEL")
SMALL = ("tasks.train=4", "tasks.test=4", "explore.turns=12", "evaluate.samples=2", "train.epochs=1")
# A small model solves no level, and the run should get as far as a trained arm all the same.
ANY_BRANCH = "distill.qualify=any"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(MODEL is None, reason="LEAFE_TEST_MODEL names no folder of a model")]


def replies_of(trees: list[Tree]) -> list[Completion]:
    """Everything that the policy said."""
    acted = [turn.completion for tree in trees for turn in tree.turns]
    return acted + [reply for tree in trees for one in tree.reflections for reply in one.replies]


def test_the_readmes_command_ends_with_a_table_and_whole_replies_from_a_real_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = leafe("run", "quickstart", f"model={MODEL}", "prompts=full", *SMALL, ANY_BRANCH, "--out", run)
    assert said.status == 0, said.err
    assert "Pass@1" in said.out
    trees = list(read_forest(run / "round-1" / "forest.jsonl"))
    replies = replies_of(trees)
    assert replies
    assert {reply.finish for reply in replies} == {"stop"}
    turns = [turn for tree in trees for turn in tree.turns]
    assert sum(turn.parsed for turn in turns) > 0.8 * len(turns)
    compared = json.loads(leafe("compare", run, "--json").out)
    assert compared
