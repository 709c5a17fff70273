"""The log of a server: its beginning and its end are kept, in memory and in a file of bounded size, and its informative lines are found.

A server may write without end; its settings are at the beginning and the reason of its death at the end. Keys are removed.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

HALF = 1 << 19  # bytes of the beginning, and of the end, that are kept; a file has at most three times as many
LONGEST_LINE = 1 << 13
SHOWN = 300  # signs of an informative line

# As vLLM marks its lines: `(EngineCore pid=17) ERROR 11-26 14:50:01 [core.py:842] `.
_MARK = re.compile(
    r"^(?:\([^()]{1,60}\)\s*)?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\s+\d\d-\d\d \d\d:\d\d:\d\d\s+(?:\[[^\]]{1,80}\]\s*)?)?"
)
_TELLING = re.compile(r"(?:^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Killed)\b|\berror:|^Value error, )", re.IGNORECASE)
_DETAILS = " [type="  # what pydantic adds for programmers
_GENERAL = re.compile(
    r"See root cause above|Engine core initialization failed|EngineDeadError|EngineCore encountered an issue|\d validation errors? for"
)


def telling(lines: Sequence[str]) -> str:
    """The first line that names an error and the last one, or the last line; empty where there is none.

    >>> telling(["INFO 11-26 14:50:01 [a.py:1] loading", "(EngineCore pid=7) ERROR 11-26 14:50:02 [b.py:2] ValueError: no memory"])
    'ValueError: no memory'
    """
    bare = [line for line in (_MARK.sub("", line, count=1).partition(_DETAILS)[0].strip() for line in lines) if line]
    named = [line for line in bare if _TELLING.search(line)]
    causes = [line for line in named if not _GENERAL.search(line)] or named or bare[-1:]
    return "; ".join(line[:SHOWN] for line in dict.fromkeys([*causes[:1], *causes[-1:]]))


def _size(line: str) -> int:
    return len(line.encode("utf-8", "replace")) + 1


class ServerLog:
    """Reads a pipe to its end on a separate thread; every occurrence of `secret` is replaced."""

    def __init__(self, pipe: IO[bytes], secret: str) -> None:
        self._pipe, self._secret = pipe, secret
        self._head: list[str] = []
        self._tail: deque[str] = deque()
        self._sizes = [0, 0]  # of both, in bytes
        self._left_out = 0
        self._path: Path | None = None
        self._file: IO[str] | None = None
        self._written = 0
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="leafe-server-log", daemon=True)
        self._reader.start()

    @property
    def lines(self) -> list[str]:
        """The lines that are kept, the beginning first."""
        with self._lock:
            return self._kept()

    @property
    def where(self) -> str:
        """A sentence's end that names the log file, empty if there is none."""
        return f"; its log is {self._path}" if self._path else ""

    def keep_in(self, path: Path) -> None:
        """Writes to a file from here on, beginning with the lines so far. A full disk ends only the writing."""
        with self._lock:
            self._path = path
            self._rewrite()

    def finish(self, patience: float) -> None:
        """Waits until all is read, at most `patience` seconds, and closes the file."""
        self._reader.join(patience)
        with self._lock, suppress(OSError):
            if self._file:
                self._file.close()
            self._file = None

    def _read(self) -> None:
        with suppress(OSError, ValueError), self._pipe:
            while part := self._line():
                line = part.decode("utf-8", "replace").rstrip("\r\n").replace(self._secret, "***")
                with self._lock:
                    self._take(line)

    def _line(self) -> bytes:
        """The next line, cut if it is too long: a key that is split in two would not be found."""
        line = rest = self._pipe.readline(LONGEST_LINE)
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            return line
        while len(rest) == LONGEST_LINE and not rest.endswith(b"\n"):
            rest = self._pipe.readline(LONGEST_LINE)
        return line[: -len(self._secret)] + b" ..."

    def _take(self, line: str) -> None:
        size = _size(line)
        if self._sizes[0] + size <= HALF and not self._tail:
            self._head.append(line)
            self._sizes[0] += size
        else:
            self._tail.append(line)
            self._sizes[1] += size
        while self._sizes[1] > HALF:
            self._sizes[1] -= _size(self._tail.popleft())
            self._left_out += 1
        self._write(line)

    def _kept(self) -> list[str]:
        gap = [f"... {self._left_out} lines are left out here ..."] if self._left_out else []
        return [*self._head, *gap, *self._tail]

    def _write(self, line: str) -> None:
        if not self._file:
            return
        if self._written + _size(line) > 3 * HALF:
            self._rewrite()
            return
        try:
            self._file.write(line + "\n")
            self._file.flush()
            self._written += _size(line)
        except OSError:
            self._file = None

    def _rewrite(self) -> None:
        """Rewrites the file with the lines that are kept."""
        text = "\n".join([*self._kept(), ""]) if self._head else ""
        try:
            assert self._path is not None
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._file:
                self._file.close()
            self._file = open(self._path, "w", encoding="utf-8")
            self._file.write(text)
            self._file.flush()
            self._written = len(text.encode())
        except OSError:
            self._path = self._file = None
