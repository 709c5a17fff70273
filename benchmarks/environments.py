"""The cost of each world: time to load a task, steps a second, snapshots, replay by turn, memory; beside the original if installed.

    python benchmarks/environments.py                                            # the worlds that need no data
    python benchmarks/environments.py --alfworld DATA --alfworld-python PYTHON   # ALFWorld, and the original in that interpreter
    python benchmarks/environments.py --openenv-python PYTHON                    # the published OpenEnv server, and its own client
    python benchmarks/environments.py --scienceworld                             # ScienceWorld, and the loop of its own package

Each row is measured in a separate process, one after another, so memory is that process's peak. Times are processor times, so that other
work on the machine changes little; rows marked * wait for others (programs in a sandbox, a server) and are wall-clock times. `start` is
making the environment and its first task, imports included. Programs differ in a comment, so that none is cached. Without
`--openenv-python` the OpenEnv row plays the small server of the tests. ScienceWorld's rows include the time and the memory of the Java
process, all threads; its step is the action alone for ours, which lists actions only on request, and includes the list of every possible
action for the original, which makes it at each step.
PYTHON is an interpreter with `pip install alfworld`; the original plays the same games with the same commands. A step's time includes
what an agent's loop needs: taking the command and listing the admissible commands of the new state.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
TURNS = (5, 10, 25, 50)


def children() -> list[int]:
    """The processes that this one started and that still run."""
    stats = {path.parent.name: path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat")}
    return [int(process) for process, stat in stats.items() if int(stat[1]) == os.getpid()]


def with_children() -> float:
    """Processor seconds of this process and of every thread of those in `watched`."""
    files = [path for process in watched for path in Path(f"/proc/{process}/task").glob("*/schedstat")]
    return time.process_time() + sum(int(path.read_text().split()[0]) for path in files) / 1e9


def peak_mib() -> float:
    """The peak memory of this process and those in `watched`."""
    held = [line for child in watched for line in Path(f"/proc/{child}/status").read_text().splitlines() if "VmHWM" in line]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + sum(int(line.split()[1]) / 1024 for line in held)


CLOCKS = {"own": time.process_time, "wall": time.perf_counter, "with children": with_children}
watched: list[int] = []
PROGRAMS = ("codecontests", "mbpp")
LAKE = {"id": "FrozenLake-v1"}
clock: Callable[[], float] = time.process_time


def timed(call: Callable[[], Any]) -> float:
    """Seconds that a call takes, by the row's clock."""
    start = clock()
    call()
    return clock() - start


