"""Replies with several blocks, each in a pair of tags, such as `<lesson>...</lesson><remove>b3</remove>`.

The questions of a memory ask for such replies. Tags are read in any case, with blanks and with words beside their name; a block that is
not closed ends at the next tag or at the end of a whole reply. The caller decides what a block means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from leafe.replies.reading import ParseFailure, hollow, quoted, thoughts_apart, unwrapped

LONGEST = 600  # characters of one text, which has to be short since it is part of every later prompt
LONGEST_REPLY = 200_000
OPEN = {"...", "…"}
NONE = {"none", "nothing", "n/a", "null", "-"}
_IDS = re.compile(r"(?<![^\W_])([a-z][0-9]{1,6})(?![^\W_])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Block:
    """One block: its tag in lower case, the ids before a colon or in the tag itself, and the rest on one line."""

    name: str
    text: str
    ids: tuple[str, ...] = ()


def parse_blocks(reply: str, names: Sequence[str], *, whole: bool = True, shown: str = "") -> tuple[Block, ...]:
    """The blocks of a reply, in its order; empty if one of them is `none` or there is a tag of that name.

    `shown` is the question: a text that it contains word for word is no answer. `whole=False` means that the reply was
    cut, so that a block that is not closed is left out. Raises `ParseFailure` if there is no block or an invalid one.
    """
    if len(reply) > LONGEST_REPLY:
        raise ParseFailure(f"the reply was {len(reply):,} characters long, and at most {LONGEST_REPLY:,} are read")
    said = unwrapped(thoughts_apart(reply).said)
    if _says_none("", said):
        return ()
    found = list(_raw(said, (*names, "none"), whole=whole))
    if not found:
        listed = " or ".join(f"<{name}>...</{name}>" for name in names)
        raise ParseFailure(f"the reply was cut before a block ended; wanted {listed}" if not whole else f"there was no {listed}")
    blocks = [_read(name, beside, text) for name, beside, text in found if name != "none" and not _says_none(beside, text)]
    # A form that was given with dots may be left open in part.
    filled = [block for block in blocks if block.text not in OPEN] or blocks
    for block in filled:
        _check(block, shown)
    return tuple(filled)


def one_line(text: str) -> str:
    """A text on one line, without unprintable characters."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _raw(said: str, names: tuple[str, ...], *, whole: bool) -> Iterator[tuple[str, str, str]]:
    """Name, words beside the name, and text of every block."""
    tags = list(_tags(names).finditer(said))
    closed = {tag.group(2).lower() for tag in tags if tag.group(1)}
    for number, tag in enumerate(tags):
        following = tags[number + 1] if number + 1 < len(tags) else None
        name = tag.group(2).lower()
        mentioned = following is not None and not following.group(1) and following.group(2).lower() == name and name in closed
        if tag.group(1) or mentioned:  # of two openings in a row the first only mentions the tag, if tags are closed at all
            continue
        if tag.group(3).rstrip().endswith("/") or name == "none":
            yield name, tag.group(3).rstrip("/ "), ""
        elif following is not None:
            yield name, tag.group(3), said[tag.end() : following.start()]
        elif whole:
            yield name, tag.group(3), said[tag.end() :]


@lru_cache(maxsize=16)
def _tags(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"<[ \t]?(/?)[ \t]?({'|'.join(names)})\b([^<>\n]{{0,120}})>", re.IGNORECASE)


def _says_none(beside: str, text: str) -> bool:
    return not _IDS.search(beside) and text.strip(" \t\r\n.`*").casefold() in NONE


def _read(name: str, beside: str, text: str) -> Block:
    text, ids = unwrapped(text), [*_IDS.findall(beside)]
    head, colon, rest = text.partition(":")
    ahead = _IDS.findall(head)
    if ahead and not _IDS.sub("", head).strip(" \t\r\n,;+&[]()").replace("and", "").strip(" ,"):
        ids, text = [*ids, *ahead], rest if colon else ""
    return Block(name, one_line(text), tuple(dict.fromkeys(one.lower() for one in ids)))


def _check(block: Block, shown: str) -> None:
    if not block.text and not block.ids:
        raise ParseFailure(f"a <{block.name}> was empty")
    if len(block.text) > LONGEST:
        raise ParseFailure(f"a <{block.name}> was {len(block.text)} characters long, and at most {LONGEST} are told on")
    if block.text and hollow(block.text):
        raise ParseFailure(f"{quoted(block.text)} only stands for a <{block.name}>")
    if len(block.text) > 12 and block.text in one_line(shown):
        raise ParseFailure(f"the <{block.name}> was taken from the question, word for word")
