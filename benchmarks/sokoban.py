"""Steps per second of Sokoban: ours, ours in a `World`, and gym-sokoban, alternately on the same boards with the same moves.

    python benchmarks/sokoban.py --gym-python /path/to/venv/bin/python [--json]

gym-sokoban needs a separate interpreter (with `pip install gym-sokoban`), because its dependency gym is no longer maintained. Before
anything is timed, both sides play all moves and their boards are compared. gym-sokoban is measured twice: with its smallest observation
(one pixel a cell) as it ships, and with a text board made from its room state in addition, which a language model needs. Only steps are
timed, on both sides; setting up the boards is not. Its level generator is not measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from leafe.envs.world import World
from leafe.records import Task
from leafe.worlds.sokoban.board import ACTIONS, parse
from leafe.worlds.sokoban.environment import Sokoban

ROOT = Path(__file__).resolve().parent.parent
GYM_ACTIONS = {"up": 1, "down": 2, "left": 3, "right": 4}  # its push actions: push where a box is ahead, else move
GYM_SYMBOLS = "#_O√XPS"  # its cell codes 0 to 5, and the player on a target, which it shows as 5
Play = Callable[[], float]


def main() -> None:
    """Reads the arguments, measures and prints a table or JSON."""
    parser = argparse.ArgumentParser(description="steps per second of Sokoban, ours against gym-sokoban")
    parser.add_argument("--gym-python", default=sys.executable, help="an interpreter that has gym-sokoban")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--boards", type=int, default=100)
    parser.add_argument("--moves", type=int, default=15, help="per board")
    parser.add_argument("--size", type=int, default=6)
    parser.add_argument("--boxes", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve-gym", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_gym:
        serve_gym()
        return
    report = measure(options)
    print(json.dumps(report) if options.json else shown(report))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measures all contestants once a round, in an order that rotates; returns rates, and ratios round by round."""
    tasks = Sokoban(rows=options.size, columns=options.size, boxes=options.boxes, max_length=60).tasks("train", options.boards)
    draw = random.Random(0)
    moves = [[draw.choice(ACTIONS) for _ in range(options.moves)] for _ in tasks]
    plays: dict[str, Play] = {
        "leafe": lambda: play_ours(Sokoban(), tasks, moves),
        "leafe_world": lambda: play_ours(World(Sokoban()), tasks, moves),
    }
    gym = Gym(options.gym_python, [str(task.payload["board"]) for task in tasks], moves)
    if gym.problem is None:
        gym.compare(tasks, moves)
        plays |= {"gym_tiny": lambda: gym.play("tiny"), "gym_text": lambda: gym.play("text")}
    rates: dict[str, list[float]] = {name: [] for name in plays}
    for number in range(options.rounds + 1):
        order = list(plays)[number % len(plays) :] + list(plays)[: number % len(plays)]
        for name in order:
            rate = len(tasks) * options.moves / plays[name]()
            if number:  # the first round warms up
                rates[name].append(rate)
    gym.close()
    pairs = [(ours, theirs) for ours in ("leafe", "leafe_world") for theirs in ("gym_tiny", "gym_text") if theirs in rates]
    ratios = {f"{ours}/{theirs}": [a / b for a, b in zip(rates[ours], rates[theirs], strict=True)] for ours, theirs in pairs}
    return {
        "setting": {name: getattr(options, name) for name in ("rounds", "boards", "moves", "size", "boxes")},
        "steps_per_second": {name: spread(values) for name, values in rates.items()},
        "ratios": {name: spread(values) for name, values in ratios.items()},
        "gym": gym.versions,
        "boards_compared": gym.compared,
        "problem": gym.problem,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def play_ours(player: Sokoban | World, tasks: Sequence[Task], moves: Sequence[Sequence[str]]) -> float:
    """The seconds of the steps."""
    seconds = 0.0
    for task, actions in zip(tasks, moves, strict=True):
        player.reset(task)
        start = perf_counter()
        for action in actions:
            player.step(action)
        seconds += perf_counter() - start
    return seconds


class Gym:
    """gym-sokoban in its own process, asked over pipes. `problem` is the reason, in one sentence, why it is not available."""

    def __init__(self, python: str, boards: Sequence[str], moves: Sequence[Sequence[str]]) -> None:
        self.problem: str | None = None
        self.versions: dict[str, str] = {}
        self.compared = 0
        command = [python, "-W", "ignore", str(Path(__file__).resolve()), "--serve-gym"]
        surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
        try:
            self._process = subprocess.Popen(
                command, env=surroundings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            self.versions = self._ask({"boards": boards, "moves": moves})
        except (OSError, RuntimeError) as error:
            self.problem = f"gym-sokoban cannot be run by {python} ({error}); type: {python} -m pip install gym-sokoban"

    def _ask(self, question: Any) -> Any:
        assert self._process.stdin and self._process.stdout and self._process.stderr
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError((self._process.stderr.read().strip().splitlines() or ["it ended without output"])[-1])
        return json.loads(line)

    def play(self, mode: str) -> float:
        """The seconds of the steps, as the other process measured them."""
        return float(self._ask(mode))

    def compare(self, tasks: Sequence[Task], moves: Sequence[Sequence[str]]) -> None:
        """Every board of every episode, theirs against ours, up to the step that solves it."""
        ours = Sokoban()
        for task, actions, theirs in zip(tasks, moves, self._ask("boards"), strict=True):
            ours.reset(task)
            for action, board in zip(actions, theirs, strict=True):
                seen = ours.step(action)
                if seen.text.partition("\n")[2] != board:
                    raise SystemExit(f"the boards differ after {action!r}:\n{seen.text}\n---\n{board}")
                self.compared += 1
                if seen.done:
                    break

    def close(self) -> None:
        """Ends the other process."""
        if self.problem is None and self._process.stdin:
            self._process.stdin.close()
            self._process.wait(timeout=30)


def serve_gym() -> None:
    """The other process: answers each line on stdin with one on stdout."""
    answers, sys.stdout = sys.stdout, sys.stderr  # gym prints a greeting on stdout
    from importlib.metadata import version

    import numpy
    from gym_sokoban.envs.sokoban_env import SokobanEnv

    setting = json.loads(sys.stdin.readline())
    rooms = [gym_room(board, numpy) for board in setting["boards"]]
    episodes = [[GYM_ACTIONS[action] for action in actions] for actions in setting["moves"]]
    env = SokobanEnv(dim_room=rooms[0][0].shape, max_steps=10**9, num_boxes=1, reset=False)
    versions = {name: version(name) for name in ("gym-sokoban", "gym", "numpy")}
    print(json.dumps(versions), file=answers, flush=True)
    for line in sys.stdin:
        mode, seconds, boards = json.loads(line), 0.0, []
        for (fixed, state, player), actions in zip(rooms, episodes, strict=True):
            gym_set(env, fixed, state, player)
            seen, start = [], perf_counter()
            for action in actions:
                env.step(action, observation_mode="tiny_rgb_array")
                if mode != "tiny":
                    seen.append(gym_text(env))
            seconds += perf_counter() - start
            boards.append(seen)
        print(json.dumps(boards if mode == "boards" else seconds), file=answers, flush=True)


def gym_room(board: str, numpy: Any) -> tuple[Any, Any, Any]:
    """Our board as gym-sokoban's arrays: the fixed cells, the state, and the player's place."""
    level = parse(board)
    shape = (level.rows, level.columns)
    fixed, state = numpy.ones(shape, dtype=int), numpy.ones(shape, dtype=int)
    for cell in range(level.rows * level.columns):
        at = divmod(cell, level.columns)
        fixed[at] = state[at] = 0 if cell in level.walls else 2 if cell in level.targets else 1
        if cell in level.start.boxes:
            state[at] = 3 if cell in level.targets else 4
    player = divmod(level.start.player, level.columns)
    state[player] = 5
    return fixed, state, numpy.array(player)


def gym_set(env: Any, fixed: Any, state: Any, player: Any) -> None:
    """Puts a room into the environment, as its own `reset` does with a generated one."""
    env.room_fixed, env.room_state, env.player_position = fixed, state.copy(), player.copy()
    env.box_mapping, env.num_boxes = {}, int((fixed == 2).sum())
    env.num_env_steps = env.reward_last = 0
    env.boxes_on_target = int((state == 3).sum())


def gym_text(env: Any) -> str:
    """Its room state as our board."""
    rows = env.room_state.tolist()
    row, column = env.player_position.tolist()
    rows[row][column] = 6 if env.room_fixed[row, column] == 2 else 5
    return "\n".join("".join(GYM_SYMBOLS[code] for code in line) for line in rows)


def shown(report: dict[str, Any]) -> str:
    """The report as lines."""
    lines = [f"setting: {report['setting']}"]
    for part in ("steps_per_second", "ratios"):
        lines += [f"{name:26} {one['median']:12.1f}  ({one['min']:.1f} to {one['max']:.1f})" for name, one in report[part].items()]
    lines.append(report["problem"] or f"{report['boards_compared']} boards were equal on both sides; {report['gym']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
