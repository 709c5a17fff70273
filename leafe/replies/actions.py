"""Actions in tags: `<action>...</action>`, and the few other ways of writing one whose meaning is certain.

`docs/replies.md` is the grammar in words, with a table of cases. In a world of programs see `programs`.
"""

from __future__ import annotations

import re

from leafe.replies.reading import (
    Pair,
    ParseFailure,
    different,
    fenced,
    opened_last,
    pairs,
    quoted,
    stands_for_action,
    thoughts_apart,
    unwrapped,
)

_MARKS = r"[ \t>#*_`-]{0,8}"
_LINE = re.compile(rf"{_MARKS}action(?:[ \t]+[0-9]{{1,3}})?[*_`]{{0,3}}[ \t]?:(.*)", re.IGNORECASE)
_INPUT = re.compile(rf"^{_MARKS}action[ \t_]input[*_`]{{0,3}}[ \t]?:", re.IGNORECASE | re.MULTILINE)
_PREFIX = re.compile(r"action[ \t]?:", re.IGNORECASE)
_AFTER_ALL = " \t\r\n.`~*"  # what may follow an action that ends a reply


def render_tagged(action: str) -> str:
    """A reply that takes an action. An action that the parser would unwrap is put in a fence."""
    plain = f"<action>{action}</action>"
    return plain if _cleaned(action) == action.strip() else f"<action>\n{fenced(action)}\n</action>"


def parse_tagged(reply: str, *, whole: bool) -> str:
    """The one action of a reply. Raises `ParseFailure`."""
    thoughts = thoughts_apart(reply)
    said = thoughts.said
    found = _readings(said) or _readings_at_the_end(thoughts.unclosed)
    if not whole:
        raise ParseFailure(_cut(reply, bool(found)))
    chosen = different([text for text in found if not stands_for_action(text)])
    if len(chosen) > 1:
        count = "two" if len(chosen) == 2 else str(len(chosen))
        raise ParseFailure(f"there were {count} different actions: {quoted(chosen[0])} and {quoted(chosen[1])}")
    if chosen:
        return chosen[0]
    if found:
        raise ParseFailure(_empty(found[-1]))
    raise ParseFailure(_missing(said, thoughts.closed, thoughts.unclosed))


def text_for_world(reply: str) -> str:
    """The text for a world in which every text is an action, from a reply without a certain one: that in its only tag, else all but
    the thoughts. Its lines stay.
    """
    said = thoughts_apart(reply).said
    found, opened = pairs(said, "action"), opened_last(said, "action")
    if len(found) == 1:
        return found[0].text.strip()
    return (said if found or opened is None else said[opened:]).strip()


def _cleaned(text: str) -> str:
    """The action in a tag or on a line, without its wrapping."""
    bare = unwrapped(text)
    label = _PREFIX.match(bare) if text.strip() and not text.strip().startswith(("```", "~~~")) else None
    return unwrapped(bare[label.end() :]) if label else bare


def _readings(said: str) -> list[str]:
    """Every action outside of the thoughts."""
    in_tags = [_cleaned(pair.text) for pair in pairs(said, "action")]
    if in_tags or opened_last(said, "action") is not None:
        return in_tags
    return [_cleaned(pair.text) for pair in pairs(said, "answer")] or _on_lines(said)


def _readings_at_the_end(unclosed: str | None) -> list[str]:
    """The action after a `<think>` that is never closed, which counts if the reply ends with it."""
    found: list[Pair] = pairs(unclosed or "", "action")
    if not found or (unclosed or "")[found[-1].end :].strip(_AFTER_ALL):
        return []
    return [_cleaned(found[-1].text)]


def _on_lines(said: str) -> list[str]:
    """The actions on lines `Action: ...`; if nothing follows the colon, those on the line or in the fence below."""
    if _INPUT.search(said):
        raise ParseFailure("there was an 'Action Input' line: the whole action has to stand in one place")
    lines, found, at = said.splitlines(), [], 0
    while at < len(lines):
        label = _LINE.fullmatch(lines[at])
        at += 1
        if label is None:
            continue
        text = label.group(1).strip(" \t*")
        if not text:
            while at < len(lines) and not lines[at].strip():
                at += 1
            text, at = _below(lines, at)
        found.append(_cleaned(text))
    return found


def _below(lines: list[str], at: int) -> tuple[str, int]:
    """The line at a place, or the fence that begins there, and the place after it."""
    if at >= len(lines):
        return "", at
    mark = lines[at].strip()[:3]
    if mark not in ("```", "~~~"):
        return lines[at], at + 1
    end = next((number for number in range(at + 1, len(lines)) if lines[number].strip().startswith(mark)), None)
    if end is None:
        return "", at + 1
    return "\n".join(line.strip() for line in lines[at + 1 : end]), end + 1


def _cut(reply: str, found: bool) -> str:
    if found:
        return "the reply was cut at its limit: say less, and end it with the action"
    opened = opened_last(reply, "action") is not None
    return "the reply was cut before its action ended" if opened else "the reply was cut before it came to an action"


def _empty(text: str) -> str:
    if not text:
        return "the <action>...</action> was empty"
    return f"{quoted(text)} only stands for an action: write the action itself"


def _missing(said: str, closed: tuple[str, ...], unclosed: str | None) -> str:
    if opened_last(said, "action") is not None:
        return "the <action> was not closed by </action>"
    if unclosed is not None:
        return "the <think> was not closed by </think>, and no <action>...</action> ended the reply"
    if any(pairs(text, "action") for text in closed):
        return "the <action>...</action> stood among the thoughts, before </think>"
    return "there was no <action>...</action>"
