"""Means over seeds and tasks, and paired differences, against small cases worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.errors import UserError
from leafe.evaluation.diagnose import shares
from leafe.evaluation.passk import Counts, Resampling, paired_difference
from leafe.evaluation.pooled import difference, mean, of_counts, of_forests, own_attempts
from leafe.records import Attempt, Completion, Observation, StopReason, Task, Tree, Turn, Usage

HOW = Resampling(400)


def counts(*successes: int, samples: int = 4) -> Counts:
    return Counts("arm", samples, {f"task{number}": count for number, count in enumerate(successes)})


def test_the_value_is_the_mean_over_seeds_of_the_mean_over_tasks() -> None:
    row = of_counts("leafe", {1: counts(4, 0), 2: counts(2, 2)})
    assert row.columns == ("1", "2", "4") and row.seeds == (1, 2)
    assert mean(row, "1", HOW).value == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    # Of two attempts out of four with two successes, one of the six pairs holds none.
    assert mean(row, "2", HOW).value == pytest.approx((1 + 0 + 5 / 6 + 5 / 6) / 4)


def test_a_difference_is_paired_by_seed_and_task() -> None:
    mine, theirs = of_counts("a", {1: counts(3, 2), 2: counts(2, 1)}), of_counts("b", {1: counts(2, 1), 2: counts(1, 0)})
    found = difference(mine, theirs, "1", HOW)
    # Every task of every seed is better by one of four, so no draw of seeds and tasks moves it.
    assert found is not None and (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_only_seeds_that_both_have_are_compared() -> None:
    mine, theirs = of_counts("a", {1: counts(4, 4), 2: counts(0, 0)}), of_counts("b", {2: counts(1, 1), 3: counts(4, 4)})
    found = difference(mine, theirs, "1", HOW)
    assert found is not None and found.value == pytest.approx(-0.25)
    assert difference(mine, of_counts("c", {3: counts(1, 1)}), "1", HOW) is None


def test_other_tasks_or_a_column_that_is_not_there_have_no_difference() -> None:
    row = of_counts("a", {1: counts(1, 1)})
    assert difference(row, of_counts("b", {1: counts(1, 1, 1)}), "1", HOW) is None
    assert difference(row, of_counts("b", {1: counts(1, 1, samples=2)}), "4", HOW) is None
    with pytest.raises(UserError, match="other tasks with seed 2"):
        of_counts("a", {1: counts(1, 1), 2: counts(1)})


def test_the_spread_between_seeds_is_in_the_interval() -> None:
    """Tasks agree within a seed and seeds do not, so that an interval over tasks alone would be of no width."""
    row = of_counts("a", {1: counts(0, 0), 2: counts(4, 4)})
    assert (mean(row, "1", HOW).low, mean(row, "1", HOW).high) == (0.0, 1.0)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6))
def test_with_one_seed_the_value_is_that_of_a_paired_difference_over_tasks(pairs: list[tuple[int, int]]) -> None:
    mine, theirs = counts(*(one for one, _ in pairs)), counts(*(other for _, other in pairs))
    found = difference(of_counts("a", {1: mine}), of_counts("b", {1: theirs}), "2", HOW)
    wanted = paired_difference(mine, theirs, 2, HOW)
    assert found is not None and found.value == pytest.approx(wanted.value)
    assert found.low <= found.value + 1e-9 and found.value <= found.high + 1e-9
    assert np.isfinite([found.low, found.high]).all()


def attempt(index: int, stop: StopReason, **more: Any) -> Attempt:
    return Attempt(index, 0, stop, stop is StopReason.SUCCESS, 0.0, f"t{index}", **more)


def tree(*attempts: Attempt) -> Tree:
    turns = tuple(
        Turn(f"t{one.index}", None, one.turn or 1, one.index, "go", True, Completion("go"), Observation("")) for one in attempts
    )
    return Tree(Task("task0", "halls", "Get out.", 4), "early_experience", Observation(""), turns, attempts, (), Usage())


def test_an_experts_solution_and_the_steps_aside_from_it_are_no_attempts_of_the_policy() -> None:
    expert = attempt(0, StopReason.SUCCESS, by="environment")
    aside, lucky = (attempt(n, stop, parent=0, turn=1) for n, stop in ((1, StopReason.ONE_STEP), (2, StopReason.SUCCESS)))
    plain, branch = attempt(3, StopReason.FAILURE), attempt(4, StopReason.SUCCESS, parent=3, turn=1, experience="left")
    assert own_attempts(tree(expert, aside, lucky, plain, branch)) == [plain, branch]
    found = of_forests("tree", {1: [tree(expert, aside, lucky, plain, branch)]})
    assert {column: share.item() for column, share in found.shares.items()} == {"1": 0.0, "2": 1.0, "all": 1.0}
    assert of_forests("tree", {1: [tree(expert, aside, lucky)]}).shares["all"].item() == 0.0
    # Where the policy's own success is the expert, its branches are attempts all the same.
    own, after = attempt(0, StopReason.SUCCESS), attempt(1, StopReason.FAILURE, parent=0, turn=1, experience="left")
    assert own_attempts(tree(own, after, lucky)) == [own, after]


def test_an_interval_over_groups_has_the_confidence_that_is_asked_for() -> None:
    groups = [[float(number % 3 == 0)] for number in range(20)]
    wide, narrow = (shares(groups, how=Resampling(400, confidence)) for confidence in (0.95, 0.5))
    assert wide is not None and narrow is not None and wide.value == narrow.value
    assert narrow.high - narrow.low < wide.high - wide.low
