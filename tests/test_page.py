"""The page: it shows the numbers that it was given, draws the tree that was grown, and holds no markup but its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.evaluation.compare import ArmResult, Comparison, percent, points
from leafe.evaluation.passk import Interval
from leafe.forest.faults import Faults, faults_of
from leafe.records import Attempt, Completion, Experience, Observation, Reflection, Shortening, StopReason, Task, Tree, Turn, Usage
from leafe.results import ExplorationRow, exploration_row
from leafe.viewer.markup import preformatted, tag
from leafe.viewer.page import PageContent, render_page
from leafe.viewer.trees import ENDINGS, lanes, replaced_turn

BOARD = "You moved.\n#####\n#PXO#\n#####"
HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)><a href="javascript:alert(1)">',
    "' onmouseover='alert(1)' x='",
    "</style></title></pre></details><!-- <![CDATA[ <script>alert(1)</script>",
    "\x00\x1b[31m\ud800<b>\x85",
    "&lt;b&gt; &amp; &#60;i&#62;",
    "\n\n  <pre>\r\n\u202etxt.exe",
]


def turn(attempt: int, index: int, action: str, *, parent: str | None, text: str = BOARD, success: bool = False) -> Turn:
    reply = Completion(action, (1,), (0.0,))
    return Turn(
        f"{attempt}/{index}", parent, index, attempt, action, True, reply, Observation(text, success, success, float(success))
    )


def small_tree(text: str = BOARD) -> Tree:
    """Attempt 0 goes three turns astray; 1 is rolled back to its turn 2 and fails; 2 is rolled back to turn 3 of 1 and succeeds.

    Attempt 3 is rolled back to turn 1, that is to the start; attempt 4 starts afresh and breaks before its first turn.
    """
    turns = [turn(0, 1, "up", parent=None, text=text)]
    turns += [turn(0, index, "left", parent=f"0/{index - 1}", text=text) for index in (2, 3)]
    turns += [turn(1, 2, "right", parent="0/1", text=text), turn(1, 3, "down", parent="1/2", text=text)]
    turns += [turn(2, 3, "push", parent="1/2", text=text, success=True)]
    turns += [turn(3, 1, "wait", parent=None, text=text)]
    turns[3] = replace(turns[3], experience="go right instead")
    attempts = (
        Attempt(0, 0, StopReason.TURN_LIMIT, False, 0.0, "0/3"),
        Attempt(1, 1, StopReason.FAILURE, False, 0.0, "1/3", 0, 2, "go right instead"),
        Attempt(2, 2, StopReason.SUCCESS, True, 1.0, "2/3", 1, 3, "push the box"),
        Attempt(3, 1, StopReason.BUDGET, False, 0.0, "3/1", 0, 1, "wait first"),
        Attempt(4, 0, StopReason.ENVIRONMENT_ERROR, False, 0.0, None, error="EnvironmentFailure: gone"),
    )
    reflections = (
        Reflection(0, 3, (Completion("turn 2: go right instead"),), Experience(2, "go right instead")),
        Reflection(1, 3, (Completion("hm"), Completion("hm")), None, "no turn"),
        Reflection(1, 2, (Completion("turn none"),)),
    )
    task = Task("task-a", "sokoban", "Push every box X onto a target O.", 3)
    return Tree(task, "tree", Observation(text), tuple(turns), attempts, reflections, Usage(7, 700, 14, 2, 3, 3, 40))


def measured(name: str = "leafe", error: str = "EnvironmentFailure") -> Comparison:
    base = ArmResult("base", {1: Interval(0.101, 0.052, 0.153), 2: Interval(0.2, 0.1, 0.3)}, {}, 100, 2000, {}, 8, 2)
    gain = {1: Interval(0.304, 0.11, 0.5), 2: Interval(0.2, -0.051, 0.4)}
    arm = ArmResult(name, {1: Interval(0.405, 0.3, 0.5), 2: Interval(0.4, 0.3, 0.5)}, gain, 1234, 5678, {error: 3}, 8, 2)
    return Comparison((base, arm))


def content(tree: Tree | None = None) -> PageContent:
    rows = (exploration_row("tree", [small_tree()]), ExplorationRow("independent", 1, 0, 3, 0, 7, 650))
    return PageContent("trial-001", {"model": "nano"}, measured(), rows, (tree or small_tree(),), 40, (("Note", "A sentence."),))


@dataclass
class Element:
    name: str
    attributes: dict[str, str | None]
    text: str = ""


class Reader(HTMLParser):
    """Reads a page strictly: every element is closed in order. Keeps elements with all the text inside them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag != "meta":
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().name == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data!r}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data!r}")

    def named(self, name: str) -> Iterator[Element]:
        return (element for element in self.elements if element.name == name)

    def structure(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(element.name, tuple(element.attributes)) for element in self.elements]


