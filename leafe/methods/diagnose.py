"""A test of whether LEAFE can help a model in an environment: a tree exploration, independent samples, and the gap at branching turns."""

from __future__ import annotations

import asyncio

from leafe.engines.base import Engine
from leafe.evaluation.diagnose import DRAWS, Diagnosis, act_unadvised, branch_points, diagnosis
from leafe.experiment import Experiment, ForestSpec, explore_tasks


def diagnose(experiment: Experiment, *, points: int) -> Diagnosis:
    """Explores and measures without keeping files. `points` is the most branching turns at which the gap is measured."""
    seed = experiment.explore_seed(1)
    trees = explore_tasks(experiment, "explore tree", ForestSpec("tree", seed, experiment.base))
    independent = explore_tasks(experiment, "explore independent", ForestSpec("independent", seed, experiment.base))
    chosen = branch_points(trees, experiment.make_environment, points)
    rules = experiment.rules(seed)

    async def work(engine: Engine) -> list[float]:
        return await asyncio.gather(*(act_unadvised(point, engine, rules, DRAWS) for point in chosen))

    return diagnosis(trees, independent, chosen, experiment.with_engine(experiment.base, work))
