"""The driver: hundreds of explorers at once, each on its own; what breaks one of them, and what stops them all."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from players import MOVES, PLACES, TERSE, Breaking, Hand, Policy, erratic, key_in, rules, steady

from leafe.distillation.examples import Selection, distill
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Environment
from leafe.errors import EngineError, EnvironmentFailure, ReplayDiverged, UserError
from leafe.forest.builder import TreeBuilder
from leafe.forest.driver import Rollout, Runtime, drive
from leafe.forest.explore import EXPLORERS, explore
from leafe.forest.journal import Journal
from leafe.records import Ask, Completion, Observation, StopReason, Task, Tree
from leafe.worlds.fakes import Lookup, SlipperySokoban
from leafe.worlds.sokoban.environment import Sokoban

Trees = dict[str, Tree]
RULES = rules(turns=30, max_attempts=6, max_depth=3, reflect_every=2)


@dataclass
class Watched:
    """Makes environments and counts those that are open."""

    make: Callable[[], Environment]
    made: int = 0
    open: int = 0

    def __call__(self) -> Environment:
        environment, watch = self.make(), self
        close = environment.close
        watch.made, watch.open = watch.made + 1, watch.open + 1

        def closing() -> None:
            watch.open -= 1
            close()

        environment.close = closing  # type: ignore[method-assign]
        return environment


def rollouts(tasks: Sequence[Task], method: str = "tree", **changes: Any) -> Iterator[Rollout[Tree]]:
    for task in tasks:
        yield Rollout(task.id, task, EXPLORERS[method](TreeBuilder(task, replace(RULES, **changes))))


def driven(work: Iterator[Rollout[Tree]], runtime: Runtime, *, concurrency: int = 64, into: Trees | None = None) -> Trees:
    """All trees; `into` holds those that came before an error. Nothing may be left to asyncio to complain about."""
    found: Trees = {} if into is None else into
    complaints: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        try:
            async for rollout, tree in drive(work, runtime, concurrency=concurrency):
                found[rollout.key] = tree
        finally:
            gc.collect()
            await asyncio.sleep(0)

    try:
        asyncio.run(main())
    finally:
        assert complaints == []
    return found


def lookups(count: int) -> Sequence[Task]:
    return Lookup(horizon=4).tasks("train", count)


@pytest.mark.parametrize(("method", "count"), [("tree", 60), ("independent", 20), ("refine", 20)])
def test_many_tasks_give_the_same_trees_however_many_are_played_at_once(method: str, count: int) -> None:
    tasks, found = lookups(count), []
    for concurrency in (1, 7, count):
        watch = Watched(Lookup)
        runtime = Runtime(ScriptedEngine(erratic(PLACES)), watch)
        found.append(driven(rollouts(tasks, method), runtime, concurrency=concurrency))
        assert (watch.made, watch.open) == (count, 0)
    assert found[0] == found[1] == found[2] and len(found[0]) == count


@pytest.mark.parametrize(("make", "actions"), [(Lookup, PLACES), (Sokoban, MOVES)])
def test_the_driver_gives_the_tree_that_a_hand_gives(make: Callable[[], Environment], actions: list[str]) -> None:
    tasks = make().tasks("train", 20)
    found = driven(rollouts(tasks), Runtime(ScriptedEngine(erratic(actions)), make))
    for task in tasks:
        tree, expected = found[task.id], Hand(make(), erratic(actions)).finish(explore(TreeBuilder(task, RULES)))
        # A hand always replays, and a world only counts the steps that its environment made it replay.
        assert replace(tree, spend=replace(tree.spend, replayed_steps=0)) == replace(
            expected, spend=replace(expected.spend, replayed_steps=0)
        )


def test_jobs_are_drawn_only_when_there_is_room_for_them() -> None:
    drawn, ended = Counter[str](), Counter[str]()

    def counted() -> Iterator[Rollout[Tree]]:
        for rollout in rollouts(lookups(40)):
            drawn["jobs"] += 1
            yield rollout

    async def main() -> None:
        runtime = Runtime(ScriptedEngine(erratic(PLACES)), Lookup)
        async for _ in drive(counted(), runtime, concurrency=5):
            ended["jobs"] += 1
            assert drawn["jobs"] - ended["jobs"] <= 5

    asyncio.run(main())
    assert drawn == ended == {"jobs": 40}


def test_whoever_watches_is_told_of_every_completion() -> None:
    told: list[Ask] = []
    engine = ScriptedEngine(erratic(PLACES))
    found = driven(rollouts(lookups(10)), Runtime(engine, Lookup, noticed=lambda ask, completion: told.append(ask)))
    assert told == engine.asks
    assert sum(ask.purpose == "act" for ask in told) == sum(tree.spend.turns for tree in found.values())


# What stops everything


def test_a_dead_engine_stops_the_stage_yields_no_unfinished_tree_and_keeps_the_journal(tmp_path: Path) -> None:
    tasks, path = lookups(40), tmp_path / "journal.jsonl"
    whole = driven(rollouts(tasks), Runtime(ScriptedEngine(erratic(PLACES)), Lookup))
    watch, journal, found = Watched(Lookup), Journal(path), Trees()
    engine = ScriptedEngine(erratic(PLACES), fail_after=600)
    with pytest.raises(EngineError, match="fail after 600"):
        driven(rollouts(tasks), Runtime(engine, watch, journal), concurrency=20, into=found)
    journal.close()
    assert watch.open == 0 and 0 < len(found) < 40
    assert found == {key: whole[key] for key in found}
    kept = Journal(path)
    assert sum(kept.length(task.id) for task in tasks) > 600
    again = ScriptedEngine(erratic(PLACES))
    assert driven(rollouts(tasks), Runtime(again, Lookup, kept)) == whole
    requests = sum(ask.purpose == "act" for ask in [*engine.asks, *again.asks])
    # Nothing but the requests that were in flight is asked for again.
    assert 0 <= requests - sum(tree.spend.turns for tree in whole.values()) <= 20


def test_what_ended_well_in_the_moment_of_an_error_is_not_lost() -> None:
    class Late:
        """Lets everybody wait, then answers all at once, the odd ones with an error."""

        def __init__(self) -> None:
            self.scripted = ScriptedEngine(lambda ask: "open place1")
            self.stats, self.concurrency = self.scripted.stats, 8
            self.go = asyncio.Event()

        async def generate(self, ask: Ask) -> Completion:
            number = len(self.scripted.asks)
            if number == 7:
                self.go.set()
            completion = await self.scripted.generate(ask)
            await self.go.wait()
            if number % 2:
                raise EngineError("gone")
            return completion

        async def close(self) -> None:
            return None

    found = Trees()
    tasks = [key_in(1, number=number) for number in range(8)]
    with pytest.raises(EngineError, match="gone"):
        driven(rollouts(tasks, max_attempts=1), Runtime(Late(), Lookup), into=found)
    assert len(found) == 4


class Odd(Lookup):
    """A `Lookup` that raises something of its own at its second step."""

    def __init__(self, error: Exception, **settings: Any) -> None:
        super().__init__(**settings)
        self.error, self.steps = error, 0

    def step(self, action: str) -> Observation:
        self.steps += 1
        if self.steps == 2:
            raise self.error
        return super().step(action)


def test_bad_input_found_by_an_environment_stops_the_stage() -> None:
    watch = Watched(lambda: Odd(UserError("no such level")))
    with pytest.raises(UserError, match="no such level"):
        driven(rollouts(lookups(5)), Runtime(ScriptedEngine(erratic(PLACES)), watch))
    assert watch.open == 0


def test_a_bug_of_ours_stops_the_stage_under_its_own_name() -> None:
    def buggy(builder: TreeBuilder) -> Iterator[Any]:
        yield from explore(builder)
        raise KeyError("oops")

    with pytest.raises(KeyError, match="oops"):
        driven(
            iter([Rollout("a", key_in(1), buggy(TreeBuilder(key_in(1), RULES)))]),  # type: ignore[arg-type]
            Runtime(ScriptedEngine(erratic(PLACES)), Lookup),
        )


def test_whoever_stops_listening_cancels_the_rest() -> None:
    watch, engine = Watched(Lookup), ScriptedEngine(erratic(PLACES))

    async def main() -> None:
        trees = drive(rollouts(lookups(50)), Runtime(engine, watch), concurrency=50)
        await anext(trees)
        asked = len(engine.asks)
        await trees.aclose()
        assert watch.open == 0 and len(engine.asks) == asked

    asyncio.run(main())
    assert watch.made == 50


# What breaks one attempt


def test_an_environment_that_raises_now_and_then_costs_only_the_attempts_that_it_breaks() -> None:
    tasks = lookups(100)
    found = driven(rollouts(tasks), Runtime(ScriptedEngine(erratic(PLACES)), Breaking))
    attempts = [attempt for tree in found.values() for attempt in tree.attempts]
    broken = [attempt for attempt in attempts if attempt.stop is StopReason.ENVIRONMENT_ERROR]
    assert len(found) == 100 and 50 < len(broken) < len(attempts) / 2
    assert {attempt.error for attempt in broken} == {"EnvironmentFailure: breaking: OSError: the server went away"}
    assert {attempt.error for attempt in attempts if attempt not in broken} == {None}
    for tree in found.values():
        assert len(tree.attempts) == RULES.max_attempts or tree.spend.turns == RULES.turns
    examples = distill(list(found.values()), TERSE, Selection(qualify="any", branches_per_task=99))
    lost = {(tree.task.id, attempt.index) for tree in found.values() for attempt in tree.attempts if attempt.error}
    learned = {(example.task, example.attempt) for example in examples if example.kind == "counterfactual"}
    assert learned and not learned & lost
    bare = driven(rollouts(tasks), Runtime(ScriptedEngine(erratic(PLACES)), Lookup))
    unhurt = [key for key, tree in found.items() if not any(attempt.error for attempt in tree.attempts)]
    assert unhurt and all(found[key] == bare[key] for key in unhurt)


class Refusal(EnvironmentFailure):
    """A failure of an environment's own."""


