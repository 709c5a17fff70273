"""A forest on disk: one finished tree a line, in the order in which they finished."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from leafe.errors import CorruptFile
from leafe.jsonl import Appender, read_lines
from leafe.records import Tree, decode, encode

SCHEMA = "leafe.forest/1"


class ForestWriter(Appender):
    """Appends trees to a forest file; opening one cuts off a torn last line."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, SCHEMA)

    def add(self, tree: Tree) -> None:
        """Writes one tree."""
        self.append(encode(tree))


def read_forest(path: Path) -> Iterator[Tree]:
    """The trees of a file. Raises `CorruptFile` with the line's number for a line that is no tree."""
    for number, line in enumerate(read_lines(path, SCHEMA), start=2):
        try:
            yield decode(Tree, line)
        except ValueError as error:
            raise CorruptFile(
                f"{path} line {number} is no tree ({error}); remove that line and explore again to have it anew"
            ) from None
