"""A test whether a killed on-policy training ends like an undisturbed one: SIGKILL at random moments, and the weights compared.

    python benchmarks/kill_training.py grpo reset_groups opd --kills 10 [--recipe RECIPE] [--set a.b=value ...]

A moment is a step and a length of its journal, so that kills fall between requests, in learning and between passes on any machine.
Each is drawn from the rest of the undisturbed run. The same command then resumes. Exit status 1 if weights or steps differ.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

POLL = 0.001  # seconds
Moment = tuple[int, int]  # a step, and the bytes of its journal so far


def moment(folder: Path) -> Moment:
    """The progress of a training."""
    try:
        found = [(int(path.name.split(".")[0].removeprefix("step-")), path) for path in folder.glob("step-*.journal.jsonl")]
        step, path = max(found, default=(0, folder))
        return (step, path.stat().st_size) if step else (0, 0)
    except FileNotFoundError:  # it was removed in between
        return (0, 0)


def run(out: Path, arguments: list[str], folder: Path, until: Moment | None = None) -> tuple[int, dict[int, int]]:
    """The exit status, and the final length of each step's journal; killed at a moment, if the run reaches it."""
    longest: dict[int, int] = {}
    with open(out.with_suffix(".log"), "ab") as log:
        command = [sys.executable, "-m", "leafe.cli", "run", *arguments, "--out", str(out)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    while process.poll() is None:
        step, size = now = moment(folder)
        longest[step] = max(size, longest.get(step, 0))
        if until and now >= until:
            process.send_signal(signal.SIGKILL)
            return process.wait(), longest
        time.sleep(POLL)
    return process.returncode, longest


def result(out: Path, method: str) -> dict[str, str]:
    """Digests of a training's files."""
    files = (out / "checkpoints" / method / "model.safetensors", out / f"{method}-steps.jsonl")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else "none" for path in files}


def tried(method: str, arguments: list[str], kills: int, *, folder: Path) -> bool:
    """Whether a method's training survives so many kills."""
    arguments = [*arguments, f"method={method}"]
    alone, killed = folder / f"{method}-alone", folder / f"{method}-killed"
    status, longest = run(alone, arguments, alone / method)
    if status:
        print((alone.with_suffix(".log")).read_text()[-500:])
        return False
    draw, count = random.Random(method), 0
    places = sorted((step, draw.randint(0, longest[step])) for step in draw.choices(sorted(set(longest) - {0}), k=kills))
    for place in places:
        status, _ = run(killed, arguments, killed / method, place)
        count += status == -signal.SIGKILL
    if status:
        status, _ = run(killed, arguments, killed / method)
    before, after = result(alone, method), result(killed, method)
    print(
        f"{method}: {len(longest) - (0 in longest)} steps, killed {count} times, {'the same' if before == after else 'DIFFERENT'}: {after}"
    )
    return before == after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--set", nargs="*", default=[], metavar="a.b=value")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = [tried(method, [given.recipe, *given.set], given.kills, folder=Path(folder)) for method in given.methods]
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
