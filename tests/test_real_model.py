"""The README's own command with a real instruction-tuned model; `LEAFE_TEST_MODEL` is the folder of a small one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command import leafe

from leafe.forest.store import read_forest
from leafe.records import Completion, Tree

MODEL = os.environ.get("LEAFE_TEST_MODEL")
SMALL = ("tasks.train=4", "tasks.test=4", "explore.turns=5", "evaluate.samples=1", "train.epochs=1")
LIMIT = 512  # tokens, as the profile says
pytestmark = [pytest.mark.slow, pytest.mark.skipif(MODEL is None, reason="LEAFE_TEST_MODEL names no folder of a model")]


def replies_of(trees: list[Tree]) -> list[Completion]:
    """Everything that the policy said."""
    acted = [turn.completion for tree in trees for turn in tree.turns]
    return acted + [reply for tree in trees for one in tree.reflections for reply in one.replies]


def test_the_readmes_command_gives_a_real_model_room_and_ends_with_a_table(tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = leafe("run", "quickstart", f"model={MODEL}", "prompts=full", *SMALL, "--out", run)
    # A small model may solve nothing, and then there is nothing to train on: that is said in a sentence, below the table.
    assert "Traceback" not in said.out + said.err
    assert "base" in leafe("compare", run).out
    replies = replies_of(list(read_forest(run / "round-1" / "forest.jsonl")))
    assert replies
    # A model that goes on for ever is cut, but by no limit that was meant for another one.
    assert all(reply.finish == "stop" or len(reply.token_ids) == LIMIT for reply in replies)
    assert any(reply.finish == "stop" for reply in replies)
