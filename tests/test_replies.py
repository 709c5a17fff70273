"""Replies: the grammar that docs/replies.md writes down, row by row, and what holds for every text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import process_time

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from leafe.records import Experience
from leafe.replies import FORMS, Form, Half, ParseFailure, parse_action, parse_reflection, render_action, render_reflection
from leafe.replies.reading import hollow, stands_for_action
from leafe.worlds.programs.environment import program_in

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "replies.md").read_text(encoding="utf-8")
TURNS = 4  # of the attempt that the page's table of reflections is about
ALL = pytest.mark.parametrize("form", FORMS)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).map(str.strip).filter(bool)
TAG = re.compile(r"</?\s*(action|answer|turn|experience|think|thinking|thoughts?|reasoning)\s*>", re.IGNORECASE)
PIECES = [
    *("<think>", "</think>", "<action>", "</action>", "<Action >", "<answer>", "</answer>", "<turn>", "</turn>", "2", "none", "-"),
    *(
        "<experience>",
        "</experience>",
        "Action:",
        "Experience:",
        "Turn: 1",
        "```",
        "```python",
        "~~~",
        "`",
        '"',
        "**",
        "\n",
        " ",
        ".",
    ),
    *("def f():\n    pass\n", "x = '''", "look", "...", "one command", "\r\n", "\\", "\0", "\ud800", "😀", "٣", "("),
]
MIXED = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
STATEMENTS = [
    "def f(x):\n    return x",
    "class A:\n    pass",
    "import re",
    "print(re.sub(r'\\d', '', input()))",
    "x = '''\n```python\ny\n```\n'''",
    'x = """\n````\n</action>\n<think>\n~~~\n"""',
    "print('</action>')",
    "x = '<action>look</action>' # ```",
    "for i in range(3):\n    f(i)\n",
]
PROGRAMS = st.lists(st.sampled_from(STATEMENTS), min_size=1, max_size=6).map("\n".join)


@dataclass(frozen=True)
class Row:
    """A row of a table: a reply, whether it is whole, and what is read."""

    section: str
    reply: str
    whole: bool
    reading: str


def spans(cell: str) -> list[str]:
    """The code spans of a cell, with the signs for line ends as line ends."""
    found = [text for _, text in re.findall(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", cell)]
    found = [text[1:-1] if text.startswith(" ") and text.endswith(" ") and text.strip() else text for text in found]
    return [text.replace("⏎", "\n").replace("␍", "\r").replace("\\|", "|") for text in found]


def rows() -> Iterator[Row]:
    for section, body in re.findall(r"^## (.*)\n((?:(?!## ).*\n?)*)", PAGE, re.MULTILINE):
        for line in body.split("\n"):
            cells = re.split(r"(?<!\\)\|", line.strip("|")) if line.startswith("| ") else []
            if len(cells) != 2 or not cells[1].strip() or cells[0].strip() == "reply":
                continue
            reply, whole = "".join(spans(cells[0])), "and no more" not in cells[0]
            told = cells[1].split("`")[0].strip()
            yield Row(section, reply, whole, " ".join([told, *spans(cells[1])]).strip())


ROWS = list(rows())


def reading(row: Row) -> str:
    """What the parser makes of a row, in the table's words."""
    try:
        if row.section == "Reflections":
            experience = parse_reflection("tags", row.reply, TURNS, whole=row.whole)
            return f"turn {experience.turn}: {experience.text}" if experience else "nothing went wrong"
        return parse_action("program" if row.section == "Programs" else "tags", row.reply, whole=row.whole)
    except ParseFailure as refusal:
        return f"refused: {refusal}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.section} {row.reply!r:.50}")
def test_a_reply_is_read_as_the_page_says(row: Row) -> None:
    assert reading(row) == row.reading


def test_the_page_has_a_table_for_each_kind_of_reply() -> None:
    counts = {section: sum(row.section == section for row in ROWS) for section in {row.section for row in ROWS}}
    assert counts.keys() == {"Actions in tags", "Reflections", "Programs"}
    assert counts["Actions in tags"] + counts["Reflections"] >= 60 and counts["Programs"] >= 24
    assert len({(row.section, row.reply, row.whole) for row in ROWS}) == len(ROWS)


# What holds for every text


def sayable(form: Form, text: str) -> bool:
    """Whether a reply of this form can hold the text: one line where replies are bare, no tag where they are tagged."""
    return "\n" not in text if form == "bare" else not TAG.search(text)


