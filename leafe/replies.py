"""Replies to actions and reflections, and back: the grammar of what a policy says.

Rendering and parsing are inverses: `parse_action(form, render_action(form, a)) == a`, and likewise for reflections. Nothing is guessed:
a reply that does not say one thing for certain is `Unreadable`, and the message says what was missing.
"""

from __future__ import annotations

import re
from typing import Literal

from leafe.records import Experience

# How replies look: `bare` text, or `tags` (`<think>`, `<action>`, ...).
Form = Literal["bare", "tags"]

_TAGGED_ACTION = re.compile(r"<action>(.*)</action>\s*\Z", re.DOTALL)
_TAGGED_REFLECTION = re.compile(r"<turn>\s*([0-9]{1,6}|none)\s*</turn>\s*(?:<experience>(.*)</experience>)?\s*\Z", re.DOTALL)
# A bare reflection is the last line of its reply; the lines before it are the policy's own thoughts, as `<think>` is among tags.
_BARE_REFLECTION = re.compile(r"(?:\A|\n)\s*turn ([0-9]{1,6}|none)(?:: ([^\n]+))?\s*\Z")
_BARE_OPENING = re.compile(r"^\s*turn ", re.MULTILINE)


class Unreadable(ValueError):
    """A reply that does not have the form that was asked for."""


def _once(reply: str, tag: str) -> bool:
    return reply.count(f"<{tag}>") == reply.count(f"</{tag}>") == 1


def render_action(form: Form, action: str) -> str:
    """A reply that takes an action."""
    return action if form == "bare" else f"<action>{action}</action>"


def parse_action(form: Form, reply: str) -> str:
    """The action that a reply takes. Raises `Unreadable` when there is not exactly one, at the end of the reply.

    A bare action is one line; one in tags may be any text, such as a program.
    """
    if form == "bare":
        action = reply.strip()
        if not action or "\n" in action:
            raise Unreadable("wanted one line with an action")
        return action
    found = _TAGGED_ACTION.search(reply)
    if found is None or not _once(reply, "action") or not found.group(1).strip():
        raise Unreadable("wanted one <action>...</action> at the end")
    return found.group(1).strip()


def render_reflection(form: Form, experience: Experience | None) -> str:
    """A reply that names a turn and an experience, or (None) says that nothing went wrong."""
    if form == "bare":
        return "turn none" if experience is None else f"turn {experience.turn}: {experience.text}"
    if experience is None:
        return "<turn>none</turn>"
    return f"<turn>{experience.turn}</turn>\n<experience>{experience.text}</experience>"


def parse_reflection(form: Form, reply: str, turns: int) -> Experience | None:
    """The experience that a reply names, or None when it says that nothing went wrong.

    Raises `Unreadable` when the form is wrong, the experience is empty, or the turn lies outside `1 .. turns`; it is never clamped.
    """
    tagged = form == "tags"
    found = (_TAGGED_REFLECTION if tagged else _BARE_REFLECTION).search(reply)
    single = not tagged and len(_BARE_OPENING.findall(reply)) == 1
    if found is None or not (single or (_once(reply, "turn") and (found.group(2) is None or _once(reply, "experience")))):
        raise Unreadable("wanted one turn and one experience")
    number, text = found.group(1), (found.group(2) or "").strip()
    if number == "none":
        return None
    if not 1 <= int(number) <= turns:
        raise Unreadable(f"wanted a turn from 1 to {turns}, found {number}")
    if not text:
        raise Unreadable("wanted an experience in words")
    return Experience(int(number), text)
