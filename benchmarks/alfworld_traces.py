"""Records the observations of the original ALFWorld, and compares our engine with them, game by game and step by step.

    python benchmarks/alfworld_traces.py record DATA traces.jsonl       # in an environment with `pip install alfworld`
    python benchmarks/alfworld_traces.py compare DATA traces.jsonl      # in one with leafe
    python benchmarks/alfworld_traces.py sample traces.jsonl some.json  # the digests of a few games, for the tests
    python benchmarks/alfworld_traces.py household GAMES 60             # writes household games, to be recorded and compared likewise

DATA is a folder with games (`.../game.tw-pddl`) at any depth. A game is played once by its walkthrough, if it has one, and once by random
commands: a verb is drawn first, so that rare ones come up, and one command in ten is not admissible. `--plans FILE` adds an episode of
the commands that FILE (JSON, game to commands) names for a game. The original is sped up by caching its parses, which changes none of
its answers.
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STRANGE = ("dance", "", "  look  ", "LOOK", "go to nowhere 1", "take everything", "look around")


def games_below(folder: Path) -> dict[str, Path]:
    """Every game file, by the last folders of its path: split, task, trial."""
    return {"/".join(path.parent.parts[-3:]): path for path in sorted(folder.rglob("game.tw-pddl"))}


def original(path: Path) -> Callable[[str | None], dict[str, Any]]:
    """A game in the original engine: a function from a command, None to start anew, to what was seen."""
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos
    from textworld.envs.pddl import PddlEnv

    infos = textworld.EnvInfos(won=True, admissible_commands=True, extras=["gamefile"])
    environment = AlfredInfos(AlfredDemangler(PddlEnv(infos), shuffle=False))
    environment.load(str(path))

    def answer(command: str | None) -> dict[str, Any]:
        state, reward, done = (environment.reset(), 0, False) if command is None else environment.step(command)
        seen = {"text": state.feedback, "admissible": list(state.admissible_commands), "reward": reward, "done": done}
        return {"command": command, **seen}

    return answer


def remember_parses() -> None:
    """Parses each grammar text once. Callers get a copy, because deriving changes it."""
    import textworld.envs.pddl.textgen as textgen
    import textworld.logic as logic

    parse = functools.lru_cache(maxsize=None)(textgen._parse_and_convert)
    textgen._parse_and_convert = lambda text, rule_name, trace=False: copy.deepcopy(parse(text, rule_name=rule_name))
    query = functools.lru_cache(maxsize=None)(logic.Rule.parse_conjunctive_query.__func__)
    logic.Rule.parse_conjunctive_query = classmethod(lambda owner, expression: query(owner, expression))


def random_command(admissible: list[str], seen: list[str], draw: random.Random) -> str:
    """Draws a verb first, then one of its commands; now and then an inadmissible one."""
    if draw.random() < 0.1:
        return draw.choice([*STRANGE, *seen])
    verbs = sorted({command.split()[0] for command in admissible})
    [verb] = draw.choices(verbs, [1 if verb in ("help", "inventory", "look") else 5 for verb in verbs])
    return draw.choice([command for command in admissible if command.split()[0] == verb])


def record(data: Path, out: Path, steps: int, plans: dict[str, list[str]]) -> None:
    """Writes one line a game; games that are already in the file are skipped."""
    remember_parses()
    done = {json.loads(line)["game"] for line in out.read_text().splitlines()} if out.exists() else set()
    for name, path in games_below(data).items():
        if name in done or (plans and name not in plans):
            continue
        answer, draw = original(path), random.Random(name)
        walkthrough = json.loads(path.read_text()).get("walkthrough") or []
        episodes = [plans[name]] if plans else [walkthrough, None]
        played = [play(answer, commands, draw, steps) for commands in episodes if commands != []]
        with out.open("a") as file:
            file.write(json.dumps({"game": name, "episodes": played}) + "\n")


def play(
    answer: Callable[[str | None], dict[str, Any]], commands: list[str] | None, draw: random.Random, steps: int
) -> list[dict[str, Any]]:
    """One episode from a reset; random commands if none are given."""
    seen = [answer(None)]
    offered: list[str] = []
    for turn in range(steps if commands is None else len(commands)):
        offered = sorted({*offered, *seen[-1]["admissible"]})
        command = commands[turn] if commands is not None else random_command(seen[-1]["admissible"], offered, draw)
        seen.append(answer(command))
    return seen


def ours(path: Path) -> Callable[[str | None], dict[str, Any]]:
    """The same function for our engine."""
    from leafe.worlds.pddl.game import Game
    from leafe.worlds.pddl.gamefile import read_game

    game = Game(read_game(path))
    state = game.start

    def answer(command: str | None) -> dict[str, Any]:
        nonlocal state
        state, text = (game.start, game.tell("intro")) if command is None else game.step(state, command)
        won = game.won(state)
        seen = {"text": text, "admissible": sorted(game.commands(state)), "reward": int(won and command is not None)}
        return {"command": command, **seen, "done": won and command is not None}

    return answer


def compare(data: Path, traces: Path) -> int:
    """Plays every recorded episode in our engine and prints the differences."""
    games, counts, shown = games_below(data), {"games": 0, "episodes": 0, "steps": 0, "differences": 0, "won": 0}, 0
    started = time.perf_counter()
    for recorded in map(json.loads, traces.open()):
        answer = ours(games[recorded["game"]])
        counts["games"] += 1
        for episode in recorded["episodes"]:
            counts["episodes"] += 1
            for turn, step in enumerate(episode):
                found = answer(step["command"])
                counts["steps"] += turn > 0
                if found != step:
                    counts["differences"] += 1
                    if (shown := shown + 1) <= 5:
                        print(f"{recorded['game']}, turn {turn} {step['command']!r}:\n  theirs {step}\n  ours   {found}")
            counts["won"] += any(step["done"] for step in episode)
    print(json.dumps({**counts, "seconds": round(time.perf_counter() - started, 2)}))
    return 1 if counts["differences"] or not counts["games"] else 0


def write_household(folder: Path, count: int) -> None:
    """Writes generated games with walkthroughs, as files that both engines read."""
    from dataclasses import replace

    from leafe.worlds.household.environment import Household
    from leafe.worlds.household.house import from_payload
    from leafe.worlds.household.texts import game_file
    from leafe.worlds.pddl.gamefile import NAME, write_game

    for rooms, places in ((1, 6), (2, 8), (3, 14)):
        environment = Household(rooms=rooms, places=places)
        for task in environment.tasks("train", count // 3):
            environment.reset(task)
            game = replace(game_file(from_payload(task.payload)), walkthrough=tuple(environment.expert()))
            path = folder / f"rooms-{rooms}" / "household" / task.id / NAME
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(write_game(game))


def mark(step: dict[str, Any]) -> str:
    """A short digest of the state after a command, with admissible commands as a set."""
    seen = [step["text"], sorted(set(step["admissible"])), step["reward"], step["done"]]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def sample(traces: Path, out: Path, every: int) -> None:
    """Keeps commands and digests of every `every`th game."""

    def kept() -> Iterator[dict[str, Any]]:
        for number, line in enumerate(traces.open()):
            if number % every == 0:
                game = json.loads(line)
                episodes = [{"commands": [s["command"] for s in e[1:]], "marks": [mark(s) for s in e]} for e in game["episodes"]]
                yield {"game": game["game"], "episodes": episodes}

    out.write_text("[\n" + ",\n".join(json.dumps(game) for game in kept()) + "\n]\n")


def main() -> int:
    """Runs one of the commands above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["record", "compare", "sample", "household"])
    parser.add_argument("source", type=Path, help="the data folder; for `sample` the traces, for `household` a new folder")
    parser.add_argument("file", type=Path, help="the traces; for `sample` where to write, for `household` how many")
    parser.add_argument("--steps", type=int, default=60, help="random steps a game")
    parser.add_argument("--plans", type=Path, help="JSON: commands to play for each game, instead of the two episodes")
    parser.add_argument("--every", type=int, default=57, help="keep one game in so many")
    given = parser.parse_args()
    if given.verb == "record":
        record(given.source, given.file, given.steps, json.loads(given.plans.read_text()) if given.plans else {})
    elif given.verb == "household":
        write_household(given.source, int(str(given.file)))
    elif given.verb == "sample":
        sample(given.source, given.file, given.every)
    return compare(given.source, given.file) if given.verb == "compare" else 0


if __name__ == "__main__":
    sys.exit(main())