@pytest.mark.parametrize("form", ["bare", "tags"])
@given(text=WORDS | MIXED.map(str.strip).filter(bool))
@example('"quoted"')
@example("`code`")
@example("```\nfenced\n```")
@example("Action: look")
def test_a_rendered_action_is_read_back_as_it_was(form: Form, text: str) -> None:
    assume(sayable(form, text) and not stands_for_action(text))
    assert parse_action(form, render_action(form, text)) == text


MARKS = st.text(st.sampled_from("<>^v.#*[](){}_`'\":;!,-+/\\|~…= "), min_size=1, max_size=6).map(str.strip).filter(bool)


@given(text=MARKS | st.sampled_from(["command", "action", "experience", "None", "..", "Action.", "[ ]", "<>"]))
def test_marks_and_single_words_are_actions_unless_they_are_an_ellipsis(text: str) -> None:
    ellipsis = re.fullmatch(r"[\[({<]?\s*(\.{3,}|…+)\s*[\])}>]?", text)
    if ellipsis:
        with pytest.raises(ParseFailure, match="only stands for an action"):
            parse_action("tags", render_action("tags", text))
    else:
        assert parse_action("tags", render_action("tags", text)) == text


@pytest.mark.parametrize(
    "text", ["[action]", "<command>", "{your action}", "[...]", "…", "(experience)", "[your next action]", "one action"]
)
def test_a_placeholder_of_a_prompt_is_no_action(text: str) -> None:
    with pytest.raises(ParseFailure, match="only stands for an action"):
        parse_action("tags", f"<action>{text}</action>")


@given(program=PROGRAMS)
def test_a_rendered_program_is_read_back_as_it_was(program: str) -> None:
    assert parse_action("program", render_action("program", program)) == program.strip("\n")


@given(program=PROGRAMS)
def test_a_world_of_programs_runs_what_was_read_and_nothing_else(program: str) -> None:
    assert program_in(render_action("program", program)) == program_in(program) == program.strip("\n")


def test_a_world_of_programs_takes_what_holds_no_block_as_it_stands() -> None:
    assert [program_in(text) for text in ("x = 1", "print(1", "I do not know.", "")] == ["x = 1", "print(1", "I do not know.", ""]


@ALL
@given(text=WORDS, number=st.integers(1, 99), beyond=st.integers(0, 5))
def test_a_rendered_reflection_is_read_back_as_it_was(form: Form, text: str, number: int, beyond: int) -> None:
    assume(sayable(form, text) and not hollow(text))
    experience = Experience(number, text)
    assert parse_reflection(form, render_reflection(form, experience), number + beyond) == experience


@ALL
def test_a_reflection_that_finds_no_mistake_is_read_back_as_none(form: Form) -> None:
    assert parse_reflection(form, render_reflection(form, None), 3) is None


@ALL
@given(reply=st.text(max_size=30) | MIXED, whole=st.booleans())
def test_any_reply_is_either_read_or_unreadable_in_one_short_line(form: Form, reply: str, whole: bool) -> None:
    for read in (lambda: parse_action(form, reply, whole=whole), lambda: parse_reflection(form, reply, 3, whole=whole)):
        try:
            read()
        except ParseFailure as refusal:
            assert "\n" not in str(refusal) and len(str(refusal)) < 200 and str(refusal).isprintable()


@pytest.mark.parametrize("form", ["tags", "program"])
@given(reply=MIXED)
def test_a_reply_that_was_cut_holds_no_action(form: Form, reply: str) -> None:
    with pytest.raises(ParseFailure, match="cut"):
        parse_action(form, reply, whole=False)


@given(reply=MIXED)
def test_what_is_read_in_a_cut_reflection_is_what_a_whole_one_says(reply: str) -> None:
    try:
        cut = parse_reflection("tags", reply, 3, whole=False)
    except ParseFailure:
        return
    assert parse_reflection("tags", reply, 3) == cut


@ALL
@pytest.mark.parametrize("number", ["0", "4", "-1", "999999", "1000000", "1.5", "٣", "", "9" * 5000])
def test_a_turn_out_of_range_is_unreadable_and_never_clamped(form: Form, number: str) -> None:
    reply = f"turn {number}: go" if form == "bare" else f"<turn>{number}</turn><experience>go</experience>"
    with pytest.raises(ParseFailure):
        parse_reflection(form, reply, 3)


ADVICE = "Go left."


