"""The common parts of all forms of replies: thoughts, tags, placeholders, and the wording of faults.

A character is read a bounded number of times, so a hostile reply of a megabyte costs no more than any other. This file finds the parts
of a reply and does not decide what it means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

SHOWN = 40  # characters of a reply that a message quotes
_THOUGHTS = re.compile(r"<[ \t]?(/?)[ \t]?(?:think|thinking|thoughts?|reasoning)[ \t]?>", re.IGNORECASE)
_TAGS = re.compile(r"<[ \t]?(/?)[ \t]?(action|answer|turn|experience)[ \t]?>", re.IGNORECASE)
_RUN = re.compile(r"`+|~{3,}")
_DOTS = re.compile(r"[\[({<]?\s*(?:\.{3,}|…+)\s*[\])}>]?")
_IN_BRACKETS = re.compile(r"\[(.*)\]|\((.*)\)|\{(.*)\}|<(.*)>", re.DOTALL)
_EDGES = " \t\r\n.…!:;,#()[]{}<>*_`'\"“”‘’"
_WRAPS = (("**", "**"), ("__", "__"), ("``", "``"), ("`", "`"), ('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"))
# Placeholders of prompts for an answer. Small models repeat them word for word. Those of one word may be a real action.
_SINGLE = {"", "action", "command", "experience"}
_PHRASES = {
    *("the action", "your action", "one action", "an action", "next action", "your next action", "chosen action"),
    *("the command", "your command", "one command", "a command", "next command", "your next command"),
    *("action here", "command here", "your action here", "your command here", "insert action here", "action or command"),
    *("the program", "your program", "the whole program", "whole program", "a program", "your whole program"),
    *("the code", "your code", "code here", "your code here", "python code", "your python code", "program here"),
    *("your answer", "the answer", "answer here", "your answer here"),
    *("the experience", "your experience", "what to do instead", "what went wrong", "what was wrong"),
    *("what went wrong, and what to do instead", "what was wrong, and what to do instead"),
    *("what went wrong and what to do instead", "what was wrong and what to do instead"),
    *("your reasoning", "your reasoning, a few sentences", "one sentence", "a few sentences"),
}


@dataclass(frozen=True, slots=True)
class Half:
    """The part that was read of an incomplete reflection: its turn or its experience. Without either nothing was read."""

    turn: int | None = None
    experience: str = ""


NO_HALF = Half()


class ParseFailure(ValueError):
    """A reply without one certain meaning. The message is the reason, in a phrase that the policy is shown.

    `half` is the part of a reflection that was read nevertheless.
    """

    def __init__(self, problem: str, half: Half = NO_HALF) -> None:
        super().__init__(problem)
        self.half = half


@dataclass(frozen=True, slots=True)
class Thoughts:
    """A reply with its thoughts apart: the text beside them, the closed ones, and the text after an opening that is never closed."""

    said: str
    closed: tuple[str, ...]
    unclosed: str | None


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag: its name in lower case, whether it closes, and its place."""

    name: str
    closing: bool
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Pair:
    """The text between an opening tag and the next closing tag of the same name, and their places."""

    text: str
    start: int
    end: int


def thoughts_apart(reply: str) -> Thoughts:
    """Takes the thoughts out of a reply.

    A first `</think>` without an opening ends thoughts that began with the reply: reasoning models write the opening in their template.
    Thoughts may hold thoughts; an opening among them that nothing closes is a mention.
    """
    said, closed, start, opened, first, end = [], [], 0, None, True, 0
    tags = list(_THOUGHTS.finditer(reply))
    ends = thought_ends([bool(tag.group(1)) for tag in tags])
    for number, tag in enumerate(tags):
        if not tag.group(1):
            if opened is None:
                said.append(reply[start : tag.start()])
                opened, end = tag.end(), ends.get(number, number)
        elif number >= end:
            if opened is not None or first:
                closed.append(reply[start if opened is None else opened : tag.start()])
            else:
                said.append(reply[start : tag.start()])
            start, opened = tag.end(), None
        first = False
    if opened is None:
        said.append(reply[start:])
    return Thoughts("\n".join(said), tuple(closed), None if opened is None else reply[opened:])


