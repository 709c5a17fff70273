"""The files that a finished stage left on the disk: the digest and the size of each, and whether they still match.

A stage's entry in `stages.json` holds its files and a digest of itself and of the names before it, so that neither a file nor the
entry can lose a line or change a byte unseen. Entries that older versions wrote hold neither and are accepted as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leafe.digest import digest

Manifest = dict[str, dict[str, Any]]  # a file's name below the run's directory, and what `described` returns for it
PART = 1 << 20  # bytes that are read at a time
SEAL = "digest"
FILES = "files"
SHOWN = "shown"


def described(path: Path) -> dict[str, Any]:
    """The SHA-256 of a file and its size in bytes; in lines as well where it has lines."""
    sha, size, lines = hashlib.sha256(), 0, 0
    with open(path, "rb") as file:
        while part := file.read(PART):
            sha.update(part)
            size += len(part)
            lines += part.count(b"\n")
    counted = {"lines": lines} if path.suffix == ".jsonl" else {}
    return {"sha256": sha.hexdigest(), "bytes": size, **counted}


def manifest_of(root: Path, paths: Iterable[Path]) -> Manifest:
    """The descriptions of some files below `root`, and of all files in some folders."""
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*"))) if file.is_file()]
    return {file.relative_to(root).as_posix(): described(file) for file in files}


def change(path: Path, before: Mapping[str, Any]) -> str:
    """How a file differs from its description, in a phrase, empty where it does not."""
    if not path.is_file():
        return "it is gone"
    now = described(path)
    if now.get("sha256") == before.get("sha256"):
        return ""
    for unit in ("lines", "bytes"):
        if now.get(unit) != before.get(unit):
            return f"it has {now.get(unit)} {unit} and had {before.get(unit)}"
    return "its bytes have changed"


def sealed(stage: str, result: Any, files: Manifest, before: Sequence[str], *, shown: Mapping[str, Any] | None = None) -> Any:
    """A stage's entry: its result, its files, which of them is shown, and the digest of it all.

    A result that is no group of values is returned as it is.
    """
    if not isinstance(result, Mapping | None) or (result is None and not files):
        return result
    entry = {**(result or {}), **({FILES: files} if files else {}), **({SHOWN: dict(shown)} if shown else {})}
    return {**entry, SEAL: _seal(stage, entry, before)}


def is_whole(stage: str, entry: Any, before: Sequence[str]) -> bool:
    """Whether an entry matches its digest; true for an entry without one."""
    if not isinstance(entry, Mapping) or not {FILES, SEAL} & entry.keys():
        return True
    rest = {name: value for name, value in entry.items() if name != SEAL}
    return bool(entry.get(SEAL) == _seal(stage, rest, before))


def given(entry: Any) -> Any:
    """A stage's result, without its files and their digests."""
    if not isinstance(entry, Mapping):
        return entry
    return {name: value for name, value in entry.items() if name not in (FILES, SHOWN, SEAL)} or None


def files_of(entry: Any) -> Mapping[str, Mapping[str, Any]]:
    """The files that a stage made, as far as its entry names them."""
    found = entry.get(FILES) if isinstance(entry, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def shown_of(entry: Any) -> dict[str, tuple[str, str]]:
    """The results of a stage that are shown: `arm` or `forest` with its name and its file, as far as the entry names them."""
    found = entry.get(SHOWN) if isinstance(entry, Mapping) else None
    pairs = found.items() if isinstance(found, Mapping) else ()
    return {
        kind: (pair[0], pair[1]) for kind, pair in pairs if isinstance(pair, list) and [type(part) for part in pair] == [str, str]
    }


def _seal(stage: str, entry: Mapping[str, Any], before: Sequence[str]) -> str:
    return digest(stage, dict(entry), list(before), length=32)
