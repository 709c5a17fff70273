"""One method over several seeds: its mean, and the paired difference to another, with intervals over seeds and tasks.

A row holds a share from 0 to 1 for every seed and task at each column, such as Pass@8. An interval is a percentile bootstrap that draws
seeds and tasks anew, each with replacement and both rows alike, so that it shows how other seeds and tasks would move the mean. With
one seed it is over tasks alone. Three seeds show little of the spread between seeds; such an interval is rather too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leafe.digest import seed_for
from leafe.errors import UserError
from leafe.evaluation.passk import Counts, Interval, Resampling, pass_per_task, powers_of_two_up_to
from leafe.forest.expert import expert_among
from leafe.records import Attempt, Tree

Shares = NDArray[np.float64]
BLOCK = 2_000_000  # resampled shares held in memory at once
ALL = "all"


@dataclass(frozen=True)
class Pooled:
    """A row: `shares` of each column, seeds x tasks, in the order of `seeds` and `tasks`."""

    name: str
    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    shares: Mapping[str, Shares]
    samples: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns in their order."""
        return tuple(self.shares)


def of_counts(name: str, counts: Mapping[int, Counts]) -> Pooled:
    """Pass@k of measured arms, one a seed, at the powers of two for which all of them have samples.

    Raises `UserError` if the seeds were not measured on the same tasks.
    """
    first, samples = next(iter(counts.values())), min(one.samples for one in counts.values())
    _require_same(name, {seed: one.tasks for seed, one in counts.items()})
    shares = {str(k): np.array([pass_per_task(one, k) for one in counts.values()]) for k in powers_of_two_up_to(samples)}
    return Pooled(name, tuple(counts), first.tasks, shares, samples)


def of_forests(name: str, forests: Mapping[int, Sequence[Tree]]) -> Pooled:
    """The tasks solved by the first 1, 2, 4, ... attempts of the policy, and by all of them. Raises `UserError` like `of_counts`."""
    solved = {
        seed: {tree.task.id: [one.success for one in own_attempts(tree)] for tree in trees} for seed, trees in forests.items()
    }
    _require_same(name, {seed: tuple(sorted(tasks)) for seed, tasks in solved.items()})
    tasks = tuple(sorted(next(iter(solved.values()))))
    most = max((len(tries) for by_task in solved.values() for tries in by_task.values()), default=0)
    columns = {**{str(k): k for k in powers_of_two_up_to(most)}, ALL: most}
    shares = {
        column: np.array([[float(any(by_task[task][:count])) for task in tasks] for by_task in solved.values()])
        for column, count in columns.items()
    }
    return Pooled(name, tuple(solved), tasks, shares, most)


def own_attempts(tree: Tree) -> list[Attempt]:
    """The policy's attempts, without an expert's solution and the single steps aside from it, of which one may end a task as well."""
    expert = expert_among(tree.attempts, tree.turns)
    beside = expert.index if expert else None
    return [
        one
        for one in tree.attempts
        if one.by == "policy" and (one.parent is None or one.parent != beside or one.turn is None or one.experience is not None)
    ]


def _require_same(name: str, tasks: Mapping[int, Sequence[str]]) -> None:
    first, *others = tasks
    for seed in others:
        if tuple(tasks[seed]) != tuple(tasks[first]):
            raise UserError(f"{name} has other tasks with seed {seed} than with seed {first}, so its seeds have no mean")


def mean(row: Pooled, column: str, how: Resampling = Resampling()) -> Interval:
    """The mean over seeds and tasks."""
    return _interval(row.tasks, row.shares[column], how)


def difference(row: Pooled, other: Pooled, column: str, how: Resampling = Resampling()) -> Interval | None:
    """A row minus another, paired by seed and task; None if they share no seed, column or tasks."""
    seeds = [seed for seed in row.seeds if seed in other.seeds]
    if not seeds or row.tasks != other.tasks or column not in row.shares or column not in other.shares:
        return None
    mine, theirs = (one.shares[column][[one.seeds.index(seed) for seed in seeds]] for one in (row, other))
    return _interval(row.tasks, mine - theirs, how)


def quotient(tasks: tuple[str, ...], top: Shares, bottom: Shares, how: Resampling = Resampling()) -> Interval | None:
    """The sum of `top` divided by that of `bottom`, both (seeds, tasks) and drawn alike; None where there is nothing to divide by."""
    above, below = (
        np.concatenate([drawn.mean(axis=1) for drawn in tasks_drawn(tasks, one, how.resamples)]) for one in (top, bottom)
    )
    return interval_of(float(over(top.sum(keepdims=True), bottom.sum(keepdims=True)).item()), over(above, below), how)


def over(top: Shares, bottom: Shares) -> Shares:
    """Quotients, not a number where there is nothing to divide by."""
    found: Shares = np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)
    return found


def interval_of(value: float, drawn: Shares, how: Resampling) -> Interval | None:
    """A value with the bounds of its draws, of which those that are no number are left out; None for a value that is none."""
    if np.isnan(value):
        return None
    tail = (1 - how.confidence) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _interval(tasks: tuple[str, ...], shares: Shares, how: Resampling) -> Interval:
    drawn = np.concatenate([drawn.mean(axis=1) for drawn in tasks_drawn(tasks, shares, how.resamples)])
    found = interval_of(float(shares.mean()), drawn, how)
    assert found is not None
    return found


def tasks_drawn(tasks: tuple[str, ...], shares: Shares, resamples: int) -> Iterator[Shares]:
    """Means over drawn seeds of drawn tasks, (resamples, tasks) in parts; the draws are a function of the tasks and the number of seeds."""
    seeds, count = shares.shape
    draw = np.random.default_rng(seed_for("bootstrap over seeds and tasks", seeds, *tasks))
    block = max(1, BLOCK // count)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        by_task = shares[draw.integers(seeds, size=(size, seeds))].mean(axis=1) if seeds > 1 else np.repeat(shares, size, axis=0)
        yield np.take_along_axis(by_task, draw.integers(count, size=(size, count)), axis=1)


def as_json(intervals: Mapping[str, Interval | None]) -> dict[str, Any]:
    """Intervals by column as JSON, without missing ones."""
    return {column: {"value": one.value, "low": one.low, "high": one.high} for column, one in intervals.items() if one is not None}
