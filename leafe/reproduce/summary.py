"""From the runs of a plan to its table: means over seeds, paired differences, the cost of each row, and the checked claims."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from math import floor
from pathlib import Path
from typing import Any

from leafe.errors import CorruptFile
from leafe.evaluation.diagnose import shares
from leafe.evaluation.drift import Drift
from leafe.evaluation.explain import Sums, explained, sums_of, task_shares
from leafe.evaluation.gap import Gap
from leafe.evaluation.outcomes import ArmOutcomes
from leafe.evaluation.passk import Interval, Resampling, powers_of_two_up_to
from leafe.evaluation.pooled import Pooled, difference, mean, of_counts, of_forests, own_attempts
from leafe.evaluation.tables import Cost, RowResult, TableResult, verdict
from leafe.measuring import ENGINE
from leafe.records import UNJUDGED, Tree
from leafe.reproduce.gap import gaps
from leafe.reproduce.paper import figures_of
from leafe.reproduce.plan import Plan, shows, told_for_tables
from leafe.reproduce.scoring import scored
from leafe.reproduce.spec import LARGEST, CheckSettings, Row
from leafe.reproduce.work import Failure
from leafe.results import arms_of, exploration_of
from leafe.run import RunDirectory
from leafe.stages import Stage, needed

Stages = Mapping[str, Sequence[Stage]]
EQUAL = 1e-9
MOST = 0.9  # a row that took a smaller share of its turns is marked: it may not have learned from as much as the others


def summary(plan: Plan, stages: Stages, failures: Sequence[Failure] = (), *, asked: Plan | None = None) -> TableResult:
    """The finished part of a table. Rows and seeds that are not finished are named in `missing`.

    `asked` is the part of the plan that is asked for, by default all of it.
    """
    return _Summary(plan, stages, tuple(failures), asked or plan).table()


@dataclass(frozen=True)
class _Run:
    """What a finished run of a row reports: the `trees` of a forest, or an arm with what was found out about it."""

    run: RunDirectory
    reflected: tuple[_Reflected, ...]
    arm: ArmOutcomes | None = None
    trees: Sequence[Tree] = ()
    drifts: tuple[Drift, ...] = ()
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True)
class _Summary:
    plan: Plan
    stages: Stages
    failures: tuple[Failure, ...]
    asked: Plan

    @cached_property
    def how(self) -> Resampling:
        settings = self.plan.base.evaluate
        return Resampling(settings.resamples, settings.confidence)

    @cached_property
    def found(self) -> dict[tuple[str, int], _Run | str]:
        """The finished run of every row at every seed, those that others start from included, or why there is none."""
        return {(row.name, seed): self._found(row, seed) for row in self.plan.rows for seed in self.plan.asked.seeds}

    def _found(self, row: Row, seed: int) -> _Run | str:
        """Raises `CorruptFile` for a damaged run that is asked for; that of another is a reason like others."""
        path = self.plan.path(row, seed)
        asked = seed in self.asked.asked.seeds and row in self.asked.rows
        if not (path / "DONE").is_file() or not (path / "config.yaml").is_file():
            return "not finished yet" if asked or path.is_dir() else "not asked for"
        try:
            with told_for_tables(self.plan.out):
                return self._read(row, seed)
        except CorruptFile as error:
            if asked:
                raise
            return str(error)

    def _read(self, row: Row, seed: int) -> _Run | str:
        run = RunDirectory.existing(self.plan.path(row, seed), read_only=True)
        if changes := self.plan.changes(row, seed, run):
            return f"made with other settings ({'; '.join(changes)})"
        forest = row.said.forest
        if (forest or row.arm) not in (run.forests() if forest else run.arms()):  # its record was lost since it was done
            return "not finished yet"
        reflected = _reflected(run.path, forest, _stamp(run.path))
        if forest:
            return _Run(run, reflected, trees=dict(exploration_of(run))[forest])
        arm = next((arm for arm in arms_of(run) if arm.name == row.arm), None)
        return (
            "not finished yet"
            if arm is None
            else _Run(run, reflected, arm=arm, drifts=scored(run, row.arm), gaps=gaps(run, row.arm))
        )

    @cached_property
    def runs(self) -> dict[str, dict[int, _Run]]:
        """The finished runs of every row."""
        seeds = self.plan.asked.seeds
        return {
            row.name: {seed: run for seed in seeds if isinstance(run := self.found[row.name, seed], _Run)} for row in self.plan.rows
        }

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that are asked for, and those at which a row is finished."""
        there = {seed for runs in self.runs.values() for seed in runs}
        return tuple(seed for seed in self.plan.asked.seeds if seed in there or seed in self.asked.asked.seeds)

    @cached_property
    def measured(self) -> dict[str, tuple[Pooled, Sums | None]]:
        """The results of every shown row, where at least one seed is finished, and what was measured added up task by task."""
        return {row.name: self._measured(row) for row in self.plan.shown if self.runs[row.name]}

    @cached_property
    def pooled(self) -> dict[str, Pooled]:
        """The results alone."""
        return {name: pooled for name, (pooled, _) in self.measured.items()}

    def _measured(self, row: Row) -> tuple[Pooled, Sums | None]:
        runs = self.runs[row.name]
        arms = {seed: run.arm for seed, run in runs.items() if run.arm}
        if not arms:
            return of_forests(row.name, {seed: run.trees for seed, run in runs.items()}), None
        counts = {seed: arm.counts() for seed, arm in arms.items()}
        return of_counts(row.name, counts), sums_of(arms, {seed: run.drifts for seed, run in runs.items()})

    def table(self) -> TableResult:
        plan, base = self.plan, self.plan.base
        shown = {row.name for row in plan.shown}
        forests = any(row.said.forest for row in plan.shown)
        rows = tuple(self._row(row) for row in plan.shown)
        subtracted = dict.fromkeys((*plan.table.said.against, *(name for row in rows for name in row.minus)))
        return TableResult(
            name=plan.table.name,
            about=plan.table.said.about,
            model=base.model,
            environment=base.environment.name,
            recipe=plan.recipe,
            split=base.tasks.train_split if forests else base.tasks.test_split,
            seeds=self.seeds,
            budget=plan.budget,
            measure="solved by first " if forests else "Pass@",
            confidence=base.evaluate.confidence,
            rows=rows,
            claims=tuple(self._claim(check) for check in plan.table.checks if {check.row, check.above or check.row} <= shown),
            missing=tuple(self._missing()),
            paper=figures_of(plan),
            against=tuple(name for name in subtracted if any(name in row.minus for row in rows)),
        )

    def _row(self, row: Row) -> RowResult:
        pooled, runs = self.pooled.get(row.name), self.runs[row.name]
        against = self._against(row)
        against = against[: against.index(row.name)] if row.name in against else against  # the others are compared with it
        cost = self._cost(row)
        own, base = (self.measured[name][1] if name in self.measured else None for name in (row.name, next(iter(against), "")))
        return RowResult(
            name=row.name,
            about=" ".join(filter(None, (row.said.method, f"from {row.said.start}" if row.said.start else ""))),
            seeds=tuple(runs),
            tasks=len(pooled.tasks) if pooled else 0,
            samples=pooled.samples if pooled else 0,
            values={column: mean(pooled, column, self.how) for column in pooled.columns} if pooled else {},
            minus={name: gains for name in against if pooled and (gains := self._minus(row.name, name))},
            cost=cost,
            share=self.plan.share(row),
            flags=(*self._flags(row, cost), *self._otherwise(row.name, next(iter(against), ""))),
            runs=tuple(str(one.run.path.relative_to(self.plan.out)) for one in runs.values()),
            explained=explained(own, base, self.how) if own else {},
            by_task=task_shares(own, base) if own else (),
            extra=_explored(
                [part for one in runs.values() for part in one.reflected],
                [gap for one in runs.values() for gap in one.gaps],
                self.how,
            ),
        )

    def _against(self, row: Row) -> Sequence[str]:
        return self.plan.table.said.against if row.said.against is None else row.said.against

    def _minus(self, name: str, other: str) -> dict[str, Interval]:
        mine, theirs = self.pooled[name], self.pooled.get(other)
        found = {column: difference(mine, theirs, column, self.how) for column in mine.columns} if theirs else {}
        return {column: one for column, one in found.items() if one is not None}

    def _cost(self, row: Row) -> Cost:
        """The mean cost over seeds of a row and all that it starts from."""
        chain = self.plan.table.chain(row)
        seeds = [seed for seed in self.plan.asked.seeds if all(seed in self.runs[one.name] for one in chain)]
        spent = [
            _added(_spent(self.runs[one.name][seed].run, one, self.stages[one.name]) for one in chain if one.said.method)
            for seed in seeds
        ]
        known = {item.name: [one[item.name] for one in spent if item.name in one] for item in fields(Cost)}
        return Cost(**{name: sum(values) / len(values) for name, values in known.items() if values})

    def _flags(self, row: Row, cost: Cost) -> Iterator[str]:
        share, seeds = self.plan.share(row), tuple(self.runs[row.name])
        if seeds and seeds != self.seeds:
            yield f"of seed {', '.join(map(str, seeds))} alone"
        if share and abs(share - 1) > EQUAL:
            yield f"not at equal turns: may take {share:g} of the budget"
        if cost.turns is not None and cost.turns > share * self.plan.budget + EQUAL:
            yield f"over its budget of {share * self.plan.budget:,.0f} turns"
        if cost.turns is not None and cost.turns < MOST * share * self.plan.budget:
            yield f"took {floor(100 * cost.turns / (share * self.plan.budget))} % of the turns that it may"

    def _otherwise(self, name: str, other: str) -> Iterator[str]:
        """A flag where a row was sampled by another kind of engine than the one that it is compared with first."""
        mine, theirs = self._engines(name), self._engines(other)
        if mine and theirs and mine != theirs:
            yield f"sampled by {' and '.join(mine)}, {other} by {' and '.join(theirs)}"

    def _engines(self, name: str) -> list[str]:
        """The kinds of engines that a row was measured with, as far as its runs say."""
        runs = self.runs.get(name, {}).values()
        measured = [one.run.stages.get(f"evaluate {one.arm.name}") or {} for one in runs if one.arm]
        return sorted({str(said[ENGINE]) for said in measured if ENGINE in said})

    def _claim(self, check: CheckSettings) -> str:
        row = self.pooled.get(check.row)
        shown = {name: one for name, one in self.pooled.items() if row and one.tasks == row.tasks}
        # Before it is measured, a row has the columns of another, or those that its samples will give.
        known = row or next(iter(self.pooled.values()), None)
        columns = known.columns if known else powers_of_two_up_to(self.plan.base.evaluate.samples)
        column = str(columns[-1] if check.k == LARGEST else check.k)
        claim = check.claim.replace("{k}", column)
        if row is None or not shown:
            return verdict(claim, None)
        if column not in row.shares:  # beyond the samples
            return verdict(claim, None)
        if check.above:
            other = shown.get(check.above)
            return verdict(claim, difference(row, other, column, self.how) if other else None, tasks=len(row.tasks))
        rivals = {
            name: mean(one, column, self.how).value for name, one in shown.items() if name != check.row and column in one.shares
        }
        if not rivals:
            return verdict(claim, None)
        best = max(rivals, key=lambda name: rivals[name])
        beside = f" against {best}, the highest of the others"
        return verdict(claim, difference(row, shown[best], column, self.how), beside, tasks=len(row.tasks))

    def _missing(self) -> Iterator[str]:
        told = {(one.row, one.seed): one.why for one in self.failures}
        for (row, seed), found in self.found.items():
            if isinstance(found, str):
                yield f"{row}, seed {seed}: {told.get((row, seed), found)}"


