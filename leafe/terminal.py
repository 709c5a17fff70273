"""The output of the command line: progress bars with rates and time left, tables, and a person's game. Words only; no decisions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from textwrap import wrap
from types import TracebackType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from leafe.controls import visible
from leafe.envs.check import CheckReport
from leafe.evaluation.compare import Comparison, table_rows
from leafe.evaluation.diagnose import Diagnosis
from leafe.evaluation.passk import Interval
from leafe.forest.faults import HEADING, Faults, fault_cells
from leafe.results import ExplorationRow

SIGNS = {"pass": "[green]✓[/]", "fail": "[red]✗[/]", "skipped": "–"}


_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: float = 1.0) -> None:
        """Moves the bar."""
        self._progress.advance(self._task, amount)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()


class _Rate(TextColumn):
    """The rate, in units a second."""

    def __init__(self, unit: str) -> None:
        super().__init__("")
        self._unit = unit

    def render(self, task: Any) -> Any:
        """The rate as text, empty before there is one and for shares."""
        speed = task.finished_speed or task.speed
        self.text_format = "" if not speed or self._unit == "share" else f"{speed:,.0f} {self._unit}/s"
        return super().render(task)


class Bars:
    """Shows gauges as bars on a terminal, and only their names where the output is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def stage(self, name: str, total: float, unit: str) -> _Bar:
        """A bar that runs to `total`."""
        columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            _Rate(unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        if not self._console.is_terminal:
            self._console.print(f"{escape(name)} ...", highlight=False)
        return _Bar(progress, progress.add_task(escape(name), total=total))

    def say(self, text: str) -> None:
        """Prints one line that stays."""
        self._console.print(f"  {escape(visible(text))}", highlight=False)


def _table(title: str, heading: Sequence[str], *, whole: Sequence[int] = (0,)) -> Table:
    """A table of figures beside names; in a narrow terminal all but the `whole` columns go over several lines and nothing is cut off."""
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, text in enumerate(heading):
        table.add_column(text, justify="right" if number else "left", no_wrap=number in whole, overflow="fold")
    return table


def _name(text: str, most: int = 14) -> str:
    """A name over as many lines as leave the figures beside it whole in eighty characters; the arm of a run has a line of its own."""
    run, colon, arm = text.rpartition(":")
    return escape("\n".join([*wrap(run + colon, most), *wrap(arm, most)]) or text)


def pass_table(comparison: Comparison) -> Table:
    """Pass@k of every arm with intervals, and its cost; one row an arm, with a line for each k."""
    heading, *rows = table_rows(comparison)
    title = f"Pass@k on held-out tasks, % [{100 * comparison.confidence:g} % interval]"
    table = _table(title, [escape(text) for text in heading], whole=(0, 2, 3))
    table.padding = (0, 0, 0, 0)  # so that two lines of figures beside the name of a run fit into eighty characters
    each = len(rows) // max(1, len(comparison.arms))
    for number, arm in enumerate(comparison.arms):
        cells = zip(*rows[number * each : (number + 1) * each], strict=True)
        table.add_row(_name(arm.name), *(escape("\n".join(cell).rstrip()) for cell in [*cells][1:]))
    return table


def exploration_table(rows: Sequence[ExplorationRow]) -> Table:
    """The results of each explorer for the same budget."""
    # Two lines, so that nine columns fit into eighty characters.
    words = "explorer|tasks|tasks\nsolved|tries\nsolved|turns|re-\nplayed|reflec-\ntions|unread-\nable|broken"
    table = _table("Exploration at equal budget", words.split("|"))
    for row in rows:
        counts = (row.tasks, row.solved, row.successes, row.turns, row.replayed_steps, row.reflections, row.unparsed)
        # A class a line, and its words apart: names such as EnvironmentFailure are wider than what is left of eighty characters.
        broken = "\n".join(f"{count:,} {_WORDS.sub(' ', name)}" for name, count in row.broken.items())
        table.add_row(_name(row.name), *(f"{count:,}" for count in counts), escape(broken or "0"))
    return table


def faults_table(named: Sequence[tuple[str, Faults]]) -> Table:
    """The faults, in percent: replies without action and cut ones, and whatever else occurred. Columns are narrow, to fit into eighty
    characters.
    """
    rows = [dict(zip(HEADING, fault_cells(faults), strict=True)) for _, faults in named]
    kept = [key for key in HEADING if key in ("no_action", "cut") or any(row[key] not in ("-", "0.0") for row in rows)]
    title = "Replies, tries and reflections, %"
    table = _table(title, ["", *(_narrow(HEADING[key]) for key in kept)])
    table.min_width = len(title)
    for (name, _), row in zip(named, rows, strict=True):
        table.add_row(_name(name), *(row[key] for key in kept))
    return table


def _narrow(heading: str) -> str:
    """A heading of a word a line."""
    shorter = {"reflections": "reflec- tions", "attempts": "tries", "shortened": "short- ened", "repeating": "repeat- ing"}
    for long, short in shorter.items():
        heading = heading.replace(long, short)
    return heading.replace(" ", "\n")


def check_table(report: CheckReport) -> Table:
    """The findings of `check-env`, a sentence a check."""
    table = Table(
        show_header=False,
        box=None,
        title=f"{escape(visible(report.name))}: declares {report.declared}, holds {report.measured}",
        title_justify="left",
    )
    for finding in report.findings:
        table.add_row(SIGNS[finding.verdict], escape(finding.name), escape(visible(finding.sentence)))
    for name, figure in report.figures.items():
        table.add_row("", escape(name), f"{figure:.4g}")
    return table


def _shown(interval: Interval | None) -> str:
    return (
        "nothing to measure"
        if interval is None
        else f"{100 * interval.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    )


def diagnosis_table(found: Diagnosis) -> Table:
    """The figures of `diagnose`."""
    table = Table(show_header=False, box=None)
    named = " ".join(f"{turn}:{count}" for turn, count in found.named_turns.items())
    rows: Mapping[str, str] = {
        "reflections that can be read": f"{_shown(found.parsed)} of {found.reflections}",
        "turns they name": named or "none",
        "branches that succeed": _shown(found.branch_success),
        "fresh attempts that succeed": _shown(found.fresh_success),
        "difference, per task": _shown(found.success_gap),
        "tasks solved, tree": f"{found.tasks_solved_by_tree} of {found.tasks}",
        "tasks solved, independent": f"{found.tasks_solved_by_independent} of {found.tasks}",
        "best first action, advised": f"{_shown(found.advised_optimal)} at {found.branch_points} turns",
        "best first action, unadvised": _shown(found.unadvised_optimal),
        "reflection gap": _shown(found.reflection_gap),
        "  after a branch, advised": f"{_shown(found.advised_optimal_later)} at {found.branch_points_later} turns",
        "  after a branch, unadvised": _shown(found.unadvised_optimal_later),
        "  after a branch, gap": _shown(found.reflection_gap_later),
    }
    for label, text in rows.items():
        table.add_row(label, escape(text))
    return table


def alarm(sentence: str) -> str:
    """A sentence that must not be overlooked, as the console's markup."""
    return f"[bold red]! {escape(sentence)}[/]"
