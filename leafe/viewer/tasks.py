"""Sharpening and widening, task by task: each task's successes with a row above the line, with its base below it.

Tasks stand in the order of the base's successes. A bar is coloured by who ever solved its task, and the same is said in words and numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from leafe.evaluation.compare import percent
from leafe.evaluation.explain import TaskShare
from leafe.viewer.markup import Markup, tag

WIDTH, LEFT, RIGHT = 720, 46, 8
HIGH, GAP, LEAST = 70, 4, 1.5  # the height of the highest bar, the room for the line, the height of the lowest bar
TOP = 14


def tasks_chart(name: str, base: str, tasks: Sequence[TaskShare]) -> Markup:
    """The bars of one row beside its base, with a sentence that counts the tasks of each kind."""
    highest = max(max(one.own, one.base or 0) for one in tasks) or 1.0
    step = (WIDTH - LEFT - RIGHT) / len(tasks)
    zero = TOP + HIGH
    below = max(_height(one.base or 0, highest) for one in tasks)
    bars = (bar for number, one in enumerate(tasks) for bar in _bars(one, LEFT + number * step, step, highest))
    drawn = tag(
        "svg",
        tag("text", percent(highest), x=LEFT - 10, y=TOP + 6, class_="tick end"),
        tag("text", "0 %", x=LEFT - 10, y=zero + 5, class_="tick end"),
        tag("path", d=f"M{LEFT} {zero + GAP / 2}H{WIDTH - RIGHT}", class_="axis"),
        *bars,
        viewBox=f"0 0 {WIDTH} {zero + GAP + below:.0f}",
        role="img",
        aria_label=f"Successes of {name} above the line and of {base} below it, a bar for each task; the sentence above counts them",
        class_="curves tasks",
    )
    counts = Counter(one.kind for one in tasks)
    kinds = (
        ("both", "solved by both"),
        ("won", f"by {name} alone"),
        ("lost", f"by {base} alone"),
        ("neither", "by neither"),
    )
    legend = tag(
        "ul", *(tag("li", _swatch(kind), f"{said} ", tag("b", str(counts[kind]))) for kind, said in kinds), class_="legend"
    )
    return tag("figure", tag("h3", name), legend, tag("div", drawn, class_="scroll", tabindex="0", role="region", aria_label=name))


def _bars(one: TaskShare, x: float, step: float, highest: float) -> tuple[Markup, Markup]:
    wide = max(0.8 * step, 0.5)
    title = tag("title", f"{one.task}: {percent(one.own)} %, base {percent(one.base or 0)} %")
    up, down = (_height(share, highest) for share in (one.own, one.base or 0))
    zero = TOP + HIGH
    return (
        tag("rect", title, x=x, y=zero - up, width=wide, height=up, class_=f"bar {one.kind}"),
        tag("rect", title, x=x, y=float(zero + GAP), width=wide, height=down, class_=f"bar under {one.kind}"),
    )


def _height(share: float, highest: float) -> float:
    return max(share / highest * HIGH, LEAST) if share else 0.0


def _swatch(kind: str) -> Markup:
    bar = tag("rect", x=0, y=2, width=12, height=12, class_=f"bar {kind}")
    return tag("svg", bar, viewBox="0 0 12 16", width=12, height=16, aria_hidden="true")
