"""Thoughts before an action: a comparison in words becomes the beginning of a reply, if nothing in it can be read as an action."""

from __future__ import annotations

from leafe.replies.reading import ParseFailure, hollow, pairs, quoted, tags_in, thought_tags, thoughts_apart


def parse_thought(reply: str, *, action: str = "", whole: bool = True) -> str:
    """The text of a reply, to be used as a thought before `action`: the part beside its thoughts, or else the thoughts.

    The action itself in tags is skipped. Raises `ParseFailure` if the reply was cut (`whole=False`), is empty, is a placeholder, decides
    for another action, or holds other tags.
    """
    if not whole:
        raise ParseFailure("the reply was cut at its limit: say less")
    parts = thoughts_apart(reply)
    said = parts.said
    for pair in reversed(pairs(said, "action")):
        if pair.text.strip() != action.strip():
            raise ParseFailure(f"the reply decides for {quoted(pair.text)}, which is another action")
        said = said[: pair.start] + said[pair.end :]
    text = said.strip() or "\n".join(closed.strip() for closed in parts.closed).strip()
    if hollow(text):
        raise ParseFailure("wanted thoughts in words")
    if tags_in(text) or any(True for _ in thought_tags(text)):
        raise ParseFailure("wanted thoughts in words alone, found tags")
    return text
