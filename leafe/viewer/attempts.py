"""One task's tree in words: the task, the map, and for each attempt the turn that it was rolled back to, the advice, and its turns.

Observations that are small boards are laid out side by side like a strip of film; longer ones are placed below each other. A text is cut
only where it is too long for any page, and the page then notes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from leafe.records import Attempt, Reflection, Tree, Turn
from leafe.viewer.markup import Markup, join, plural, preformatted, tag
from leafe.viewer.trees import blamed, ending, replaced_turn, tree_map

LONGEST = 4000  # characters of one text
BOARD_LINES, BOARD_COLUMNS = 16, 24


@dataclass(frozen=True, slots=True)
class _Shown:
    """A tree on the page: `prefix` starts the ids of its elements, `strip` is whether its observations are small boards.

    `marks` are notes on single turns, by the turn's id.
    """

    tree: Tree
    prefix: str
    strip: bool
    marks: Mapping[str, str]


def task_section(tree: Tree, prefix: str) -> Markup:
    """Everything about one task."""
    marks = {turn: f"↺ attempt {judge.index} goes on from here" for turn, judge in blamed(tree).items()}
    shown = _Shown(tree, prefix, _are_boards(tree), marks)
    won = sum(attempt.success for attempt in tree.attempts)
    facts = (
        f"{plural(len(tree.attempts), 'attempt')}, {won} solved · {plural(tree.spend.turns, 'turn')} taken, "
        f"at most {tree.task.horizon} in an attempt · explored by {tree.method}"
    )
    first = next((attempt for attempt in _branches(tree) if attempt.success), next(_branches(tree), None))
    return tag(
        "section",
        tag("h3", tree.task.id),
        tag("p", facts, class_="soft"),
        _start(shown),
        tree_map(tree, prefix),
        *(_attempt(shown, attempt, attempt is first) for attempt in tree.attempts),
        class_="task",
    )


def attempt_alone(tree: Tree, name: str, marks: Mapping[int, str], *, opened: bool) -> Markup:
    """A tree's last attempt by itself, from the first turn on, under a name. `marks` are notes on its turns, by their numbers."""
    attempt, trajectory = tree.attempts[-1], tree.trajectory(tree.attempts[-1].leaf)
    shown = _Shown(tree, "", _are_boards(tree), {turn.id: marks[turn.index] for turn in trajectory if turn.index in marks})
    summary = tag("summary", tag("b", name), " ", ending(attempt), class_="head")
    turns = tag("ol", *(_turn(shown, turn) for turn in trajectory), class_="strip" if shown.strip else "list")
    body = tag("div", _start(shown), tag("div", turns, class_="turns"), class_="body")
    return tag("details", summary, body, open=opened, class_="attempt won" if attempt.success else "attempt")


def _start(shown: _Shown) -> Markup:
    """The task, and the first observation."""
    asked = tag("p", _cut(shown.tree.task.instruction), class_="asked said")
    seen = preformatted(_cut(shown.tree.root.text))
    if shown.strip:
        return tag("div", tag("figure", seen, class_="board"), asked, class_="branch")
    return tag("div", asked, tag("details", tag("summary", "What it saw at the start"), seen, class_="turns"), class_="start")


def _branches(tree: Tree) -> Iterator[Attempt]:
    return (attempt for attempt in tree.attempts if attempt.turn is not None)


def _are_boards(tree: Tree) -> bool:
    texts = [tree.root.text, *(turn.observation.text for turn in tree.turns)]
    lines = [text.splitlines() or [""] for text in texts]
    unbroken = max((len(word) for text in texts for word in text.split()), default=0)
    small = max(len(block) for block in lines) <= BOARD_LINES and unbroken <= BOARD_COLUMNS
    return small and median(len(line) for block in lines for line in block) <= BOARD_COLUMNS and median(map(len, lines)) > 2


def _cut(text: str) -> str:
    rest = len(text) - LONGEST
    return text if rest <= 0 else f"{text[:LONGEST]}\n[{rest:,} more characters are in the forest file]"


def _attempt(shown: _Shown, attempt: Attempt, opened: bool) -> Markup:
    own = [turn for turn in shown.tree.turns if turn.attempt == attempt.index]
    summary = tag("summary", tag("b", f"Attempt {attempt.index}"), " ", ending(attempt), " ", _origin(attempt), class_="head")
    error = tag("p", "It broke: ", tag("code", _cut(attempt.error)), class_="said") if attempt.error else ""
    inside = (_branching(shown, attempt, own), error, _turns(shown, own, attempt), *_reflections(shown, attempt))
    body = tag("div", *inside, id=f"{shown.prefix}-{attempt.index}", class_="body")
    return tag("details", summary, body, open=opened, class_="attempt won" if attempt.success else "attempt")


