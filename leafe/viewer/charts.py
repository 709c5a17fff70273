"""The Pass@k curves as inline SVG: k on a logarithmic axis, a band for each interval, and the arm's name where its curve ends.

An arm differs from another by its dash pattern and its points' shape as well as by its colour. Colours are in the stylesheet, so
that the drawing follows the reader's light or dark theme. Numbers come from the comparison and are not computed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from leafe.evaluation.compare import ArmResult, Comparison, with_bounds
from leafe.viewer.markup import Markup, join, number, plural, shortened, tag

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 46, 128, 36, 56
SERIES = 8  # styles in the stylesheet; more arms than that begin again
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True, slots=True)
class Scale:
    """The place of a k and a fraction in the drawing; `step` is the distance of the grid's lines."""

    first: int
    last: int
    top: float
    step: float

    def x(self, k: int) -> float:
        """Pixels from the left."""
        share = 0.5 if self.first == self.last else math.log2(k / self.first) / math.log2(self.last / self.first)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, fraction: float) -> float:
        """Pixels from above."""
        return HEIGHT - BOTTOM - fraction / self.top * (HEIGHT - TOP - BOTTOM)


def pass_at_k_chart(comparison: Comparison) -> Markup:
    """The curves of all arms with their bands and a legend."""
    ks = comparison.ks
    highest = max(interval.high for arm in comparison.arms for interval in arm.pass_at_k.values())
    step = next((step for step in STEPS if highest <= 5 * step), STEPS[-1])
    scale = Scale(ks[0], ks[-1], step * max(1, math.ceil(highest / step - 1e-9)), step)
    arms = list(enumerate(comparison.arms))
    drawn = tag(
        "svg",
        *_axes(scale, ks),
        *(_band(scale, index, arm) for index, arm in arms),
        *(_curve(scale, index, arm) for index, arm in arms),
        *_end_labels(scale, comparison.arms),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label="Pass@k of each arm over k; the table below holds the same numbers",
        class_="curves",
    )
    legend = tag("ul", *(_legend_entry(index, arm) for index, arm in arms), class_="legend")
    return tag("figure", legend, tag("div", drawn, class_="scroll", tabindex="0", role="region", aria_label="Chart"))


def _axes(scale: Scale, ks: Sequence[int]) -> Iterator[Markup]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for line in range(round(scale.top / scale.step) + 1):
        y = scale.y(line * scale.step)
        yield tag("path", d=f"M{LEFT} {number(y)}H{right}", class_="grid" if line else "axis")
        yield tag("text", f"{100 * line * scale.step:.0f}", x=LEFT - 10, y=y + 4, class_="tick end")
    for k in ks:
        yield tag("path", d=f"M{number(scale.x(k))} {bottom}v5", class_="axis")
        yield tag("text", str(k), x=scale.x(k), y=bottom + 22, class_="tick middle")
    yield tag("text", "Pass@k, %", x=0, y=16, class_="tick")
    yield tag("text", "k, attempts a task (logarithmic)", x=(LEFT + right) / 2, y=HEIGHT - 6, class_="tick middle")


def _style(index: int) -> str:
    return f"series s{index % SERIES}"


def _band(scale: Scale, index: int, arm: ArmResult) -> Markup:
    there = [f"{number(scale.x(k))} {number(scale.y(interval.high))}" for k, interval in arm.pass_at_k.items()]
    back = [f"{number(scale.x(k))} {number(scale.y(interval.low))}" for k, interval in reversed(list(arm.pass_at_k.items()))]
    return tag("path", d=f"M{'L'.join(there + back)}Z", class_=f"band {_style(index)}")


def _curve(scale: Scale, index: int, arm: ArmResult) -> Markup:
    at = [(scale.x(k), scale.y(interval.value)) for k, interval in arm.pass_at_k.items()]
    line = tag("path", d="M" + "L".join(f"{number(x)} {number(y)}" for x, y in at), class_="line")
    points = [
        tag(
            "g",
            tag("title", f"{arm.name}: Pass@{k} {with_bounds(interval)} %"),
            tag("circle", cx=x, cy=y, r=11, class_="target"),
            tag("path", d=marker(index, x, y), class_="point"),
        )
        for (x, y), (k, interval) in zip(at, arm.pass_at_k.items(), strict=True)
    ]
    return tag("g", line, *points, class_=_style(index))


def marker(index: int, x: float, y: float) -> str:
    """The outline of an arm's points: a circle, a square, a triangle or a diamond around (x, y)."""
    move = f"M{number(x)} {number(y)}"
    shapes = (
        "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
        "m-3.6-3.6h7.2v7.2h-7.2z",
        "m0-5l4.8 8.4h-9.6z",
        "m0-5.2l5.2 5.2l-5.2 5.2l-5.2-5.2z",
    )
    return move + shapes[index % len(shapes)]


def _end_labels(scale: Scale, arms: Sequence[ArmResult]) -> Iterator[Markup]:
    """Each arm's name beside its last point, moved apart where two would overlap and tied to the point by a thin line."""
    ends = sorted((scale.y(list(arm.pass_at_k.values())[-1].value), index) for index, arm in enumerate(arms))
    heights = _apart([y for y, _ in ends], 17)
    for (y, index), height in zip(ends, heights, strict=True):
        x = scale.x(list(arms[index].pass_at_k)[-1])
        tie = tag("path", d=f"M{number(x + 7)} {number(y)}L{number(x + 17)} {number(height)}", class_="tie")
        yield tag(
            "g", tie, tag("text", shortened(arms[index].name, 15), x=x + 21, y=height + 4, class_="name"), class_=_style(index)
        )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights, each at least `gap` below the one before, pushed back up where they would leave the plot."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    limit = float(HEIGHT - BOTTOM)
    for position in reversed(range(len(placed))):
        placed[position] = min(placed[position], limit)
        limit = placed[position] - gap
    return placed


def _legend_entry(index: int, arm: ArmResult) -> Markup:
    drawing = join((tag("path", d="M1 8H33", class_="line"), tag("path", d=marker(index, 17, 8), class_="point")))
    swatch = tag("svg", drawing, viewBox="0 0 34 16", width=34, height=16, class_=_style(index), aria_hidden="true")
    measured = f"{plural(arm.tasks, 'task')} × {plural(arm.samples, 'sample')}"
    return tag("li", swatch, tag("b", arm.name), " ", tag("span", measured, class_="soft"))
