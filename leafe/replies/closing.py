"""Replies that think until a limit cuts them: the text that closes their thoughts, and the line that is then read as the action.

This is known as budget forcing (s1, arXiv 2501.19393): the thoughts are closed for the policy and it writes the action alone. The action
ends with `</action>` or with its line, since nothing else was asked for.
"""

from __future__ import annotations

import re

from leafe.replies.reading import thoughts_apart

OPENING = "<action>"
CLOSING = "</action>"
_TAG = re.compile(r"<[ \t]?(/?)[ \t]?(action|think(?:ing)?|thoughts?|reasoning|answer)\b[^<>\n]{0,120}>", re.IGNORECASE)


def closed_thoughts(reply: str) -> str:
    """A cut reply up to the place of its action. A character or a tag that was cut in two is left out."""
    text = reply.rstrip("\ufffd")
    at = text.rfind("<")
    if at >= 0 and ">" not in text[at:] and len(text) - at <= len(CLOSING):
        text = text[:at]
    thinks = thoughts_apart(text).unclosed is not None
    return text.rstrip() + ("\n</think>\n" if thinks else "\n") + OPENING


def closed_action(text: str, *, whole: bool) -> str | None:
    """The text of the action, None if its end is uncertain; `whole` means that the model ended it."""
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
    """The part of such a reply that holds its action, tags included. Earlier thoughts do not count, whatever tags they contain."""
    return reply[reply.rfind(OPENING) :]
