"""Append-only JSON lines that survive a kill at any moment.

The first line names the schema. A line ends in a newline and is written whole or taken back, so a torn line can only be the last one,
left by a kill; it is dropped on reading and cut off before the next append. Any other unreadable line is an error that names the file
and the line. Files written whole go through a temporary neighbour and a rename. A disk that is full is `Unwritable`, and what was
written before it was full is kept.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from leafe.digest import canonical
from leafe.encoding import decode
from leafe.errors import CorruptFile, Unwritable, is_full, unwritable

Record = TypeVar("Record")


@contextmanager
def told_if_unwritable(path: object) -> Iterator[None]:
    """Turns the system's refusal to write to `path` into one sentence."""
    try:
        yield
    except Unwritable:
        raise
    except Exception as error:  # writers of weights raise errors of their own
        if isinstance(error, OSError) or is_full(error):
            raise unwritable(path, error) from None
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Writes a whole file or nothing: a reader sees the old content or the new one."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """The same for bytes. Raises `Unwritable`."""
    temporary = path.with_name(path.name + ".tmp")
    with told_if_unwritable(path):
        temporary.unlink(missing_ok=True)  # a link there must not be written through
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def _complete_length(path: Path) -> int:
    """Bytes up to and including the last newline."""
    data = path.read_bytes()
    return data.rfind(b"\n") + 1


def read_lines(path: Path, schema: str) -> Iterator[dict[str, Any]]:
    """Yields each record below the schema line. A torn last line is dropped.

    Raises `CorruptFile` for a missing or foreign schema line and for any line that is not a JSON object.
    """
    data = path.read_bytes()
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise CorruptFile(f"{path} line {number} is not a JSON object; restore the file or remove that line and resume")
        if number == 1:
            if record.get("schema") != schema:
                raise CorruptFile(f"{path} should start with the schema {schema!r} and starts with {record.get('schema')!r}")
            continue
        yield record


def write_lines(path: Path, schema: str, records: Iterable[dict[str, Any]]) -> None:
    """Writes a whole file of records, or nothing. Raises `Unwritable`."""
    write_text_atomically(path, "".join(canonical(record) + "\n" for record in ({"schema": schema}, *records)))


class Appender:
    """Appends records to a JSON-lines file; opening it cuts off a torn last line.

    Each record is handed to the system at once, so it survives a kill of this process. `close` also forces it to the disk. Raises
    `Unwritable` where the system refuses a write: the record is then not in the file at all, and the next one may be tried.
    """

    def __init__(self, path: Path, schema: str) -> None:
        self._path = path
        self._end = _complete_length(path) if path.exists() else 0  # of the last whole line
        if self._end:
            for _ in read_lines(path, schema):
                pass
        with told_if_unwritable(path):
            self._file: BinaryIO = self._opened()
            self._take_back()
        if not self._end:
            self.append({"schema": schema})

    def _opened(self) -> Any:
        return open(self._path, "r+b" if self._path.exists() else "w+b", buffering=0)

    def append(self, record: dict[str, Any]) -> None:
        """Writes one record as one line, or nothing."""
        line = canonical(record).encode() + b"\n"
        with told_if_unwritable(self._path):
            if self._file.tell() != self._end:
                self._take_back()
            try:
                self._write(line)
            except BaseException:
                with suppress(OSError):  # tried again before the next record, and by the next to open the file
                    self._take_back()
                raise
        self._end += len(line)

    def _write(self, line: bytes) -> None:
        """Writes a line that the system may take in pieces."""
        rest = memoryview(line)
        while rest:
            taken = self._file.write(rest)
            if not taken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            rest = rest[taken:]

    def _take_back(self) -> None:
        """Cuts off everything after the last whole line."""
        self._file.truncate(self._end)
        self._file.seek(self._end)

    def close(self) -> None:
        """Forces everything to the disk and closes the file."""
        with told_if_unwritable(self._path), self._file:
            os.fsync(self._file.fileno())

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_records(path: Path, schema: str, kind: type[Record], *, what: str, mend: str) -> list[Record]:
    """The records of a file, one a line. Raises `CorruptFile`, which says how to `mend` it, with the number of a line that is no `what`."""
    found: list[Record] = []
    for number, line in enumerate(read_lines(path, schema), start=2):
        try:
            found.append(decode(kind, line))
        except ValueError as error:
            raise CorruptFile(f"{path} line {number} is no {what} ({error}); {mend}") from None
    return found
