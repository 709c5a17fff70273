"""Which files of a run are shown, and under which names: arms, the graded attempts of a policy, and forests, the trees of an exploration.

Stages record them in `stages.json`. A forest that still grows is found by its place, and so is everything in runs of older versions.
Names are a method's own and may be any text that is safe as a file's name. Nothing here reads more of a forest than its first tree.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from leafe.errors import UserError
from leafe.manifest import files_of, shown_of

ARM, FOREST = "arm", "forest"
LONGEST = 40  # characters of a name, which is shown in tables
_ROUND = re.compile(r"round-(\d+)/forest\.jsonl")
_NAMED = re.compile(r"controls/(.+)\.jsonl")
_BESIDE = (".journal", ".examples")  # the files beside a forest, before `.jsonl`
# The files beside an arm's graded attempts: its transcripts, their scores, and the turns at which its reflection gap was measured.
WATCHED, SCORES, GAPS = ".watched", ".scores", ".gap"
_MEASURED = "evaluate "


def check_name(kind: str, name: object) -> str:
    """`name`, of an arm or a forest. Raises `UserError` where it is no text that is safe as a file's name."""
    safe = (
        isinstance(name, str)
        and 0 < len(name) <= LONGEST
        and len(name.encode(errors="replace")) < 200
        and name.isprintable()
        and not set(name) & set("/\\:")
        and name[0] not in ".- "
        and name[-1] not in ". "
        and not name.endswith((*_BESIDE, WATCHED, SCORES, GAPS))
    )
    if not safe:
        wanted = f"a name of at most {LONGEST} characters without '/', '\\' and ':', a letter or digit first"
        raise UserError(f"the {kind} wants {wanted}, found {name!r:.90}")
    return str(name)


def arms(root: Path, stages: Mapping[str, Any]) -> dict[str, Path]:
    """The graded attempts of each measured arm of a run, first measured first."""
    found: dict[str, Path] = {}
    for stage, entry in stages.items():
        if said := shown_of(entry).get(ARM):
            found[said[0]] = root / said[1]
        elif stage.startswith(_MEASURED):
            path = root / "eval" / f"{stage.removeprefix(_MEASURED)}.jsonl"
            if path.exists() or path.relative_to(root).as_posix() in files_of(entry):
                found[stage.removeprefix(_MEASURED)] = path
    return found


def forests(root: Path, stages: Mapping[str, Any]) -> dict[str, Path]:
    """The trees of each forest of a run: those of rounds in their order, then the others, those that no stage recorded last."""
    said = [shown for entry in stages.values() if (shown := shown_of(entry).get(FOREST))]
    found = {name: root / file for name, file in said}
    known = {file for _, file in said}
    for name, path in _by_place(root, stages):
        if path.relative_to(root).as_posix() not in known:
            found.setdefault(name, path)
    return dict(sorted(found.items(), key=lambda one: _round_of(one[1].relative_to(root).as_posix())))


def _round_of(file: str) -> float:
    match = _ROUND.fullmatch(file)
    return int(match.group(1)) if match else math.inf


def _by_place(root: Path, stages: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Forests in their usual places, rounds first; those that a stage made and that are missing are named all the same."""
    made = {file for entry in stages.values() for file in files_of(entry)}
    there = {path.relative_to(root).as_posix() for folder in ("round-*", "controls") for path in root.glob(f"{folder}/*.jsonl")}
    files = sorted(made | there)
    rounds = sorted(int(match.group(1)) for file in files if (match := _ROUND.fullmatch(file)))
    for number in rounds:
        path = root / f"round-{number}" / "forest.jsonl"
        yield ", ".join((*_explorer(path), f"round {number}")), path
    for file in files:
        match = _NAMED.fullmatch(file)
        if match and not match.group(1).endswith(_BESIDE):
            yield match.group(1), root / file


def _explorer(path: Path) -> Iterator[str]:
    """The explorer's name, as the first tree of a forest has it."""
    try:
        with open(path, encoding="utf-8") as lines:
            next(lines)
            method = json.loads(next(lines)).get("method")
    except (OSError, ValueError, AttributeError, RecursionError, StopIteration):  # the reader of the forest reports the fault
        return
    if isinstance(method, str):
        yield method
