"""The page of a table: the results and the cost of each row, the claims, the paper's figures, and links to the runs' own pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import quote

from leafe.evaluation.compare import ArmResult, Comparison
from leafe.evaluation.tables import (
    Cells,
    RowResult,
    TableResult,
    cost_rows,
    curve_rows,
    explained_rows,
    extra_rows,
    flag_lines,
    paper_rows,
    result_rows,
)
from leafe.viewer.charts import pass_at_k_chart
from leafe.viewer.document import document
from leafe.viewer.markup import Markup, tag
from leafe.viewer.tasks import tasks_chart

NOTE = (
    "Lost are tasks that the base solves at least once and the row never; won are those that only the row solves. Attempts are set back"
    " by a turn without an action, or by one after which the best solution is longer or there is none; these were looked for in the first"
    " samples of each task, where the environment has an expert. Nats measure how improbable sampled replies were: the fewer, the more"
    " the model repeats itself. Nats from the base are those by which a turn is more probable under the row's policy than under the"
    " table's model, an estimate of how far it has moved. Below, each task has a bar, above the line for the row and under it for its"
    " base, in the order of the base's successes."
)


def render_table(table: TableResult) -> str:
    """The whole file. The pages of runs are linked relative to it."""
    header = tag("header", tag("p", "leafe table", class_="kicker"), tag("h1", table.name), tag("p", table.title()), *_about(table))
    return document(table.name, header, *_sections(table))


def _about(table: TableResult) -> Iterator[Markup]:
    if table.about:
        yield tag("p", table.about, class_="soft")
    if table.missing:
        yield tag("ul", *(tag("li", one) for one in table.missing), class_="alarms said")


def _sections(table: TableResult) -> Iterator[Markup]:
    curves = [_curve(row) for row in table.rows if row.values]
    chart = (
        [pass_at_k_chart(Comparison(tuple(curves), table.confidence))] if curves and all(one.pass_at_k for one in curves) else []
    )
    note = (
        "Means over seeds; intervals are a bootstrap over seeds and tasks, differences paired by seed and task. "
        "Nothing was rolled back and no advice was given at test time unless a row's method says so."
    )
    yield tag(
        "section",
        tag("h2", "Results"),
        *chart,
        _table(result_rows(table), "Results"),
        tag("p", note, class_="soft fine"),
        *([tag("ul", *(tag("li", claim) for claim in table.claims), class_="said")] if table.claims else []),
        _table(curve_rows(table), "All columns, %"),
        id="results",
    )
    if len(behind := explained_rows(table)) > 1:
        yield tag("section", tag("h2", "What lies behind it"), *_behind(table, behind), id="behind")
    budget = tag("p", f"The budget of a row is {table.budget:,} turns. Measuring is not in it.", class_="soft fine")
    flags = [tag("ul", *(tag("li", line) for line in flag_lines(table)), class_="said")]
    yield tag("section", tag("h2", "Cost"), _table(cost_rows(table), "Cost"), budget, *flags, id="cost")
    if len(extra := extra_rows(table)) > 1:
        yield tag("section", tag("h2", "Exploration and what was learned of it"), _table(extra, "Exploration"), id="exploration")
    if table.paper:
        about = tag("p", "Other models and another size than ours.", class_="soft fine")
        yield tag("section", tag("h2", "The paper's figures"), _table(paper_rows(table), "The paper's figures"), about, id="paper")
    yield tag("section", tag("h2", "Runs"), tag("ul", *(_links(row) for row in table.rows if row.runs)), id="runs")


def _behind(table: TableResult, behind: Sequence[Cells]) -> Iterator[Markup]:
    yield _table(behind, "What lies behind Pass@k")
    yield tag("p", NOTE, class_="soft fine")
    for row in table.rows:
        if row.by_task and row.by_task[0].base is not None:
            yield tasks_chart(row.name, next(iter(row.minus), "the base"), row.by_task)


def _curve(row: RowResult) -> ArmResult:
    """A row as the chart draws an arm; columns without a number are not drawn."""
    at = {int(column): interval for column, interval in row.values.items() if column.isdecimal()}
    return ArmResult(row.name, at, {}, 0, 0, {}, row.tasks, row.samples)


def _table(rows: Sequence[Cells], caption: str) -> Markup:
    (first, *others), *lines = rows
    top = tag("tr", tag("th", first, scope="col"), *(tag("th", name, scope="col", class_="count") for name in others))
    body = (tag("tr", tag("th", name, scope="row"), *(tag("td", cell, class_="count") for cell in cells)) for name, *cells in lines)
    table = tag("table", tag("caption", caption), tag("thead", top), tag("tbody", *body))
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _links(row: RowResult) -> Markup:
    links = (tag("a", run, href=f"{quote(run)}/report.html") for run in row.runs)
    return tag("li", tag("b", row.name), " ", *(part for link in links for part in (link, " ")))
