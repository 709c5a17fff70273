"""Replies to actions and reflections, and back: the grammar of the policy's replies.

Rendering and parsing are inverses: `parse_action(form, render_action(form, a)) == a`, and likewise for reflections. Many forms with a
certain meaning are read and nothing is guessed: an ambiguous reply is a `ParseFailure` whose message names what is missing.
`docs/replies.md` is the grammar in words.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from leafe.records import Experience
from leafe.replies.actions import parse_tagged, render_tagged, text_for_world
from leafe.replies.programs import parse_program, program_in, render_program
from leafe.replies.reading import NO_HALF, Half, ParseFailure
from leafe.replies.reflections import parse_tagged_reflection, render_tagged_reflection
from leafe.replies.thoughts import parse_thought

__all__ = [
    "FORMS",
    "NO_HALF",
    "Form",
    "Half",
    "ParseFailure",
    "parse_action",
    "parse_reflection",
    "parse_thought",
    "program_in",
    "render_action",
    "render_reflection",
    "render_thought",
    "text_for_world",
]

# The forms of replies: `bare` text, `tags` (`<think>`, `<action>`, ...), or a `program` in a fence, whose reflections are in tags.
Form = Literal["bare", "tags", "program"]
FORMS: tuple[Form, ...] = get_args(Form)

LONGEST_REPLY = 200_000  # characters; reading takes time in proportion to them

# A bare reflection is the last line of its reply; the lines before it are the policy's own thoughts, as `<think>` is among tags.
_BARE_REFLECTION = re.compile(r"\s*turn ([0-9]{1,6}|none)(?:: (.+))?\s*", re.DOTALL)


def render_action(form: Form, action: str) -> str:
    """A reply that takes an action."""
    if form == "bare":
        return action
    return render_program(action) if form == "program" else render_tagged(action)


def render_thought(form: Form, thought: str, action: str) -> str:
    """A reply with a thought before its action; bare replies have no room for that."""
    return f"<think>{thought}</think>\n{render_action(form, action)}"


def parse_action(form: Form, reply: str, *, whole: bool = True) -> str:
    """The action that a reply takes. Raises `ParseFailure` when there is not exactly one.

    A bare action is one line; one in tags may be any text. `whole=False` means that the reply was cut at its token limit: then it holds no
    action, since its end might have changed it. Bare replies are read as they are.
    """
    _check_length(reply)
    if form == "bare":
        action = reply.strip()
        if not action or "\n" in action:
            raise ParseFailure("wanted one line with an action")
        return action
    return (parse_program if form == "program" else parse_tagged)(reply, whole=whole)


def render_reflection(form: Form, experience: Experience | None) -> str:
    """A reply that names a turn and an experience, or (None) that nothing went wrong."""
    if form == "bare":
        return "turn none" if experience is None else f"turn {experience.turn}: {experience.text}"
    return render_tagged_reflection(experience)


def parse_reflection(form: Form, reply: str, turns: int, *, whole: bool = True, kept: Half = NO_HALF) -> Experience | None:
    """The experience that a reply names, or None if the reply is that nothing went wrong.

    Raises `ParseFailure` when the form is wrong, the experience is empty, or the turn lies outside `1 .. turns`; it is never clamped. A
    reply that was cut (`whole=False`) is read if its turn and its experience are complete. `kept` is the half of an earlier reply, if
    only the other half was asked for; bare replies have no halves.
    """
    _check_length(reply)
    return _parse_bare(reply, turns) if form == "bare" else parse_tagged_reflection(reply, turns, whole=whole, kept=kept)


def _check_length(reply: str) -> None:
    if len(reply) > LONGEST_REPLY:
        raise ParseFailure(f"the reply was {len(reply):,} characters long, and at most {LONGEST_REPLY:,} are read")


def _parse_bare(reply: str, turns: int) -> Experience | None:
    lines = [line for line in reply.split("\n") if line.strip()]
    found = _BARE_REFLECTION.fullmatch(lines[-1]) if lines else None
    if found is None or sum(line.lstrip().startswith("turn ") for line in lines) != 1:
        raise ParseFailure("wanted one turn and one experience")
    number, text = found.group(1), (found.group(2) or "").strip()
    if number == "none":
        return None
    if not 1 <= int(number) <= turns:
        raise ParseFailure(f"wanted a turn from 1 to {turns}, found {number}")
    if not text:
        raise ParseFailure("wanted an experience in words")
    return Experience(int(number), text)
