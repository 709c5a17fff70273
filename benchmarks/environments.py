"""What each world costs: time to load a task, steps a second, snapshots, replay by turn, memory; beside the original where it is there.

    python benchmarks/environments.py                                            # the worlds that need no data
    python benchmarks/environments.py --alfworld DATA --alfworld-python PYTHON   # ALFWorld, and the original in that interpreter

Each row is measured in a process of its own, one after another, so memory is that process's peak and nothing shares the processor.
PYTHON is an interpreter with `pip install alfworld`; the original plays the same games with the same commands. A step's time holds what
an agent's loop needs: the command taken and the admissible commands of the new state listed.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
TURNS = (5, 10, 25, 50)


def timed(call: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def environment_row(request: dict[str, Any]) -> dict[str, Any]:
    """An environment of leafe's: tasks reset for the first time, random play, snapshots, and replay from the reset."""
    from leafe.envs.registry import make

    environment = make(request["spec"], request["arguments"])
    tasks = environment.tasks(request["split"], request["tasks"] + 1)
    environment.reset(tasks[0])  # imports, and what all tasks share
    # Tasks may have been set up while they were drawn, so each is loaded by an instance that has not seen it.
    forget = getattr(sys.modules.get("leafe.envs.pddl.environment"), "game_of", None)
    loads, seconds, taken = [], 0.0, 0
    replays: dict[int, list[float]] = {turn: [] for turn in TURNS}
    saves, restores = [], []
    for task in tasks[1:]:
        if forget is not None:
            forget.cache_clear()
        loads.append(timed(lambda task=task: environment.reset(task)))
        draw, actions = random.Random(task.id), []
        for _ in range(request["steps"]):
            actions.append(draw.choice(list(environment.example_actions())))
            seconds += timed(lambda: (environment.step(actions[-1]), environment.example_actions()))
        taken += len(actions)
        kept = environment.snapshot()
        saves.append(timed(environment.snapshot))
        restores.append(timed(lambda kept=kept: environment.restore(kept)))
        for turn in TURNS:
            replays[turn].append(timed(lambda task=task, turn=turn: (environment.reset(task), *map(environment.step, actions[:turn]))))
    micro = {"save": 1e6 * median(saves), "restore": 1e6 * median(restores)}
    return summary(loads, taken / seconds, replays) | {"snapshot_us": micro}


def original_row(request: dict[str, Any]) -> dict[str, Any]:
    """The original ALFWorld as its users run it: its own loop, with nothing remembered."""
    sys.path.insert(0, str(Path(__file__).parent))
    from alfworld_traces import original

    loads, seconds, taken = [], 0.0, 0
    replays: dict[int, list[float]] = {turn: [] for turn in TURNS}
    original(Path(request["games"][0]))(None)
    for path in request["games"][1:]:
        started = time.perf_counter()
        answer = original(Path(path))
        seen = answer(None)
        loads.append(time.perf_counter() - started)
        draw, actions = random.Random(path), []
        for _ in range(request["steps"]):
            actions.append(draw.choice(seen["admissible"]))
            started = time.perf_counter()
            seen = answer(actions[-1])
            seconds += time.perf_counter() - started
        taken += len(actions)
        for turn in TURNS[:2]:
            replays[turn].append(timed(lambda turn=turn: (answer(None), *map(answer, actions[:turn]))))
    return summary(loads, taken / seconds, replays)


def summary(loads: list[float], rate: float, replays: dict[int, list[float]]) -> dict[str, Any]:
    """The figures of a row."""
    return {
        "load_ms": {"median": 1e3 * median(loads), "most": 1e3 * max(loads)},
        "steps_per_second": rate,
        "replay_ms": {str(turn): 1e3 * median(values) for turn, values in replays.items() if values},
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measured(kind: str, request: dict[str, Any], python: str = sys.executable) -> dict[str, Any]:
    """A row from a process of its own."""
    command = [python, __file__, "--row", kind, json.dumps(request)]
    found = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"})
    if found.returncode:
        raise SystemExit(f"the row {kind} {request} failed:\n{found.stderr}")
    return dict(json.loads(found.stdout.splitlines()[-1]))


def rows(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every row that the arguments allow, by its name. A new world is one more entry here."""
    play = {"split": "train", "tasks": given.tasks, "steps": given.steps, "arguments": {}}
    found = {name: measured("environment", {"spec": name, **play}) for name in ("sokoban", "household")}
    if given.alfworld:
        split = {"split": given.alfworld_split, "arguments": {"data": str(given.alfworld)}}
        found["alfworld"] = measured("environment", {"spec": "alfworld", **play, **split})
    if given.alfworld and given.alfworld_python:
        games = sorted(map(str, given.alfworld.rglob(f"{given.alfworld_split}/**/game.tw-pddl")))
        chosen = random.Random(0).sample(games, min(len(games), 1 + min(given.tasks, 10)))
        found["alfworld, the original"] = measured("original", {"games": chosen, "steps": 15}, given.alfworld_python)
    return found


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alfworld", type=Path, help="the folder with ALFWorld's games")
    parser.add_argument("--alfworld-split", default="valid_seen")
    parser.add_argument("--alfworld-python", help="an interpreter that has the original")
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--steps", type=int, default=100, help="random steps a task")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        kind, request = given.row
        print(json.dumps({"environment": environment_row, "original": original_row}[kind](json.loads(request))))
        return
    found = rows(given)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'world':24}{'load ms (most)':>18}{'steps/s':>10}{'save, restore µs':>20}{'peak MiB':>10}   replay ms by turn")
    for name, row in found.items():
        load = f"{row['load_ms']['median']:.1f} ({row['load_ms']['most']:.1f})"
        shot = row.get("snapshot_us")
        saved = f"{shot['save']:.1f}, {shot['restore']:.1f}" if shot else "none"
        replay = ", ".join(f"{turn}: {value:.1f}" for turn, value in row["replay_ms"].items())
        print(f"{name:24}{load:>18}{row['steps_per_second']:>10.0f}{saved:>20}{row['peak_mib']:>10.0f}   {replay}")


if __name__ == "__main__":
    main()
