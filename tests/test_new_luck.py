"""Branches with new randomness in worlds that draw lots: verified like any rollback, the same when repeated, refused where none is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from players import Hand, rules, scripted, steady

from leafe.config import parse
from leafe.digest import seed_for
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Environment, Fidelity, Placement
from leafe.envs.check import check_environment
from leafe.errors import UserError
from leafe.experiment import Experiment
from leafe.forest.builder import TreeBuilder
from leafe.forest.driver import Rollout, Runtime, drive
from leafe.forest.explore import explore
from leafe.forest.journal import Journal
from leafe.progress import Silent
from leafe.records import Observation, StopReason, Task, Tree
from leafe.worlds.fakes import Lookup


class Dice(Environment):
    """Every throw tells a number; there is nothing to win."""

    name = "dice"
    fidelity = Fidelity.REPLAY

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        return [Task(f"dice-{split}-{seed}-{n}", self.name, "Throw.", 5, {"seed": seed_for(split, seed, n)}) for n in range(count)]

    def reset(self, task: Task) -> Observation:
        self.draw = random.Random(task.payload["seed"])
        return Observation("A die.")

    def step(self, action: str) -> Observation:
        return Observation(f"A {self.draw.randrange(10**6)}." if action == "throw" else "Say throw.")

    def reseed(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def example_actions(self) -> Sequence[str]:
        return ("throw",)


class SavedDice(Dice):
    """The same with snapshots."""

    fidelity = Fidelity.SNAPSHOT

    def snapshot(self) -> Any:
        return self.draw.getstate()

    def restore(self, snapshot: Any) -> None:
        self.draw = random.Random()
        self.draw.setstate(snapshot)


def explored(
    kind: type[Environment], *, new_luck: bool, journal: Journal | None = None, fail_after: int | None = None, **more: Any
) -> dict[str, Tree]:
    """Trees of attempts that all throw five times and go back to any turn, advised to throw."""
    answers = lambda ask: "throw" if ask.purpose == "act" else f"turn {random.Random(ask.seed).randint(1, 5)}: throw"  # noqa: E731
    rule = rules(turns=60, max_attempts=8, max_depth=4, new_luck=new_luck)
    found = {}

    async def main() -> None:
        rollouts = [Rollout(task.id, task, explore(TreeBuilder(task, rule))) for task in kind().tasks("train", 6)]
        async for rollout, tree in drive(
            rollouts, Runtime(ScriptedEngine(answers, fail_after=fail_after), kind, journal, **more), concurrency=3
        ):
            found[rollout.key] = tree

    asyncio.run(main())
    return found


def throws(tree: Tree, *, branches: bool) -> list[tuple[int, str]]:
    """What each throw told, with the turn's number: those of branches, or those of attempts from the root."""
    own = [turn for turn in tree.turns if (tree.attempts[turn.attempt].turn is not None) == branches]
    return [(turn.index, turn.observation.text) for turn in own]


@pytest.mark.parametrize("kind", [Dice, SavedDice])
def test_a_branch_draws_anew_and_every_rollback_into_it_is_verified(kind: type[Environment]) -> None:
    same, new = explored(kind, new_luck=False), explored(kind, new_luck=True)
    for tree in same.values():
        assert set(throws(tree, branches=True)) <= set(throws(tree, branches=False))  # so a reflection could teach the number
    depths = set()
    for tree in new.values():
        told = throws(tree, branches=True)
        assert len(set(told)) == len(told) > 0 and not set(told) & set(throws(tree, branches=False))
        assert not any(attempt.stop is StopReason.REPLAY_DIVERGED for attempt in tree.attempts)
        depths |= {attempt.depth for attempt in tree.attempts}
        assert tree.spend.rollbacks == sum(attempt.turn is not None for attempt in tree.attempts) > 0
    assert max(depths) >= 2  # rollbacks into branches of branches


