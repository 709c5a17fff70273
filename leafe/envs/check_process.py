"""The part of `leafe check-env` that runs in a second process: the same tasks and the same episodes, with another hash seed.

Request and answer go through files, because an environment may write anything to its output. Only configuration and digests are passed,
never an instance.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leafe import lifeline
from leafe.digest import canonical, digest
from leafe.envs.registry import make
from leafe.envs.settled import let_go
from leafe.envs.world import World, observation_digest
from leafe.errors import EnvironmentFailure
from leafe.records import Observation, Task, encode

LIMIT = 600  # seconds


def ask_another_process(request: Mapping[str, Any]) -> dict[str, Any]:
    """Calls `answer` in a fresh interpreter with another hash seed. Raises `EnvironmentFailure` when it fails there.

    `request` holds `spec`, `arguments`, `split`, `count`, `seed` and `episodes`, each of these a task's number, its actions and the digests
    that they gave. The answer holds, for each of them, where it differs first and the observation there, or None.
    """
    hash_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": hash_seed}
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "request.json"), Path(folder, "response.json")
        asked.write_text(canonical(encode(request)), encoding="utf-8")
        code = "import sys; from leafe.envs.check_process import answer; answer(int(sys.argv[1]), *sys.argv[2:])"
        life = lifeline.descriptor()
        command = [sys.executable, "-c", code, str(life), str(asked), str(answered)]
        errors = Path(folder, "errors.txt")
        try:
            # Files, since a pipe ends only when the last helper that the environment has started and left running closes it.
            with open(errors, "wb") as stderr:
                done = subprocess.run(
                    command,
                    env=surroundings,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    timeout=LIMIT,
                    check=False,
                    pass_fds=(life,),
                )
        except subprocess.TimeoutExpired:
            raise EnvironmentFailure(f"a second process did not come to an end in {LIMIT} s") from None
        if done.returncode or not answered.exists():
            said = errors.read_text(encoding="utf-8", errors="replace").strip()
            last = (said.splitlines() or [f"exit status {done.returncode}"])[-1]
            raise EnvironmentFailure(f"a second process failed: {last[:300]}")
        return dict(json.loads(answered.read_text(encoding="utf-8")))


def answer(life: int, request_path: str, response_path: str) -> None:
    """The work of the second process: draws the tasks, plays the requested episodes, writes the digests."""
    lifeline.hold(life)
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    world = World(make(request["spec"], request["arguments"]))
    tasks = list(world.environment.tasks(request["split"], request["count"], request["seed"]))
    asked = request["episodes"] if len(tasks) == request["count"] else []
    found = [_first_difference(world, tasks[episode["task"]], episode) for episode in asked]
    let_go(world.environment)
    response = {"tasks": digest([encode(task) for task in tasks]), "episodes": found}
    Path(response_path).write_text(canonical(response), encoding="utf-8")


def _first_difference(world: World, task: Task, episode: Mapping[str, Any]) -> dict[str, Any] | None:
    """The number of turns after which an episode's observation differs from the recorded one, and that observation."""
    for turn, (action, mark) in enumerate(zip((None, *episode["actions"]), episode["digests"], strict=True)):
        seen = world.reset(task) if action is None else world.step(action)
        if observation_digest(seen) != mark:
            return {"turn": turn, "seen": encode(Observation(seen.text, bool(seen.done), bool(seen.success), float(seen.reward)))}
    return None