def test_a_failure_of_an_environments_own_class_is_the_same_before_and_after_a_resume(tmp_path: Path) -> None:
    def once_more() -> Tree:
        journal = Journal(tmp_path / "journal.jsonl")
        runtime = Runtime(ScriptedEngine(erratic(PLACES)), lambda: Odd(Refusal("not \ud800 today"), horizon=4), journal)
        tree = driven(rollouts(lookups(1)), runtime)
        journal.close()
        return tree.popitem()[1]

    first, second = once_more(), once_more()
    assert first == second
    assert "EnvironmentFailure: Refusal: not ? today" in [attempt.error for attempt in first.attempts]


@pytest.mark.parametrize(
    ("info", "kept"),
    [({10: (1, 2), 9: "x"}, {"10": [1, 2], "9": "x"}), ({"bad": {1, 2}}, None), ({"bad": float("nan")}, None)],
)
def test_an_observation_is_kept_as_a_file_would_give_it_back(info: dict[Any, Any], kept: dict[str, Any] | None) -> None:
    class Chatty(Lookup):
        def step(self, action: str) -> Observation:
            return replace(super().step(action), reward=1, info=info)

    tree = driven(rollouts(lookups(1), max_attempts=1), Runtime(ScriptedEngine(lambda ask: PLACES[0]), Chatty)).popitem()[1]
    if kept is None:
        assert tree.attempts[0].stop is StopReason.ENVIRONMENT_ERROR and "plain data" in str(tree.attempts[0].error)
    else:
        assert tree.turns[0].observation.info == kept and type(tree.turns[0].observation.reward) is float