def thought_ends(closing: Sequence[bool]) -> dict[int, int]:
    """The number of the tag that closes each opening tag of thoughts, for those that are closed.

    >>> thought_ends([False, False, True, True]), thought_ends([False, False, True])
    ({1: 2, 0: 3}, {1: 2})
    """
    ends: dict[int, int] = {}
    opened: list[int] = []
    for number, closes in enumerate(closing):
        if not closes:
            opened.append(number)
        elif opened:
            ends[opened.pop()] = number
    return ends


def thought_tags(text: str) -> Iterator[tuple[int, bool]]:
    """The places of the tags of thoughts in a text, and whether they close."""
    return ((tag.start(), bool(tag.group(1))) for tag in _THOUGHTS.finditer(text))


@lru_cache(maxsize=8)  # the same few texts of one reply are read again and again
def tags_in(text: str) -> tuple[Tag, ...]:
    """Every tag that has a meaning in replies, except those of thoughts."""
    return tuple(Tag(tag.group(2).lower(), bool(tag.group(1)), tag.start(), tag.end()) for tag in _TAGS.finditer(text))


def pairs(text: str, name: str) -> list[Pair]:
    """The complete pairs of a tag. Of two openings in a row the first is a mention of the tag."""
    found, opened = [], None
    for tag in tags_in(text):
        if tag.name == name and not tag.closing:
            opened = tag
        elif tag.name == name and opened is not None:
            found.append(Pair(text[opened.end : tag.start], opened.start, tag.end))
            opened = None
    return found


def opened_last(text: str, name: str) -> int | None:
    """The place after an opening tag, if nothing closes that tag."""
    last = next((tag for tag in reversed(tags_in(text)) if tag.name == name), None)
    return None if last is None or last.closing else last.end


def unwrapped(text: str) -> str:
    """The text without a fence, code quotes, quotes or markdown's emphasis around the whole of it. The content of a fence is unchanged."""
    text = text.strip()
    inner = _unfenced(text)
    if inner is not None:
        return inner
    changed = True
    while changed:
        changed = False
        for opening, closing in _WRAPS:
            inner = text[len(opening) : len(text) - len(closing)]
            around = len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing)
            if around and opening not in inner and closing not in inner and inner.strip():
                text, changed = inner.strip(), True
    return text


def _unfenced(text: str) -> str | None:
    """The content of a fence around the whole text, or None if there is no such fence."""
    run = _RUN.match(text)
    if run is None or len(run.group()) < 3 or not text.endswith(run.group()) or len(text) < 2 * len(run.group()):
        return None
    mark = run.group()
    inner = text[len(mark) : len(text) - len(mark)]
    if mark in inner or inner.endswith(mark[0]):
        return None
    head, newline, body = inner.partition("\n")
    return body.strip() if newline and not head.strip().count(" ") else inner.strip() or None


def fenced(text: str, info: str = "") -> str:
    """The text in a fence that is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    mark = "`" * max(3, longest + 1)
    return f"{mark}{info}\n{text}\n{mark}"


def hollow(text: str) -> bool:
    """Whether a text in words says nothing: a placeholder of a prompt, marks alone, or nothing."""
    plain = _plain(text)
    return plain in _PHRASES or plain in _SINGLE


def stands_for_action(text: str) -> bool:
    """Whether a text is nothing, an ellipsis or a placeholder for an action. A world may have actions of one mark or any one word.

    >>> [stands_for_action(text) for text in ("your action", "[command]", "...", "command", "[]", ".")]
    [True, True, True, False, False, False]
    """
    text = text.strip()
    if not text or _DOTS.fullmatch(text) or _plain(text) in _PHRASES:
        return True
    inner = _IN_BRACKETS.fullmatch(text)
    return inner is not None and _plain(text) != "" and _plain(text) in _SINGLE


def _plain(text: str) -> str | None:
    """A text in small letters without marks around it, None for one that is too long for a placeholder."""
    return " ".join(text.casefold().split()).strip(_EDGES) if len(text) <= 80 else None


def quoted(text: str) -> str:
    """A reply's text in a message: one line, shortened, in quotes."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text[: 8 * SHOWN]).split())
    return f"'{line}'" if len(line) <= SHOWN and len(text) <= 8 * SHOWN else f"'{line[: SHOWN - 3].rstrip()}...'"


def different(texts: list[str]) -> list[str]:
    """The texts that differ in more than case, blanks and a final full stop; of equal ones the last, in the order of the first."""
    return list({" ".join(text.split()).casefold().rstrip(". "): text for text in texts}.values())