def with_text(tree: Tree, text: str) -> Tree:
    """The same tree with `text` wherever a model or an environment may write."""
    seen = Observation(text, info={text: text})
    return replace(
        tree,
        task=replace(tree.task, id=text, env=text, instruction=text),
        method=text,
        root=seen,
        turns=tuple(
            replace(one, action=text, completion=Completion(text + "!"), observation=replace(one.observation, text=text))
            for one in tree.turns
        ),
        attempts=tuple(
            replace(one, experience=text if one.experience else None, error=text if one.error else None) for one in tree.attempts
        ),
        reflections=tuple(replace(one, replies=(Completion(text),), experience=Experience(1, text)) for one in tree.reflections),
    )


def content_with(text: str) -> PageContent:
    return PageContent(
        run=text,
        config={text: text},
        comparison=measured(text, text),
        exploration=(ExplorationRow(text),),
        trees=(with_text(small_tree(), text),),
        tree_count=1,
        notes=((text, text),),
    )


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_can_put_an_element_or_an_attribute_into_the_page(text: str) -> None:
    page = render_page(content_with(text))
    page.encode("utf-8")
    calm = re.sub(r"\S", "x", text)
    assert Reader(page).structure() == Reader(render_page(content_with(calm))).structure()


def test_a_hostile_text_is_shown_as_it_was_written() -> None:
    reader = Reader(render_page(content_with(HOSTILE[0])))
    assert [element.text for element in reader.named("h1")] == [HOSTILE[0]]
    assert HOSTILE[0] in [element.text.removeprefix("\n") for element in reader.named("pre")]
    assert [element.text for element in reader.named("blockquote")].count(HOSTILE[0]) == 3


@pytest.mark.parametrize("sign", "\u061c\u200b\u200e\u200f\u2028\u202a\u202e\u2066\u2069\ufeff\U000e0041")
def test_a_sign_that_turns_or_hides_text_is_shown_by_its_number(sign: str) -> None:
    assert preformatted(f"delete {sign}gpj.exe") == f'<pre class="seen">\ndelete [U+{ord(sign):04X}]gpj.exe</pre>'
    assert sign not in tag("p", "x", title=sign)


def test_signs_that_belong_to_words_stay_as_they_are() -> None:
    assert (
        tag("p", "\u05d0\u0628 \u0646\u200c\u0647 \U0001f468\u200d\U0001f469")
        == "<p>\u05d0\u0628 \u0646\u200c\u0647 \U0001f468\u200d\U0001f469</p>"
    )


@given(st.text(), st.text())
def test_every_child_and_every_attribute_is_escaped(child: str, value: str) -> None:
    reader = Reader(tag("p", child, title=value, hidden=False, open=True))
    assert reader.structure() == [("p", ("title", "open"))]


def test_a_text_that_starts_with_a_line_break_keeps_it() -> None:
    assert preformatted("\n#") == '<pre class="seen">\n\n#</pre>'


