"""Whether LEAFE can help: every figure against a policy whose behaviour is known."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from players import FULL, Hand, breaks, grown, key_in, rules, scripted

from leafe.config import parse
from leafe.engines.base import Engine
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Environment
from leafe.errors import ReplayDiverged
from leafe.evaluation.diagnose import BranchPoint, act_unadvised, best_actions, branch_points, diagnosis, shares
from leafe.experiment import Experiment
from leafe.forest.explore import explore
from leafe.forest.play import independent
from leafe.methods.diagnose import diagnose
from leafe.progress import Silent
from leafe.records import Ask, Completion, Observation, Reflection, Sampling, StopReason, Task, Tree
from leafe.worlds.fakes import Lookup
from leafe.worlds.sokoban.environment import Sokoban

RECIPE = """
name: trial
environment: {name: lookup, args: {places: 3, horizon: 2}}
tasks: {train: 30, test: 1}
explore: {turns: 50, max_attempts: 2}
"""


def stubborn(ask: Ask) -> str:
    """Opens place 1 unless told otherwise, and always advises place 2."""
    if ask.purpose == "reflect":
        return "turn 1: open place2"
    return "open place2" if "Advice: open place2" in ask.messages[-1].content else "open place1"


def experiment() -> Experiment:
    def engine(folder: Path) -> Engine:
        return ScriptedEngine(stubborn)

    def environment() -> Environment:
        return Lookup(places=3, horizon=2)

    return Experiment(parse(RECIPE, "trial"), Path("."), engine, environment, Silent())


def test_every_figure_is_what_the_policy_deserves() -> None:
    keys = [task.payload["key"] for task in experiment().tasks("train")]
    easy, mended, hopeless = (keys.count(f"place{number}") for number in (1, 2, 3))
    assert min(easy, mended, hopeless) > 3
    failed = mended + hopeless

    found = diagnose(experiment(), points=400)
    assert (found.tasks, found.reflections, found.named_turns, found.branch_points) == (30, failed, {"1": failed}, failed)
    assert (found.tasks_solved_by_tree, found.tasks_solved_by_independent) == (easy + mended, easy)
    expected = {
        "parsed": 1.0,
        "branch_success": mended / failed,
        "fresh_success": easy / 30,
        "success_gap": mended / failed,  # over the tasks that were branched at, where fresh attempts all fail
        "advised_optimal": mended / failed,
        "unadvised_optimal": 0.0,
        "reflection_gap": mended / failed,
    }
    for name, value in expected.items():
        interval = getattr(found, name)
        assert interval.value == pytest.approx(value), name
        assert interval.low <= interval.value <= interval.high, name


def test_the_same_diagnosis_is_found_again() -> None:
    assert diagnose(experiment(), points=5) == diagnose(experiment(), points=5)


def tree(place: int = 2, environment: Environment | None = None) -> Tree:
    """Two attempts at a task, the second advised to open place 2."""
    return grown(explore, Hand(environment or Lookup(places=3), stubborn), key_in(place), max_attempts=2)


def point(place: int = 2, best: tuple[str, ...] = ("open place2",)) -> BranchPoint:
    one = tree(place)
    attempt, turn = next(one.branch_turns())
    return BranchPoint(one, attempt, turn, best)


def test_the_unadvised_share_counts_what_cannot_be_read_as_wrong() -> None:
    engine = ScriptedEngine(["open place2", "open\nplace2", "open place1", " open place2 "])
    assert asyncio.run(act_unadvised(point(), engine, rules(), 4)) == 0.5


@pytest.mark.parametrize(("continues", "share"), [(True, 1.0), (False, 0.0)])
def test_cut_replies_of_the_unadvised_policy_are_completed_like_those_of_attempts(continues: bool, share: float) -> None:
    engine = ScriptedEngine(lambda ask: "open place2</action>" if ask.begun else "<think>" + "Hm, " * 50)
    engine.continues = continues  # type: ignore[misc]
    wanted = rules(FULL, act=Sampling(max_tokens=40), closing=30)
    assert asyncio.run(act_unadvised(point(), engine, wanted, 3)) == share


def test_the_unadvised_policy_is_asked_at_the_same_turn_and_told_nothing() -> None:
    engine = ScriptedEngine(stubborn)
    asyncio.run(act_unadvised(point(), engine, rules(), 3))
    assert len({ask.seed for ask in engine.asks}) == 3
    assert {ask.messages for ask in engine.asks} == {engine.asks[0].messages}
    assert [message.content for message in engine.asks[0].messages] == [
        "Find the key. 3 turns.\n1: Places: place1, place2, place3."
    ]


def test_the_gap_is_the_advised_share_minus_the_unadvised_one() -> None:
    points = [
        point(),
        point(),
        point(3, best=("open place3",)),
        point(3, best=("open place3",)),
    ]  # advised: right, right, wrong, wrong
    found = diagnosis([tree(2), tree(3)], [tree(2), tree(3)], points, [0.25, 0.5, 0.0, 0.25])
    assert found.advised_optimal is not None and found.unadvised_optimal is not None and found.reflection_gap is not None
    assert found.advised_optimal.value == 0.5
    assert found.unadvised_optimal.value == 0.25
    assert found.reflection_gap.value == 0.25


def test_branches_of_branches_are_told_apart() -> None:
    deeper = point()
    deeper = replace(deeper, attempt=replace(deeper.attempt, depth=2))
    found = diagnosis([tree(2)], [tree(2)], [point(3, best=("open place3",)), deeper], [0.0, 0.75])
    assert (found.branch_points, found.branch_points_later) == (1, 1)
    assert found.reflection_gap is not None and found.reflection_gap_later is not None
    assert (found.reflection_gap.value, found.reflection_gap_later.value) == (0.0, 0.25)


def test_nothing_to_measure_is_none_and_not_zero() -> None:
    easy = tree(1)
    found = diagnosis([easy], [easy], [], [])
    assert found.parsed is found.branch_success is found.success_gap is found.reflection_gap is None
    assert found.fresh_success is not None and found.fresh_success.value == 1.0
    assert shares([[], []]) is None


def test_a_reflection_without_room_is_no_reflection_that_cannot_be_read() -> None:
    grew = tree(2)
    full = Reflection(0, 2, (Completion("", finish="context"),), None, "the model's context leaves no room to reflect")
    unread = Reflection(0, 2, (Completion("hm"),), None, "it names no turn")
    found = diagnosis([replace(grew, reflections=(*grew.reflections, full, unread))], [grew], [], [])
    assert found.reflections == 2 and found.parsed is not None and found.parsed.value == 0.5
    assert (found.tree_faults.reflections, found.tree_faults.no_room, found.tree_faults.unread) == (3, 1 / 3, 1 / 3)


def test_an_attempt_that_broke_counts_on_neither_side() -> None:
    broken = grown(explore, Hand(Lookup(), stubborn, breaks({1, 2})), key_in(2), max_attempts=1)
    assert diagnosis([broken], [broken], [], []).fresh_success is None


def test_an_attempt_that_the_budget_cut_counts_on_neither_side() -> None:
    late = scripted("open place1", "open place2", "open place1")  # found at the second turn, then no turn is left for that
    tree = grown(independent, Hand(Lookup(), late), key_in(2), turns=3)
    assert [one.stop for one in tree.attempts] == [StopReason.SUCCESS, StopReason.BUDGET]
    found = diagnosis([tree], [tree], [], [])
    assert found.fresh_success is not None and found.fresh_success.value == 1.0


def test_best_actions_are_those_that_an_expert_could_take() -> None:
    environment = Sokoban(min_length=3, max_length=6)
    checked = 0
    for task in environment.tasks("train", 6):
        moves = iter(["left", "up", "right", "down"] * 9)
        hand = Hand(environment, lambda ask, moves=moves: "turn 2: no" if ask.purpose == "reflect" else next(moves))
        grew = grown(explore, hand, replace(task, horizon=3), max_attempts=2)
        for _, turn in grew.branch_turns():
            best = best_actions(environment, grew, turn)
            lengths = {}
            for action in environment.example_actions():
                environment.reset(task)
                for one in grew.trajectory(turn.parent):
                    environment.step(one.action)
                before = len(environment.expert())
                done = environment.step(action).success
                lengths[action] = 0 if done else len(environment.expert()) or 99
            assert set(best) == {action for action, length in lengths.items() if length == before - 1}
            checked += bool(best)
    assert checked > 2


class Roundabout(Lookup):
    """A `Lookup` whose key is reached in two good steps, while its expert knows a longer way from the start."""

    def reset(self, task: Task) -> Observation:
        """As `Lookup`."""
        self.past: list[str] = []
        return super().reset(task)

    def step(self, action: str) -> Observation:
        """Nothing but `near` and then `key` leads to the key, and `slow` half the way."""
        self.past.append(action)
        won = self.past[-2:] == ["near", "key"]
        return Observation(f"You did {' '.join(self.past)}.", done=won, success=won, reward=float(won))

    def expert(self) -> list[str]:
        """From the start five steps, of which two are needed."""
        if not self.past:
            return ["slow", "slow", "slow", "near", "key"]
        return ["key"] if self.past[-1] == "near" else ["near", "key"] if self.past == ["far"] else ["slow", "slow", "near", "key"]

    def example_actions(self) -> list[str]:
        """Two ways, neither of which is the expert's."""
        return ["near", "far"]