def test_new_luck_is_the_same_wherever_worlds_live_and_after_a_kill(tmp_path: Path) -> None:
    whole = explored(Dice, new_luck=True)
    assert explored(SavedDice, new_luck=True).keys() == whole.keys()
    assert explored(Dice, new_luck=True, placement=Placement.THREAD, recycle=1) == whole
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(Exception, match="fail"):
        explored(Dice, new_luck=True, journal=journal, fail_after=120)
    journal.close()
    kept = Journal(tmp_path / "journal.jsonl")
    assert explored(Dice, new_luck=True, journal=kept) == whole
    kept.close()


def test_a_branch_whose_first_reply_holds_no_action_draws_anew_at_its_first_step() -> None:
    hand = Hand(Dice(), steady("throw", "turn 2: throw"))
    tree = hand.finish(explore(TreeBuilder(Dice().tasks("train", 1)[0], rules(turns=12, max_attempts=2, new_luck=True))))
    assert len(tree.attempts) == 2
    seeds = [effect.seed for effect in hand.effects if hasattr(effect, "action")]
    assert [seed is not None for seed in seeds] == [False] * 5 + [True] + [False] * (len(seeds) - 6)


def test_check_env_tries_what_is_drawn_anew() -> None:
    for kind in (Dice, SavedDice):
        report = check_environment(kind, name="dice", rollbacks=20, count=3)
        assert report.passed
        (found,) = [finding for finding in report.findings if finding.name == "reseed"]
        assert found.verdict == "pass" and found.figures["changed"] > 0

    class Unsteady(Dice):
        def reseed(self, seed: int) -> None:
            self.draw = random.Random()

    report = check_environment(Unsteady, name="dice", rollbacks=20, count=3)
    assert [finding.name for finding in report.findings if finding.verdict == "fail"] == ["reseed"]


class CountedDice(Dice):
    """Its snapshot is the task's seed and the number of throws, which says all until `reseed` replaces the generator."""

    fidelity = Fidelity.SNAPSHOT

    def reset(self, task: Task) -> Observation:
        self.seed, self.thrown = task.payload["seed"], 0
        return super().reset(task)

    def step(self, action: str) -> Observation:
        self.thrown += action == "throw"
        return super().step(action)

    def snapshot(self) -> Any:
        return self.seed, self.thrown

    def restore(self, snapshot: Any) -> None:
        self.seed, self.thrown = snapshot
        self.draw = random.Random(self.seed)
        for _ in range(self.thrown):
            self.draw.randrange(10**6)


class Sticky(SavedDice):
    """Draws from a second generator once there was a reseed, and no snapshot holds whether there was."""

    luck: random.Random | None = None

    def reset(self, task: Task) -> Observation:
        self.luck = None
        return super().reset(task)

    def reseed(self, seed: int) -> None:
        self.luck = random.Random(seed)

    def step(self, action: str) -> Observation:
        own, self.draw = self.draw, self.luck or self.draw
        seen = super().step(action)
        self.draw = own
        return seen


@pytest.mark.parametrize("kind", [CountedDice, Sticky])
def test_check_env_goes_back_by_snapshot_to_turns_after_a_reseed(kind: type[Environment]) -> None:
    report = check_environment(kind, name="dice", rollbacks=20, count=3)
    (found,) = [finding for finding in report.findings if finding.verdict == "fail"]
    assert found.name == "reseed" and "goes on otherwise: before 'A " in found.sentence and "getstate" in found.sentence


def test_new_luck_is_refused_where_nothing_can_be_drawn_anew() -> None:
    config = parse("name: trial\nenvironment: {name: lookup}\nexplore: {new_luck: true}\ntasks: {train: 1, test: 1}", "trial")
    experiment = Experiment(config, Path("none"), lambda folder: ScriptedEngine(scripted()), Lookup, Silent())
    with pytest.raises(UserError, match=r"explore.new_luck .*reseed\(seed\).*lookup.*explore.new_luck=false"):
        experiment.check()