@dataclass(frozen=True, slots=True)
class _Reflected:
    """One task of a forest with reflections: which of them were read, which attempts of the policy succeeded."""

    task: str
    read: tuple[float, ...]
    advised: tuple[float, ...]
    fresh: tuple[float, ...]


def _stamp(path: Path) -> int:
    return (path / "stages.json").stat().st_mtime_ns


@lru_cache(maxsize=256)
def _reflected(path: Path, forest: str, stamp: int) -> tuple[_Reflected, ...]:
    """The trees of a run's forests with reflections, or of the one that is named.

    Read once a run: forests are large, and a table is written after each of its rows.
    """
    found = exploration_of(RunDirectory.existing(path, read_only=True))
    forests = [trees for name, trees in found if forest in ("", name) and any(tree.reflections for tree in trees)]
    return tuple(_told(tree) for trees in forests for tree in trees)


def _told(tree: Tree) -> _Reflected:
    whole = [one for one in own_attempts(tree) if one.stop not in UNJUDGED]
    return _Reflected(
        tree.task.id,
        tuple(float(not one.unread) for one in tree.reflections if not one.no_room),
        tuple(float(one.success) for one in whole if one.experience is not None),
        tuple(float(one.success) for one in whole if one.experience is None),
    )


def _explored(parts: Sequence[_Reflected], measured: Sequence[Gap], how: Resampling) -> dict[str, Interval] | None:
    """The effect of reflection in a row's forests, with intervals over tasks; a task's forests of all seeds are drawn together."""

    def share(values: Iterable[tuple[str, Sequence[float]]]) -> Interval | None:
        by_task: dict[str, list[float]] = {}
        for task, some in values:
            by_task.setdefault(task, []).extend(some)
        return shares([by_task[task] for task in sorted(by_task)], how=how)  # in a forest trees come in the order of their ends

    found = {
        "reflections read": share((one.task, one.read) for one in parts),
        "advised attempts solved": share((one.task, one.advised) for one in parts),
        "fresh attempts solved": share((one.task, one.fresh) for one in parts),
        "best with advice": share((one.task, [one.advised]) for one in measured),
        "best without": share((one.task, [one.before]) for one in measured),
        "best after training": share((one.task, [one.after]) for one in measured),
    }
    return {name: one for name, one in found.items() if one is not None} or None


def _added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total


def _spent(run: RunDirectory, row: Row, stages: Sequence[Stage]) -> dict[str, float]:
    """The cost of a row's run up to its trained arm, as far as its stages record it."""
    said = [run.stages.get(stage.name) for stage in _behind(row, stages)]
    names = {item.name: item.name for item in fields(Cost)} | {"question_tokens": "prompt_tokens"}
    return _added({names[name]: one[name]} for one in said if isinstance(one, dict) for name in names if _is_count(one.get(name)))


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _behind(row: Row, stages: Sequence[Stage]) -> list[Stage]:
    """The stages that a row's result depends on, those that measure left out."""
    if row.said.forest:
        return [stage for stage in stages if shows(stage, row.said.forest)]
    ends = [stage for stage in stages if stage.name in (f"train {row.arm}", f"evaluate {row.arm}")]
    found = {one.name for end in ends for one in (*needed(stages, end), end)}
    behind = [stage for stage in stages if stage.name in found and stage.verb != "evaluate"]
    return behind or [stage for stage in stages if stage.verb != "evaluate"]