def test_best_actions_are_those_with_the_fewest_left_though_the_expert_goes_a_longer_way() -> None:
    moves = iter(["slow", "slow", "turn 1: near", "near", "key"])
    grew = grown(explore, Hand(Roundabout(), lambda ask: next(moves)), key_in(2, horizon=2), max_attempts=2)
    (_, turn) = next(grew.branch_turns())
    assert best_actions(Roundabout(), grew, turn) == ("near",)

    class Narrow(Roundabout):
        """Its examples lead nowhere."""

        def expert(self) -> list[str]:
            """None after `far`."""
            return [] if self.past == ["far"] else super().expert()

        def example_actions(self) -> list[str]:
            """One."""
            return ["far"]

    assert best_actions(Narrow(), grew, turn) == ("slow",)


class Sealed(Lookup):
    """Ends at the first place that is opened; its expert does not notice."""

    def step(self, action: str) -> Observation:
        answer = super().step(action)
        return replace(answer, done=True)


def test_an_action_that_ends_the_episode_in_failure_is_never_best() -> None:
    assert best_actions(Sealed(places=3), tree(2), next(tree(2).branch_turns())[1]) == ("open place2",)


def test_without_an_expert_there_is_no_branch_point() -> None:
    class Unknown(Lookup):
        """Nobody knows."""

        def expert(self) -> list[str]:
            return []

    assert branch_points([tree(2)], lambda: Unknown(places=3), 10) == []


def test_a_state_that_cannot_be_reached_again_is_left_out() -> None:
    class Moved(Lookup):
        """Shows other places than those that the tree was grown with."""

        def reset(self, task: object) -> Observation:
            return replace(super().reset(task), text="Elsewhere.")  # type: ignore[arg-type]

    with pytest.raises(ReplayDiverged):
        best_actions(Moved(places=3), tree(2), next(tree(2).branch_turns())[1])
    assert branch_points([tree(2)], lambda: Moved(places=3), 10) == []


def test_fewer_branch_points_than_there_are_lie_all_over_the_forest() -> None:
    trees = [grown(explore, Hand(Lookup(places=3), stubborn), key_in(2, number=number), max_attempts=2) for number in range(7)]
    chosen = [int(one.tree.task.id.rpartition("-")[2]) for one in branch_points(trees, lambda: Lookup(places=3), 4)]
    assert chosen == [0, 1, 3, 5]
    assert len(branch_points(trees, lambda: Lookup(places=3), 100)) == 7
