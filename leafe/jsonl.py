"""Append-only JSON lines that survive a kill at any moment.

The first line names the schema. A line is written with one `write` call and ends in a newline, so a torn line can only be the
last one; it is dropped on reading and cut off before the next append. Any other unreadable line is an error that names the
file and the line. Files written whole go through a temporary neighbour and a rename.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from leafe.digest import canonical
from leafe.errors import CorruptFile


def write_text_atomically(path: Path, text: str) -> None:
    """Writes a whole file or nothing: a reader sees the old content or the new one."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """The same for what is no text."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # a link there must not be written through
    with open(temporary, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise CorruptFile(f"{path} line {number} is not a JSON object; restore the file or remove that line and resume")
        if number == 1:
            if record.get("schema") != schema:
                raise CorruptFile(f"{path} should start with the schema {schema!r} and starts with {record.get('schema')!r}")
            continue
        yield record


class Appender:
    """Appends records to a JSON-lines file; opening it cuts off a torn last line.

    Each record is handed to the system at once, so it survives a kill of this process. `close` also forces it to the disk.
    """

    def __init__(self, path: Path, schema: str) -> None:
        kept = _complete_length(path) if path.exists() else 0
        if kept:
            for _ in read_lines(path, schema):
                pass
        self._file = open(path, "r+b" if path.exists() else "w+b", buffering=0)
        self._file.truncate(kept)
        self._file.seek(kept)
        if not kept:
            self.append({"schema": schema})

    def append(self, record: dict[str, Any]) -> None:
        """Writes one record as one line."""
        self._file.write(canonical(record).encode() + b"\n")

    def close(self) -> None:
        """Forces everything to the disk and closes the file."""
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
