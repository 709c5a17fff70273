"""A game file, `game.tw-pddl`: JSON with a PDDL domain, a PDDL problem, a text grammar, and a walkthrough where one is known.

`read_game` and `write_game` are inverses. Nothing here looks into the PDDL.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leafe.errors import CorruptFile, UserError

NAME = "game.tw-pddl"


@dataclass(frozen=True, slots=True)
class GameFile:
    """The texts of a game. `solvable` is false where its maker found no solution, None where none was looked for."""

    domain: str
    problem: str
    grammar: str
    walkthrough: tuple[str, ...] = ()
    solvable: bool | None = None


def read_game(path: Path) -> GameFile:
    """The game of a file. Raises `UserError` when it cannot be opened, `CorruptFile` when it is no game."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the game {path}: {error.strerror}; give the path of a {NAME} file") from None
    except UnicodeDecodeError:
        raise CorruptFile(f"{path} is no text; fetch the game file again") from None
    return parse_game(text, str(path))


def parse_game(text: str, where: str) -> GameFile:
    """The game of a file's text."""
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{where} is no whole JSON ({error}); it may be cut short: fetch the game file again") from None
    wanted = ("pddl_domain", "pddl_problem", "grammar")
    missing = [key for key in wanted if not isinstance(data, dict) or not isinstance(data.get(key), str)]
    if missing:
        raise CorruptFile(f"{where} is no game file: it lacks the text {missing[0]!r}; fetch the game file again")
    walkthrough = data.get("walkthrough") or []
    if not isinstance(walkthrough, list) or not all(isinstance(command, str) for command in walkthrough):
        raise CorruptFile(f"{where} is no game file: its walkthrough is no list of commands; fetch the game file again")
    solvable = data.get("solvable")
    domain, problem, grammar = (data[key] for key in wanted)
    return GameFile(domain, problem, grammar, tuple(walkthrough), solvable if isinstance(solvable, bool) else None)


def write_game(game: GameFile) -> str:
    """The text of a game's file."""
    data: dict[str, Any] = {"pddl_domain": game.domain, "grammar": game.grammar, "pddl_problem": game.problem}
    if game.solvable is not None:
        data["solvable"] = game.solvable
    return json.dumps(data | {"walkthrough": list(game.walkthrough)}, ensure_ascii=False)