@pytest.mark.parametrize(
    ("reply", "half"),
    [
        (f"<turn></turn><experience>{ADVICE}</experience>", Half(None, ADVICE)),
        (f"<turn></turn>\n<experience></experience>\n{ADVICE}", Half(None, ADVICE)),
        (f"<turn></turn>\n<experience>\n{ADVICE}\n<turn></turn>", Half(None, ADVICE)),
        (f"<turn>9</turn><experience>{ADVICE}</experience>", Half(None, ADVICE)),
        (f"<turn>1</turn><turn>2</turn><experience>{ADVICE}</experience>", Half(None, ADVICE)),
        (f"<experience>{ADVICE}</experience>", Half(None, ADVICE)),
        ("<turn>2</turn>", Half(2)),
        ("<turn>2</turn><experience>what was wrong</experience>", Half(2)),
        ("<turn>2</turn><experience>Go left.</experience><experience>Go up.</experience>", Half(2)),
        ("Turn 2 was wrong. I should have gone left.", Half()),
        ("<think><turn>2</turn><experience>Go left.</experience></think>", Half()),
        ("", Half()),
    ],
)
def test_of_a_reflection_that_is_not_whole_the_readable_half_is_kept(reply: str, half: Half) -> None:
    with pytest.raises(ParseFailure) as refusal:
        parse_reflection("tags", reply, 4)
    assert refusal.value.half == half


def test_of_a_cut_reflection_the_turn_is_kept_and_a_cut_experience_is_not() -> None:
    with pytest.raises(ParseFailure) as refusal:
        parse_reflection("tags", "<turn>2</turn>\n<experience>You shou", 4, whole=False)
    assert refusal.value.half == Half(2)


TURN_ASKED, ADVICE_ASKED = Half(experience=ADVICE), Half(turn=3)


@pytest.mark.parametrize(
    ("kept", "reply", "read"),
    [
        (TURN_ASKED, "2", Experience(2, ADVICE)),
        (TURN_ASKED, "Turn 2.", Experience(2, ADVICE)),
        (TURN_ASKED, "**2**", Experience(2, ADVICE)),
        (TURN_ASKED, "<turn>2</turn>", Experience(2, ADVICE)),
        (TURN_ASKED, "<think>The second.</think>\ntwo", Experience(2, ADVICE)),
        (TURN_ASKED, "none", None),
        (TURN_ASKED, "<turn>2</turn><experience>Go up.</experience>", Experience(2, "Go up.")),
        (TURN_ASKED, "9", "there is no turn '9': wanted a turn from 1 to 4"),
        (TURN_ASKED, "2 or 3", "the turn was '2 or 3' and not one number from 1 to 4, or none"),
        (TURN_ASKED, "I do not know.", "the turn was 'I do not know.' and not one number from 1 to 4, or none"),
        (TURN_ASKED, "", "there was no <turn>...</turn>"),
        (TURN_ASKED, "<turn></turn>", "the turn was '' and not one number from 1 to 4, or none"),
        (ADVICE_ASKED, "Go up.", Experience(3, "Go up.")),
        (ADVICE_ASKED, "Up was wrong.\n\nGo up.\n", Experience(3, "Up was wrong.\n\nGo up.")),
        (ADVICE_ASKED, "<experience>Go up.</experience>", Experience(3, "Go up.")),
        (ADVICE_ASKED, "Experience: Go up.", Experience(3, "Go up.")),
        (ADVICE_ASKED, "<turn>2</turn><experience>Go up.</experience>", Experience(2, "Go up.")),
        (ADVICE_ASKED, "<turn>2</turn>", "there was no <experience>...</experience>"),
        (ADVICE_ASKED, "what was wrong", "'what was wrong' only stands for an experience: say what to do instead"),
        (ADVICE_ASKED, " \n", "the experience was empty"),
        (ADVICE_ASKED, "Go up. </experience>", "there was no <experience>...</experience>"),
    ],
)
def test_where_one_half_was_asked_for_a_reply_may_be_that_half_alone(kept: Half, reply: str, read: Experience | str | None) -> None:
    if isinstance(read, str):
        with pytest.raises(ParseFailure) as refusal:
            parse_reflection("tags", reply, 4, kept=kept)
        assert str(refusal.value) == read
    else:
        assert parse_reflection("tags", reply, 4, kept=kept) == read


@given(reply=st.text(max_size=30) | MIXED, whole=st.booleans())
def test_a_half_that_was_kept_never_makes_a_readable_reply_unreadable(reply: str, whole: bool) -> None:
    try:
        read = parse_reflection("tags", reply, 3, whole=whole)
    except ParseFailure:
        return
    for kept in (TURN_ASKED, ADVICE_ASKED):
        assert parse_reflection("tags", reply, 3, whole=whole, kept=kept) == read


