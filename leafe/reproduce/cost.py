"""The cost of what is left of a table: turns and attempts counted before they are played, time and tokens from a sample that is played.

Turns of exploring are counted exactly, those of measuring as if every attempt took as long as it may. The sample is played on training
tasks, never on held-out ones; learning itself is not in the estimate. A row that is finished at a seed costs nothing there, and one that is
half done counts whole.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import TracebackType

from leafe.differing import differing_fields
from leafe.errors import UserError
from leafe.experiment import Experiment, ForestSpec, explore_tasks
from leafe.progress import Gauge, Silent
from leafe.reproduce.plan import Plan
from leafe.reproduce.spec import Row
from leafe.settings import RunConfig
from leafe.stages import Stage, all_of

SAMPLE_TASKS = 64
LOOKED_AT = 256


@dataclass(frozen=True, slots=True)
class RowCost:
    """One row at one seed: turns that it plays for learning, attempts that it measures, and stages that an earlier row has done.

    `seeds` is the number of seeds at which it is not finished.
    """

    row: str
    stages: tuple[str, ...]
    turns: int
    attempts: int
    shared: tuple[str, ...]
    seeds: int = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """The cost of a few attempts: turns an attempt, tokens a turn, and seconds a turn with many attempts at once."""

    attempts: int
    turns: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A whole table. `seconds` and `tokens` are for all seeds and None without a sample."""

    rows: tuple[RowCost, ...]
    seeds: int
    longest: int
    sample: Sample | None = None

    @property
    def turns(self) -> int:
        """Turns for learning, all seeds."""
        return sum(row.seeds * row.turns for row in self.rows)

    @property
    def attempts(self) -> int:
        """Attempts that are measured, all seeds."""
        return sum(row.seeds * row.attempts for row in self.rows)

    @property
    def turns_of_attempts(self) -> float:
        """Turns that measuring takes: as many as in the sample, or at most."""
        each = self.sample.turns / self.sample.attempts if self.sample else self.longest
        return self.attempts * each

    @property
    def seconds(self) -> float | None:
        """Seconds of playing."""
        return (self.turns + self.turns_of_attempts) * self.sample.seconds / self.sample.turns if self.sample else None

    @property
    def tokens(self) -> float | None:
        """Prompt and sampled tokens."""
        return (self.turns + self.turns_of_attempts) * self.sample.tokens / self.sample.turns if self.sample else None

    def as_json(self) -> dict[str, object]:
        """The estimate as JSON."""
        totals = {name: getattr(self, name) for name in ("turns", "attempts", "turns_of_attempts", "seconds", "tokens")}
        return {**asdict(self), **totals}


def estimate(plan: Plan, stages: Mapping[str, Sequence[Stage]], longest: int, sample: Sample | None = None) -> Estimate:
    """The cost of what is left of a plan. `longest` is the most turns of an attempt."""
    return Estimate(tuple(_rows(plan, stages)), len(plan.asked.seeds), longest, sample)


def _rows(plan: Plan, stages: Mapping[str, Sequence[Stage]]) -> Iterator[RowCost]:
    forests: set[tuple[str, str]] = set()
    measured: list[tuple[str, str, RunConfig]] = []
    for row in plan.rows:
        config = plan.config(row, plan.asked.seeds[0])
        mine = [stage for stage in all_of(stages[row.name]) if row.said.method or stage.name == "evaluate base"]
        shared = [
            stage.name
            for stage in mine
            if (stage.verb == "explore" and _grown(forests, row, stage))
            or (stage.verb == "evaluate" and _measured(measured, (*_same(plan, row, stage), config)))
        ]
        count = Counter(stage.verb for stage in mine if stage.name not in shared)
        plays = {stage.verb for stage in mine} - {"evaluate"}  # without exploring first, a method plays while it learns
        budgets = count["explore"] if "explore" in plays else bool(plays)
        turns = budgets * config.explore.turns * config.tasks.train
        attempts = count["evaluate"] * config.tasks.test * config.evaluate.samples
        left = sum(not (plan.path(row, seed) / "DONE").is_file() for seed in plan.asked.seeds)
        yield RowCost(row.name, tuple(stage.name for stage in mine), turns, attempts, tuple(shared), left)


def _grown(forests: set[tuple[str, str]], row: Row, stage: Stage) -> bool:
    """Whether an earlier row grows the same forest, as far as that is known before; it is added to them.

    A row's `start` counts by its name, since its checkpoint need not be there.
    """
    try:
        key = stage.proof().key if stage.proof else None
    except UserError:
        key = None
    if key is None:
        return False
    known = (row.said.start, key) in forests
    forests.add((row.said.start, key))
    return known


def _measured(before: list[tuple[str, str, RunConfig]], now: tuple[str, str, RunConfig]) -> bool:
    """Whether an earlier row measures the same, by its policy and its settings; it is added to them."""
    known = any(now[:2] == one[:2] and _alike(one[2], now[2]) for one in before)
    before.append(now)
    return known


def _same(plan: Plan, row: Row, stage: Stage) -> tuple[str, str]:
    """The row and the arm that are measured: the base of a row that starts from another is that one's arm."""
    if stage.name == "evaluate base":
        source = row.said.start
        return ("", "base") if not source else (source, plan.table.row(source).arm)
    return row.name, stage.name.partition(" ")[2]


def _alike(before: RunConfig, now: RunConfig) -> bool:
    """Whether two rows have equal settings for measuring, the methods' own sections and settings that it does not read apart."""
    unread = {"name", "method", "model", "distill", "train", "explore", before.section, now.section}
    return all(one.partition(":")[0].partition(".")[0] in unread for one in differing_fields(before, now))


def play_sample(experiment: Experiment) -> Sample:
    """A few attempts of the base at training tasks, timed."""
    config = experiment.config
    tasks = config.tasks.model_copy(update={"train": min(SAMPLE_TASKS, config.tasks.train)})
    explore = config.explore.model_copy(update={"turns": min(config.explore.turns, 2 * longest_of(experiment)), "tokens": 0})
    clock = _Clock()
    small = replace(experiment, config=config.model_copy(update={"tasks": tasks, "explore": explore}), progress=clock)
    trees = explore_tasks(small, "a sample", ForestSpec("independent", small.explore_seed(1), small.base))
    seconds = max(1e-3, time.monotonic() - (clock.began or 0.0))
    spends = [tree.spend for tree in trees]
    return Sample(
        attempts=sum(len(tree.attempts) for tree in trees),
        turns=max(1, sum(spend.turns for spend in spends)),
        tokens=sum(spend.prompt_tokens + spend.sampled_tokens for spend in spends),
        seconds=seconds,
    )


class _Clock(Silent):
    """Notes when the first turn was taken, so that loading a model is not in the time."""

    def __init__(self) -> None:
        self.began: float | None = None

    def stage(self, name: str, total: float, unit: str) -> Gauge:
        """A gauge that looks at the clock once."""
        return _FirstTurn(self)


class _FirstTurn:
    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def advance(self, amount: float = 1.0) -> None:
        """Notes the time of the first turn."""
        self._clock.began = self._clock.began or time.monotonic()

    def __enter__(self) -> Gauge:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


def longest_of(experiment: Experiment) -> int:
    """The most turns that an attempt at a held-out task may take, by the first of them."""
    tasks = experiment.config.tasks
    few = experiment.config.model_copy(update={"tasks": tasks.model_copy(update={"test": min(LOOKED_AT, tasks.test)})})
    try:
        found = replace(experiment, config=few).tasks("test")
    except UserError:
        found = experiment.tasks("test")  # which says what was asked for
    return max(task.horizon for task in found)
