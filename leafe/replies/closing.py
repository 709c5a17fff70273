"""Replies that think until a limit cuts them: what closes their thoughts, and what is then read as the answer.

Known as budget forcing (s1, arXiv 2501.19393): the thoughts are closed in the policy's place, a tag is opened behind them, and the policy
writes its answer alone. That ends with the closing tag or with its line, whichever may be meant: nothing else was asked for.
"""

from __future__ import annotations

import re

from leafe.replies.reading import thoughts_apart

_NAMES = "action|turn|experience|think(?:ing)?|thoughts?|reasoning|answer"
_TAG = re.compile(rf"<[ \t]?(/?)[ \t]?({_NAMES})\b[^<>\n]{{0,120}}>", re.IGNORECASE)
_HALF_TAG = re.compile(r"<[ \t]?/?[A-Za-z]{0,10}\Z")


def begun_with(reply: str, tag: str) -> str:
    """A reply up to where its answer is to be written, in a `tag`. A character that was cut in two is left out, and so is half a tag."""
    text = _HALF_TAG.sub("", reply.rstrip("\ufffd"))
    thinks = thoughts_apart(text).unclosed is not None
    return f"{text.rstrip()}\n</think>\n<{tag}>" if thinks else f"{text.rstrip()}\n<{tag}>"


def closed_action(text: str, *, whole: bool) -> str | None:
    """The action and its closing tag, None where its end cannot be known: `whole` means that the model ended it, and not a limit."""
    action, _ = _first(text, "action", whole=whole)
    return f"{action}</action>" if action else None


def closed_reflection(text: str, tag: str, *, whole: bool) -> str | None:
    """The rest of a reflection that begins with a `tag`, `turn` or `experience`, with its closing tags; None likewise."""
    first, rest = _first(text, tag, whole=whole)
    if first is None:
        return None
    opened = next((found for found in _TAG.finditer(rest) if _opens(found, "experience")), None) if tag == "turn" else None
    if opened is None:
        return f"{first}</{tag}>"
    second, _ = _first(rest[opened.end() :], "experience", whole=whole)
    return None if second is None else f"{first}</turn>\n<experience>{second}</experience>"


def answer_in(reply: str, tag: str) -> str:
    """The part of such a reply that holds its answer, tags included. What was thought before does not count, whatever tags are in it."""
    return reply[reply.rfind(f"<{tag}>") :]


def _first(text: str, name: str, *, whole: bool) -> tuple[str | None, str]:
    """What was written in the tag `name`, which is open, and what follows it."""
    text = text.lstrip()
    tag = _TAG.search(text)
    inside, rest = (text[: tag.start()], text[tag.start() :]) if tag else (text, "")
    if tag and tag.group(1) and tag.group(2).lower() == name:  # closed before another one is opened
        return inside.strip(), rest
    line, newline, more = inside.partition("\n")
    return (line.strip(), more + rest) if tag or newline or whole else (None, "")


def _opens(tag: re.Match[str], name: str) -> bool:
    return not tag.group(1) and tag.group(2).lower() == name