def test_an_observation_that_is_none_breaks_its_attempt() -> None:
    class Silent(Lookup):
        def step(self, action: str) -> Observation:
            return None  # type: ignore[return-value]

    tree = driven(rollouts(lookups(1)), Runtime(ScriptedEngine(erratic(PLACES)), Silent)).popitem()[1]
    assert {attempt.stop for attempt in tree.attempts} == {StopReason.ENVIRONMENT_ERROR}


# Rollback that does not hold


def look_back_late() -> Policy:
    """Moves at random and always goes back to the last turn, over as much ice as there is."""

    def answer(ask: Ask) -> str:
        if ask.purpose == "act":
            return random.Random(ask.seed).choice(MOVES)
        return f"turn {sum(message.role == 'assistant' for message in ask.messages)}: SLIPPERY"

    return answer


def test_branches_that_diverge_are_counted_named_and_yield_no_example() -> None:
    settings = {"min_length": 3, "max_length": 8, "horizon": 6}
    tasks = Sokoban(**settings).tasks("train", 60)
    runtime = Runtime(ScriptedEngine(look_back_late()), lambda: SlipperySokoban(slip=0.3, **settings))
    trees = list(driven(rollouts(tasks, reflect_every=3), runtime).values())
    diverged = [(tree, attempt) for tree in trees for attempt in tree.attempts if attempt.stop is StopReason.REPLAY_DIVERGED]
    assert len(diverged) > 40
    for tree, attempt in diverged:
        assert attempt.error is not None and attempt.error.startswith("ReplayDiverged: replay diverged at turn ")
        assert attempt.turn is not None and not attempt.success
        assert not any(turn.attempt == attempt.index for turn in tree.turns)
        assert attempt.index not in {reflection.attempt for reflection in tree.reflections}
    examples = distill(trees, TERSE, Selection(qualify="any", branches_per_task=99, success_share=1.0))
    learned = {(example.task, example.attempt) for example in examples}
    assert learned and not learned & {(tree.task.id, attempt.index) for tree, attempt in diverged}
    branches = sum(
        attempt.turn is not None and attempt.stop is not StopReason.REPLAY_DIVERGED for tree in trees for attempt in tree.attempts
    )
    assert sum(example.kind == "counterfactual" for example in examples) <= branches
    assert not any("SLIPPERY" in message.content for example in examples for message in example.messages)


