"""The paper's own figures, to print beside ours: Pass@1 and Pass@128 in percent, of other models and another size."""

from __future__ import annotations

from collections.abc import Iterator

from leafe.evaluation.tables import PaperFigure
from leafe.reproduce.plan import Plan
from leafe.reproduce.spec import paper_tables

NEAREST = {"household": "alfworld"}  # the paper's environment where ours has another name


def figures_of(plan: Plan) -> tuple[PaperFigure, ...]:
    """The paper's figures for the shown rows of a plan, each in the row's environment or its nearest; empty where there are none."""
    return tuple(_figures(plan))


def _figures(plan: Plan) -> Iterator[PaperFigure]:
    tables = paper_tables().get(plan.table.said.paper, {})
    for row in plan.shown:
        here = plan.config(row, plan.asked.seeds[0]).environment.name
        environment = NEAREST.get(here, here)
        for model, rows in tables.get(environment, {}).items():
            if row.said.paper in rows:
                pass_1, pass_128 = rows[row.said.paper]
                yield PaperFigure(row.name, model, environment, pass_1, pass_128)
