"""The reflection gap of a row before and after its training, in the stage `gap ARM`.

There is none without a forest with reflections, without an expert or rollback, and where nothing was trained.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from leafe.engines.base import Engine
from leafe.evaluation.diagnose import DRAWS, BranchPoint, act_unadvised, branch_points, is_best
from leafe.evaluation.gap import Gap, read_gaps, write_gaps
from leafe.experiment import Experiment
from leafe.measuring import MODEL
from leafe.reproduce.plan import Plan
from leafe.reproduce.spec import Row
from leafe.results import exploration_of
from leafe.run import RunDirectory
from leafe.shown import GAPS

POINTS = 64  # turns at most


def measure_gap(plan: Plan, row: Row, experiment: Experiment, run: RunDirectory) -> None:
    """Measures the gap of a row's arm, unless there is none, and records that as a stage."""
    stage, path = _stage(row.arm), run.evaluation(row.arm, GAPS)
    model = (run.stages.get(f"evaluate {row.arm}") or {}).get(MODEL)
    watches = experiment.config.evaluate.watched and experiment.has_expert and experiment.can_roll_back
    if row.said.forest or row not in plan.shown or stage in run.stages or not model or not watches:
        return
    experiment.keep_logs_of(run)
    trained = run.check(run.path / model)
    points = _points(experiment, run)
    if not points:
        return
    before, after = _unadvised(experiment, stage, (experiment.base, trained), points)
    found = [
        Gap(one.tree.task.id, one.turn.id, is_best(one, one.turn.action), *shares)
        for one, *shares in zip(points, before, after, strict=True)
    ]
    write_gaps(path, found)
    means = {name: round(sum(getattr(one, name) for one in found) / len(found), 4) for name in ("advised", "before", "after")}
    run.finish_stage(stage, {"turns": len(found), **means}, files=[path])


def gaps(run: RunDirectory, arm: str) -> tuple[Gap, ...]:
    """The turns at which the gap of a run's arm was measured, none where it was not. Raises `CorruptFile` where they were changed."""
    path = run.evaluation(arm, GAPS)
    if path not in run.made_by(_stage(arm)):
        return ()
    return read_gaps(run.check(path))


def _stage(arm: str) -> str:
    return f"gap {arm}"


def _points(experiment: Experiment, run: RunDirectory) -> list[BranchPoint]:
    """Turns that reflections on attempts without advice named, in the first forest that has some."""
    for _, grown in exploration_of(run):
        trees = sorted(grown, key=lambda tree: tree.task.id)  # they come in the order of their ends
        found = [one for one in branch_points(trees, experiment.make_environment, 2 * POINTS) if one.attempt.depth == 1]
        if found:
            return found[:POINTS]
    return []


def _unadvised(experiment: Experiment, stage: str, folders: Sequence[Path], points: Sequence[BranchPoint]) -> list[list[float]]:
    """For each model the shares of best actions that it draws without advice, one model loaded after the other."""
    rules = experiment.rules(experiment.explore_seed(1))
    with experiment.progress.stage(stage, len(folders) * len(points), "turns") as gauge:

        async def one(point: BranchPoint, engine: Engine) -> float:
            share = await act_unadvised(point, engine, rules, DRAWS)
            gauge.advance()
            return share

        async def work(engine: Engine) -> list[float]:
            return await asyncio.gather(*(one(point, engine) for point in points))

        return [experiment.with_engine(folder, work, measures=True) for folder in folders]
