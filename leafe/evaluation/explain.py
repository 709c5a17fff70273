"""What lies behind a row's Pass@k: on which tasks its successes are, beside those of the base, and how its attempts go.

Each figure is a quotient of two sums over seeds and tasks; its interval draws seeds and tasks anew, as those of Pass@k do. A task is
covered if at least one of its attempts succeeds. A method that sharpens succeeds more often where the base succeeds, and loses some of
these tasks; one that widens covers tasks that the base never solves. `best_tenth` is the share of all successes in the tenth of the
tasks that has most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from leafe.evaluation.drift import Drift
from leafe.evaluation.outcomes import ArmOutcomes, Outcome
from leafe.evaluation.passk import Interval, Resampling
from leafe.evaluation.pooled import Shares, interval_of, over, quotient, tasks_drawn

TENTH = 10
# The figures by their names in JSON: the heading, and the digits of a figure that is no share.
FIGURES: Mapping[str, tuple[str, int | None]] = {
    "covered": ("ever solved, %", None),
    "lost": ("base's lost, %", None),
    "won": ("others won, %", None),
    "best_tenth": ("in the best tenth, %", None),
    "turns_per_success": ("turns a success", 1),
    "nats_per_turn": ("nats a turn", 2),
    "nats_from_base": ("nats from the base a turn", 2),
    "set_back": ("set back, %", None),
    "recovered": ("of these recovered, %", None),
}


@dataclass(frozen=True, slots=True)
class TaskShare:
    """A task with the shares of successful attempts, means over seeds, of the row and of its base (None without one)."""

    task: str
    own: float
    base: float | None = None

    @property
    def kind(self) -> str:
        """Which of the two ever solved it: `both`, `won` (the row alone), `lost` (the base alone) or `neither`."""
        return {(True, True): "both", (True, False): "won", (False, True): "lost"}.get((self.own > 0, bool(self.base)), "neither")


@dataclass(frozen=True)
class Sums:
    """Sums over the attempts at each task, `(seeds, tasks)` each.

    `spoken` are the turns for which nats are known, `compared` those that the table's model has scored too, and `moved` are nats from it.
    """

    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    attempts: Shares
    successes: Shares
    turns: Shares
    nats: Shares
    spoken: Shares
    watched: Shares
    set_back: Shares
    recovered: Shares
    moved: Shares
    compared: Shares

    @property
    def covered(self) -> Shares:
        """One where at least one attempt succeeded."""
        return (self.successes > 0).astype(np.float64)

    def of(self, seeds: Sequence[int]) -> Sums:
        """The same of some seeds."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return Sums(tuple(seeds), self.tasks, *(getattr(self, name)[rows] for name in (*ADDED, *SCORED)))


# One summand each for an attempt, in the order of `Sums`.
ADDED: Mapping[str, Callable[[Outcome], float]] = {
    "attempts": lambda one: 1,
    "successes": lambda one: one.success,
    "turns": lambda one: one.turns,
    "nats": lambda one: one.nats or 0.0,
    "spoken": lambda one: one.turns if one.nats is not None else 0,
    "watched": lambda one: one.setback is not None,
    "set_back": lambda one: bool(one.setback),
    "recovered": lambda one: bool(one.setback) and one.success,
}
# And for an attempt that was scored under the table's model as well.
SCORED: Mapping[str, Callable[[Drift], float]] = {"moved": lambda one: one.moved, "compared": lambda one: one.turns}


def sums_of(arms: Mapping[int, ArmOutcomes], scored: Mapping[int, Sequence[Drift]] | None = None) -> Sums:
    """The sums of one row's arms, one a seed, which were measured on the same tasks; `scored` are the attempts that were, by seed."""
    tasks = next(iter(arms.values())).counts().tasks
    found = {name: np.zeros((len(arms), len(tasks))) for name in (*ADDED, *SCORED)}
    places = {task: number for number, task in enumerate(tasks)}
    for number, (seed, arm) in enumerate(arms.items()):
        for one in sorted(arm.counted, key=lambda one: (one.task, one.sample)):  # they come in the order of their ends
            for name, summand in ADDED.items():
                found[name][number, places[one.task]] += summand(one)
        for drift in (scored or {}).get(seed, ()):
            for name, part in SCORED.items():
                found[name][number, places[drift.task]] += part(drift)
    return Sums(tuple(arms), tasks, *found.values())


def explained(own: Sums, base: Sums | None, how: Resampling = Resampling()) -> dict[str, Interval]:
    """The figures of a row by the names of `FIGURES`, without those for which nothing is known."""
    return {name: figure for name, figure in _figures(own, base, how) if figure is not None}


def _figures(own: Sums, base: Sums | None, how: Resampling) -> Iterator[tuple[str, Interval | None]]:
    def share(top: Shares, bottom: Shares, tasks: tuple[str, ...] = own.tasks) -> Interval | None:
        return quotient(tasks, top, bottom, how)

    yield "covered", share(own.covered, np.ones_like(own.covered))
    if base is not None and (seeds := [seed for seed in own.seeds if seed in base.seeds]) and base.tasks == own.tasks:
        mine, theirs = own.of(seeds).covered, base.of(seeds).covered
        yield "lost", share(theirs * (1 - mine), theirs)
        yield "won", share(mine * (1 - theirs), 1 - theirs)
    yield "best_tenth", best_tenth(own.tasks, own.successes, how)
    yield "turns_per_success", share(own.turns, own.successes)
    yield "nats_per_turn", share(own.nats, own.spoken)
    yield "nats_from_base", share(own.moved, own.compared)
    yield "set_back", share(own.set_back, own.watched)
    yield "recovered", share(own.recovered, own.set_back)


def best_tenth(tasks: tuple[str, ...], successes: Shares, how: Resampling = Resampling()) -> Interval | None:
    """The share of all successes that the tenth of the tasks with the most successes holds; None without successes."""

    first = -(-len(tasks) // TENTH)

    def held(by_task: Shares) -> Shares:
        best: Shares = -np.sort(-by_task, axis=-1)[..., :first].sum(axis=-1)
        return over(best, by_task.sum(axis=-1))

    drawn = np.concatenate([held(one) for one in tasks_drawn(tasks, successes, how.resamples)])
    return interval_of(float(held(successes.sum(axis=0, keepdims=True))[0]), drawn, how)


def task_shares(own: Sums, base: Sums | None) -> tuple[TaskShare, ...]:
    """Each task's shares, those that the base solves most often first."""
    mine = own.successes.sum(axis=0) / own.attempts.sum(axis=0)
    if base is None or base.tasks != own.tasks:
        return tuple(
            TaskShare(task, float(share)) for task, share in sorted(zip(own.tasks, mine, strict=True), key=lambda one: -one[1])
        )
    theirs = base.successes.sum(axis=0) / base.attempts.sum(axis=0)
    shares = [TaskShare(*one) for one in zip(own.tasks, map(float, mine), map(float, theirs), strict=True)]
    return tuple(sorted(shares, key=lambda one: (-(one.base or 0), -one.own, one.task)))
