"""Replies that think until a limit cuts them: what closes their thoughts, and what is then read as the answer.

Known as budget forcing (s1, arXiv 2501.19393): the thoughts are closed in the policy's place, a tag is opened after them, and the policy
writes its answer alone. That ends with the closing tag or with its line, whichever comes first and is certain.
"""

from __future__ import annotations

import re

from leafe.replies.reading import Half, thoughts_apart

_THOUGHTS = "think(?:ing)?|thoughts?|reasoning"
_TAG = re.compile(rf"<[ \t]?(/?)[ \t]?(action|turn|experience|{_THOUGHTS}|answer)\b[^<>\n]{{0,120}}>", re.IGNORECASE)
_HALF_TAG = re.compile(r"<[ \t]?/?[ \t]?[A-Za-z]{0,10}\Z")
# Thoughts that the chat template opened are closed by the policy itself, which may then open the tag again.
_AHEAD = {
    name: re.compile(rf"(?:\s|<[ \t]?/[ \t]?(?:{_THOUGHTS})[ \t]?>|<[ \t]?{name}[ \t]?>)*", re.IGNORECASE)
    for name in ("action", "turn", "experience")
}


def begun_with(reply: str, opening: str) -> str:
    """A reply up to where its answer is to be written, after an `opening`. Half a character and half a tag at its end are left out.

    Where a reply holds no tags of thoughts, all of it was thought: the chat template may have opened them.
    """
    text = _HALF_TAG.sub("", reply.rstrip("\ufffd"))
    thoughts = thoughts_apart(text)
    thinks = thoughts.unclosed is not None or not thoughts.closed
    return f"{text.rstrip()}\n</think>\n{opening}" if thinks else f"{text.rstrip()}\n{opening}"


def closed_action(text: str, *, whole: bool) -> str | None:
    """The action and its closing tag, None if its end cannot be known: `whole` means that the model ended it, and not a limit."""
    action, _ = _first(text, "action", whole=whole)
    return f"{action}</action>" if action else None


def reflection_opening(known: Half) -> str:
    """What a reflection is begun with whose half is `known`: a turn is written for the policy, an experience has to follow its turn."""
    return "<turn>" if known.turn is None else f"<turn>{known.turn}</turn>\n<experience>"


def closed_reflection(text: str, *, known: Half, whole: bool) -> str | None:
    """The rest of a reflection after its opening, with its closing tags; None likewise."""
    first, rest = _first(text, "turn" if known.turn is None else "experience", whole=whole)
    if not first or known.turn is not None:
        return f"{first}</experience>" if first else None
    opened = next((tag for tag in _TAG.finditer(rest) if not tag.group(1) and tag.group(2).lower() == "experience"), None)
    if opened is None:
        return f"{first}</turn>"
    second, _ = _first(rest[opened.end() :], "experience", whole=whole)
    return f"{first}</turn>\n<experience>{second}</experience>" if second else None


def answer_in(reply: str, tag: str) -> str:
    """The part of such a reply that holds its answer, from its last `tag` on. Earlier thoughts do not count, whatever tags are in them."""
    return reply[reply.rfind(f"<{tag}>") :]


def _first(text: str, name: str, *, whole: bool) -> tuple[str | None, str]:
    """What was written in the tag `name`, which is open, and what follows it. Another tag that opens on the same line leaves it open."""
    ahead = _AHEAD[name].match(text)
    text = text[ahead.end() :] if ahead else text
    tag = _TAG.search(text)
    inside, rest = (text[: tag.start()], text[tag.start() :]) if tag else (text, "")
    if tag and tag.group(1) and tag.group(2).lower() == name:
        return inside.strip(), rest
    line, newline, more = inside.partition("\n")
    certain = newline or (tag.group(1) if tag else whole)
    return (line.strip(), more + rest) if certain else (None, "")
