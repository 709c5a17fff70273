"""Evaluation files, and arms side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from leafe.errors import CorruptFile, UnknownName, UserError
from leafe.evaluation.compare import Comparison, compare, table_rows, with_bounds
from leafe.evaluation.outcomes import SCHEMA, ArmOutcomes, Outcome, of_run, read_outcomes
from leafe.evaluation.passk import Interval, Resampling
from leafe.jsonl import Appender
from leafe.records import StopReason, encode

QUICK = Resampling(resamples=200)
LOST = Outcome("task-0", 0, StopReason.TURN_LIMIT, False, 0.0, 5, 50, 10)


def arm(name: str, samples: int, *successes: int, tasks: str = "task") -> ArmOutcomes:
    """An arm whose task number `i` succeeded in its first `successes[i]` attempts."""
    outcomes = [
        replace(
            LOST,
            task=f"{tasks}-{index}",
            sample=sample,
            success=sample < count,
            stop=StopReason.SUCCESS if sample < count else StopReason.TURN_LIMIT,
        )
        for index, count in enumerate(successes)
        for sample in range(samples)
    ]
    return ArmOutcomes(name, tuple(outcomes), "runs/trial-001")


def written(path: Path, *outcomes: Outcome) -> Path:
    with Appender(path, SCHEMA) as lines:
        for outcome in outcomes:
            lines.append(encode(outcome))
    return path


def test_outcomes_come_back_from_the_file_that_they_were_written_to(tmp_path: Path) -> None:
    outcomes = arm("base", 2, 1, 2).outcomes
    assert read_outcomes(written(tmp_path / "base.jsonl", *outcomes)) == outcomes


def test_a_sample_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "base.jsonl", LOST, replace(LOST, sample=1), LOST)
    with pytest.raises(CorruptFile, match=r"line 4 is sample 0 of task 'task-0'"):
        read_outcomes(path)


@pytest.mark.parametrize(
    "change",
    [
        {"success": True},
        {"stop": "success"},
        {"stop": "success", "success": True, "error": "EnvironmentFailure: lost"},
        {"turns": -1},
        {"sample": -1},
        {"reward": float("nan")},
        {"stop": "tired"},
        {"turns": "five"},
        {"no_action": 6},
        {"cut": -1},
        {"colour": "red"},
    ],
)
def test_an_outcome_that_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "base.jsonl"
    path.write_text(json.dumps({"schema": SCHEMA}) + "\n" + json.dumps({**encode(LOST), **change}) + "\n")
    with pytest.raises(CorruptFile, match="line 2 is no outcome"):
        read_outcomes(path)


def test_a_broken_attempt_is_a_failure_and_is_counted_by_its_class() -> None:
    broken = [
        replace(LOST, stop=StopReason.ENVIRONMENT_ERROR, error="EnvironmentFailure: the door: jammed"),
        replace(LOST, sample=1, stop=StopReason.CANCELLED),
        replace(LOST, sample=2, error="EngineError"),
        replace(LOST, sample=3),
    ]
    found = ArmOutcomes("base", tuple(broken))
    assert found.errors == {"EngineError": 1, "EnvironmentFailure": 1, "cancelled": 1}
    assert found.counts().successes == {"task-0": 0}
    assert found.counts().samples == 4


def test_an_evaluation_that_is_not_finished_gives_no_number() -> None:
    whole = arm("leafe", 4, 1, 2, 3)
    cut = replace(whole, outcomes=whole.outcomes[:-1])
    with pytest.raises(UserError, match=r"leafe .*2 of 3 .*4 .*leafe evaluate runs/trial-001"):
        compare([cut], base=None)


@pytest.mark.parametrize("wanted", [{"tasks": 4}, {"samples": 8}, {"tasks": 2}])
def test_an_evaluation_holds_as_many_tasks_and_samples_as_were_asked_for(wanted: dict[str, int]) -> None:
    whole = arm("leafe", 4, 1, 2, 3)
    assert replace(whole, tasks=3, samples=4).counts().samples == 4
    with pytest.raises(UserError, match="not finished"):
        replace(whole, **wanted).counts()


def test_samples_beyond_those_asked_for_count_nowhere() -> None:
    whole = arm("leafe", 4, 1, 2, 3)
    assert replace(whole, samples=2).counts().samples == 2


def test_an_empty_evaluation_is_not_finished() -> None:
    with pytest.raises(UserError, match="not finished: 0 of 1 tasks"):
        ArmOutcomes("leafe", ()).counts()


def test_the_comparison_as_json_has_exactly_the_agreed_shape() -> None:
    found = compare([arm("base", 4, 0, 1), arm("leafe", 4, 2, 4)], how=QUICK).as_json()
    json.dumps(found, allow_nan=False)
    assert list(found) == ["arms"]
    base, leafe = found["arms"]
    assert list(leafe) == ["name", "pass_at_k", "minus_base", "turns", "tokens", "errors", "faults"]
    assert list(leafe["pass_at_k"]) == list(leafe["minus_base"]) == ["1", "2", "4"]
    assert leafe["pass_at_k"]["1"]["value"] == 0.75
    assert leafe["minus_base"]["1"] == {"value": 0.625, "low": 0.5, "high": 0.75}
    assert base["minus_base"] == {}
    assert (leafe["turns"], leafe["tokens"], leafe["errors"]) == (40, 480, {})


def test_a_k_is_absent_where_there_are_too_few_samples() -> None:
    found = compare([arm("base", 2, 0, 1), arm("leafe", 8, 2, 4)], how=QUICK)
    base, leafe = found.arms
    assert list(base.pass_at_k) == [1, 2]
    assert list(leafe.pass_at_k) == [1, 2, 4, 8]
    assert list(leafe.minus_base) == [1, 2]
    assert found.ks == (1, 2, 4, 8)


def test_a_k_that_was_asked_for_and_cannot_be_had_is_refused() -> None:
    with pytest.raises(UserError, match="base has n=2, k=8"):
        compare([arm("base", 2, 0, 1), arm("leafe", 8, 2, 4)], ks=[1, 8], how=QUICK)


def test_arms_of_several_runs_are_each_compared_with_their_own_base() -> None:
    first = of_run("one", [arm("base", 4, 0, 0), arm("leafe", 4, 2, 2)])
    second = of_run("two", [arm("base", 4, 4, 4, tasks="other"), arm("leafe", 4, 4, 4, tasks="other")])
    found = {result.name: result for result in compare([*first, *second], how=QUICK).arms}
    assert list(found) == ["one:base", "one:leafe", "two:base", "two:leafe"]
    assert found["one:leafe"].minus_base[1].value == 0.5
    assert found["two:leafe"].minus_base[1].value == 0.0
    assert compare([*first, replace(first[1], name="three:leafe")], base="one:base", how=QUICK).arms[2].minus_base


def test_a_base_that_is_not_there_and_an_arm_that_is_there_twice_are_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'base'"):
        compare([arm("base", 2, 0, 1)], base="bases", how=QUICK)
    with pytest.raises(UserError, match="'leafe' occurs twice"):
        compare([arm("leafe", 2, 0, 1), arm("leafe", 2, 0, 1)], base=None, how=QUICK)
    with pytest.raises(UserError, match="not measured on the same tasks"):
        compare([arm("base", 2, 0, 1), arm("leafe", 2, 0, 1, tasks="other")], how=QUICK)


def test_nothing_is_subtracted_where_there_is_no_base() -> None:
    assert compare([arm("leafe", 2, 0, 1)], base=None, how=QUICK).arms[0].minus_base == {}


def test_a_table_for_the_terminal_holds_percent_with_bounds() -> None:
    found = compare([arm("base", 4, 0, 1), arm("leafe", 4, 2, 4)], how=QUICK)
    heading, base, base_most, leafe, _ = table_rows(found)
    assert heading == ("arm", "k", "Pass@k", "- base", "turns", "tokens", "errors")
    assert base[3] == base_most[3] == "-"
    assert leafe[:4] == ("leafe", "1", "75.0 [50.0, 100.0]", "+62.5 [+50.0, +75.0]")
    assert base_most[:2] == ("", "4")
    assert leafe[-1] == "none"
    assert table_rows(Comparison(())) == (heading,)


def test_errors_are_never_none_over_replies_without_an_action() -> None:
    lost = [replace(LOST, sample=sample, no_action=5, cut=4, shortened=1) for sample in range(4)]
    found = compare([ArmOutcomes("base", tuple(lost))], how=QUICK)
    assert table_rows(found)[1][-1] == "100 % no action, 80 % cut"
    faults = found.as_json()["arms"][0]["faults"]
    assert (faults["no_action"], faults["cut"], faults["shortened"], faults["out_of_room"]) == (1.0, 0.8, 0.2, 0.0)


def test_a_file_from_before_replies_were_counted_is_read_and_gives_no_share(tmp_path: Path) -> None:
    counted = {"no_action", "cut", "shortened"}
    old = {name: value for name, value in encode(LOST).items() if name not in counted}
    path = tmp_path / "base.jsonl"
    path.write_text(json.dumps({"schema": SCHEMA}) + "\n" + json.dumps(old) + "\n")
    arm = ArmOutcomes("base", (*read_outcomes(path), replace(LOST, sample=1, no_action=5, cut=5, shortened=0)))
    assert (arm.faults.no_action, arm.faults.cut, arm.faults.shortened, arm.faults.out_of_room) == (None, None, None, 0.0)


def test_a_difference_of_nothing_has_no_minus_sign() -> None:
    assert with_bounds(Interval(-0.0001, -0.021, 0.0), signed=True) == "+0.0 [-2.1, +0.0]"
