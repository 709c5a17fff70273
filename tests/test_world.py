"""Going back: by snapshot and by replay, verified, and refused where it cannot be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.envs.base import Environment, Fidelity
from leafe.envs.registry import known, make
from leafe.envs.world import World, observation_digest
from leafe.errors import EnvironmentFailure, ReplayDiverged, UnknownName, UserError
from leafe.records import Observation, Task
from leafe.worlds.fakes import Lookup, SlipperySokoban
from leafe.worlds.sokoban.board import ACTIONS
from leafe.worlds.sokoban.environment import Sokoban

TASKS = Sokoban(boxes=2, max_length=40).tasks("train", 6)
words = st.lists(st.sampled_from([*ACTIONS, "jump"]), min_size=1, max_size=20)


class ReplayedSokoban(Sokoban):
    """Sokoban that must be replayed."""

    name = "replayed-sokoban"
    fidelity = Fidelity.REPLAY


class Rotting(Lookup):
    """Answers otherwise from the second reset on; can be made to raise, and to answer with something else than an observation."""

    name = "rotting"

    def __init__(self, *, fidelity: Fidelity = Fidelity.REPLAY, rots: bool = True) -> None:
        super().__init__()
        self.fidelity = fidelity  # type: ignore[misc]
        self._rots, self._resets = rots, 0

    def reset(self, task: Task) -> Observation:
        self._resets += 1
        return super().reset(task)

    def step(self, action: str) -> Observation:
        if action == "raise":
            raise KeyError("a screw")
        if action == "number":
            return 5  # type: ignore[return-value]
        answer = super().step(action)
        return Observation(answer.text + "?") if self._rots and self._resets > 1 else answer


def played(world: World, task: Task, actions: Sequence[str]) -> list[Observation]:
    """The observations of an episode, the first one included."""
    return [world.reset(task), *(world.step(action) for action in actions)]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TASKS), words, st.data())
def test_snapshot_and_replay_come_back_to_the_same_state(task: Task, actions: list[str], data: st.DataObject) -> None:
    turn = data.draw(st.integers(1, len(actions)))
    others = data.draw(words)
    by_snapshot, by_replay = World(Sokoban()), World(ReplayedSokoban())
    seen = played(by_snapshot, task, actions)
    assert played(by_replay, task, actions) == seen
    assert by_snapshot.rollback(turn) == by_replay.rollback(turn) == seen[turn - 1]
    assert [by_snapshot.step(action) for action in others] == [by_replay.step(action) for action in others]
    assert (by_snapshot.replayed_steps, by_replay.replayed_steps) == (0, turn - 1)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TASKS), words, words, st.data())
@pytest.mark.parametrize("kind", [Sokoban, ReplayedSokoban])
def test_the_same_actions_after_a_rollback_give_the_same_observations(
    kind: type[Sokoban], task: Task, actions: list[str], detour: list[str], data: st.DataObject
) -> None:
    world = World(kind())
    seen = played(world, task, actions)
    digests = world.digests
    turn = data.draw(st.integers(1, len(actions)))
    world.rollback(turn)
    for action in detour:
        world.step(action)
    assert world.rollback(turn) == seen[turn - 1]
    assert [world.step(action) for action in actions[turn - 1 :]] == seen[turn:]
    assert world.digests == digests and world.actions == tuple(actions)
    assert world.rollbacks == 2 and world.turn == len(actions) + 1


def test_the_history_holds_each_turn_once_and_ends_at_the_turn_gone_back_to() -> None:
    world = World(Lookup())
    task = world.environment.tasks("train", 1)[0]
    first, *rest = played(world, task, ["open place1", "dance", "open place2"])
    assert [past.action for past in world.history] == ["open place1", "dance", "open place2"]
    assert [past.observation for past in world.history] == rest
    assert world.digests == tuple(observation_digest(seen) for seen in (first, *rest))
    world.rollback(2)
    assert (world.turn, world.actions, world.observation) == (2, ("open place1",), rest[0])


def test_a_replay_of_a_record_in_a_fresh_world_goes_on_where_the_record_ends() -> None:
    recorded, resumed = World(Lookup()), World(Lookup())
    task = recorded.environment.tasks("train", 1)[0]
    last = played(recorded, task, ["open place1", "open place2"])[-1]
    assert resumed.replay(recorded.actions, recorded.digests, task=task) == last
    assert (resumed.turn, resumed.replayed_steps, resumed.digests) == (3, 2, recorded.digests)


def test_a_replay_that_differs_from_its_record_names_the_turn() -> None:
    world = World(Lookup())
    task = world.environment.tasks("train", 1)[0]
    played(world, task, ["open place1", "open place2"])
    digests = list(world.digests)
    with pytest.raises(ReplayDiverged, match=r"at turn 2 \('open place2'\): recorded the digest 0000"):
        world.replay(world.actions, [*digests[:2], "0000"])
    with pytest.raises(ReplayDiverged, match="at the reset"):
        world.replay((), ["0000"])
    with pytest.raises(ValueError, match="wanted 2 digests for 1 actions, found 3"):
        world.replay(["open place1"], digests)


def test_a_diverging_rollback_names_the_turn_and_both_texts_and_leaves_the_world_unusable() -> None:
    world = World(Rotting())
    task = world.environment.tasks("train", 1)[0]
    played(world, task, ["dance", "sing"])
    with pytest.raises(ReplayDiverged, match=r"turn 1 \('dance'\): recorded .That is no action.*replayed .That is no action.*\?"):
        world.rollback(2)
    for use in (lambda: world.step("dance"), lambda: world.rollback(1), lambda: world.observation):
        with pytest.raises(EnvironmentFailure, match="reset it first"):
            use()
    assert world.reset(task).text.startswith("Places") and world.turn == 1


def test_slippery_moves_are_caught_at_rollback() -> None:
    world = World(SlipperySokoban(slip=0.5))
    task = world.environment.tasks("train", 1)[0]
    with pytest.raises(ReplayDiverged):
        for _ in range(20):
            played(world, task, ["up", "down", "left", "right"] * 4)
            world.rollback(17)


def test_an_environment_without_rollback_says_so_and_stays_usable() -> None:
    world = World(Rotting(fidelity=Fidelity.NONE))
    task = world.environment.tasks("train", 1)[0]
    played(world, task, ["dance"])
    assert world.fidelity is Fidelity.NONE
    with pytest.raises(EnvironmentFailure, match="cannot go back; start a fresh attempt"):
        world.rollback(1)
    assert world.step("dance") == world.history[0].observation


def test_whatever_an_environment_raises_is_an_environment_failure() -> None:
    world = World(Rotting(rots=False))
    task = world.environment.tasks("train", 1)[0]
    for action, message in (("raise", "rotting: KeyError: 'a screw'"), ("number", "answered with int")):
        world.reset(task)
        with pytest.raises(EnvironmentFailure, match=message):
            world.step(action)
        with pytest.raises(EnvironmentFailure, match="reset it first"):
            world.step("dance")
    snapshots = World(Rotting(fidelity=Fidelity.SNAPSHOT))
    with pytest.raises(EnvironmentFailure, match="takes no snapshots"):
        snapshots.reset(task)


def test_a_turn_that_was_not_reached_is_refused() -> None:
    world = World(Sokoban())
    world.reset(TASKS[0])
    assert world.rollback(1) == world.observation
    for turn in (0, 2, -1):
        with pytest.raises(ValueError, match=r"wanted a turn in 1\.\.1"):
            world.rollback(turn)


def test_rewards_and_verdicts_have_one_digest_in_memory_and_from_a_file() -> None:
    assert observation_digest(Observation("x", True, True, 1)) == observation_digest(Observation("x", True, True, 1.0))
    others = [Observation("x"), Observation("y"), Observation("x", True), Observation("x", False, True), Observation("x", reward=1)]
    assert len({observation_digest(one) for one in others}) == len(others)


@pytest.mark.parametrize(
    ("spec", "args", "message"),
    [
        ("sokobn", {}, "did you mean 'sokoban'"),
        ("sokoban", {"row": 7}, "takes no argument 'row'; accepted: rows, columns, boxes"),
        ("sokoban", {"rows": "7"}, "wants rows as int; found '7'"),
        ("sokoban", {"levels": 7}, "wants levels as str; found 7"),
        ("slippery-sokoban", {"slop": 1}, "accepted: slip, rows, columns"),
        ("leafe.worlds.fakes:Lokup", {}, "did you mean 'Lookup'"),
        ("leafe.envs.no_such_module:Lookup", {}, "cannot import"),
        ("leafe.envs.base:Fidelity", {}, "is no leafe.envs.base.Environment"),
        ("leafe.envs.base:Environment", {}, "lacks something"),
    ],
)
def test_a_wrong_name_or_argument_is_one_sentence(spec: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make(spec, args)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UnknownName) == ("did you mean" in message)


def test_every_known_name_and_any_class_can_be_made() -> None:
    assert {"sokoban", "slippery-sokoban", "lookup"} <= set(known())
    assert all(isinstance(make(name), Environment) for name in ("sokoban", "slippery-sokoban", "lookup"))
    assert make("leafe.worlds.fakes:Lookup", {"places": 2}).example_actions() == ["open place1", "open place2"]
    assert make("slippery-sokoban", {"slip": 0, "rows": 7, "wall_share": 0}).name == "slippery-sokoban"
