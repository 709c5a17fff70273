"""The map of a tree: one lane an attempt, one point a turn, every branch hung from the turn that it was rolled back to.

A lane lies below the lane that it hangs from, those that leave late above those that leave early, so that no line crosses another.
Turns of one number are in one column: a revised turn is right below the turn that it replaces. Everything is read from the tree;
nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from leafe.records import BROKEN, Attempt, StopReason, Tree, Turn
from leafe.viewer.markup import Markup, plural, shortened, tag

LEFT, RIGHT, TOP, ROW = 92, 150, 40, 44
ENDINGS = {
    StopReason.SUCCESS: "solved",
    StopReason.FAILURE: "failed",
    StopReason.TURN_LIMIT: "turn limit",
    StopReason.TOKEN_LIMIT: "context full",
    StopReason.BUDGET: "budget used up",
    StopReason.ONE_STEP: "one step",
    StopReason.PARSE_ERROR: "no action found",
    StopReason.ROLLED_BACK: "rolled back on the way",
    StopReason.REPLAY_DIVERGED: "replay diverged",
    StopReason.ENVIRONMENT_ERROR: "environment error",
    StopReason.STEP_TIMEOUT: "step took too long",
    StopReason.CANCELLED: "cancelled",
}


@dataclass(frozen=True, slots=True)
class Lane:
    """One attempt: its own turns, and how many turns of `owner` precede them (`owner` None: it hangs from the start)."""

    attempt: Attempt
    turns: tuple[Turn, ...]
    owner: int | None
    start: int

    @property
    def end(self) -> int:
        """The number of its last turn."""
        return self.start + len(self.turns)


def lanes(tree: Tree) -> tuple[Lane, ...]:
    """The lanes from top to bottom."""
    by_id = {turn.id: turn for turn in tree.turns}
    hanging: dict[int | None, list[Lane]] = {}
    for attempt in tree.attempts:
        own = tuple(turn for turn in tree.turns if turn.attempt == attempt.index)
        point = by_id.get((own[0].parent if own else attempt.leaf) or "")
        owner = point.attempt if point else None
        hanging.setdefault(owner, []).append(Lane(attempt, own, owner, point.index if point else 0))

    def below(owner: int | None) -> Iterator[Lane]:
        for lane in sorted(hanging.get(owner, ()), key=lambda lane: (-lane.start, lane.attempt.index)):
            yield lane
            yield from below(lane.attempt.index)

    return tuple(below(None))


def blamed(tree: Tree) -> dict[str, Attempt]:
    """The turns that some attempt was rolled back to, by id, with the first such attempt."""
    found: dict[str, Attempt] = {}
    for attempt in tree.attempts:
        turn = replaced_turn(tree, attempt)
        if turn is not None:
            found.setdefault(turn.id, attempt)
    return found


def replaced_turn(tree: Tree, attempt: Attempt) -> Turn | None:
    """The turn in whose place a branch began: that of the attempt which was reflected on."""
    if attempt.parent is None or attempt.turn is None:
        return None
    parent = next((other for other in tree.attempts if other.index == attempt.parent), None)
    trajectory = tree.trajectory(parent.leaf) if parent else ()
    return trajectory[attempt.turn - 1] if 1 <= attempt.turn <= len(trajectory) else None


def won_turns(tree: Tree) -> frozenset[str]:
    """The ids of the turns on the way to some success."""
    return frozenset(turn.id for attempt in tree.attempts if attempt.success for turn in tree.trajectory(attempt.leaf))


def ending(attempt: Attempt) -> Markup:
    """How an attempt ended: a sign and a word."""
    sign = tag("svg", _sign(attempt, 8, 8), viewBox="0 0 16 16", width=16, height=16, aria_hidden="true")
    return tag("span", sign, ENDINGS[attempt.stop], class_=f"ending {_kind(attempt)}")


def _kind(attempt: Attempt) -> str:
    return "won" if attempt.success else "broken" if attempt.stop in BROKEN else "lost"


def _sign(attempt: Attempt, x: float, y: float) -> Markup:
    """A tick in a disc for a success, a cross for a failure, an open square for a limit, a triangle for what broke."""
    if attempt.success:
        disc, tick = (
            tag("circle", cx=x, cy=y, r=7, class_="fill"),
            tag("path", d=f"M{x - 3.2} {y}l2.3 2.6 4.2-5", class_="tick-mark"),
        )
        return tag("g", disc, tick, class_="sign won")
    outlines = {StopReason.FAILURE: f"M{x - 4} {y - 4}l8 8m0-8l-8 8"}
    square, triangle = f"M{x - 4.5} {y - 4.5}h9v9h-9z", f"M{x} {y - 5.5}l6 10.5h-12zm0 3.5v3.5"
    outline = outlines.get(attempt.stop, triangle if attempt.stop in BROKEN else square)
    return tag("g", tag("path", d=outline, class_="stroke"), class_=f"sign {_kind(attempt)}")


@dataclass(frozen=True, slots=True)
class _Grid:
    """The places of turns and lanes; `step` is one turn in pixels."""

    step: float
    rows: dict[int | None, int]

    def x(self, turn: int) -> float:
        return LEFT + turn * self.step

    def y(self, attempt: int | None) -> float:
        return TOP + self.rows[attempt] * ROW


def tree_map(tree: Tree, prefix: str) -> Markup:
    """The drawing. Each lane links to the element `{prefix}-{attempt}`, which describes it in words."""
    drawn = lanes(tree)
    longest = max([lane.end for lane in drawn], default=0) or 1
    rows: dict[int | None, int] = {lane.attempt.index: row for row, lane in enumerate(drawn)}
    grid = _Grid(min(40.0, max(14.0, 600 / longest)), {None: 0, **rows})
    changes = [(lane, words) for lane in drawn if (words := _revision(lane, tree))]
    reach = [grid.x(lane.start) + 20 + 7 * len(words) for lane, words in changes]
    width, height = max(LEFT + longest * grid.step + RIGHT, *reach, 0), TOP + len(drawn) * ROW - 12
    won, judged = won_turns(tree), blamed(tree)
    picture = tag(
        "svg",
        *_columns(grid, longest, height),
        *(_line(grid, lane, lane.end, "way") for lane in drawn),
        *(_line(grid, lane, _won_until(lane, won), "way won") for lane in drawn if _won_until(lane, won) > lane.start),
        *(_lane(grid, lane, judged, prefix) for lane in drawn),
        *(
            tag("text", words, x=grid.x(one.start) + 12, y=grid.y(one.attempt.index) - 12, class_="change")
            for one, words in changes
        ),
        tag("circle", cx=grid.x(0), cy=grid.y(None), r=5.5, class_="root"),
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=round(width),
        height=round(height),
        role="group",
        aria_label=f"The tree of attempts at {tree.task.id}",
        class_="map",
    )
    return tag("div", picture, class_="scroll", tabindex="0", role="region", aria_label="Map of the attempts")


def _columns(grid: _Grid, longest: int, height: float) -> Iterator[Markup]:
    every = next(every for every in (1, 2, 5, 10, 20, 50, 100, longest) if every * grid.step >= 22)
    yield tag("text", "turn", x=grid.x(0), y=14, class_="tick middle")
    for turn in range(every, longest + 1, every):
        yield tag("path", d=f"M{grid.x(turn):.1f} 20V{height - 4:.1f}", class_="grid")
        yield tag("text", str(turn), x=grid.x(turn), y=14, class_="tick middle")


def _won_until(lane: Lane, won: frozenset[str]) -> int:
    return max((turn.index for turn in lane.turns if turn.id in won), default=0)


def _line(grid: _Grid, lane: Lane, end: int, class_: str) -> Markup:
    """From the point that the lane hangs from down to its own height and along to turn `end`."""
    x, above, y = grid.x(lane.start), grid.y(lane.owner), grid.y(lane.attempt.index)
    bend = min(10.0, grid.step / 2)
    down = f"V{y - bend:.1f}q0 {bend:.1f} {bend:.1f} {bend:.1f}" if y > above else ""
    return tag("path", d=f"M{x:.1f} {above:.1f}{down}H{max(grid.x(end), x + bend):.1f}", class_=class_)


def _lane(grid: _Grid, lane: Lane, judged: dict[str, Attempt], prefix: str) -> Markup:
    attempt, y = lane.attempt, grid.y(lane.attempt.index)
    after = grid.x(lane.end) + max(grid.step / 2, 14)
    return tag(
        "a",
        tag("rect", x=2, y=y - 14, width=74, height=28, rx=4, class_="focus"),
        tag("text", f"attempt {attempt.index}", x=8, y=y + 4, class_="label"),
        *(_point(grid, turn, y, judged.get(turn.id)) for turn in lane.turns),
        _sign(attempt, after, y),
        tag("text", ENDINGS[attempt.stop], x=after + 13, y=y + 4, class_=f"label {_kind(attempt)}"),
        href=f"#{prefix}-{attempt.index}",
        aria_label=f"attempt {attempt.index}: {ENDINGS[attempt.stop]} after {plural(lane.end, 'turn')}",
    )


def _point(grid: _Grid, turn: Turn, y: float, judge: Attempt | None) -> Markup:
    told = f"turn {turn.index}: {shortened(turn.action, 80)}"
    told += f" (rolled back: attempt {judge.index} goes on from here instead)" if judge else ""
    told += "" if turn.parsed else " (no action found in the reply)"
    classes = "point" + (" blamed" if judge else "") + ("" if turn.parsed else " unread")
    return tag("g", tag("title", told), tag("circle", cx=grid.x(turn.index), cy=y, r=6.5 if judge else 4.5, class_=classes))


def _revision(lane: Lane, tree: Tree) -> str:
    """The action before and the action now, shown over a branch's first turn."""
    before = replaced_turn(tree, lane.attempt)
    if before is None or not lane.turns:
        return ""
    return f"{shortened(before.action, 16)} → {shortened(lane.turns[0].action, 16)}"
