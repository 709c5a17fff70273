"""Fenced blocks in a reply, read as language models write them.

A fence ends at the first line of closing marks at which its content is Python, so a fence in a string of the program does not end it;
if the content is Python at none of the next few, it ends at the first. An unclosed fence ends where the next one opens, at a tag, or
with the reply. Reading is cheap by construction: few ends are tried, and a reply has a budget of characters for the trials.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from warnings import catch_warnings

LONGEST = 60_000  # characters of a program that is parsed
BUDGET = (20_000, 2)  # characters that are parsed for one reply: a constant, and a factor for its length
LEAST_COST = 200  # the least number of characters that a parse counts as
ENDS = 8  # ends of a fence that are tried, as many sure as doubtful ones
LOOKED_AT = 40  # lines with marks or tags among which a fence's ends are sought
_OPEN = re.compile(r"([^`~\n]*)(`{3,}+|~{3,}+)([^`\n]*)")
_MARKED = re.compile(r"[ \t]*(`{3,}+|~{3,}+)([^`\n]*)")
_MARKED_AT_END = re.compile(r"[^`\n]*[^`\s](`{3,})[ \t]*")
_TAG_ALONE = re.compile(r"[ \t]*</?(?:action|think)>[ \t]*", re.IGNORECASE)
_TAG_FIRST = re.compile(r"[ \t]*<(?:action|think)>", re.IGNORECASE)
_PYTHON = re.compile(r"[ \t{.]*(?:(?:i?python|py)[ \t]*[0-9.]*(?![\w+-])|[\w./-]+\.py\b)", re.IGNORECASE)
_DOCUMENT = re.compile(r"[ \t]*(?:markdown|md)[ \t]*", re.IGNORECASE)  # around a whole answer, whose own fences count
_INFO = re.compile(r"[ \t]*[\w.{}+#-]*(?:[ \t]+(?:[0-9.]+|[\w-]+=\S+))*[ \t]*")
_CODE = re.compile(r"[ \t]*(?:def|class|import|from)[ \t]")
_ESCAPED = re.compile(r"\\([^\n])")


@dataclass(frozen=True, slots=True)
class Block:
    """The content of a fence: `label` is python, none or other; `start` and `end` are the place of the fence in the reply."""

    text: str
    label: str
    start: int
    end: int
    closed: bool


@dataclass(slots=True)
class Syntax:
    """A check whether texts are Python, as long as the budget for one reply lasts (`left` characters). Nothing is compiled or run."""

    left: int
    known: dict[str, ast.Module | None] = field(default_factory=dict)

    @classmethod
    def of(cls, reply: str) -> Syntax:
        """A check with the budget for a reply."""
        at_least, each = BUDGET
        return cls(at_least + each * len(reply))

    def tree(self, text: str) -> ast.Module | None:
        """The syntax tree, or None if the text is not Python, too long, or nested deeper than Python can parse."""
        if text not in self.known:
            self.known[text] = self._parsed(text)
        return self.known[text]

    def _parsed(self, text: str) -> ast.Module | None:
        if len(text) > min(LONGEST, self.left):
            return None
        self.left -= max(len(text), LEAST_COST)
        try:
            with catch_warnings(action="ignore"):  # warnings about a reply's text, such as `1if x else 2`
                # Without backslashes no escape changes where a string ends, and a program stays a program.
                return ast.parse(_ESCAPED.sub("xx", text))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


@dataclass(frozen=True, slots=True)
class _End:
    """A possible end of a fence: its content ends at `stop`, and reading continues at `resume`. `sure` for a line of closing marks only."""

    stop: int
    resume: int
    sure: bool


@dataclass(frozen=True, slots=True)
class _Opening:
    """An opening fence: the places at which its marks, its info and its content begin, and its label."""

    start: int
    mark: str
    label: str
    held: int


def blocks(reply: str, syntax: Syntax) -> list[Block]:
    """The fenced blocks of a reply whose lines end with "\\n", in order."""
    lines = reply.split("\n")
    offsets = list(accumulate((len(line) + 1 for line in lines), initial=0))
    marks = [number for number, line in enumerate(lines) if "```" in line or "~~~" in line or _TAG_ALONE.fullmatch(line)]
    found: list[Block] = []
    ends: dict[tuple[int, str], _End | None] = {}  # ends by line and marks, since the same line may be tried for many fences
    at = 0

    def end_at(number: int, mark: str) -> _End | None:
        if (number, mark) not in ends:
            ends[number, mark] = _end_at(lines[number], offsets[number], mark)
        return ends[number, mark]

    for index, number in enumerate(marks):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        opening = _opening(lines[number], offsets[number], following) if offsets[number] >= at else None
        if opening is not None:
            later = marks[index + 1 : index + 1 + LOOKED_AT]
            end = _end(reply, opening, (end_at(other, opening.mark) for other in later), syntax)
            at = min(end.resume, len(reply))
            text = _straight(reply[opening.held : end.stop])
            found.append(Block(text, opening.label, opening.start, at, closed=end.stop < len(reply)))
    return found


def _opening(line: str, offset: int, following: str) -> _Opening | None:
    """The fence that a line opens. A fence around the whole reply, which a tag follows, does not count."""
    found = _OPEN.fullmatch(line.rstrip())
    if found is None or _TAG_FIRST.match(following) or found.group(3).lstrip().startswith("<"):
        return None
    before, mark, info = found.groups()
    code = _CODE.match(info)  # the program begins behind the marks
    in_a_sentence = mark[0] == "~" or info.strip().count(" ") > 2 or not (code or _INFO.fullmatch(info))
    if (before.strip() and in_a_sentence) or _DOCUMENT.fullmatch(info):
        return None
    held = offset + (found.start(3) if code else len(line) + 1)
    return _Opening(offset + found.start(2), mark, "none" if code else _label(info), held)


def _label(info: str) -> str:
    return "none" if not info.strip() else "python" if _PYTHON.match(info) else "other"


def _end(reply: str, opening: _Opening, following: Iterator[_End | None], syntax: Syntax) -> _End:
    """The end of the fence."""
    sure: list[_End] = []
    doubtful: list[_End] = []
    for end in following:
        if end is not None:
            (sure if end.sure else doubtful).append(end)
        if len(sure) == ENDS or (opening.label == "other" and end is not None):
            break
    for end in [*sure, *doubtful[:ENDS]] if opening.label != "other" else ():
        held = reply[opening.held : end.stop] if end.stop - opening.held <= LONGEST else ""
        if held.strip() and syntax.tree(_straight(held)) is not None:
            return end
    return next(iter([*sure, *doubtful]), _End(len(reply), len(reply), sure=False))


def _end_at(line: str, offset: int, mark: str) -> _End | None:
    """The end that a line may be of a fence with these marks."""
    marked, closed = _MARKED.fullmatch(line), _MARKED_AT_END.fullmatch(line)
    if marked and marked.group(1).startswith(mark):
        rest = marked.group(2).strip()
        if not rest or rest.startswith("</"):
            return _End(offset, offset + marked.end(1), sure=True)
        # Marks with one word open the next fence, marks with a sentence close this one.
        return _End(offset, offset + (len(line) if " " in rest and _label(rest) == "other" else 0), sure=False)
    if _TAG_ALONE.fullmatch(line):
        return _End(offset, offset, sure=False)
    if closed and closed.group(1) == mark:
        return _End(offset + closed.start(1), offset + len(line), sure=False)
    return None


def _straight(text: str) -> str:
    """The text without blank lines around it, moved to the left margin if its first line is indented."""
    text = text.strip("\n")
    return textwrap.dedent(text).strip("\n") if text[:1] in (" ", "\t") else text
