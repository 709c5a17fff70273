"""The page of a run: one HTML file that opens from the disk and requests nothing from the network.

It holds no script, and a policy in its head that forbids any. Every text of a model or an environment is escaped by `tag`. Numbers
are those of the comparison and of the trees, formatted and not computed. Nothing is read here but the stylesheet, nothing written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields

from leafe.evaluation.compare import ArmResult, Comparison, percent, points, rolled_back
from leafe.evaluation.passk import Interval
from leafe.forest.faults import HEADING, Faults, fault_cells
from leafe.records import Tree
from leafe.results import ExplorationRow
from leafe.viewer.attempts import task_section
from leafe.viewer.charts import pass_at_k_chart
from leafe.viewer.document import document
from leafe.viewer.markup import Markup, join, plural, tag
from leafe.viewer.recoveries import Recovery, recoveries_section

NOT_MEASURED = Comparison(())


@dataclass(frozen=True, slots=True)
class PageContent:
    """The content of a page. `trees` are those that the caller chose out of `tree_count`; `notes` are labelled sentences at the end.

    `notice` is a sentence above the exploration's counts, for what a reader must know of them; `alarms` are sentences at the very top, on
    what makes the figures below mean little.
    """

    run: str
    config: Mapping[str, str]
    comparison: Comparison = NOT_MEASURED
    exploration: tuple[ExplorationRow, ...] = ()
    trees: tuple[Tree, ...] = ()
    tree_count: int = 0
    notes: tuple[tuple[str, str], ...] = ()
    notice: str = ""
    alarms: tuple[str, ...] = ()
    recoveries: tuple[Recovery, ...] = ()


def broken_text(errors: Mapping[str, int]) -> str:
    """Broken attempts by class, as `3 StepTimeout, 1 ReplayDiverged`."""
    return ", ".join(f"{count:,} {name}" for name, count in errors.items()) or "0"


def render_page(content: PageContent) -> str:
    """The whole file."""
    lede = (*_lede(content.comparison), *_alarms(content.alarms))
    header = tag("header", tag("p", "leafe run", class_="kicker"), tag("h1", content.run), *lede, *_config(content))
    measured = (*_measured(content.comparison), *recoveries_section(content.recoveries))
    sections = (*measured, *_explored(content.exploration, content.notice), *_trees(content), *_notes(content))
    return document(content.run, header, *sections)


def _lede(comparison: Comparison) -> Iterator[Markup]:
    """The first arm that has a base, at the smallest and at the largest k."""
    arm = next((arm for arm in comparison.arms if arm.minus_base), None)
    if arm is None:
        return
    mass = f"{100 * comparison.confidence:g} %"
    sentences = []
    for k in dict.fromkeys((min(arm.minus_base), max(arm.minus_base))):
        gain, low, high = (_minus(points(bound)) for bound in astuple(arm.minus_base[k]))
        reached = f"Pass@{k} of {arm.name} is {percent(arm.pass_at_k[k].value)} %"
        sentences.append(f"{reached}, {gain} points against its base ({mass} interval {low} to {high}).")
    yield tag("p", " ".join(sentences), class_="lede")


def _alarms(sentences: Sequence[str]) -> Iterator[Markup]:
    if sentences:
        yield tag("ul", *(tag("li", sentence) for sentence in sentences), class_="alarms said")


def _config(content: PageContent) -> Iterator[Markup]:
    if content.config:
        rows = (tag("div", tag("dt", key), tag("dd", value)) for key, value in content.config.items())
        summary = tag("summary", f"This run's {plural(len(content.config), 'setting')}")
        yield tag("details", summary, tag("dl", *rows, class_="settings"), class_="config")


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _table(heading: Sequence[str], *bodies: str, caption: str) -> Markup:
    first, *others = heading
    top = tag("tr", tag("th", first, scope="col"), *(tag("th", name, scope="col", class_="count") for name in others))
    table = tag("table", tag("caption", caption), tag("thead", top), *bodies)
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _measured(comparison: Comparison) -> Iterator[Markup]:
    if not comparison.arms:
        return
    mass = f"{100 * comparison.confidence:g} %"
    heading = ("Arm", *(f"Pass@{k}" for k in comparison.ks))
    note = (
        f"Pass@k is the unbiased estimate, in percent; below it the {mass} interval (bootstrap over tasks). Differences are paired "
        "task by task, in percentage points; ● marks an interval that leaves out zero. No rollback and no advice at test time."
    )
    yield tag(
        "section",
        tag("h2", "Pass@k"),
        pass_at_k_chart(comparison),
        _table(heading, *(_arm_rows(arm, comparison.ks) for arm in comparison.arms), caption="Pass@k by arm"),
        tag("p", note, class_="soft fine"),
        _table(
            ("Arm", "Tasks", "Samples", "Turns", "Tokens", "Broken attempts"),
            tag("tbody", *map(_cost, comparison.arms)),
            caption="Cost",
        ),
        _faults([(arm.name, arm.faults) for arm in comparison.arms], "Replies and attempts at test time, %"),
        id="pass-at-k",
    )


def _arm_rows(arm: ArmResult, ks: Sequence[int]) -> Markup:
    values = tag("tr", tag("th", arm.name, scope="row"), *(_cell(arm.pass_at_k.get(k), False) for k in ks), class_="value")
    if not arm.minus_base:
        return tag("tbody", values)
    gains = tag("tr", tag("th", "minus base", scope="row"), *(_cell(arm.minus_base.get(k), True) for k in ks), class_="gain")
    return tag("tbody", values, gains)


def _cell(interval: Interval | None, signed: bool) -> Markup:
    if interval is None:
        return tag("td", "–", class_="count")
    form = points if signed else percent
    decided = signed and (interval.low > 0 or interval.high < 0)
    mark = tag("span", "● ", title="the interval leaves out zero", class_="mark") if decided else ""
    bounds = tag("small", f"{_minus(form(interval.low))} … {_minus(form(interval.high))}")
    return tag("td", mark, tag("b", _minus(form(interval.value))), bounds, class_="count")


def _cost(arm: ArmResult) -> Markup:
    broken = (broken_text(arm.errors) if arm.errors else "none") + rolled_back(arm)
    return _count_row(arm.name, *(f"{count:,}" for count in (arm.tasks, arm.samples, arm.turns, arm.tokens)), broken)


def _count_row(name: str, *cells: str) -> Markup:
    return tag("tr", tag("th", name, scope="row"), *(tag("td", cell, class_="count") for cell in cells))


def _faults(named: Sequence[tuple[str, Faults]], caption: str) -> Markup:
    """The shares of faults; a column without any counts is left out."""
    shown = [name for name in HEADING if any(getattr(faults, name) is not None for _, faults in named)]
    columns = [list(HEADING).index(name) for name in shown]
    rows = (_count_row(name, *(fault_cells(faults, none="–")[column] for column in columns)) for name, faults in named)
    return (
        _table(("", *(HEADING[name].capitalize() for name in shown)), tag("tbody", *rows), caption=caption) if shown else join(())
    )


def _explored(rows: Sequence[ExplorationRow], notice: str) -> Iterator[Markup]:
    if not rows:
        return
    counted = [item.name for item in fields(ExplorationRow)][1:-1]
    heading = ("Explorer", *(name.replace("_", " ").capitalize() for name in counted))
    body = tag("tbody", *(_count_row(row.name, *(_counted(getattr(row, name)) for name in counted)) for row in rows))
    note = (
        "The budget is counted in turns that the policy takes, the same for every explorer. Replayed steps are taken by the "
        "environment alone. Solved counts tasks, successes counts attempts; unparsed are reflections that were answered and could not "
        "be read; broken are attempts that the environment or a rollback lost, by class. "
        "A reflection without room, and an attempt out of room, found the model's context full."
    )
    title = join((tag("h2", "Exploration at equal budget"), tag("p", notice) if notice else ""))
    shares = _faults([(row.name, row.faults) for row in rows], "Replies, attempts and reflections, %")
    table = _table(heading, body, caption="Exploration")
    yield tag("section", title, table, shares, tag("p", note, class_="soft fine"), id="exploration")


def _counted(value: int | Mapping[str, int]) -> str:
    return f"{value:,}" if isinstance(value, int) else broken_text(value)


def _trees(content: PageContent) -> Iterator[Markup]:
    if not content.trees:
        return
    of_all = plural(max(content.tree_count, len(content.trees)), "task")
    count = f"{len(content.trees)} of {of_all}, as explored for training."
    key = (
        "Each line is an attempt, each point a turn. A ring is a turn that the policy later blamed: a branch goes on from there, "
        "its revised turn below in the same column. The thick line is the way to a success. A line's name leads to its account."
    )
    shown = (task_section(tree, f"task-{number}") for number, tree in enumerate(content.trees, start=1))
    yield tag("section", tag("h2", "Trees of attempts"), tag("p", count), tag("p", key, class_="soft fine"), *shown, id="trees")


def _notes(content: PageContent) -> Iterator[Markup]:
    if content.notes:
        entries = join(tag("div", tag("dt", label), tag("dd", text)) for label, text in content.notes)
        yield tag("section", tag("h2", "Notes"), tag("dl", entries, class_="notes"), id="notes")
