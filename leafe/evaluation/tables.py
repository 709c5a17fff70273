"""A finished table as records: the result and the cost of each row, the claims that were tested, and the paper's figures.

Values are fractions. The terminal, Markdown, JSON and the page are made from these records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leafe.evaluation.compare import percent, points, with_bounds
from leafe.evaluation.explain import FIGURES, TaskShare
from leafe.evaluation.passk import Interval

Cells = tuple[str, ...]
UNKNOWN = "-"
FEWEST_TASKS = 10  # from which on an interval over tasks decides a claim


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a row until it was trained, the mean over seeds; None if its stages did not record it. Measuring is not included."""

    turns: float | None = None
    prompt_tokens: float | None = None
    sampled_tokens: float | None = None
    reflection_tokens: float | None = None
    steps: float | None = None
    examples: float | None = None


@dataclass(frozen=True, slots=True)
class PaperFigure:
    """A figure of the paper: its name, model, environment, Pass@1 and Pass@128 in percent, None if it reports none."""

    row: str
    model: str
    environment: str
    pass_1: float | None
    pass_128: float | None


@dataclass(frozen=True, slots=True)
class RowResult:
    """A row. `minus` holds the paired differences to other rows by their names, `share` is its turns in those of the table.

    `explained` are the figures of `leafe.evaluation.explain`, `by_task` each task's successes beside those of the first row that it is
    compared with.
    """

    name: str
    about: str
    seeds: tuple[int, ...]
    tasks: int
    samples: int
    values: Mapping[str, Interval]
    minus: Mapping[str, Mapping[str, Interval]]
    cost: Cost
    share: float
    flags: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    extra: Mapping[str, Interval] | None = None
    explained: Mapping[str, Interval] = field(default_factory=dict)
    by_task: tuple[TaskShare, ...] = ()


@dataclass(frozen=True, slots=True)
class TableResult:
    """A whole table. `measure` is the prefix of its columns' names, such as `Pass@`; `budget` is in turns over all training tasks."""

    name: str
    about: str
    model: str
    environment: str
    recipe: str
    split: str
    seeds: tuple[int, ...]
    budget: int
    measure: str
    confidence: float
    rows: tuple[RowResult, ...]
    claims: tuple[str, ...]
    missing: tuple[str, ...]
    paper: tuple[PaperFigure, ...]
    against: Cells = ()

    @property
    def columns(self) -> Cells:
        """Every column of some row, numbers ascending, others last."""
        found = {column for row in self.rows for column in row.values}
        return tuple(sorted(found, key=lambda column: (not column.isdecimal(), int(column) if column.isdecimal() else 0)))

    @property
    def ends(self) -> Cells:
        """The first and the last column."""
        return tuple(dict.fromkeys(self.columns[:1] + self.columns[-1:]))

    def title(self) -> str:
        """The title of the table, on one line."""
        seeds = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"
        return (
            f"{self.name}: {self.environment}, {self.model}, {seeds}, split {self.split}, % [{100 * self.confidence:g} % interval]"
        )


def together(tables: Mapping[str, TableResult]) -> TableResult:
    """One table of several models, each row named after its model and subtracted from that model's own; the keys lead to their folders."""
    first, names = next(iter(tables.values())), [Path(table.model).name for table in tables.values()]
    rows = [
        replace(row, name=f"{row.name} ({name})", runs=tuple(f"{folder}/{run}" for run in row.runs))
        for name, (folder, table) in zip(names, tables.items(), strict=True)
        for row in table.rows
    ]
    return replace(
        first,
        model=", ".join(names),
        rows=tuple(rows),
        claims=tuple(f"{name}: {claim}" for name, table in zip(names, tables.values(), strict=True) for claim in table.claims),
        missing=tuple(f"{name}: {one}" for name, table in zip(names, tables.values(), strict=True) for one in table.missing),
        paper=(),
        against=tuple(dict.fromkeys(one for table in tables.values() for one in table.against)),
    )


def result_rows(table: TableResult) -> list[Cells]:
    """A heading, and a line for each row and shown column."""
    against = table.against
    lines: list[Cells] = [("row", "k", f"{table.measure}k", *(f"- {name}" for name in against))]
    for row in table.rows:
        shown = [column for column in table.ends if column in row.values]
        for number, column in enumerate(shown):
            gains = (row.minus.get(name, {}).get(column) for name in against)
            cells = (with_bounds(gain, signed=True) if gain else "" for gain in gains)
            lines.append(("" if number else row.name, column, with_bounds(row.values[column]), *cells))
        if not shown:
            lines.append((row.name, UNKNOWN, UNKNOWN, *("" for _ in against)))
    return lines


def curve_rows(table: TableResult) -> list[Cells]:
    """A heading, and every column of each row, without intervals."""
    lines: list[Cells] = [("row", *(f"{table.measure}{column}" for column in table.columns))]
    for row in table.rows:
        cells = (percent(row.values[column].value) if column in row.values else UNKNOWN for column in table.columns)
        lines.append((row.name, *cells))
    return lines


def cost_rows(table: TableResult) -> list[Cells]:
    """A heading, and the cost of each row."""
    heading = ("row", "turns", "of budget", "prompt tokens", "sampled tokens", "reflect tokens", "steps", "examples")
    lines: list[Cells] = [heading]
    for row in table.rows:
        cost = row.cost
        used = f"{100 * cost.turns / table.budget:.0f} %" if cost.turns is not None and table.budget else UNKNOWN
        counts = (cost.prompt_tokens, cost.sampled_tokens, cost.reflection_tokens, cost.steps, cost.examples)
        lines.append((row.name, counted(cost.turns), used, *map(counted, counts)))
    return lines


