"""What each world costs: time to load a task, steps a second, snapshots, replay by turn, memory; beside the original where it is there.

    python benchmarks/environments.py                                            # the worlds that need no data
    python benchmarks/environments.py --alfworld DATA --alfworld-python PYTHON   # ALFWorld, and the original in that interpreter
    python benchmarks/environments.py --scienceworld                             # ScienceWorld, and the loop of its own package

Each row is measured in a process of its own, one after another, so memory is that process's peak. Times are the process's own, not the
clock's, so that what else a machine does changes little; every world here runs in one thread and waits for nothing. ScienceWorld's hold
the processor time of its Java process, all threads; its step is the action taken alone for ours, which lists nothing unless asked, and
for the original, which lists every possible action at each step, the whole of it.
PYTHON is an interpreter with `pip install alfworld`; the original plays the same games with the same commands. A step's time holds what
an agent's loop needs: the command taken and the admissible commands of the new state listed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
TURNS = (5, 10, 25, 50)


def timed(call: Callable[[], Any], others: Sequence[int] = ()) -> float:
    """Processor seconds that a call takes, here and in other processes."""
    before = sum(map(seconds_of, others))
    start = time.process_time()
    call()
    return time.process_time() - start + sum(map(seconds_of, others)) - before


def children() -> list[int]:
    """The processes that this one started and that are still there."""
    stats = {path.parent.name: path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat")}
    return [int(process) for process, stat in stats.items() if int(stat[1]) == os.getpid()]


def seconds_of(process: int) -> float:
    """Processor seconds of every thread of a process."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{process}/task").glob("*/schedstat")) / 1e9


def peak_mib() -> float:
    """Most memory that this process and its children held."""
    held = [line for child in children() for line in Path(f"/proc/{child}/status").read_text().splitlines() if "VmHWM" in line]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + sum(int(line.split()[1]) / 1024 for line in held)


@dataclass
class Figures:
    """What was measured over the tasks of a row, in seconds."""

    loads: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    saves: list[float] = field(default_factory=list)
    restores: list[float] = field(default_factory=list)
    replays: dict[int, list[float]] = field(default_factory=dict)
    start: float | None = None

    def summary(self) -> dict[str, Any]:
        """The row."""
        shots = {"snapshot_us": {"save": 1e6 * median(self.saves), "restore": 1e6 * median(self.restores)}} if self.saves else {}
        started = {} if self.start is None else {"start_s": self.start}
        return (
            shots
            | started
            | {
                "load_ms": {"median": 1e3 * median(self.loads), "most": 1e3 * max(self.loads)},
                "steps_per_second": len(self.steps) / sum(self.steps),
                "replay_ms": {str(turn): 1e3 * median(values) for turn, values in self.replays.items()},
                "peak_mib": peak_mib(),
            }
        )


def environment_row(request: dict[str, Any]) -> dict[str, Any]:
    """An environment of leafe's: tasks reset for the first time, random play, snapshots, and replay from the reset."""
    from leafe.envs.pddl.environment import game_of
    from leafe.envs.registry import make

    environment = make(request["spec"], request["arguments"])
    first, *tasks = environment.tasks(request["split"], request["tasks"] + 1)
    environment.reset(first)  # imports, and what all tasks share
    figures = Figures()
    for task in tasks:
        game_of.cache_clear()  # drawing a task may have set it up already
        figures.loads.append(timed(partial(environment.reset, task)))
        play(environment, task, request["steps"], figures)
    return figures.summary()


def play(environment: Any, task: Any, steps: int, figures: Figures) -> None:
    """Random play in a task that was reset, and the ways back."""
    draw, actions = random.Random(task.id), []

    def step(action: str) -> None:
        environment.step(action)
        environment.example_actions()

    def replay(turn: int) -> None:
        environment.reset(task)
        for action in actions[:turn]:
            environment.step(action)

    for _ in range(steps):
        actions.append(draw.choice(list(environment.example_actions())))
        figures.steps.append(timed(partial(step, actions[-1])))
    kept = environment.snapshot()
    figures.saves.append(timed(environment.snapshot))
    figures.restores.append(timed(partial(environment.restore, kept)))
    for turn in TURNS:
        figures.replays.setdefault(turn, []).append(timed(partial(replay, turn)))


def original_row(request: dict[str, Any]) -> dict[str, Any]:
    """The original ALFWorld as its users run it: its own loop, with nothing remembered."""
    figures = Figures()
    original_play(request["games"][0], 1, Figures())
    for path in request["games"][1:]:
        original_play(path, request["steps"], figures)
    return figures.summary()