def test_the_words_of_a_reply_are_quoted_shortly_and_on_one_line() -> None:
    long = "open the\n\x1b[31m drawer " * 1000
    with pytest.raises(
        ParseFailure, match=r"^there were two different actions: 'look' and 'open the \[31m drawer .*\.\.\.'$"
    ) as refusal:
        parse_action("tags", f"<action>look</action><action>{long}</action>")
    assert len(str(refusal.value)) < 120


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("", None),
        (" \n ", None),
        ("up\ndown", None),
        (" up \n", "up"),
        ("`up`", "`up`"),
        ("<action>up</action>", "<action>up</action>"),
        ("one command", "one command"),
    ],
)
def test_a_bare_action_is_one_line_and_is_read_as_it_stands(reply: str, read: str | None) -> None:
    for whole in (True, False):
        if read is None:
            with pytest.raises(ParseFailure):
                parse_action("bare", reply, whole=whole)
        else:
            assert parse_action("bare", reply, whole=whole) == read


THOUGHTS = "4: You moved.\n######\n#P_XO#\n######\n"


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "turn 1",
        "turn 1: ",
        "turn 1: go left\nturn 2: go right",
        "turn none\nturn 1: go left",
        "I think turn 1: go left",
        "Turn 1: go left",
        "turn two: go left",
        f"turn 4: go left\n{THOUGHTS}",
        f"{THOUGHTS}turn 4: go left\nand so on",
    ],
)
def test_a_bare_reflection_in_another_form_is_unreadable(reply: str) -> None:
    with pytest.raises(ParseFailure):
        parse_reflection("bare", reply, 9)


def test_a_bare_reflection_is_the_last_line_and_may_follow_thoughts() -> None:
    reply = f"{THOUGHTS}turn 4: up was wrong. Go left."
    assert parse_reflection("bare", reply, 9) == Experience(4, "up was wrong. Go left.")


# What hostile texts cost

HOSTILE = [
    *("<", "<action>", "<action>a</action>", "<think>", "</think>", "<turn>1</turn>", "<experience>a</experience>", "Turn: 1\n"),
    *("Action:\n", "Action: a\n", "Action:\n```\n", "Experience:\n", "`", "**", " ", "\n", "turn 1: a\n", "(", "\\", "#", "\r\n"),
    *(
        "```\n",
        "```python\n",
        "~~~\n```\n",
        "x```\n",
        "```python\nx=(\n</action>\n",
        "```python\n" + "(x\n" * 700,
        "```\n" + "x=1\n" * 700,
        "~" * 15_000 + "`",
        "`" * 15_000 + "x`\n",
        "```python\nx[_",
        "<turn>1</turn>" + " " * 30,
    ),
]


def cost(read: Callable[[str], object], reply: str) -> float:
    begun = process_time()
    with suppress(ParseFailure):
        read(reply)
    return process_time() - begun


@ALL
@pytest.mark.parametrize("piece", HOSTILE, ids=lambda piece: f"{piece!r:.24}")
def test_reading_a_long_reply_costs_as_much_as_reading_its_parts(form: Form, piece: str) -> None:
    short, long = (piece * (size // len(piece)) for size in (4_000, 64_000))
    for read in (lambda reply: parse_action(form, reply), lambda reply: parse_reflection(form, reply, 4)):
        most = 60 * max(min(cost(read, short) for _ in range(2)), 0.004)  # sixteen times as long; the square would be 256 times
        assert any(cost(read, long) < most for _ in range(4))  # other work on the machine may come between


@ALL
def test_a_reply_beyond_all_measure_is_not_read(form: Form) -> None:
    for read in (lambda reply: parse_action(form, reply), lambda reply: parse_reflection(form, reply, 4)):
        with pytest.raises(ParseFailure, match=r"the reply was 200,001 characters long, and at most 200,000 are read"):
            read("x" * 200_001)


def test_reading_a_reply_warns_nobody_of_what_it_holds(recwarn: pytest.WarningsRecorder) -> None:
    assert parse_action("program", "```python\nx = 1if y else 2\nprint('\\d' is 3)\n```")
    assert not list(recwarn)


@pytest.mark.parametrize(
    "program",
    ["(" * 50_000, "-" * 50_000 + "1", "a" + ".a" * 25_000, "f(" * 20_000, "[a," * 16_000, "x = '" + "\\d" * 20_000 + "'"],
)
def test_a_program_that_nests_deeper_than_python_can_is_handed_to_the_world(program: str) -> None:
    assert parse_action("program", f"```python\n{program}\n```") == program