def flag_lines(table: TableResult) -> Cells:
    """The warnings beside the costs, each sentence once, after the rows that it is about."""
    owners: dict[str, list[str]] = {}
    for row in table.rows:
        for flag in row.flags:
            owners.setdefault(flag, []).append(row.name)
    return tuple(f"{', '.join(names)}: {flag}" for flag, names in owners.items())


EXPLORED = (
    "reflections read",
    "advised attempts solved",
    "fresh attempts solved",
    "best with advice",
    "best without",
    "best after training",
)


def extra_rows(table: TableResult) -> list[Cells]:
    """Further figures of a row's exploration; only a heading if no row has any."""
    names = tuple(name for name in EXPLORED if any(name in (row.extra or {}) for row in table.rows))
    lines: list[Cells] = [("row", *names)]
    lines += [
        (row.name, *(with_bounds(row.extra[name]) if name in row.extra else UNKNOWN for name in names))
        for row in table.rows
        if row.extra
    ]
    return lines


def explained_rows(table: TableResult) -> list[Cells]:
    """What lies behind Pass@k, the figures that some row has; only a heading if no row has any."""
    names = [name for name in FIGURES if any(name in row.explained for row in table.rows)]
    lines: list[Cells] = [("row", *(FIGURES[name][0] for name in names))]
    for row in table.rows:
        if row.explained:
            lines.append((row.name, *(_figure(name, row.explained.get(name)) for name in names)))
    return lines


def _figure(name: str, figure: Interval | None) -> str:
    if figure is None:
        return UNKNOWN
    digits = FIGURES[name][1]
    if digits is None:
        return with_bounds(figure)
    value, low, high = (f"{one:z,.{digits}f}" for one in (figure.value, figure.low, figure.high))
    return f"{value} [{low}, {high}]"


def paper_rows(table: TableResult) -> list[Cells]:
    """The paper's figures beside ours, which are for other models of another size."""
    ours = {row.name: row for row in table.rows}
    lines: list[Cells] = [
        ("row", "ours @1", f"ours @{table.ends[-1] if table.ends else ''}", "the paper's model", "in", "@1", "@128")
    ]
    for figure in table.paper:
        row = ours.get(figure.row)
        mine = [with_bounds(row.values[column]) if row and column in row.values else UNKNOWN for column in table.ends or ("", "")]
        told = (f"{value:.2f}" if value is not None else UNKNOWN for value in (figure.pass_1, figure.pass_128))
        lines.append((figure.row, mine[0], mine[-1], figure.model, figure.environment, *told))
    return lines


def counted(value: float | None) -> str:
    """A count, or a mean of counts, as text."""
    if value is None:
        return UNKNOWN
    return f"{value / 1e6:.2f}M" if value >= 1e6 else f"{value:,.0f}"


def verdict(claim: str, difference: Interval | None, beside: str = "", *, tasks: int = FEWEST_TASKS) -> str:
    """A claim with its verdict: yes, no or not decided, and the difference in points. Too few `tasks` decide nothing."""
    if difference is None:
        return f"{claim}: not measured"
    told = f"{points(difference.value)} [{points(difference.low)}, {points(difference.high)}]"
    if tasks < FEWEST_TASKS:  # which may all agree by chance, so that the interval has no width
        return f"{claim}: not decided ({told}{beside}; wanted at least {FEWEST_TASKS} tasks, found {tasks})"
    word = "yes" if difference.low > 0 else "no" if difference.high < 0 else "not decided"
    return f"{claim}: {word} ({told}{beside})"


def markdown(table: TableResult) -> str:
    """The whole table as Markdown."""
    parts = [f"# {_plain(table.title())}", *([_plain(table.about)] if table.about else [])]
    parts.append(_markdown_table(result_rows(table)))
    parts += ["\n".join(f"- {_plain(claim)}" for claim in table.claims)] if table.claims else []
    parts.append(_markdown_table(curve_rows(table)))
    if len(behind := explained_rows(table)) > 1:
        parts += ["## What lies behind it", _markdown_table(behind)]
    parts += [f"## What it cost\n\nThe budget is {table.budget:,} turns.", _markdown_table(cost_rows(table))]
    parts += ["\n".join(f"- {_plain(one)}" for one in flags)] if (flags := flag_lines(table)) else []
    if len(extra := extra_rows(table)) > 1:
        parts += ["## Exploration and what was learned of it", _markdown_table(extra)]
    if table.paper:
        parts += ["## The paper's figures (other models, another size)", _markdown_table(paper_rows(table))]
    parts += ["\n".join(f"- {_plain(one)}" for one in table.missing)] if table.missing else []
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: Iterable[Cells]) -> str:
    heading, *others = rows
    lines = [heading, tuple("---" for _ in heading), *others]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(text: str) -> str:
    """A text on one line, escaped for Markdown."""
    line = " ".join(text.split())
    for sign in ("\\", "|", "<", "`", "*", "_", "["):
        line = line.replace(sign, f"\\{sign}")
    return line


def as_json(table: TableResult) -> dict[str, Any]:
    """The whole table as JSON."""

    def plain(value: Any) -> Any:
        if hasattr(value, "__dataclass_fields__"):
            return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
        if isinstance(value, Mapping):
            return {key: plain(one) for key, one in value.items()}
        return [plain(one) for one in value] if isinstance(value, tuple | list) else value

    found: dict[str, Any] = plain(table)
    return found
