"""A test whether a killed run of a method ends like an undisturbed one: SIGKILL at random moments, and what it made compared.

    python benchmarks/kill_methods.py grpo early_experience ace --kills 10 [--recipe RECIPE] [--set a.b=value ...]

A moment is how far the run's files have come and how long ago, drawn evenly over the time of the undisturbed run; so kills fall between
requests, in learning, in writing checkpoints and between stages, on any machine. The same command then resumes. What is compared are the
weights, byte by byte, and every record of exploring, learning and measuring, whose order may differ. Exit status 1 if any differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

POLL = 0.002  # seconds
Place = tuple[int, int]  # stages and steps that are done, and the bytes of all records so far
Moment = tuple[Place, float]  # a place, and the seconds since it was reached


def place(out: Path) -> Place:
    """The progress of a run."""
    try:
        done = len(json.loads((out / "stages.json").read_bytes()))
    except (FileNotFoundError, ValueError):
        done = 0
    size = 0
    # Folders may be removed meanwhile, over which `Path.rglob` stumbles and `os.walk` does not.
    for path in (Path(folder) / name for folder, _, names in os.walk(out) for name in names if name.endswith(".jsonl")):
        try:
            if path.name.endswith("-steps.jsonl"):
                done += path.read_bytes().count(b"\n")
            size += path.stat().st_size
        except FileNotFoundError:  # it was removed in between
            continue
    return done, size


def run(out: Path, arguments: list[str], until: Moment | None = None) -> tuple[int, list[tuple[float, Place]]]:
    """The exit status, and when each place was reached; killed at a moment, if the run comes to it."""
    with open(out.with_suffix(".log"), "ab") as log:
        command = [sys.executable, "-m", "leafe.cli", "run", *arguments, "--out", str(out)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    reached: list[tuple[float, Place]] = []
    while process.poll() is None:
        now = place(out)
        if not reached or now > reached[-1][1]:
            reached.append((time.monotonic(), now))
        if until and now >= until[0]:
            try:
                process.wait(until[1])
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            return process.wait(), reached
        time.sleep(POLL)
    return process.returncode, [*reached, (time.monotonic(), place(out))]


def moments(reached: list[tuple[float, Place]], count: int, draw: random.Random) -> list[Moment]:
    """Moments of an undisturbed run in their order, drawn evenly over its time after the first record."""
    started = next(at for at, now in reached if now > (0, 0))
    drawn = sorted(draw.uniform(started, reached[-1][0]) for _ in range(count))
    found = []
    for moment in drawn:
        at, now = max((at, now) for at, now in reached if at <= moment)
        found.append((now, moment - at))
    return found


def result(out: Path) -> dict[str, str]:
    """Digests of what a run made: its weights, and its records without their order."""
    made = {}
    for path in sorted(out.rglob("*")):
        if path.suffix in (".safetensors", ".jsonl"):
            content = path.read_bytes()
            if path.suffix == ".jsonl":
                content = b"\n".join(sorted(content.splitlines()))
            made[str(path.relative_to(out))] = hashlib.sha256(content).hexdigest()[:12]
    return made


def tried(method: str, arguments: list[str], kills: int, *, folder: Path) -> bool:
    """Whether a method's run survives so many kills."""
    arguments = [*arguments, f"method={method}"]
    alone, killed = folder / f"{method}-alone", folder / f"{method}-killed"
    status, reached = run(alone, arguments)
    if status:
        print(alone.with_suffix(".log").read_text()[-500:])
        return False
    count, status = 0, 1
    for moment in moments(reached, kills, random.Random(method)):
        status, _ = run(killed, arguments, moment)
        count += status == -signal.SIGKILL
    if status:
        status, _ = run(killed, arguments)
    if status:
        print(killed.with_suffix(".log").read_text()[-500:])
    before, after = result(alone), result(killed)
    other = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    weights, seconds = sum(name.endswith(".safetensors") for name in before), reached[-1][0] - reached[0][0]
    same = f"DIFFERENT: {', '.join(other)}" if other else "the same"
    files = f"{weights} files of weights and {len(before) - weights} of records"
    print(f"{method}: {seconds:.0f} s left alone, killed {count} times, {files} {same}", flush=True)
    return not other and not status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--set", nargs="*", default=[], metavar="a.b=value")
    parser.add_argument("--keep", type=Path, help="a folder for the runs, which are removed otherwise")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = [tried(method, [given.recipe, *given.set], given.kills, folder=folder) for method in given.methods]
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