@dataclass
class Figures:
    """The measurements over the tasks of a row, in seconds."""

    start: float = 0.0
    loads: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    saves: list[float] = field(default_factory=list)
    restores: list[float] = field(default_factory=list)
    replays: dict[int, list[float]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The row."""
        shots = {"snapshot_us": {"save": 1e6 * median(self.saves), "restore": 1e6 * median(self.restores)}} if self.saves else {}
        return shots | {
            "start_ms": 1e3 * self.start,
            "load_ms": {"median": 1e3 * median(self.loads), "most": 1e3 * max(self.loads)},
            "steps_per_second": len(self.steps) / sum(self.steps),
            "replay_ms": {str(turn): 1e3 * median(values) for turn, values in self.replays.items()},
            "peak_mib": peak_mib(),
        }


def environment_row(request: dict[str, Any]) -> dict[str, Any]:
    """An environment of leafe's: tasks reset for the first time, random play, snapshots, and replay from the reset."""
    before = clock()
    from leafe.envs.registry import make
    from leafe.worlds.pddl.environment import game_of

    environment = make(request["spec"], request["arguments"])
    first, *tasks = environment.tasks(request["split"], request["tasks"] + 1)
    environment.reset(first)  # imports, and state that all tasks share
    figures = Figures(clock() - before)
    for task in tasks:
        game_of.cache_clear()  # drawing a task may already have set it up
        figures.loads.append(timed(partial(environment.reset, task)))
        again = make(request["spec"], request["arguments"]) if request["spec"] in PROGRAMS else environment
        play(environment, again, task, steps=request["steps"], figures=figures)
    environment.close()
    return figures.summary()


def play(environment: Any, again: Any, task: Any, *, steps: int, figures: Figures) -> None:
    """Random play in a task that was reset, with a restart where it ends, and rollbacks; `again` is the environment for replays."""
    draw, actions, kept = random.Random(task.id), [], 0

    def step(action: str) -> Any:
        found.append(environment.step(action))
        environment.example_actions()

    def replay(turn: int) -> None:
        again.reset(task)
        for action in actions[:turn]:
            again.step(action)

    for number in range(steps):
        found: list[Any] = []
        action = draw.choice(list(environment.example_actions()))
        actions.append(f"{action}\n# {number}" if task.env in PROGRAMS else action)
        figures.steps.append(timed(partial(step, actions[-1])))
        kept = max(kept, len(actions))
        if found[0].done and number < steps - 1:
            environment.reset(task)
            actions.clear()
    if environment.fidelity == "snapshot":
        shot = environment.snapshot()
        figures.saves.append(timed(environment.snapshot))
        figures.restores.append(timed(partial(environment.restore, shot)))
    for turn in (one for one in TURNS if one <= len(actions)):
        figures.replays.setdefault(turn, []).append(timed(partial(replay, turn)))


def gymnasium_row(request: dict[str, Any]) -> dict[str, Any]:
    """The plain loop of Gymnasium, rendering each state as a reader needs it."""
    before = clock()
    import gymnasium

    world = gymnasium.make(request["id"], render_mode="ansi")
    world.reset(seed=0)
    figures = Figures(clock() - before)
    for number in range(request["tasks"]):
        draw = random.Random(number)
        loop = OwnLoop(partial(_gymnasium_reset, world, number), partial(_gymnasium_step, world))
        loop.play(lambda draw=draw: draw.randrange(int(world.action_space.n)), request["steps"], figures)
    return figures.summary()


def _gymnasium_reset(world: Any, seed: int) -> None:
    world.reset(seed=seed)
    world.render()


def _gymnasium_step(world: Any, action: int) -> bool:
    _, _, terminated, truncated, _ = world.step(action)
    world.render()
    return bool(terminated or truncated)


@dataclass
class OwnLoop:
    """Play as a package's users write it: `step` returns whether the episode is over."""

    reset: Callable[[], Any]
    step: Callable[[Any], bool]

    def play(self, choose: Callable[[], Any], steps: int, figures: Figures) -> None:
        """Random play, with a restart where it ends, and replay."""
        figures.loads.append(timed(self.reset))
        actions: list[Any] = []
        for number in range(steps):
            actions.append(choose())
            before = clock()
            over = self.step(actions[-1])
            figures.steps.append(clock() - before)
            if over and number < steps - 1:
                self.reset()
                actions.clear()
        for turn in (one for one in TURNS if one <= len(actions)):
            figures.replays.setdefault(turn, []).append(timed(partial(self._replay, actions[:turn])))

    def _replay(self, actions: list[Any]) -> None:
        self.reset()
        for action in actions:
            self.step(action)


def openenv_row(request: dict[str, Any]) -> dict[str, Any]:
    """OpenEnv's own client on the same server."""
    before = clock()
    from openenv.core.generic_client import GenericEnvClient

    client = GenericEnvClient(base_url=request["url"]).sync()
    with client:
        client.reset(seed=0)
        figures = Figures(clock() - before)
        for number in range(request["tasks"]):
            draw = random.Random(number)
            loop = OwnLoop(partial(client.reset, seed=number), lambda word: bool(client.step({"word": word}).done))
            loop.play(lambda draw=draw: draw.choice(request["words"]), request["steps"], figures)
    return figures.summary()


def original_row(request: dict[str, Any]) -> dict[str, Any]:
    """The original ALFWorld as its users run it: its own loop, without caching."""
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
    """ScienceWorld as an environment of leafe; its start is that of the simulator, with the first task."""
    from leafe.envs.registry import make

    environment = make("scienceworld")
    figures = Figures(simulator_start(lambda: environment.tasks("dev", 1)))
    for task in environment.tasks("dev", request["tasks"]):
        simulated_play(partial(environment.reset, task), environment.step, environment.example_actions, figures)
    return figures.summary()


def scienceworld_original_row(request: dict[str, Any]) -> dict[str, Any]:
    """The package's own loop, on the same tasks."""
    from scienceworld import ScienceWorldEnv

    original: list[Any] = []
    info: dict[str, Any] = {}
    figures = Figures(simulator_start(lambda: original.append(ScienceWorldEnv("", envStepLimit=1000))))
    for payload in request["payloads"]:

        def reset(payload: Any = payload) -> None:
            original[0].load(payload["task"], payload["variation"], payload["simplifications"])
            info.update(original[0].reset()[1])

        def step(action: str) -> None:
            info.update(original[0].step(action)[3])

        simulated_play(reset, step, lambda: info["valid"], figures)
    return figures.summary()


def simulator_start(start: Callable[[], Any]) -> float:
    """Seconds of a call that starts a process, which is watched from then on."""
    here = timed(start)
    watched.extend(children())
    return here + with_children() - time.process_time()


def simulated_play(reset: Callable[[], Any], step: Callable[[str], Any], actions_now: Callable[[], Any], figures: Figures) -> None:
    """Random play for as many turns as are replayed, and the replays. A wrong focus would end the episode."""
    draw, taken = random.Random(0), list[str]()
    figures.loads.append(timed(reset))
    for _ in range(TURNS[-1]):
        taken.append(draw.choice([action for action in actions_now() if not action.startswith("focus")]))
        figures.steps.append(timed(partial(step, taken[-1])))

    def replay(turn: int) -> None:
        reset()
        for action in taken[:turn]:
            step(action)

    for turn in TURNS:
        figures.replays.setdefault(turn, []).append(timed(partial(replay, turn)))


def measured(kind: str, request: dict[str, Any], python: str = sys.executable) -> dict[str, Any]:
    """A row, measured in a separate process."""
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
    found = {name: measured("environment", {"spec": name, **play}) for name in ("sokoban", "household", "webshop")}
    few = {**play, "tasks": 4, "steps": 12, "clock": "wall"}
    found |= {f"{name} *": measured("environment", {"spec": name, **few}) for name in PROGRAMS}
    found["gymnasium (FrozenLake)"] = measured("environment", {"spec": "gymnasium", **play, "arguments": LAKE})
    found["gymnasium's own loop"] = measured("gymnasium", {**LAKE, **play})
    found |= openenv_rows(given, {**play, "tasks": min(given.tasks, 20), "clock": "wall"})
    if given.alfworld:
        split = {"split": given.alfworld_split, "arguments": {"data": str(given.alfworld)}}
        found["alfworld"] = measured("environment", {"spec": "alfworld", **play, **split})
    if given.alfworld and given.alfworld_python:
        games = sorted(map(str, given.alfworld.rglob(f"{given.alfworld_split}/**/game.tw-pddl")))
        chosen = random.Random(0).sample(games, min(len(games), 1 + min(given.tasks, 10)))
        found["alfworld, the original"] = measured("original", {"games": chosen, "steps": 15}, given.alfworld_python)
    if given.scienceworld:
        from leafe.envs.registry import make

        request = {"tasks": min(given.tasks, 10), "clock": "with children"}
        payloads = [dict(task.payload) for task in make("scienceworld").tasks("dev", request["tasks"])]
        found["scienceworld"] = measured("scienceworld", request)
        found["scienceworld's own loop"] = measured("scienceworld original", {**request, "payloads": payloads})
    return found


def openenv_rows(given: argparse.Namespace, play: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A server in a separate process, played by leafe and, if installed, by its own client."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from openenv_server import serve_fake

    words = [one + other for one in "abc" for other in "abc"]
    with ExitStack() as stack:
        if given.openenv_python:
            address = stack.enter_context(published_server(given.openenv_python))
        else:
            address = stack.enter_context(serve_fake())
        arguments = {"url": address, "fidelity": "replay", "examples": words}
        found = {"openenv *": measured("environment", {"spec": "openenv", **play, "arguments": arguments})}
        if given.openenv_python:
            request = {**play, "url": address, "words": words}
            found["openenv's own client *"] = measured("openenv", request, given.openenv_python)
    return found


@contextmanager
def published_server(python: str) -> Iterator[str]:
    """The server of the tests behind the published package; yields its address once it answers."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    with subprocess.Popen([python, str(REPOSITORY / "tests" / "openenv_server.py"), str(port)]) as process:
        try:
            for _ in range(600):
                with socket.socket() as one:
                    if one.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


ROWS = {
    "environment": environment_row,
    "original": original_row,
    "gymnasium": gymnasium_row,
    "openenv": openenv_row,
    "scienceworld": scienceworld_row,
    "scienceworld original": scienceworld_original_row,
}


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alfworld", type=Path, help="the folder with ALFWorld's games")
    parser.add_argument("--alfworld-split", default="valid_seen")
    parser.add_argument("--alfworld-python", help="an interpreter that has the original")
    parser.add_argument("--openenv-python", help="an interpreter that has openenv-core")
    parser.add_argument("--scienceworld", action="store_true", help="ScienceWorld too; it wants its extra and Java")
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--steps", type=int, default=100, help="random steps a task")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    global clock
    if given.row:
        kind, request = given.row[0], json.loads(given.row[1])
        clock = CLOCKS[request.get("clock", "own")]
        gc.set_threshold(100_000, 20, 20)  # as the command line has it; for every row, the originals' too
        print(json.dumps(ROWS[kind](request)))
        return
    found = rows(given)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"{'world':24}{'start ms':>10}{'load ms (most)':>18}{'steps/s':>10}{'save, restore µs':>20}{'peak MiB':>10}   replay ms by turn"
    )
    for name, row in found.items():
        load = f"{row['load_ms']['median']:.1f} ({row['load_ms']['most']:.1f})"
        shot = row.get("snapshot_us")
        saved = f"{shot['save']:.1f}, {shot['restore']:.1f}" if shot else "none"
        replay = ", ".join(f"{turn}: {value:.3g}" for turn, value in row["replay_ms"].items())
        print(
            f"{name:24}{row['start_ms']:>10.0f}{load:>18}{row['steps_per_second']:>10.0f}{saved:>20}{row['peak_mib']:>10.0f}   {replay}"
        )


if __name__ == "__main__":
    main()