def test_the_page_asks_the_network_for_nothing_and_runs_nothing() -> None:
    page = render_page(content())
    reader = Reader(page)
    policies = [one.attributes.get("content") or "" for one in reader.named("meta") if "http-equiv" in one.attributes]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "script" not in policies[0]
    names = {element.name for element in reader.elements}
    assert names.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "form", "base", "foreignobject", "use"})
    used = {attribute for element in reader.elements for attribute in element.attributes}
    assert not {name for name in used if name.startswith("on")} | (used & {"src", "style", "xlink:href"})
    assert not re.search(r"https?:|url\(|@import|@font-face", page)


def test_every_link_leads_to_a_place_on_the_page() -> None:
    reader = Reader(render_page(replace(content(), trees=(small_tree(), small_tree()))))
    ids = [element.attributes["id"] for element in reader.elements if "id" in element.attributes]
    targets = [element.attributes["href"] for element in reader.elements if "href" in element.attributes]
    assert len(ids) == len(set(ids))
    assert len(targets) == 10 and {str(target).removeprefix("#") for target in targets} <= set(ids)


def rows_below(page: str, caption: str) -> list[list[str]]:
    """The cells of the table with a caption, row by row, as text."""
    table = next(part for part in page.split("<table>") if part.startswith(f"<caption>{caption}<")).split("</table>")[0]
    return [
        [cell.text for cell in Reader(f"<tr>{row}").elements if cell.name in ("th", "td")]
        for row in (part.split("</tr>")[0] + "</tr>" for part in table.split("<tr")[1:])
        for row in [row[row.index(">") + 1 :]]
    ]


def test_the_table_holds_the_numbers_of_the_comparison() -> None:
    comparison = measured()
    base, arm = comparison.arms
    heading, *rows = rows_below(render_page(content()), "Pass@k by arm")
    assert heading == ["Arm", "Pass@1", "Pass@2"]

    def bounds(form: object, one: Interval) -> str:
        assert callable(form)
        return f"{form(one.value)}{form(one.low)} … {form(one.high)}".replace("-", "−")

    assert rows == [
        ["base", *(bounds(percent, one) for one in base.pass_at_k.values())],
        ["leafe", *(bounds(percent, one) for one in arm.pass_at_k.values())],
        ["minus base", "● " + bounds(points, arm.minus_base[1]), bounds(points, arm.minus_base[2])],
    ]
    assert rows[0][1] == "10.15.2 … 15.3"
    assert rows[2][2] == "+20.0−5.1 … +40.0"


def test_a_k_that_was_not_measured_is_a_dash_and_not_a_nought() -> None:
    base, arm = measured().arms
    short = replace(base, pass_at_k={1: base.pass_at_k[1]})
    page = render_page(replace(content(), comparison=Comparison((short, replace(arm, minus_base={1: arm.minus_base[1]})))))
    assert rows_below(page, "Pass@k by arm")[1][2] == "–"
    assert rows_below(page, "Pass@k by arm")[3][2] == "–"


def test_the_cost_and_the_broken_attempts_of_each_arm_are_told() -> None:
    assert rows_below(render_page(content()), "Cost")[2] == ["leafe", "8", "2", "1,234", "5,678", "3 EnvironmentFailure"]


def test_the_first_sentence_gives_the_gain_with_its_interval() -> None:
    lede = next(one.text for one in Reader(render_page(content())).named("p") if one.attributes.get("class") == "lede")
    assert lede.startswith(
        "Pass@1 of leafe is 40.5 %, +30.4 points against its base (95 % interval +11.0 to +50.0). Pass@2 of leafe is"
    )


def test_the_curves_tell_each_point_to_whoever_looks_closer() -> None:
    titles = [element.text for element in Reader(render_page(content())).named("title")]
    assert "leafe: Pass@1 40.5 [30.0, 50.0] %" in titles
    assert "base: Pass@2 20.0 [10.0, 30.0] %" in titles


@pytest.mark.parametrize("value", [0.0, 0.004, 0.37, 1.0])
def test_the_curves_stay_inside_the_drawing(value: float) -> None:
    arms = [ArmResult(f"arm-{i}", {64: Interval(value, value, value)}, {}, 0, 0, {}, 1, 64) for i in range(12)]
    page = render_page(replace(content(), comparison=Comparison(tuple(arms)), trees=()))
    heights = [float(str(one.attributes["y"])) for one in Reader(page).named("text") if one.attributes.get("class") == "name"]
    assert len(heights) == 12 and min(heights) > 0 and max(heights) < 400
    assert sorted(heights) == sorted(set(heights))


