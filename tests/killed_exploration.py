"""Explores into FOLDER, killed with SIGKILL at KILLS random moments and resumed each time until it is done; prints what happened.

    python tests/killed_exploration.py FOLDER KILLS SEED

Each try is a process of its own, forked from this one so that the libraries are loaded once. A moment is a length of the journal, drawn
from the lengths that an undisturbed exploration goes through, so that it does not depend on how fast the machine is.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from players import PLACES, Breaking, erratic

from leafe.config import parse
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Environment
from leafe.experiment import Experiment, ForestSpec, explore_tasks
from leafe.progress import Silent
from leafe.records import Ask, Tree
from leafe.worlds.fakes import Lookup
from leafe.worlds.sokoban.board import ACTIONS
from leafe.worlds.sokoban.environment import Sokoban

RECIPE = """
name: killed
environment: {name: %s}
tasks: {train: %d}
explore: {turns: 16, max_attempts: 5, max_depth: 3, reflect_every: 2}
"""
WORLDS: dict[str, tuple[Callable[[], Environment], list[str]]] = {
    "lookup": (lambda: Lookup(horizon=4), PLACES),  # goes back by replay
    "sokoban": (lambda: Sokoban(min_length=2, max_length=6, horizon=6), list(ACTIONS)),  # goes back by snapshot
    "breaking": (lambda: Breaking(horizon=4), PLACES),  # raises at some of its steps
}


def experiment(world: str, engine: ScriptedEngine, tasks: int = 24) -> Experiment:
    """A bench whose model is a script."""
    config = parse(RECIPE % (world, tasks), "killed")
    return Experiment(config, Path("none"), lambda folder: engine, WORLDS[world][0], Silent())


def spec(folder: Path, method: str = "tree") -> ForestSpec:
    """Where the exploration is kept."""
    return ForestSpec(method, 5, Path("none"), folder / "forest.jsonl", folder / "journal.jsonl")


def explored(
    folder: Path, world: str, *, pause: float = 0.0, tasks: int = 24, concurrency: int = 7
) -> tuple[list[Tree], ScriptedEngine]:
    """Explores, or goes on exploring, with an erratic policy that takes `pause` seconds to think."""
    policy = erratic(WORLDS[world][1])

    def slow(ask: Ask) -> str:
        time.sleep(pause)
        return policy(ask)

    engine = ScriptedEngine(slow, concurrency=concurrency)
    return explore_tasks(experiment(world, engine, tasks), "explore", spec(folder)), engine


def _forked(folder: Path, world: str) -> int:
    process = os.fork()
    if process == 0:
        try:
            explored(folder, world, pause=0.0005)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(3)
    return process


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _until(process: int, journal: Path, length: int) -> bool:
    """Kills the process once the journal is that long. False when it was done before."""
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            if status:
                raise SystemExit(f"the exploration failed with status {status}")
            return False
        if _size(journal) >= length:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return True
        time.sleep(0.0002)


def killed_at_random(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Runs each world to its end once undisturbed and once killed; returns how many kills came before the end."""
    report = {}
    for world in WORLDS:
        whole, killed = folder / f"{world}-whole", folder / f"{world}-killed"
        whole.mkdir()
        killed.mkdir()
        _until(_forked(whole, world), whole / "journal.jsonl", sys.maxsize)
        draw, length = random.Random(seed), _size(whole / "journal.jsonl")
        moments = sorted(draw.randrange(length) for _ in range(kills))
        landed = [_until(_forked(killed, world), killed / "journal.jsonl", moment) for moment in moments]
        _until(_forked(killed, world), killed / "journal.jsonl", sys.maxsize)
        report[world] = sum(landed)
    return report


if __name__ == "__main__":
    print(json.dumps(killed_at_random(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
