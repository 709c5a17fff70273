"""GA-Rollback: an assistant takes turns back while a model is measured, at the turns and with the seeds of any other attempt."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from players import FULL, PLACES, TERSE, Hand, breaks, completion, erratic, key_in, rules, steady

from leafe.chat import fill
from leafe.config import parse
from leafe.engines.base import Engine
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Fidelity
from leafe.errors import EngineError, ReplayDiverged, UserError
from leafe.evaluation.evaluate import outcome_of
from leafe.evaluation.outcomes import read_outcomes
from leafe.experiment import Experiment
from leafe.forest.builder import TreeBuilder
from leafe.forest.effects import Effect, Plan, Restored, Rollback
from leafe.lab import run_recipe, stages_of
from leafe.methods.ga_rollback import Assistant, GaRollbackSettings, with_assistant
from leafe.progress import Silent
from leafe.records import Ask, Completion, Observation, StopReason, Tree
from leafe.results import comparison_of
from leafe.run import RunDirectory
from leafe.viewer.report import write_report
from leafe.worlds.fakes import Lookup


def helped(*actions: str, key: int = 3, horizon: int = 6, **wanted: Any) -> tuple[Tree, Hand]:
    """An attempt whose policy says `actions` in turn, reflections among them."""
    left = iter(actions)
    hand = Hand(Lookup(horizon=horizon), lambda ask: next(left))
    builder = TreeBuilder(key_in(key, horizon=horizon), rules())
    return hand.finish(with_assistant(builder, GaRollbackSettings(**{"wait": 1, **wanted}))), hand


def test_a_wrong_turn_is_taken_back_and_the_attempt_goes_on_with_the_advice() -> None:
    tree, hand = helped("open place1", "turn none", "open place2", "turn 2: open place3", "open place3")
    left, last = tree.attempts
    assert (left.stop, left.success) == (StopReason.ROLLED_BACK, False) and (last.stop, last.turn) == (StopReason.SUCCESS, 2)
    assert [turn.action for turn in tree.trajectory(last.leaf)] == ["open place1", "open place3"]
    assert hand.asks[-1].messages[-1].content.endswith(fill(TERSE.experience, experience="open place3"))
    (back,) = [effect for effect in hand.effects if isinstance(effect, Rollback)]
    assert [turn.action for turn in back.trajectory] == ["open place1"]
    # Turns that were taken back count; the questions are counted beside them.
    ended = outcome_of(tree, 4)
    assert (ended.success, ended.turns, ended.rollbacks, ended.sample) == (True, 3, 1, 4)
    assert ended.reflection_tokens == len("turn none") + len("turn 2: open place3")


def test_turns_that_were_taken_back_count_against_the_horizon() -> None:
    tree, _ = helped(*["open place1", "turn 1: open place2"] * 2, "open place1", horizon=3)
    assert [one.stop for one in tree.attempts] == [StopReason.ROLLED_BACK] * 2 + [StopReason.BUDGET]
    assert tree.spend.turns == 3 and not outcome_of(tree, 0).success


def test_the_assistant_waits_looks_now_and_then_and_gives_up() -> None:
    tree, hand = helped(
        "open place1", "open place1", "turn none", "open place1", "open place1", "turn 1: up", *["open place1"] * 2, wait=2, every=2,
        rollbacks=1, horizon=6,
    )  # fmt: skip
    assert [one.purpose for one in hand.asks] == ["act", "act", "reflect", "act", "act", "reflect", "act", "act"]
    assert tree.spend.turns == 6 and tree.spend.rollbacks == 1


def test_advice_of_branches_that_were_left_is_told_at_the_start() -> None:
    tree, hand = helped(
        "open place1", "turn none", "open place1", "turn 2: first", "open place1", "turn 1: second", "open place3", kept=1
    )
    opening = hand.asks[-1].messages[0].content
    assert fill(TERSE.feedback, experiences="- first") in opening and opening.endswith(fill(TERSE.experience, experience="second"))
    # The advice that stands at a turn of the trajectory is not told twice.
    assert "Earlier tries" not in hand.asks[4].messages[0].content and tree.attempts[-1].success


def test_advice_that_the_model_is_not_sure_of_is_passed_over() -> None:
    builder = TreeBuilder(key_in(1), rules())
    reply = Completion("turn 1: x", (1, 2), (math.log(0.9), math.log(0.5)))
    assert Assistant(builder, GaRollbackSettings(confidence=0.7))._sure(reply)
    assert not Assistant(builder, GaRollbackSettings(confidence=0.71))._sure(reply)
    with pytest.raises(UserError, match=r"type ga_rollback\.confidence=0"):
        Assistant(builder, GaRollbackSettings(confidence=0.5))._sure(replace(reply, logprobs=()))


class Completed(Hand):
    """The assistant thinks until it is cut, and completes its answer when it is asked for that alone."""

    def _result(self, effect: Effect) -> Completion | Observation | Restored | Plan:
        if not isinstance(effect, Ask):
            return super()._result(effect)
        text = "1</turn>\n<experience>Open place3.</experience>" if effect.begun else "<think>Hm, hm, hm "
        said = completion("<action>open place1</action>" if effect.purpose == "act" else text, effect)
        return said if effect.purpose == "act" or effect.begun else replace(said, finish="length")


def test_advice_that_was_completed_counts_as_not_sure() -> None:
    for confidence, attempts in ((0.5, 1), (0.0, 2)):
        builder = TreeBuilder(key_in(3), rules(FULL, closing=64))
        wanted = GaRollbackSettings(wait=1, rollbacks=1, confidence=confidence)
        tree = Completed(Lookup(), steady("", "")).finish(with_assistant(builder, wanted))
        assert len(tree.attempts) == attempts and tree.reflections[0].replies[-1].finish == "closed"


def test_a_rollback_that_leads_elsewhere_ends_the_attempt_as_an_error() -> None:
    left = iter(["open place1", "turn none", "open place1", "turn 2: go on"])
    hand = Hand(Lookup(), lambda ask: next(left), breaks({7}, ReplayDiverged))
    ended = outcome_of(hand.finish(with_assistant(TreeBuilder(key_in(3), rules()), GaRollbackSettings(wait=1))), 0)
    assert (ended.success, ended.stop, ended.error_class) == (False, StopReason.REPLAY_DIVERGED, "ReplayDiverged")


@settings(max_examples=60)
@given(seed=st.integers(0, 9999), horizon=st.integers(1, 8), wait=st.integers(1, 4), rollbacks=st.integers(0, 4))
def test_whatever_the_policy_says_an_attempt_keeps_its_horizon(seed: int, horizon: int, wait: int, rollbacks: int) -> None:
    hand = Hand(Lookup(), erratic(PLACES))
    builder = TreeBuilder(key_in(2, horizon=horizon), rules(seed=seed))
    tree = hand.finish(with_assistant(builder, GaRollbackSettings(wait=wait, rollbacks=rollbacks)))
    assert tree.spend.turns == len(tree.turns) <= horizon and tree.spend.rollbacks == len(tree.attempts) - 1 <= rollbacks
    assert all(one.stop is StopReason.ROLLED_BACK for one in tree.attempts[:-1])
    assert tree.attempts[-1].stop is not StopReason.ROLLED_BACK


# Whole runs

RECIPE = """
name: assisted
method: ga_rollback
environment: {name: lookup, args: {places: 4, horizon: 4}}
tasks: {train: 1, test: 4}
sampling: {act: {max_tokens: 40}, reflect: {max_tokens: 40}}
evaluate: {samples: 3, resamples: 10}
ga_rollback: {wait: 1}
"""


def policy(ask: Ask) -> str:
    """Opens what it is advised, else place1; looks back in one of several ways."""
    if ask.purpose == "reflect":
        return f"turn 1: open place{ask.seed % 4 + 1}" if ask.seed % 3 else "turn none"
    return ask.messages[-1].content.partition("Advice: ")[2] or "open place1"


class Unruly(Lookup):
    """`Lookup` that cannot be rolled back."""

    fidelity = Fidelity.NONE


def experiment(base: Path, fails: int | None = None, world: type[Lookup] = Lookup) -> Experiment:
    def engine(folder: Path) -> Engine:
        return ScriptedEngine(policy, fail_after=fails)

    return Experiment(parse(RECIPE, "assisted", [f"model={base}"]), base, engine, lambda: world(places=4, horizon=4), Silent())


def test_the_arm_says_that_it_rolls_back_at_test_time_and_is_the_same_after_a_kill(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        made = experiment(tmp_path)
        with RunDirectory.open(tmp_path / name, made.config) as directory:
            if name == "killed":
                with pytest.raises(EngineError):
                    run_recipe(experiment(tmp_path, fails=60), directory)
                assert list(directory.stages) == ["evaluate base"]
            run_recipe(made, directory)
            found, table = directory.stages["evaluate ga_rollback"], str(comparison_of(directory))
    one, other = (set(read_outcomes(tmp_path / name / "eval" / "ga_rollback.jsonl")) for name in ("whole", "killed"))
    assert one == other and sum(outcome.rollbacks for outcome in one) == found["rollbacks"] > 0
    assert found["turns"] == sum(outcome.turns for outcome in one) and max(outcome.turns for outcome in one) <= 4
    assert found["reflection_tokens"] > 0 and f"{found['rollbacks']} rollbacks at test time" in table
    assert "rolls back at test time" in found["note"]
    with RunDirectory.existing(tmp_path / "whole") as directory:
        page = write_report(directory).read_text(encoding="utf-8")
    assert f"none; {found['rollbacks']} rollbacks at test time" in page
    plain = read_outcomes(tmp_path / "whole" / "eval" / "base.jsonl")
    assert not any(outcome.rollbacks for outcome in plain) and "rollbacks" not in (tmp_path / "whole/eval/base.jsonl").read_text()


def test_a_world_that_cannot_be_rolled_back_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    made = experiment(tmp_path, world=Unruly)
    with RunDirectory.open(tmp_path / "run", made.config) as directory, pytest.raises(UserError, match="cannot be rolled back"):
        stages_of(made, directory)
