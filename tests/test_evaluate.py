"""Measuring: independent attempts without reflection or rollback, the same after a cut, and a file that never gets a run stuck."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from players import PLACES, Breaking, Policy, erratic, rules, steady

from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Environment
from leafe.errors import EngineError, RunConflict, UserError
from leafe.evaluation.evaluate import evaluate
from leafe.evaluation.outcomes import ArmOutcomes, Outcome, read_outcomes
from leafe.forest.driver import Runtime
from leafe.records import StopReason, Task
from leafe.worlds.fakes import Lookup

TASKS = Lookup(horizon=3).tasks("test", 6)
RULES = rules(turns=1, max_attempts=1, reflect_every=1, tokens=1)


def measured(
    path: Path,
    *,
    samples: int = 4,
    tasks: list[Task] | None = None,
    policy: Policy | None = None,
    make: Callable[[], Environment] = Lookup,
    fail_after: int | None = None,
    told: list[Outcome] | None = None,
) -> tuple[list[Outcome], ScriptedEngine]:
    engine = ScriptedEngine(policy or erratic(PLACES), fail_after=fail_after, concurrency=8)
    tell = (told if told is not None else []).append
    chosen = list(TASKS) if tasks is None else tasks
    return asyncio.run(evaluate(chosen, RULES, Runtime(engine, make), path, samples=samples, told=tell)), engine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "base.jsonl"


def lines(path: Path) -> list[bytes]:
    return sorted(path.read_bytes().splitlines())


def test_every_task_is_tried_as_often_as_asked_in_order_without_a_reflection_or_a_rollback(path: Path) -> None:
    told: list[Outcome] = []
    outcomes, engine = measured(path, told=told)
    assert [(one.task, one.sample) for one in outcomes] == [(task.id, sample) for task in TASKS for sample in range(4)]
    assert {ask.purpose for ask in engine.asks} == {"act"}
    assert sum(one.turns for one in outcomes) == len(engine.asks)
    assert sum(one.sampled_tokens for one in outcomes) == engine.stats.sampled_tokens
    assert sorted(told, key=str) == sorted(read_outcomes(path), key=str) == sorted(outcomes, key=str)
    assert any(one.success for one in outcomes) and not all(one.success for one in outcomes)


def test_an_attempt_uses_its_whole_horizon_whatever_the_budget_of_exploration(path: Path) -> None:
    outcomes, _ = measured(path, policy=steady("open nothing", ""))
    assert {(one.stop, one.turns) for one in outcomes} == {(StopReason.TURN_LIMIT, 3)}


def test_replies_without_an_action_and_cut_replies_are_counted_in_each_outcome(path: Path) -> None:
    outcomes, _ = measured(path, policy=steady("what\nnow", ""))
    assert {(one.turns, one.no_action, one.cut, one.shortened) for one in outcomes} == {(3, 3, 0, 0)}
    assert ArmOutcomes("base", read_outcomes(path)).faults.no_action == 1.0


def test_no_two_samples_draw_the_same(path: Path) -> None:
    _, engine = measured(path)
    assert len({ask.seed for ask in engine.asks}) == len(engine.asks)


def test_an_evaluation_that_was_cut_anywhere_ends_with_the_same_outcomes(path: Path) -> None:
    outcomes, engine = measured(path)
    whole, expected = path.read_bytes(), lines(path)
    for cut in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        kept = whole[:cut].count(b"\n") - 1
        again, rest = measured(path)
        assert again == outcomes and lines(path) == expected
        assert len(rest.asks) == len(engine.asks) - sum(one.turns for one in read_outcomes_of(whole, kept, path.parent))


def read_outcomes_of(whole: bytes, count: int, folder: Path) -> tuple[Outcome, ...]:
    """The first `count` outcomes of a file's content."""
    part = folder / "part.jsonl"
    part.write_bytes(b"".join(whole.splitlines(keepends=True)[: count + 1]))
    return read_outcomes(part)


def test_an_engine_that_dies_keeps_what_was_measured_and_measures_nothing_twice(path: Path) -> None:
    expected, _ = measured(path.with_name("whole.jsonl"))
    with pytest.raises(EngineError):
        measured(path, fail_after=30)
    kept = read_outcomes(path)
    assert 0 < len(kept) < len(expected)
    told: list[Outcome] = []
    outcomes, _ = measured(path, told=told)
    assert outcomes == expected and not set(told) & set(kept)


def test_a_finished_evaluation_asks_nothing(path: Path) -> None:
    outcomes, _ = measured(path)
    again, engine = measured(path)
    assert again == outcomes and engine.asks == []


def test_the_first_samples_of_a_larger_evaluation_are_those_of_a_smaller_one(path: Path) -> None:
    few, _ = measured(path, samples=2)
    more, engine = measured(path, samples=5)
    assert [one for one in more if one.sample < 2] == few
    assert sum(one.turns for one in more) - sum(one.turns for one in few) == len(engine.asks)


def test_samples_beyond_those_asked_for_stay_in_the_file_and_count_nowhere(path: Path) -> None:
    measured(path, samples=5)
    few, engine = measured(path, samples=3)
    assert engine.asks == [] and len(few) == 18
    arm = ArmOutcomes("base", read_outcomes(path), tasks=6, samples=3)
    assert len(arm.outcomes) == 30 and set(arm.counted) == set(few)
    counts = arm.counts()
    assert counts.samples == 3 and sum(counts.successes.values()) == sum(one.success for one in few)
    assert arm.turns == sum(one.turns for one in few)
    assert arm.tokens == sum(one.prompt_tokens + one.sampled_tokens for one in few)


def test_extra_samples_of_some_tasks_alone_do_not_pass_for_a_finished_evaluation(path: Path) -> None:
    measured(path, samples=3)
    extra = tuple(one for one in read_outcomes(path) if one.task != TASKS[0].id or one.sample != 1)
    with pytest.raises(UserError, match="5 of 6 tasks have 3 samples; type: leafe evaluate DIR"):
        ArmOutcomes("base", extra, tasks=6, samples=3).counts()


def test_a_file_with_attempts_at_other_tasks_is_refused_and_left_alone(path: Path) -> None:
    measured(path)
    before = path.read_bytes()
    with pytest.raises(RunConflict, match=r"base\.jsonl .*'lookup-.*'.* 5 tasks.*delete"):
        measured(path, tasks=list(TASKS[:5]))
    assert path.read_bytes() == before


def test_attempts_that_break_are_failures_that_are_counted_by_class(path: Path) -> None:
    outcomes, _ = measured(path, samples=20, make=Breaking)
    broken = [one for one in outcomes if one.stop is StopReason.ENVIRONMENT_ERROR]
    assert broken and not any(one.success for one in broken)
    arm = ArmOutcomes("base", tuple(outcomes), tasks=6, samples=20)
    assert arm.errors == {"EnvironmentFailure": len(broken)} and arm.counts().samples == 20
