"""Replies that think until a limit cuts them: what closes their thoughts, and the one line that is then read as the action.

Known as budget forcing (s1, arXiv 2501.19393): the thoughts are closed in the policy's place and it writes the action alone. What it writes
ends with `</action>` or with its line, whichever may be meant: nothing else was asked for.
"""

from __future__ import annotations

import re

from leafe.replies.reading import thoughts_apart

OPENING = "<action>"
CLOSING = "</action>"
_TAG = re.compile(r"<[ \t]?(/?)[ \t]?(action|think(?:ing)?|thoughts?|reasoning|answer)\b[^<>\n]{0,120}>", re.IGNORECASE)


def closed_thoughts(reply: str) -> str:
    """A cut reply up to where its action is to be written. A character that was cut in two is left out, and so is a tag."""
    text = reply.rstrip("\ufffd")
    at = text.rfind("<")
    if at >= 0 and ">" not in text[at:] and len(text) - at <= len(CLOSING):
        text = text[:at]
    thinks = thoughts_apart(text).unclosed is not None
    return text.rstrip() + ("\n</think>\n" if thinks else "\n") + OPENING


def closed_action(text: str, *, whole: bool) -> str | None:
    """What was written as the action, None where its end cannot be told: `whole` says that the model ended it."""
    text = text.lstrip()
    tag = _TAG.search(text)
    if tag:
        text = text[: tag.start()]
        if (tag.group(1), tag.group(2).lower()) == ("/", "action"):  # closed before another one is opened
            return text.strip()
    line, newline, _ = text.partition("\n")
    return line.strip() if tag or newline or whole else None


def with_action(begun: str, action: str) -> str:
    """The whole reply."""
    return begun + action + CLOSING


def last_action(reply: str) -> str:
    """The part of such a reply that holds its action, tags included. What was thought before does not count, whatever tags stand in it."""
    return reply[reply.rfind(OPENING) :]
