"""Environments that declare fidelity `none`: the experience goes into the prompt of a fresh attempt, and that is said."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest
from command import QUICK, leafe
from players import TERSE, Hand, grown, key_in, rules, scripted

from leafe.distillation.examples import Selection, distill
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Environment, Fidelity
from leafe.envs.check import check_environment
from leafe.errors import EngineError
from leafe.experiment import ROLLBACK_FREE
from leafe.forest.builder import TreeBuilder
from leafe.forest.driver import Rollout, Runtime, drive
from leafe.forest.effects import Rollback
from leafe.forest.explore import explore, refine
from leafe.forest.journal import Journal
from leafe.forest.store import read_forest
from leafe.records import Observation, StopReason, Task, Tree, decode, encode
from leafe.viewer.attempts import task_section
from leafe.worlds.fakes import Lookup

EVERYTHING = Selection("any", branches_per_task=99, success_share=1.0)


class Sealed(Lookup):
    """A `Lookup` that promises nothing."""

    name = "sealed"
    fidelity = Fidelity.NONE


class Live(Lookup):
    """A `Lookup` that begins with other words each time and cannot be brought back."""

    name = "live"
    fidelity = Fidelity.NONE
    resets = 0

    def reset(self, task: Task) -> Observation:
        self.resets += 1
        first = super().reset(task)
        return Observation(f"{first.text} It is morning {self.resets}.")


class Random(Live):
    """Nothing in it is ever the same."""

    def reset(self, task: Task) -> Observation:
        return Observation(f"{super().reset(task).text} {random.SystemRandom().random()}")


WRONG = "open place1"
FAILS_ONCE = (WRONG, WRONG, "turn 2: place3 LOOKS DUSTY", "open place2", "open place3")


def fails_then_succeeds(environment: Environment) -> tuple[Tree, Hand]:
    hand = Hand(environment, scripted(*FAILS_ONCE))
    return grown(explore, hand, key_in(3, horizon=2), can_roll_back=False, max_attempts=2), hand


def test_a_fresh_attempt_is_told_what_the_failed_one_taught_and_nothing_is_rolled_back() -> None:
    tree, hand = fails_then_succeeds(Live())
    assert [attempt.stop for attempt in tree.attempts] == [StopReason.TURN_LIMIT, StopReason.SUCCESS]
    assert not any(isinstance(effect, Rollback) for effect in hand.effects)
    told = ["LOOKS DUSTY" in ask.messages[0].content for ask in hand.asks]
    assert told == [False, False, False, True, True]


def test_each_attempt_is_played_from_what_its_own_reset_showed() -> None:
    tree, hand = fails_then_succeeds(Live())
    assert tree.root.text.endswith("morning 1.") and tree.attempts[0].root is None
    second = tree.attempts[1].root
    assert second is not None and second.text.endswith("morning 2.")
    mornings = [ask.messages[0].content.partition("morning ")[2][:1] for ask in hand.asks]
    assert mornings == ["1", "1", "1", "2", "2"]
    assert decode(Tree, json.loads(json.dumps(encode(tree)))) == tree
    assert "What it saw at its start" in task_section(tree, "t") and "morning 2." in task_section(tree, "t")


def test_each_turn_of_a_told_attempt_is_a_target_under_its_own_history_without_the_experience() -> None:
    tree, _ = fails_then_succeeds(Live())
    learned = [example for example in distill([tree], TERSE, Selection("success")) if example.kind == "counterfactual"]
    assert [example.target for example in learned] == ["open place2", "open place3"]
    assert [len(example.messages) for example in learned] == [1, 3]
    for example in learned:
        first = example.messages[0].content
        assert "morning 2." in first and "LOOKS DUSTY" not in first and example.attempt == 1
    assert learned[1].messages[1].content == "open place2"


def test_a_told_attempt_that_did_no_better_is_learned_from_only_where_any_will_do() -> None:
    hand = Hand(Live(), scripted(WRONG, WRONG, "turn 2: hm", WRONG, WRONG))
    tree = grown(explore, hand, key_in(3, horizon=2), can_roll_back=False, max_attempts=2)
    for qualify, count in (("success", 0), ("improved", 0), ("any", 2)):
        assert len(distill([tree], TERSE, Selection(qualify))) == count  # type: ignore[arg-type]


def test_an_attempt_counts_as_one_branch_however_many_turns_it_has() -> None:
    hand = Hand(Live(), lambda ask: WRONG if ask.purpose == "act" else "turn 1: hm")
    tree = grown(explore, hand, key_in(3, horizon=3), can_roll_back=False, max_attempts=6, max_depth=9)
    learned = distill([tree], TERSE, Selection("any", branches_per_task=2))
    assert len({example.attempt for example in learned}) == 2 and len(learned) == 6


def test_refinement_goes_on_where_no_reset_is_like_another() -> None:
    hand = Hand(Live(), scripted(*FAILS_ONCE))
    tree = grown(refine, hand, key_in(3, horizon=2), can_roll_back=False, max_attempts=2)
    assert tree.attempts[1].success and StopReason.REPLAY_DIVERGED not in {attempt.stop for attempt in tree.attempts}


def journaled(path: Path, fail_after: int | None) -> Tree:
    """One task explored in `Random`, with a journal."""
    growing = rules(can_roll_back=False, max_attempts=4, turns=12)
    rollout = Rollout("a", key_in(5, horizon=3), explore(TreeBuilder(key_in(5, horizon=3), growing)))
    engine = ScriptedEngine(lambda ask: WRONG if ask.purpose == "act" else "turn 1: hm", fail_after=fail_after)
    journal = Journal(path)

    async def main() -> Tree:
        async for _, tree in drive([rollout], Runtime(engine, Random, journal), concurrency=1):
            return tree
        raise AssertionError("no tree")

    try:
        return asyncio.run(main())
    finally:
        journal.close()


def test_an_attempt_that_was_under_way_when_a_run_was_killed_is_lost_and_the_next_ones_are_not(tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        journaled(tmp_path / "journal", fail_after=5)  # within the second attempt
    first = journaled(tmp_path / "journal", None)
    lost = first.attempts[1]
    assert lost.stop is StopReason.ENVIRONMENT_ERROR and len(first.attempts) == 4
    assert lost.error == "EnvironmentFailure: live declares fidelity 'none', so an interrupted attempt cannot go on"
    assert {attempt.stop for attempt in (first.attempts[0], *first.attempts[2:])} <= {StopReason.TURN_LIMIT, StopReason.BUDGET}
    assert lost.index not in {one.attempt for one in first.reflections}
    assert lost.index not in {example.attempt for example in distill([first], TERSE, EVERYTHING)}
    assert journaled(tmp_path / "journal", 0) == first  # all of it is in the journal by now


def test_the_checker_lets_pass_what_promises_nothing() -> None:
    report = check_environment(Random, name="random", count=3, rollbacks=5)
    verdicts = {finding.name: finding.verdict for finding in report.findings}
    assert report.passed and report.measured is Fidelity.NONE
    assert verdicts["reset"] == verdicts["rollback"] == verdicts["replay"] == "skipped"


def test_the_whole_method_runs_without_rollback_and_says_so(taught: Path, tmp_path: Path) -> None:
    world = ("environment.name=test_rollback_free:Sealed", "environment.args={places: 3, horizon: 2}")
    said = leafe("run", "smoke", f"model={taught}", *world, *QUICK, "distill.qualify=any", "--out", tmp_path / "run")
    assert said.status == 0, said.err
    words = " ".join(said.out.split())
    assert words.count(f"test_rollback_free:Sealed: {ROLLBACK_FREE}") >= 2  # when it begins, and below the table
    stages = json.loads((tmp_path / "run" / "stages.json").read_text())
    assert ROLLBACK_FREE in stages["explore round 1"]["note"] and stages["distil round 1"]["counterfactual"] > 0
    assert "cannot be rolled back" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    trees = list(read_forest(tmp_path / "run" / "round-1" / "forest.jsonl"))
    assert sum(tree.spend.rollbacks for tree in trees) == 0
    assert any(attempt.experience for tree in trees for attempt in tree.attempts)
    assert {attempt.turn for tree in trees for attempt in tree.attempts} == {None}
    found = leafe("diagnose", "smoke", f"model={taught}", *world, *QUICK, "--json")
    assert found.status == 0 and json.loads(found.out)["branch_success"] is not None
