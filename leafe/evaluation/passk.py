"""Pass@k from `n` graded attempts a task, and its confidence interval.

The estimate is the unbiased closed form, the share of the k-subsets of a task's attempts that hold a success, in exact integers and
rounded once. It is never resampled with replacement, never computed from fewer attempts than `k`, and never extrapolated. An interval
is a percentile bootstrap over tasks: it shows how another draw of tasks would move the mean, and has width zero if all tasks agree.
The draws are a function of the tasks alone, so every arm and every k uses the same ones and a difference between two arms is paired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from leafe.digest import seed_for
from leafe.errors import UserError

Shares = NDArray[np.float64]
BLOCK = 4_000_000  # resampled tasks held in memory at once


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over tasks and the bounds of its confidence interval, as fractions."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Resampling:
    """The settings of an interval: `resamples` bootstrap draws over tasks, and the mass between the bounds."""

    resamples: int = 2000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0 < self.confidence < 1:
            raise UserError(
                f"an interval wants resamples >= 1 and a confidence between 0 and 1; found {self.resamples}, {self.confidence}"
            )


@dataclass(frozen=True, slots=True)
class Counts:
    """The successes among the `samples` attempts at each task; `name` is that of the arm, for messages."""

    name: str
    samples: int
    successes: Mapping[str, int]

    def __post_init__(self) -> None:
        if not self.successes:
            raise UserError(f"{self.name} was measured on no task")
        for task, count in self.successes.items():
            if not 0 <= count <= self.samples or self.samples < 1:
                raise UserError(f"{self.name} has {count} successes of {self.samples} attempts at task {task!r}")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' ids in a fixed order."""
        return tuple(sorted(self.successes))


def powers_of_two_up_to(n: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to `n`; empty below 1."""
    return tuple(2**power for power in range(n.bit_length())) if n > 0 else ()


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that `k` of `n` attempts, drawn without replacement, hold one of the `c` successes: 1 - C(n-c, k) / C(n, k).

    >>> pass_at_k(4, 1, 4), pass_at_k(4, 1, 1)
    (1.0, 0.25)
    """
    if not 0 <= c <= n:
        raise UserError(f"Pass@k wants 0 <= successes <= n; found {c} successes of n={n}")
    _require_enough(n, k, "this task")
    # The quotient of two integers is rounded once, however large they are; a product of floats would not be exact at the ends.
    subsets = comb(n, k)
    return (subsets - comb(n - c, k)) / subsets


def pass_per_task(counts: Counts, k: int) -> Shares:
    """Pass@k of each task, in the order of `counts.tasks`."""
    _require_enough(counts.samples, k, counts.name)
    table = {count: pass_at_k(counts.samples, count, k) for count in set(counts.successes.values())}
    return np.array([table[counts.successes[task]] for task in counts.tasks])


def mean_pass_at_k(counts: Counts, k: int, how: Resampling = Resampling()) -> Interval:
    """Pass@k over all tasks."""
    return _interval(counts, pass_per_task(counts, k), how)


def paired_difference(arm: Counts, base: Counts, k: int, how: Resampling = Resampling()) -> Interval:
    """Pass@k of `arm` minus that of `base`, task by task. The two may hold different numbers of attempts, each at least `k`."""
    if arm.successes.keys() != base.successes.keys():
        only = len(arm.successes.keys() - base.successes.keys()), len(base.successes.keys() - arm.successes.keys())
        raise UserError(
            f"{arm.name} and {base.name} were not measured on the same tasks ({only[0]} only by the first, {only[1]} only by the "
            "second), so they have no paired difference; evaluate both with the same tasks.test_split, tasks.test and tasks.seed"
        )
    return _interval(arm, pass_per_task(arm, k) - pass_per_task(base, k), how)


def _require_enough(n: int, k: int, name: str) -> None:
    if k < 1:
        raise UserError(f"Pass@k wants k >= 1; found k={k}")
    if k > n:
        raise UserError(
            f"Pass@k wants n >= k samples a task; {name} has n={n}, k={k}; "
            f"ask for k up to {n}, or evaluate with evaluate.samples={k}"
        )


def _interval(counts: Counts, shares: Shares, how: Resampling) -> Interval:
    tail = (1 - how.confidence) / 2
    low, high = np.quantile(_resampled_means(shares, counts.tasks, how.resamples), [tail, 1 - tail])
    return Interval(float(shares.mean()), float(low), float(high))


def _resampled_means(shares: Shares, tasks: tuple[str, ...], resamples: int) -> Shares:
    draw = np.random.default_rng(seed_for("bootstrap over tasks", *tasks))
    block = max(1, BLOCK // len(tasks))
    runtime: list[Shares] = []
    for start in range(0, resamples, block):
        drawn = draw.integers(len(tasks), size=(min(block, resamples - start), len(tasks)))
        runtime.append(shares[drawn].mean(axis=1))
    return np.concatenate(runtime)
