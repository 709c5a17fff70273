"""Turns that solved tasks leave go to unsolved ones: within the same budget, the same forest however it is cut, and trees that go on."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from players import PLACES, Hand, erratic, rules

from leafe.config import parse
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Environment, Fidelity
from leafe.errors import EngineError, UserError
from leafe.experiment import Experiment, ForestSpec, explore_tasks
from leafe.forest.builder import TreeBuilder
from leafe.forest.explore import EXPLORERS
from leafe.forest.passes import Standing, shared_out, standing
from leafe.progress import Silent
from leafe.records import Tree
from leafe.worlds.fakes import Lookup

TASKS, TURNS = 8, 6
RECIPE = """
name: passes
environment: {name: lookup, args: {horizon: 3}}
tasks: {train: %d}
explore: {turns: %d, max_attempts: 60, max_depth: 3, reflect_every: 2}
"""


def experiment(engine: ScriptedEngine, *overrides: str, world: type[Environment] = Lookup) -> Experiment:
    config = parse(RECIPE % (TASKS, TURNS), "passes", ["explore.stop_when_solved=1", *overrides])
    return Experiment(config, Path("none"), lambda folder: engine, lambda: world(horizon=3), Silent())  # type: ignore[call-arg]


def explored(method: str, folder: Path | None, *overrides: str, patience: int | None = None, concurrency: int = 5) -> list[Tree]:
    engine = ScriptedEngine(erratic(PLACES), fail_after=patience, concurrency=concurrency)
    files = (folder / "forest.jsonl", folder / "journal.jsonl") if folder else (None, None)
    return explore_tasks(experiment(engine, *overrides), "explore", ForestSpec(method, 5, Path("none"), *files))


def successes(tree: Tree) -> int:
    return sum(attempt.success for attempt in tree.attempts)


@pytest.mark.parametrize("method", sorted(EXPLORERS))
@pytest.mark.parametrize("enough", [1, 2])
def test_a_task_is_left_after_so_many_successes_and_its_turns_go_to_others(method: str, enough: int) -> None:
    trees = explored(method, None, f"explore.stop_when_solved={enough}")
    assert max(map(successes, trees)) <= enough
    solved = [tree for tree in trees if successes(tree) == enough]
    unsolved = [tree for tree in trees if successes(tree) < enough]
    assert any(tree.spend.turns < TURNS for tree in solved) and all(tree.attempts[-1].success for tree in solved)
    assert any(tree.spend.turns > TURNS for tree in trees) and all(tree.spend.turns >= TURNS for tree in unsolved)
    spent = sum(tree.spend.turns for tree in trees)
    assert spent <= TASKS * TURNS and (not unsolved or spent == TASKS * TURNS)


@pytest.mark.parametrize("method", sorted(EXPLORERS))
def test_a_tree_is_the_one_that_its_turns_would_have_given_from_the_start(method: str) -> None:
    def alone(tree: Tree) -> Tree:
        own = rules(turns=max(tree.spend.turns, TURNS), seed=built.seed, max_attempts=60, max_depth=3, reflect_every=2)
        own = replace(own, stop_when_solved=1, act=built.act, reflect=built.reflect, prompts=built.prompts)
        return Hand(Lookup(horizon=3), erratic(PLACES)).finish(EXPLORERS[method](TreeBuilder(tree.task, own)))

    built = experiment(ScriptedEngine(erratic(PLACES))).rules(5)
    for tree in explored(method, None):
        # A hand replays where a world stands there already.
        assert replace(tree.spend, replayed_steps=0) == replace(alone(tree).spend, replayed_steps=0)
        assert (tree.turns, tree.attempts) == (alone(tree).turns, alone(tree).attempts)


@pytest.mark.parametrize("method", sorted(EXPLORERS))
def test_neither_kills_nor_the_size_of_the_machine_change_the_forest(method: str, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, draw = explored(method, tmp_path / "whole"), random.Random(3)
    assert explored(method, None, concurrency=1) == whole
    for _ in range(200):
        try:
            trees = explored(method, tmp_path / "killed", patience=draw.randint(3, 25), concurrency=draw.choice([1, 3, 9]))
            break
        except EngineError:
            journal = tmp_path / "killed" / "journal.jsonl"
            journal.write_bytes(journal.read_bytes()[: -draw.randrange(1, 200)])
    assert trees == whole
    written, alone = ((tmp_path / name / "forest.jsonl").read_bytes().splitlines() for name in ("killed", "whole"))
    assert sorted(written) == sorted(alone)


def test_without_the_setting_each_task_keeps_its_own_budget() -> None:
    trees = explored("independent", None, "explore.stop_when_solved=0")
    assert {tree.spend.turns for tree in trees} == {TURNS} and max(map(successes, trees)) > 1


def test_a_world_that_cannot_be_rolled_back_is_refused_in_a_sentence() -> None:
    class Sealed(Lookup):
        fidelity = Fidelity.NONE

    with pytest.raises(UserError, match=r"stop_when_solved wants .* rolled back.*set explore\.stop_when_solved=0"):
        experiment(ScriptedEngine(erratic(PLACES)), world=Sealed).check()


def test_what_is_left_is_shared_evenly_and_the_first_get_one_turn_more() -> None:
    budgets = {"a": 10, "b": 10, "c": 10, "d": 10}
    stands = {"a": Standing(3, 1), "b": Standing(10, 0), "c": Standing(8, 0), "d": Standing(10, 0)}
    # 7 of a and 2 of c, which has ended for another reason than its turns.
    assert shared_out(budgets, stands, total=40, solved=1) == {"b": 15, "d": 14}
    assert shared_out(budgets, stands, total=40, solved=2) == {"b": 15, "d": 14}
    assert shared_out(budgets, {**stands, "a": Standing(10, 1)}, total=40, solved=1) == {"b": 11, "d": 11}
    assert shared_out(budgets, dict.fromkeys(budgets, Standing(10, 0)), total=40, solved=1) == {}
    assert shared_out(budgets, dict.fromkeys(budgets, Standing(4, 1)), total=40, solved=1) == {}
    assert shared_out(
        {"a": 2, "b": 2, "c": 2}, {"a": Standing(1, 1), "b": Standing(2, 0), "c": Standing(2, 0)}, total=6, solved=1
    ) == {"b": 3}


@given(st.integers(1, 40), st.integers(0, 2**32), st.sampled_from(sorted(EXPLORERS)))
@settings(max_examples=30, deadline=None)
def test_where_a_tree_stood_at_a_budget_is_read_off_the_tree_of_a_larger_one(budget: int, seed: int, method: str) -> None:
    task = Lookup(horizon=3).tasks("train", 1)[0]

    def grown(turns: int) -> Tree:
        own = rules(turns=turns, seed=seed, max_attempts=60, reflect_every=2)
        return Hand(Lookup(horizon=3), erratic(PLACES)).finish(EXPLORERS[method](TreeBuilder(task, own)))

    small, large = grown(budget), grown(40)
    assert standing(large, budget) == Standing(small.spend.turns, successes(small))
    assert large.turns[: len(small.turns)] == small.turns