def test_exploration_is_counted_from_the_trees_alone() -> None:
    assert exploration_row("tree", [small_tree(), small_tree()]) == ExplorationRow(
        name="tree",
        tasks=2,
        solved=2,
        attempts=10,
        successes=2,
        turns=14,
        tokens=2 * (700 + 14 + 40),
        replayed_steps=4,
        reflections=6,
        unparsed=2,
        broken={"EnvironmentFailure": 2},
        faults=faults_of([small_tree()] * 2),
    )
    rows = rows_below(render_page(content()), "Exploration")
    assert dict(zip(rows[0], rows[1], strict=True))["Unparsed"] == "1"


def test_shares_of_what_came_to_nothing_stand_beside_the_counts() -> None:
    faults = Faults(replies=8, no_action=0.5, cut=0.125, attempts=4, out_of_room=0.25)
    base, arm = measured().arms
    row = ExplorationRow("tree", faults=replace(faults, reflections=2, unread=0.5, no_room=0.5))
    page = render_page(replace(content(), comparison=Comparison((replace(base, faults=faults), arm)), exploration=(row,)))
    heading, tree = rows_below(page, "Replies, attempts and reflections, %")
    assert dict(zip(heading[1:], tree[1:], strict=True)) == {
        "Replies without action": "50.0",
        "Replies cut": "12.5",
        "Attempts out of room": "25.0",
        "Reflections unread": "50.0",
        "Reflections no room": "50.0",
    }
    heading, measured_base, measured_arm = rows_below(page, "Replies and attempts at test time, %")
    assert heading[1:] == ["Replies without action", "Replies cut", "Attempts out of room"]
    assert (measured_base[1:], measured_arm[1:]) == (["50.0", "12.5", "25.0"], ["–", "–", "–"])


def test_what_makes_the_figures_mean_little_stands_at_the_top() -> None:
    page = render_page(replace(content(), alarms=("no reply held an action", "<b>every</b> attempt broke")))
    told = [one.text for one in Reader(page).named("ul") if one.attributes.get("class") == "alarms said"]
    assert told == ["no reply held an action<b>every</b> attempt broke"]
    assert page.index("no reply held an action") < page.index('id="pass-at-k"')
    assert 'class="alarms' not in render_page(content())


def test_a_turn_says_when_it_was_cut_never_seen_or_asked_for_over_a_shortened_history() -> None:
    tree = small_tree()
    unseen = replace(tree.turns[1], parsed=False, stepped=False, completion=Completion("<think>I", finish="length"))
    short = replace(tree.turns[2], shortening=Shortening(thoughts=2, observations=1))
    page = render_page(content(replace(tree, turns=(tree.turns[0], unseen, short, *tree.turns[3:]))))
    notes = [one.text for one in Reader(page).named("span") if one.attributes.get("class") == "note"]
    assert notes[1:4] == [
        "no action found in this reply",
        "the environment never saw it; the answer is ours",
        "cut at its limit of tokens",
    ]
    assert "left out of the prompt: thoughts of the first 2 turns, observations of the first 1 turn" in notes
    plain = [one.text for one in Reader(render_page(content())).named("span") if one.attributes.get("class") == "note"]
    assert not any("cut" in note or "left out" in note or "never saw" in note for note in plain)


def test_a_reflection_without_room_is_told_apart_from_one_that_cannot_be_read() -> None:
    no_room = Reflection(0, 2, (Completion("", finish="context"),), None, "the model's context leaves no room to reflect")
    tree = replace(small_tree(), reflections=(*small_tree().reflections, no_room))
    told = [one.text for one in Reader(render_page(content(tree))).named("li") if one.text.startswith("Looked back")]
    assert told == [
        "Looked back after turn 3: go back to turn 2",
        "Looked back after turn 2: no room to reflect, the context is full",
        "Looked back after turn 3: unreadable: no turn\nhm\nhm",
        "Looked back after turn 2: nothing to do better",
    ]
    assert exploration_row("tree", [tree]).unparsed == 1


