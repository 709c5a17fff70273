"""The journal: every effect's result, appended as it arrives, so that a killed exploration can resume.

Resume is replay: the recorded results are fed to the same generator, which then asks for the first result that is missing. Each
line carries a mark of the effect it answers; a generator that asks for something else was started under other rules or by another
version, which is an error, so that two runs are never mixed.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import fields
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

from leafe.digest import canonical, digest
from leafe.errors import CorruptFile, EnvironmentFailure, EpisodeError, ReplayDiverged, RunConflict, StepTimeout
from leafe.forest.effects import Effect, Expert, Plan, Reset, Restored, Rollback, Step
from leafe.growing import Growing
from leafe.jsonl import Appender, read_lines
from leafe.records import Ask, Completion, Message, Observation, Sampling, decode, encode

SCHEMA = "leafe.journal/1"
FAILURES: dict[str, type[EpisodeError]] = {kind.__name__: kind for kind in (EnvironmentFailure, StepTimeout, ReplayDiverged)}
_SAMPLING = tuple(item.name for item in fields(Sampling))


def _drawn_by(sampling: Sampling) -> list[Any]:
    return [getattr(sampling, name) for name in _SAMPLING]


def _begun(ask: Ask) -> str:
    return f" after {digest(ask.begun)}" if ask.begun else ""


def mark_of(effect: Effect) -> str:
    """A short text that is equal for two effects exactly when they ask for the same thing."""
    if isinstance(effect, Ask):
        said = [message.content for message in effect.messages]
        return f"{effect.purpose} {effect.seed} {digest(said, _drawn_by(effect.sampling))}{_begun(effect)}"
    if isinstance(effect, Reset):
        return "reset"
    if isinstance(effect, Expert):
        return "expert"
    if isinstance(effect, Step):
        return f"step {digest(effect.action)}" + ("" if effect.seed is None else f" seed {effect.seed}")
    return f"rollback {len(effect.trajectory)} {effect.trajectory[-1].id if effect.trajectory else 'root'}"


class Marks:
    """`mark_of` without reading a whole conversation anew at each of its turns."""

    def __init__(self) -> None:
        self._said: Growing[tuple[Any, str]] = Growing((hashlib.sha256(b"[["), ""), _with_content)

    def of(self, effect: Effect) -> str:
        """The same as `mark_of(effect)`."""
        if not isinstance(effect, Ask):
            return mark_of(effect)
        sha = self._said.of(effect.messages)[0].copy()
        sha.update(f"],{canonical(_drawn_by(effect.sampling))}]".encode())
        return f"{effect.purpose} {effect.seed} {sha.hexdigest()[:16]}{_begun(effect)}"


def _with_content(state: tuple[Any, str], message: Message) -> tuple[Any, str]:
    """The digest extended by one content, in the JSON that `digest` makes, and the separator from the next."""
    sha, comma = state
    sha = sha.copy()
    sha.update(f"{comma}{encode_basestring(message.content)}".encode())
    return sha, ","


def _kind(effect: Effect) -> type:
    if isinstance(effect, Ask):
        return Completion
    if isinstance(effect, Expert):
        return Plan
    return Restored if isinstance(effect, Rollback) else Observation


class Journal:
    """The journal of one exploration; opening an existing one reads what it holds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._past: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        if path.exists():
            for line in read_lines(path, SCHEMA):
                past = self._past[line.get("key", "")]
                if line.get("n") != len(past):
                    found = f"step {line.get('n')} of {line.get('key')!r} where step {len(past)} should come"
                    raise CorruptFile(f"{path} holds {found}; delete it to explore anew")
                past.append(line)
        self._marks = Marks()
        self._appender = Appender(path, SCHEMA)

    def length(self, key: str) -> int:
        """The number of results recorded for a task."""
        return len(self._past[key])

    def recall(self, key: str, number: int, effect: Effect) -> Any:
        """The recorded result of a task's effect, or None when there is none yet. A recorded failure is returned as an exception."""
        past = self._past[key]
        if number >= len(past):
            return None
        line = past[number]
        mark = self._marks.of(effect)
        if line.get("effect") != mark:
            raise RunConflict(
                f"{self._path} answers {line.get('effect')!r} where {mark!r} is asked; it belongs to other rules: delete it"
            )
        if "error" in line:
            return FAILURES.get(line["error"], EnvironmentFailure)(line.get("message", ""))
        try:
            return decode(_kind(effect), line["result"])
        except (ValueError, KeyError) as error:
            raise CorruptFile(f"{self._path} holds a result that cannot be read ({error}); delete it to explore anew") from None

    def record(self, key: str, number: int, effect: Effect, result: Any) -> None:
        """Appends the result of an effect, or the failure that answered it."""
        line: dict[str, Any] = {"key": key, "n": number, "effect": self._marks.of(effect)}
        if isinstance(result, EpisodeError):
            line |= {"error": type(result).__name__, "message": str(result)}
        else:
            line["result"] = encode(result)
        self._appender.append(line)

    def close(self) -> None:
        """Forces everything to the disk and closes the file."""
        self._appender.close()
