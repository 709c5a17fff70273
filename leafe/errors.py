"""The classes of all errors.

    LeafeError
    ├── UserError (ValueError)           bad input; the command line prints one sentence and exits with status 2
    │   ├── UnknownName (LookupError)    an unknown name; carries the closest match
    │   ├── MissingDependency (ImportError)
    │   ├── CorruptFile                  a file that exists and cannot be read in its format
    │   │   └── DamagedRun               a file of a run that is not as the run left it
    │   ├── Unwritable (OSError)         a file that cannot be written, as on a full disk; nothing half-written is left of it
    │   └── RunConflict                  a run directory that belongs to another configuration or another process
    ├── EpisodeError (RuntimeError)      one episode is lost: recorded, counted by class, its siblings go on
    │   ├── EnvironmentFailure           the environment raised
    │   │   └── StepTimeout              a call of it took longer than its limit
    │   └── ReplayDiverged               a rollback did not reach the state that it should have reached
    └── EngineError (RuntimeError)       no completion can be had: the stage stops and can be resumed

A bug of ours is none of these: it keeps its own class and stops the run. A message says what was wanted, what was found and
what to do next.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LeafeError(Exception):
    """The root of everything that this package raises on purpose."""


class UserError(LeafeError, ValueError):
    """Input that cannot be used. The message is one sentence for the person who typed it."""


class UnknownName(UserError, LookupError):
    """An unknown name.

    >>> raise UnknownName("environment", "sokobn", ["sokoban", "lookup"])
    Traceback (most recent call last):
    leafe.errors.UnknownName: unknown environment 'sokobn'; did you mean 'sokoban'? Known: lookup, sokoban
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names, name = sorted(known), name[:80]  # comparing takes the longer the longer the name is
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        super().__init__(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}")
        self._made_of = kind, name, names

    def __reduce__(self) -> tuple[type[UnknownName], tuple[str, str, list[str]]]:
        return type(self), self._made_of  # an exception is otherwise made again of its message, also between processes


class MissingDependency(UserError, ImportError):
    """An optional library is absent. `install` is the command that fixes it."""

    def __init__(self, what: str, install: str) -> None:
        super().__init__(f"{what} is not installed; type: {install}")
        self._made_of = what, install

    def __reduce__(self) -> tuple[type[MissingDependency], tuple[str, str]]:
        return type(self), self._made_of


class CorruptFile(UserError):
    """A file that exists and cannot be read in its format."""


class DamagedRun(CorruptFile):
    """A file of the run in the directory `run` that is not as the run left it. `fault` says so without what mends it."""

    def __init__(self, run: Path, fault: str, mend: str) -> None:
        super().__init__(f"{fault}; {mend}")
        self.run, self.fault, self.mend = run, fault, mend

    def __reduce__(self) -> tuple[type[DamagedRun], tuple[Path, str, str]]:
        return type(self), (self.run, self.fault, self.mend)


class Unwritable(UserError, OSError):
    """A file that cannot be written, as on a full disk. What was written before is kept, and nothing half-written is left of it."""


def unwritable(path: object, error: BaseException) -> Unwritable:
    """The error to raise where the system refuses a write.

    >>> raise unwritable("run/forest.jsonl", OSError(28, "No space left on device"))
    Traceback (most recent call last):
    leafe.errors.Unwritable: cannot write run/forest.jsonl: No space left on device; make room and type the same command again: it goes on
    """
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160] or type(error).__name__
    mend = "make room" if is_full(error) else "fix that"
    return Unwritable(f"cannot write {path}: {reason}; {mend} and type the same command again: it goes on")


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk, a quota or a limit on the size of files leaves no room."""
    told = re.search(r"\berr(?:no|or) (\d+)\b", str(error), re.IGNORECASE)  # as libraries in other languages repeat it
    return getattr(error, "errno", None) in FULL or (told is not None and int(told.group(1)) in FULL)


class RunConflict(UserError):
    """A run directory that belongs to another configuration or to another process."""


class EpisodeError(LeafeError, RuntimeError):
    """One episode is lost. It is recorded with the class's name and its siblings go on."""


class EnvironmentFailure(EpisodeError):
    """The environment raised while it was reset, stepped or restored."""


class StepTimeout(EnvironmentFailure):
    """A call of the environment took longer than its limit; the world that was in it is replaced."""


class ReplayDiverged(EpisodeError):
    """A rollback ended in another state than the one it should have restored. Such a branch is never trained on."""


class EngineError(LeafeError, RuntimeError):
    """No completion can be had, and `why`. The stage stops; what was journaled is kept and a later run resumes, as `mend` may say."""

    def __init__(self, why: str, mend: str = "") -> None:
        super().__init__("; ".join(filter(None, (why, mend))))
        self.why = why
