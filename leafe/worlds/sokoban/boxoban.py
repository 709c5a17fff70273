"""Boxoban level files: text to levels and back.

A file is blocks of a header `; number` and the rows of one board, separated by empty lines. `write_levels` and `read_levels` are
inverses. Nothing here judges whether a level can be solved, and no split is decided here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from leafe.errors import CorruptFile, UserError
from leafe.worlds.sokoban.board import BOX, BOX_ON_TARGET, FLOOR, PLAYER, PLAYER_ON_TARGET, TARGET, WALL, Level, parse

PUBLISHED = {"#": WALL, " ": FLOOR, ".": TARGET, "$": BOX, "*": BOX_ON_TARGET, "@": PLAYER, "+": PLAYER_ON_TARGET}
_TO_OURS = str.maketrans(PUBLISHED)
_TO_PUBLISHED = str.maketrans({ours: theirs for theirs, ours in PUBLISHED.items()})
_HEADER = re.compile(r"[ \t]*;[ \t]*[0-9]+[ \t]*")
_REMARK = re.compile(r"[ \t]*(?:[A-Za-z][\w -]*:|'|//|%)")


def read_blocks(path: Path) -> list[str]:
    """The boards of a file as they are, without their headers and not yet checked.

    A byte-order mark, blanks behind a row, and comments (`; ...` on a line or behind a row, `Title: ...`) are left out.

    Raises `CorruptFile` when the file is no text or starts without a header, `UserError` when it cannot be opened.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the levels {path}: {error.strerror}; give a Boxoban file or a folder of them") from None
    except UnicodeDecodeError:
        raise CorruptFile(f"{path} is no text; a Boxoban file has blocks of '; number' and the rows of a board") from None
    blocks: list[list[str]] = []
    headed, parted = False, True  # whether a `;` stood anywhere above, and whether the next row begins a board
    for number, line in enumerate(lines, start=1):
        row = line.partition(";")[0].rstrip()
        headed |= ";" in line
        if _HEADER.fullmatch(line):
            blocks.append([])
            parted = False
        elif row and not _REMARK.match(row):
            if not headed:
                raise CorruptFile(f"{path} line {number} should be a header such as '; 0' and is {line[:40]!r}")
            if parted:
                blocks.append([])
            blocks[-1].append(row)
            parted = False
        elif not line.strip():
            parted = bool(blocks and blocks[-1]) or parted
    return ["\n".join(block) for block in blocks]


def to_level(block: str, path: Path) -> Level:
    """The level that a block of `path` shows. Raises `CorruptFile` when it shows none."""
    strange = set(block) - PUBLISHED.keys() - {"\n"}
    try:
        if strange:
            raise ValueError(f"a Boxoban board cannot show {''.join(sorted(strange))!r}")
        return parse(block.translate(_TO_OURS))
    except ValueError as error:
        row = block.split("\n", 2)[1] if block.count("\n") else block
        raise CorruptFile(f"{path} holds a broken board (its second row is {row[:40]!r}): {error}") from None


def read_levels(path: Path) -> Iterator[Level]:
    """The levels of a file, in its order."""
    return (to_level(block, path) for block in read_blocks(path))


def write_levels(levels: Iterable[Level]) -> str:
    """The text of a file that holds the levels at their starts, numbered from 0."""
    boards = (level.render(level.start).translate(_TO_PUBLISHED) for level in levels)
    return "\n".join(f"; {number}\n{board}\n" for number, board in enumerate(boards))


def level_files(path: Path) -> list[Path]:
    """The file itself, or the `.txt` files of a folder and of the folders in it, sorted by path.

    Raises `UserError` when there is none.
    """
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    files = [file for file in files if not file.name.upper().startswith(("LICENSE", "LICENCE", "README"))]
    if not files or not all(file.is_file() for file in files):
        raise UserError(f"no level file at {path}; give a Boxoban file or a folder of such .txt files")
    return files