def test_each_branch_hangs_from_the_turn_that_it_was_rolled_back_to() -> None:
    found = {worker.attempt.index: (worker.owner, worker.start, worker.end) for worker in lanes(small_tree())}
    assert found == {0: (None, 0, 3), 1: (0, 1, 3), 2: (1, 2, 3), 3: (None, 0, 1), 4: (None, 0, 0)}
    assert [worker.attempt.index for worker in lanes(small_tree())] == [0, 1, 2, 3, 4]


def test_no_lane_is_crossed_by_the_line_of_another() -> None:
    tree = small_tree()
    early = Attempt(5, 1, StopReason.TURN_LIMIT, False, 0.0, "5/3", 0, 3)
    tree = replace(tree, turns=(*tree.turns, turn(5, 3, "up", parent="0/2")), attempts=(*tree.attempts, early))
    drawn = lanes(tree)
    rows = {worker.attempt.index: row for row, worker in enumerate(drawn)}
    assert [worker.attempt.index for worker in drawn] == [0, 5, 1, 2, 3, 4]
    for worker in drawn:
        between = drawn[rows.get(worker.owner, 0) + 1 : rows[worker.attempt.index]] if worker.owner is not None else ()
        assert all(other.start >= worker.start for other in between)


def test_a_branch_is_told_with_what_it_replaced_the_advice_and_what_it_did() -> None:
    tree = small_tree()
    before = replaced_turn(tree, tree.attempts[2])
    assert before is not None and before.id == "1/3"
    assert replaced_turn(tree, tree.attempts[0]) is None
    reader = Reader(render_page(content()))
    opened = [one for one in reader.named("details") if "open" in one.attributes]
    assert len(opened) == 1
    told = opened[0].text
    for words in (
        "Attempt 2",
        "solved",
        "rolled back to turn 3 after attempt 1",
        "Attempt 1 diddown",
        "push the box",
        "insteadpush",
    ):
        assert words in told
    assert BOARD in told


def test_every_turn_of_every_attempt_is_on_the_page() -> None:
    reader = Reader(render_page(content()))
    assert len(list(reader.named("li"))) == len(small_tree().turns) + len(small_tree().reflections) + len(measured().arms)
    assert [one.attributes["aria-label"] for one in reader.named("a")][2] == "attempt 2: solved after 3 turns"


@pytest.mark.parametrize("stop", StopReason)
def test_every_ending_is_told_in_words(stop: StopReason) -> None:
    tree = small_tree()
    attempts = (replace(tree.attempts[0], stop=stop, success=stop is StopReason.SUCCESS), *tree.attempts[1:])
    summary = next(
        one.text
        for one in Reader(render_page(content(replace(tree, attempts=attempts)))).named("summary")
        if "Attempt 0" in one.text
    )
    assert ENDINGS[stop] in summary


def test_the_page_says_how_many_trees_it_shows_of_how_many() -> None:
    assert "1 of 40 tasks" in render_page(content())


def test_a_long_text_is_cut_and_the_page_says_so() -> None:
    page = render_page(content(small_tree("word " * 2000)))
    assert "[6,000 more characters are in the forest file]" in page


def test_a_run_without_anything_to_show_still_has_a_page() -> None:
    reader = Reader(render_page(PageContent("empty", {})))
    assert [one.text for one in reader.named("h1")] == ["empty"]
    assert not list(reader.named("table"))


def test_the_same_content_gives_the_same_page() -> None:
    assert render_page(content()) == render_page(content())


def test_a_tree_on_which_nothing_was_tried_is_drawn_as_its_start() -> None:
    bare = replace(small_tree(), turns=(), attempts=(), reflections=(), spend=Usage())
    assert "0 attempts, 0 solved" in render_page(content(bare))