class Forgetful(Lookup):
    """Shows something else when it is walked for the second time, and the same from then on."""

    resets = 0

    def reset(self, task: Task) -> Observation:
        self.resets += 1
        return super().reset(task)

    def step(self, action: str) -> Observation:
        return replace(super().step(action), text=f"Empty, {min(self.resets, 2)}.")


def test_equal_actions_that_showed_something_else_are_not_the_walk_to_go_back_to() -> None:
    # Attempt 1 repeats the actions of attempt 0 from the root and sees other things; attempt 2 goes back to attempt 0.
    def policy(ask: Ask) -> str:
        turns = sum(message.role == "assistant" for message in ask.messages)
        return "open place1" if ask.purpose == "act" else f"turn {turns}: hm"

    work = rollouts([key_in(5)], reflect_every=1, reflect_on_failure=False, max_depth=1, max_attempts=3)
    tree = driven(work, Runtime(ScriptedEngine(policy), Forgetful)).popitem()[1]
    assert [(attempt.parent, attempt.turn) for attempt in tree.attempts] == [(None, None), (0, 1), (0, 2)]
    assert [attempt.stop for attempt in tree.attempts] == [
        StopReason.TURN_LIMIT,
        StopReason.TURN_LIMIT,
        StopReason.REPLAY_DIVERGED,
    ]


def test_after_a_divergence_the_world_is_used_again_from_a_reset() -> None:
    work = rollouts([key_in(5)], reflect_every=0, max_attempts=4)
    tree = driven(work, Runtime(ScriptedEngine(steady("open place1", "turn 2: hm")), Forgetful)).popitem()[1]
    assert [attempt.stop for attempt in tree.attempts] == [
        StopReason.TURN_LIMIT,
        StopReason.REPLAY_DIVERGED,
        StopReason.TURN_LIMIT,
        StopReason.TURN_LIMIT,
    ]
    assert ReplayDiverged.__name__ in str(tree.attempts[1].error)


def test_a_walk_that_the_world_has_just_taken_costs_a_snapshot_no_step() -> None:
    task = Sokoban().tasks("train", 1)[0]
    work = rollouts([task], reflect_every=0, max_depth=9, max_attempts=5)
    tree = driven(work, Runtime(ScriptedEngine(steady("up", "turn 10: hm")), Sokoban)).popitem()[1]
    assert tree.spend.rollbacks > 1 and tree.spend.replayed_steps == 0
