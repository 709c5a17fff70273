"""The values of a JSON array or object in a file, one at a time, with the bytes that each occupies.

A catalogue of a million products is a single line of gigabytes: it is read once in pieces, and later only the values that are wanted.
A fault in the file is reported in one sentence; anything after the closing bracket is not checked.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from leafe.errors import CorruptFile, UserError

PIECE = 1 << 22  # bytes that are read at once
_SPACE = " \t\r\n"
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Placed:
    """A value and its bytes `start .. start + length` in the file."""

    value: Any
    start: int
    length: int


def array_values(path: Path) -> Iterator[Placed]:
    """The values of the array that a file holds.

    Raises `UserError` when the file cannot be opened, `CorruptFile` when it holds no such array.
    """
    with _opened(path) as file:
        reader = _Reader(path, file)
        reader.take("[", "a list")
        while not reader.ends_with("]"):
            yield reader.value()


def object_values(path: Path) -> Iterator[tuple[str, Placed]]:
    """The keys and values of the object that a file holds. Raises as `array_values`."""
    with _opened(path) as file:
        reader = _Reader(path, file)
        reader.take("{", "an object")
        while not reader.ends_with("}"):
            key = reader.value().value
            reader.take(":", "a colon behind a key")
            yield str(key), reader.value()


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give the path of a data file in WebShop's format") from None


class _Reader:
    """A window over the file's text: `at` is the place in the window, `byte` the same place in the file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._byte, self._first = "", 0, 0, True

    def take(self, mark: str, wanted: str) -> None:
        """Steps over a mark that has to come next."""
        if self._next() != mark:
            self._refuse(f"wanted {wanted}")
        self._step(1)

    def ends_with(self, mark: str) -> bool:
        """Steps over the comma between two values, or finds that the closing mark has come."""
        found = self._next()
        if found == mark:
            return True
        if not self._first:
            self.take(",", f"a comma or {mark}")
        self._first = False
        return False

    def value(self) -> Placed:
        """The value that comes next."""
        self._next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                break
            except (json.JSONDecodeError, RecursionError):
                # A value that is cut off by the window's end looks broken until more is read.
                if not self._more():
                    self._refuse("wanted a JSON value")
        start, before = self._byte, self._at
        self._step(end - before)
        return Placed(value, start, self._byte - start)

    def _next(self) -> str:
        """The next character that is no space, which stays where it is; empty at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._step(1)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _step(self, characters: int) -> None:
        passed = self._text[self._at : self._at + characters]
        self._byte += len(passed) if passed.isascii() else len(passed.encode())
        self._at += characters

    def _more(self) -> bool:
        piece = self._file.read(PIECE)
        try:
            text = self._decoder.decode(piece, final=not piece)
        except UnicodeDecodeError:
            self._refuse("wanted UTF-8 text")
        if not self._byte and not self._text and text.startswith("\ufeff"):
            text, self._byte = text[1:], len(codecs.BOM_UTF8)
        self._text, self._at = self._text[self._at :] + text, 0
        return bool(piece)

    def _refuse(self, wanted: str) -> None:
        found = self._text[self._at : self._at + 40]
        raise CorruptFile(f"{self._path} is broken at byte {self._byte}: {wanted}, found {found!r}; fetch the file anew")