def _origin(attempt: Attempt) -> Markup:
    if attempt.turn is not None:
        words = f"rolled back to turn {attempt.turn} after attempt {attempt.parent}"
    elif attempt.by == "environment":
        words = "from the start, by the environment's expert"
    elif attempt.parent is not None:
        words = f"from the start, with advice from attempt {attempt.parent}"
    else:
        words = "from the start"
    return tag("span", words, class_="soft")


def _branching(shown: _Shown, attempt: Attempt, own: list[Turn]) -> Markup:
    """The state that the branch went back to, the action taken there before, the advice, and the action taken instead."""
    if attempt.turn is None:
        told = _advice(attempt.experience, "The advice that it read") if attempt.experience else ""
        seen_first = (
            tag("div", tag("h4", "What it saw at its start"), preformatted(_cut(attempt.root.text))) if attempt.root else ""
        )
        return tag("div", told, seen_first, class_="branch") if told or seen_first else join(())
    before, trajectory = replaced_turn(shown.tree, attempt), shown.tree.trajectory(attempt.leaf)
    seen = trajectory[attempt.turn - 2].observation if attempt.turn > 1 else shown.tree.root
    steps = [
        tag("div", tag("h4", f"Attempt {attempt.parent} did"), _action(before, "del")) if before else "",
        _advice(attempt.experience, "Looking back, the policy said") if attempt.experience else "",
        tag("div", tag("h4", f"Attempt {attempt.index} did instead"), _action(own[0], "ins")) if own else "",
    ]
    board = tag("figure", preformatted(_cut(seen.text)), tag("figcaption", f"What it saw at turn {attempt.turn}"), class_="board")
    return tag("div", board, tag("div", *steps, class_="steps"), class_="branch")


def _advice(text: str, heading: str) -> Markup:
    return tag("div", tag("h4", heading), tag("blockquote", _cut(text), class_="said"))


def _action(turn: Turn, element: str) -> Markup:
    return tag("p", tag(element, tag("code", _cut(turn.action))), class_="said")


def _turns(shown: _Shown, own: list[Turn], attempt: Attempt) -> Markup:
    if not own:
        return tag("p", "It took no turn.", class_="soft")
    first, last = own[0].index, own[-1].index
    words = f"Turn {first}" if first == last else f"Turns {first} to {last}"
    shared = f"; turns 1 to {first - 1} are those it was rolled back along" if first > 1 else ""
    listed = tag("ol", *(_turn(shown, turn) for turn in own), class_="strip" if shown.strip else "list")
    return tag("details", tag("summary", words, tag("span", shared, class_="soft")), listed, open=False, class_="turns")


def _turn(shown: _Shown, turn: Turn) -> Markup:
    notes = [
        *(tag("span", words, class_="note") for words in _reply_notes(turn)),
        tag("span", shown.marks[turn.id], class_="note") if turn.id in shown.marks else "",
        tag("span", "✓ solved", class_="note won") if turn.observation.success else "",
    ]
    reply = turn.completion.text.strip()
    spoken = "" if reply in ("", turn.action.strip()) else preformatted(_cut(reply), "reply")
    head = tag("p", tag("span", str(turn.index), class_="count"), " ", tag("code", _cut(turn.action)), *notes, class_="did said")
    return tag("li", head, spoken, preformatted(_cut(turn.observation.text)))


def _reply_notes(turn: Turn) -> Iterator[str]:
    """Notes on a reply and on its prompt for the reader."""
    if not turn.parsed:
        yield "no action found in this reply"
    if not turn.stepped:
        yield "the environment never saw it; the answer is ours"
    if turn.completion.finish == "length":
        yield "cut at its limit of tokens"
    if turn.completion.finish == "closed":
        yield "cut or without end; its thoughts were closed for it and the action alone was asked for"
    if turn.completion.finish == "repetition":
        yield "ended where it only repeated itself"
    left_out = {"thoughts": turn.shortening.thoughts, "observations": turn.shortening.observations}
    first = [f"{what} of the first {plural(turns, 'turn')}" for what, turns in left_out.items() if turns]
    if first:
        yield f"left out of the prompt: {', '.join(first)}"


def _reflections(shown: _Shown, attempt: Attempt) -> Iterator[Markup]:
    """The outcome of each reflection on an attempt, with the reply where nothing could be read."""
    own = [reflection for reflection in shown.tree.reflections if reflection.attempt == attempt.index]
    if own:
        yield tag("ul", *map(_reflection, own), class_="looks")


def _reflection(reflection: Reflection) -> Markup:
    head = f"Looked back after turn {reflection.after_turn}: "
    if reflection.no_room:
        return tag("li", head, tag("b", "no room to reflect"), ", the context is full")
    if reflection.unread:
        said = (preformatted(_cut(reply.text), "reply") for reply in reflection.replies)
        summary = tag("summary", head, tag("b", "unreadable"), ": ", reflection.error or "")
        return tag("li", tag("details", summary, *said))
    if reflection.experience is None:
        return tag("li", head, "nothing to do better")
    return tag("li", head, f"go back to turn {reflection.experience.turn}")
