"""Programs: in a world of programs the action is the last block of Python that is not an example of use.

A block is the content of a fence, or the text between `<action>` and `</action>` without a fence. `docs/replies.md` is the grammar in
words, with a table of cases.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from leafe.replies.fences import Block, Syntax, blocks
from leafe.replies.reading import ParseFailure, Tag, fenced, hollow, quoted, tags_in, thought_ends, thought_tags, unwrapped

_DEFINED = re.compile(r"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)|^(\w+)[ \t]*=[ \t]*lambda\b", re.MULTILINE)
_BEGINS = re.compile(r"^(?:def|class|import|from|@\w)[ \t(\w]", re.MULTILINE)
_READS_INPUT = re.compile(r"\binput[ \t]*\(|\bstdin\b|\bopen[ \t]*\([ \t]*0[ \t]*[,)]")
_SHELL = re.compile(r"[ \t]*(?:\$ |pip3? install |python3? \S)")
_QUOTED_FENCE = re.compile(r"^> ?(?:`{3}|~{3})", re.MULTILINE)
_QUOTED = re.compile(r"^>(?: |$)", re.MULTILINE)
_DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
_ACTS = frozenset({"print", "input", "open", "exec", "eval", "__import__"})
_SUBSTANCE = (*_DEFINES, ast.Call)


@dataclass(slots=True)
class _Found:
    """The blocks of a reply: those that count, and whether any was among thoughts."""

    kept: list[Block] = field(default_factory=list)
    hidden: bool = False


def render_program(program: str) -> str:
    """A reply that submits a program: a fence, longer than any that the program holds."""
    return fenced(program, "python")


def parse_program(reply: str, *, whole: bool) -> str:
    """The program of a reply. Raises `ParseFailure`."""
    return _program(reply, Syntax.of(reply), whole=whole)


def _program(reply: str, syntax: Syntax, *, whole: bool) -> str:
    reply = _plain(reply)
    if whole and _does_something(reply, syntax):
        return reply.strip("\n")
    found = _found(reply, syntax)
    if not whole:
        raise ParseFailure(_cut(reply, found.kept))
    programs = [block for block in found.kept if _is_program(block, syntax)]
    chosen = _without_examples(_without_results(programs, syntax)) or [
        block for block in found.kept if block.label == "tag" and not _says_nothing(block.text)
    ]
    if chosen:
        return chosen[-1].text
    raise ParseFailure(_missing(found))


def _plain(reply: str) -> str:
    """The reply without carriage returns, a byte-order mark, and the quotation marks before its fences."""
    reply = reply.replace("\r\n", "\n").removeprefix("\ufeff")
    return _QUOTED.sub("", reply) if _QUOTED_FENCE.search(reply) else reply


def program_in(text: str) -> str:
    """The program in a submission, by the same rule; a submission that is Python itself, or holds no program, is returned unchanged."""
    syntax = Syntax.of(text)
    if syntax.tree(text) is not None:
        return text.strip("\n")
    try:
        return _program(text, syntax, whole=True)
    except ParseFailure:
        return text.strip("\n")


def _found(reply: str, syntax: Syntax) -> _Found:
    """Reads tags and fences in order. Unclosed thoughts hide nothing."""
    found, opened, thinking, first, end = _Found(), -1, -1, True, 0
    events = list(_events(reply, blocks(reply, syntax)))
    ends = _ends_of_thoughts(events)
    for number, one in enumerate(events):
        if isinstance(one, Block):
            found.kept.append(one)
            opened = -1
        elif one.name == "action":
            if one.closing and opened >= 0:
                found.kept.append(Block(_unquoted(reply[opened : one.start]), "tag", opened, one.start, closed=True))
            opened = -1 if one.closing else one.end
        elif one.closing and number < end:
            continue
        elif one.closing and (thinking >= 0 or first):
            found.hidden |= len(found.kept) > max(thinking, 0)
            del found.kept[max(thinking, 0) :]
            thinking, opened, first = -1, -1, False
        elif one.name == "think":
            if not one.closing and thinking < 0:
                thinking, end = len(found.kept), ends.get(number, number)
            first = False
    return found


def _ends_of_thoughts(events: Sequence[Tag | Block]) -> dict[int, int]:
    """The number of the event that closes the thoughts that each opening begins, for those that are closed."""
    tags = [(number, one.closing) for number, one in enumerate(events) if isinstance(one, Tag) and one.name == "think"]
    ends = thought_ends([closing for _, closing in tags])
    return {tags[opening][0]: tags[closing][0] for opening, closing in ends.items()}


def _events(reply: str, fences: Sequence[Block]) -> Iterator[Tag | Block]:
    """The tags outside of fences and the fences, in order."""
    at = 0
    for fence in [*fences, None]:
        outside = reply[at : len(reply) if fence is None else fence.start]
        thoughts = [Tag("think", closing, start, start) for start, closing in thought_tags(outside)]
        tags = [tag for tag in tags_in(outside) if tag.name == "action"]
        for tag in sorted([*thoughts, *tags], key=lambda tag: tag.start):
            yield Tag(tag.name, tag.closing, at + tag.start, at + tag.end)
        if fence is not None:
            yield fence
            at = fence.end


def _unquoted(text: str) -> str:
    return unwrapped(text) if text.strip().startswith("`") else text.strip("\n") if text.strip() else ""


def _is_program(block: Block, syntax: Syntax) -> bool:
    """Whether a block is Python: by its label, or, without one, if its text does something or is meant to."""
    if block.label == "other" or _says_nothing(block.text) or _is_session(block.text):
        return False
    if block.label == "python" or _does_something(block.text, syntax):
        return True
    return syntax.tree(block.text) is None and bool(_BEGINS.search(block.text))


def _does_something(text: str, syntax: Syntax) -> bool:
    """Whether a text is Python that defines, imports or calls something: the output `x = 5` of an example is Python too."""
    tree = syntax.tree(text)
    return tree is not None and any(isinstance(node, _SUBSTANCE) for node in ast.walk(tree))


def _says_nothing(text: str) -> bool:
    return hollow(text) or all(not line.strip() or line.lstrip().startswith("#") for line in text.split("\n"))


def _is_session(text: str) -> bool:
    """Whether a text is an interactive session at a prompt."""
    lines = [line for line in text.split("\n") if line.strip()]
    return lines[0].lstrip().startswith(">>>") or all(_SHELL.match(line) for line in lines)


def _without_results(programs: Sequence[Block], syntax: Syntax) -> list[Block]:
    """Leaves out possible output of a program above, such as `4` or `Counter({1: 2})`: Python that defines, reads and prints nothing."""
    kept: list[Block] = []
    for block in programs:
        tree = syntax.tree(block.text) if kept else None
        if tree is None or any(isinstance(node, _DEFINES) or _acts(node) for node in ast.walk(tree)):
            kept.append(block)
    return kept


def _acts(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _ACTS


def _without_examples(programs: Sequence[Block]) -> list[Block]:
    """Leaves out examples of use: blocks that define nothing but tests, below a block that defines something.

    A block that reads the input and uses nothing from above is a separate program.
    """
    kept: list[Block] = []
    above: set[str] = set()
    for block in programs:
        defined = {name for pair in _DEFINED.findall(block.text) for name in pair if name}
        own = {name for name in defined if not name.lower().startswith("test")}
        uses = not above.isdisjoint(re.findall(r"\w+", block.text))
        if own or not above or (_READS_INPUT.search(block.text) and not uses):
            kept.append(block)
        above |= own
    return kept


def _cut(reply: str, kept: Sequence[Block]) -> str:
    if not kept:
        return "the reply was cut before it came to a program"
    if not kept[-1].closed and kept[-1].end == len(reply):
        return "the reply was cut before its program ended"
    return "the reply was cut at its limit: say less, and end it with the program"


def _missing(found: _Found) -> str:
    empty = [block.text for block in found.kept if block.label != "other"]
    if empty and hollow(empty[-1]) and empty[-1].strip():
        return f"{quoted(empty[-1])} only stands for a program: write the program itself"
    if empty and _says_nothing(empty[-1]):
        return "the program was empty"
    if found.kept:
        return "there was no program: no fence held Python"
    if found.hidden:
        return "the program stood among the thoughts, before </think>"
    return "there was no program in a ```python fence"