def original_play(path: str, steps: int, figures: Figures) -> None:
    """One game loaded, played at random and replayed."""
    sys.path.insert(0, str(Path(__file__).parent))
    from alfworld_traces import original

    draw, actions, seen = random.Random(path), [], {}
    answer: Callable[[str | None], dict[str, Any]] = dict

    def load() -> None:
        nonlocal answer, seen
        answer = original(Path(path))
        seen = answer(None)

    def step(command: str) -> None:
        nonlocal seen
        seen = answer(command)

    def replay(turn: int) -> None:
        answer(None)
        for action in actions[:turn]:
            answer(action)

    figures.loads.append(timed(load))
    for _ in range(steps):
        actions.append(draw.choice(seen["admissible"]))
        figures.steps.append(timed(partial(step, actions[-1])))
    for turn in TURNS[:2]:
        figures.replays.setdefault(turn, []).append(timed(partial(replay, turn)))


def scienceworld_row(request: dict[str, Any]) -> dict[str, Any]:
    """ScienceWorld as an environment of leafe's, and the simulator's start with what is wanted in the first task."""
    from leafe.envs.registry import make

    figures, environment = Figures(), make("scienceworld")
    figures.start = started(lambda: environment.tasks("dev", 1))
    for task in environment.tasks("dev", request["tasks"]):
        simulated_play(partial(environment.reset, task), environment.step, environment.example_actions, figures)
    return figures.summary()


def scienceworld_original_row(request: dict[str, Any]) -> dict[str, Any]:
    """The package's own loop, on the same tasks."""
    from scienceworld import ScienceWorldEnv

    figures, original, info = Figures(), [], {}
    figures.start = started(lambda: original.append(ScienceWorldEnv("", envStepLimit=1000)))
    for payload in request["payloads"]:

        def reset(payload: Any = payload) -> None:
            original[0].load(payload["task"], payload["variation"], payload["simplifications"])
            info.update(original[0].reset()[1])

        def step(action: str) -> None:
            info.update(original[0].step(action)[3])

        simulated_play(reset, step, lambda: info["valid"], figures)
    return figures.summary()


def started(start: Callable[[], Any]) -> float:
    """Processor seconds of a call that starts a process, its own included."""
    here = timed(start)
    return here + sum(map(seconds_of, children()))


def simulated_play(reset: Callable[[], Any], step: Callable[[str], Any], actions_now: Callable[[], Any], figures: Figures) -> None:
    """Random play for as many turns as are replayed, and the replays."""
    draw, taken, java = random.Random(0), [], children()
    figures.loads.append(timed(reset, java))
    for _ in range(TURNS[-1]):
        taken.append(
            draw.choice([action for action in actions_now() if not action.startswith("focus")])
        )  # a wrong focus is the end
        figures.steps.append(timed(partial(step, taken[-1]), java))

    def replay(turn: int) -> None:
        reset()
        for action in taken[:turn]:
            step(action)

    for turn in TURNS:
        figures.replays.setdefault(turn, []).append(timed(partial(replay, turn), java))


def measured(kind: str, request: dict[str, Any], python: str = sys.executable) -> dict[str, Any]:
    """A row from a process of its own."""
    command = [python, __file__, "--row", kind, json.dumps(request)]
    surroundings = {name: os.environ[name] for name in ("PATH", "JAVA_HOME") if name in os.environ}
    own = os.environ.get("PYTHONPATH", "") if python == sys.executable else ""
    surroundings |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), own])), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=surroundings)
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
    if given.scienceworld:
        from leafe.envs.registry import make

        tasks = min(given.tasks, 10)
        payloads = [dict(task.payload) for task in make("scienceworld").tasks("dev", tasks)]
        found["scienceworld"] = measured("scienceworld", {"tasks": tasks})
        found["scienceworld, the original"] = measured("scienceworld original", {"payloads": payloads})
    return found


ROWS = {
    "environment": environment_row,
    "original": original_row,
    "scienceworld": scienceworld_row,
    "scienceworld original": scienceworld_original_row,
}


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alfworld", type=Path, help="the folder with ALFWorld's games")
    parser.add_argument("--alfworld-split", default="valid_seen")
    parser.add_argument("--alfworld-python", help="an interpreter that has the original")
    parser.add_argument("--scienceworld", action="store_true", help="ScienceWorld too; it wants its extra and Java")
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--steps", type=int, default=100, help="random steps a task")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        kind, request = given.row
        print(json.dumps(ROWS[kind](json.loads(request))))
        return
    found = rows(given)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'world':28}{'load ms (most)':>18}{'steps/s':>10}{'save, restore µs':>20}{'peak MiB':>10}   replay ms by turn")
    for name, row in found.items():
        load = f"{row['load_ms']['median']:.1f} ({row['load_ms']['most']:.1f})"
        shot = row.get("snapshot_us")
        saved = f"{shot['save']:.1f}, {shot['restore']:.1f}" if shot else "none"
        replay = ", ".join(f"{turn}: {value:.1f}" for turn, value in row["replay_ms"].items())
        start = f"; start {row['start_s']:.1f} s" if "start_s" in row else ""
        print(f"{name:28}{load:>18}{row['steps_per_second']:>10.0f}{saved:>20}{row['peak_mib']:>10.0f}   {replay}{start}")


if __name__ == "__main__":
    main()
