"""Pass@k against enumeration, and what its intervals may and may not claim."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.errors import UserError
from leafe.evaluation.passk import (
    Counts,
    Interval,
    Resampling,
    mean_pass_at_k,
    paired_difference,
    pass_at_k,
    pass_per_task,
    powers_of_two_up_to,
)

QUICK = Resampling(resamples=300)


@st.composite
def graded(draw: st.DrawFn, most: int = 9) -> tuple[int, int, int]:
    n = draw(st.integers(1, most))
    return n, draw(st.integers(0, n)), draw(st.integers(1, n))


def counts(name: str, samples: int, *successes: int) -> Counts:
    return Counts(name, samples, {f"task-{index}": count for index, count in enumerate(successes)})


def test_one_success_of_four_is_certain_to_be_among_all_four() -> None:
    assert pass_at_k(4, 1, 4) == 1.0


@given(graded())
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_success(case: tuple[int, int, int]) -> None:
    n, c, k = case
    subsets = list(combinations([index < c for index in range(n)], k))
    assert pass_at_k(n, c, k) == sum(map(any, subsets)) / len(subsets)


@given(graded(most=1024))
def test_pass_at_k_is_exact_at_the_ends_and_a_fraction_between(case: tuple[int, int, int]) -> None:
    n, c, k = case
    assert pass_at_k(n, 0, k) == 0.0
    assert pass_at_k(n, n, k) == 1.0
    assert pass_at_k(n, c, 1) == c / n
    assert pass_at_k(n, c, n) == float(c > 0)
    assert 0.0 <= pass_at_k(n, c, k) <= 1.0


@given(graded(most=200))
def test_pass_at_k_never_falls_as_k_or_the_successes_grow(case: tuple[int, int, int]) -> None:
    n, c, k = case
    assert k == n or pass_at_k(n, c, k) <= pass_at_k(n, c, k + 1)
    assert c == n or pass_at_k(n, c, k) <= pass_at_k(n, c + 1, k)


def test_a_small_chance_among_many_attempts_keeps_its_digits() -> None:
    assert pass_at_k(10**6, 1, 1) == 1e-6
    assert pass_at_k(1024, 1, 128) == 0.125


def test_more_attempts_than_were_taken_are_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"Pass@k wants n >= k samples a task; leafe has n=64, k=128"):
        mean_pass_at_k(counts("leafe", 64, 3, 4), 128)
    with pytest.raises(UserError, match="k=0"):
        pass_at_k(4, 1, 0)


@pytest.mark.parametrize("successes", [(-1,), (5,), ()])
def test_counts_that_cannot_be_are_refused(successes: tuple[int, ...]) -> None:
    with pytest.raises(UserError):
        counts("leafe", 4, *successes)


def test_the_powers_of_two_end_at_the_number_of_samples() -> None:
    assert powers_of_two_up_to(64) == (1, 2, 4, 8, 16, 32, 64)
    assert powers_of_two_up_to(100) == (1, 2, 4, 8, 16, 32, 64)
    assert powers_of_two_up_to(1) == (1,)
    assert powers_of_two_up_to(0) == ()


@given(st.lists(st.integers(0, 8), min_size=1, max_size=12))
def test_the_mean_lies_between_its_bounds_and_all_of_them_grow_with_k(successes: list[int]) -> None:
    arm = counts("leafe", 8, *successes)
    curve = [mean_pass_at_k(arm, k, QUICK) for k in powers_of_two_up_to(8)]
    for one in curve:
        assert 0.0 <= one.low <= one.high <= 1.0
    for one, other in pairwise(curve):
        assert one.low <= other.low and one.value <= other.value and one.high <= other.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw, tasks, samples, covered, rounds = np.random.default_rng(5), 60, 16, 0, 200
    truth = 0.4 / (0.4 + 1.0)  # the mean of the tasks' difficulties, Beta(0.4, 1)
    for _ in range(rounds):
        solved = draw.binomial(samples, draw.beta(0.4, 1.0, size=tasks))
        found = mean_pass_at_k(counts("leafe", samples, *map(int, solved)), 1, QUICK)
        covered += found.low <= truth <= found.high
    assert 0.89 <= covered / rounds <= 0.99


def test_a_difference_is_paired_task_by_task() -> None:
    base, arm = counts("base", 4, 0, 1, 2, 3), counts("leafe", 4, 1, 2, 3, 4)
    assert paired_difference(arm, base, 1, QUICK) == Interval(0.25, 0.25, 0.25)
    assert mean_pass_at_k(arm, 1, QUICK).low < 0.5
    assert paired_difference(base, base, 2, QUICK) == Interval(0.0, 0.0, 0.0)


def test_a_difference_turns_its_sign_with_the_arms() -> None:
    base, arm = counts("base", 4, 0, 4, 2, 3, 0), counts("leafe", 4, 1, 2, 3, 4, 0)
    there, back = paired_difference(arm, base, 2, QUICK), paired_difference(base, arm, 2, QUICK)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))


def test_arms_with_different_numbers_of_samples_are_compared_up_to_the_smaller() -> None:
    base, arm = counts("base", 4, 1, 2), counts("leafe", 8, 4, 4)
    assert paired_difference(arm, base, 4, QUICK).value < 1
    with pytest.raises(UserError, match=r"base has n=4, k=8"):
        paired_difference(arm, base, 8, QUICK)


def test_arms_on_different_tasks_have_no_difference() -> None:
    with pytest.raises(UserError, match=r"leafe .*base .*1 .*0 "):
        paired_difference(counts("leafe", 4, 1, 2, 3), counts("base", 4, 1, 2), 1)


def test_the_order_in_which_tasks_were_read_does_not_matter() -> None:
    one, other = Counts("a", 4, {"x": 1, "y": 3, "z": 0}), Counts("a", 4, {"z": 0, "y": 3, "x": 1})
    assert mean_pass_at_k(one, 2, QUICK) == mean_pass_at_k(other, 2, QUICK)
    assert pass_per_task(one, 1).tolist() == [0.25, 0.75, 0.0]


def test_an_interval_is_the_same_in_every_process() -> None:
    code = (
        "from leafe.evaluation.passk import *; found = mean_pass_at_k(Counts('a', 4, {'x': 1, 'y': 3, 'z': 0}), 2, Resampling(300))\n"
        "import json; print(json.dumps([found.value, found.low, found.high]))"
    )
    here = mean_pass_at_k(Counts("a", 4, {"x": 1, "y": 3, "z": 0}), 2, QUICK)
    there = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert Interval(*there) == here


@pytest.mark.parametrize(("resamples", "confidence"), [(0, 0.95), (100, 0.0), (100, 1.0)])
def test_an_interval_that_cannot_be_drawn_is_refused(resamples: int, confidence: float) -> None:
    with pytest.raises(UserError, match="interval"):
        Resampling(resamples, confidence)


def test_many_resamples_of_many_tasks_are_drawn_in_blocks_that_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = counts("leafe", 4, *range(5))
    whole = mean_pass_at_k(arm, 1, QUICK)
    monkeypatch.setattr("leafe.evaluation.passk.BLOCK", 35)
    assert mean_pass_at_k(arm, 1, QUICK) == whole
