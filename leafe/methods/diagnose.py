"""Whether LEAFE can help a model in an environment: one tree exploration, one of independent samples, and the gap at branching turns."""

from __future__ import annotations

import asyncio

from leafe.bench import Bench, Plot, grow
from leafe.engines.base import Engine
from leafe.evaluation.diagnose import Diagnosis, act_unadvised, branch_points, diagnosis

DRAWS = 4  # unadvised actions a branching turn


def diagnose(bench: Bench, *, points: int) -> Diagnosis:
    """Explores and measures; leaves nothing behind. `points` is the most branching turns that the gap is measured at."""
    seed = bench.explore_seed(1)
    trees = grow(bench, "explore tree", Plot("tree", seed, bench.base))
    independent = grow(bench, "explore independent", Plot("independent", seed, bench.base))
    chosen = branch_points(trees, bench.make_environment, points)
    rules = bench.rules(seed)

    async def work(engine: Engine) -> list[float]:
        return await asyncio.gather(*(act_unadvised(point, engine, rules, DRAWS) for point in chosen))

    return diagnosis(trees, independent, chosen, bench.with_engine(bench.base, work))
