"""A test whether a killed run ends like an undisturbed one: `leafe run` twice, once killed with SIGKILL at random moments of exploration.

    python benchmarks/kill.py --recipe smoke --kills 20 [--model DIR] [--json] [tasks.train=32 explore.turns=60 ...]

The killed run is started again with the same command after each kill. A moment is a length of the journal and not a time, so the kills
spread over the whole exploration on any machine: each is drawn from the rest of the journals of the undisturbed run. In the end the
forests (one for each round and each control) and the graded attempts are compared byte for byte, lines sorted, because trees are written
in the order in which they finish. Exit status 1 when anything differs. Training is not compared.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

POLL = 0.001  # seconds
COMPARED = ("round-*/forest.jsonl", "controls/*.jsonl", "eval/*.jsonl")
JOURNALS = ("round-*/journal.jsonl", "controls/*.journal.jsonl")


class Exploration:
    """One run directory and the command that works on it."""

    def __init__(self, out: Path, arguments: list[str]) -> None:
        self.out = out
        self._command = [sys.executable, "-m", "leafe.cli", "run", *arguments, "--out", str(out)]
        self._log = out.with_suffix(".log")
        self.lengths: dict[str, int] = {}  # the largest size seen of each journal, in the order in which they came

    def start(self) -> subprocess.Popen[bytes]:
        """The command, with its output in a file beside the directory."""
        with open(self._log, "ab") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def alone(self) -> int:
        """Runs to the end and records the growth of the journals; returns the exit status."""
        process = self.start()
        while process.poll() is None:
            for name, size in self._journals():
                self.lengths[name] = max(size, self.lengths.get(name, 0))
            time.sleep(POLL)
        return process.returncode

    def killed_at(self, place: float, lengths: dict[str, int]) -> bool:
        """Runs until the exploration has come to a place and kills it there; False if it ended before."""
        process = self.start()
        while process.poll() is None:
            if self.place(lengths) >= place:
                process.send_signal(signal.SIGKILL)
                return process.wait() == -signal.SIGKILL
            time.sleep(POLL)
        return False

    def place(self, lengths: dict[str, int]) -> float:
        """The progress of the exploration, in bytes of all journals together."""
        stages = self._read("stages.json")
        finished = sum(stage.startswith("explore") for stage in json.loads(stages or "{}"))
        before = sum(list(lengths.values())[:finished])
        present = list(lengths)[finished : finished + 1]
        return before + sum(min(size, lengths[name]) for name, size in self._journals() if name in present)

    def words(self) -> str:
        """The end of the command's output."""
        return self._log.read_text(errors="replace")[-600:] if self._log.exists() else ""

    def lines(self) -> dict[str, list[str]]:
        """The sorted lines of every file that is compared."""
        paths = [path for pattern in COMPARED for path in sorted(self.out.glob(pattern))]
        kept = [path for path in paths if not path.name.endswith((".journal.jsonl", ".examples.jsonl"))]
        return {path.relative_to(self.out).as_posix(): sorted(path.read_text(encoding="utf-8").splitlines()) for path in kept}

    def _journals(self) -> Iterator[tuple[str, int]]:
        for pattern in JOURNALS:
            for path in self.out.glob(pattern):
                try:
                    yield path.relative_to(self.out).as_posix(), path.stat().st_size
                except FileNotFoundError:  # its stage has just finished
                    continue

    def _read(self, name: str) -> str:
        path = self.out / name
        return path.read_text(encoding="utf-8") if path.exists() else ""


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Does both runs and reports on them."""
    model = [f"model={options.model.resolve()}"] if options.model else []
    arguments = [options.recipe, *model, *options.overrides]
    alone, killed = Exploration(folder / "alone", arguments), Exploration(folder / "killed", arguments)
    status = alone.alone()
    if not alone.lengths:
        raise SystemExit(f"the run explored nothing and ended with status {status}:\n{alone.words()}")
    total, draw, places = sum(alone.lengths.values()), random.Random(options.seed), []
    for left in range(options.kills, 0, -1):
        here = killed.place(alone.lengths)
        place = here + 1 + draw.random() * 2 * (total - here) / (left + 1)
        if place < total and killed.killed_at(place, alone.lengths):
            places.append(round(killed.place(alone.lengths) / total, 3))
    while_killed, last = len(places), killed.start().wait()
    files = compared(alone.lines(), killed.lines())
    return {
        "arguments": arguments,
        "journal_bytes": total,
        "kills": while_killed,
        "killed_at": places,
        "status": {"alone": status, "killed": last},
        "files": files,
        "equal": status == last and all(file["equal"] for file in files.values()),
        "said": "" if status == last == 0 else killed.words(),
    }


def compared(alone: dict[str, list[str]], killed: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """File by file: whether they are equal, their numbers of lines and turns, and the first difference."""
    report: dict[str, dict[str, Any]] = {}
    for name in sorted({*alone, *killed}):
        one, other = alone.get(name, []), killed.get(name, [])
        report[name] = {
            "equal": one == other,
            "lines": [len(one), len(other)],
            "turns": [turns(one), turns(other)],
            "branches": [branches(one), branches(other)],
        }
        if one != other:
            report[name]["differs"] = first_difference(one, other)
    return report


def turns(lines: list[str]) -> int:
    """The turns that the lines of a forest or of an evaluation count."""
    records = [json.loads(line) for line in lines]
    return sum(record["spend"]["turns"] if "spend" in record else record.get("turns", 0) for record in records)


def branches(lines: list[str]) -> int:
    """The attempts of a forest that started at a rollback."""
    return sum(attempt["turn"] is not None for line in lines for attempt in json.loads(line).get("attempts", []))


def first_difference(one: list[str], other: list[str]) -> str:
    """The first difference in the first line that differs."""
    for left, right in zip_longest(one, other, fillvalue="null"):
        if left != right:
            return next(differences(json.loads(left), json.loads(right)), "in how it is written")
    return "nowhere"


def differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """The places in two JSON values that differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        # A difference in a turn is the cause, one in the counts the consequence.
        for key in sorted(one, key=lambda key: key in ("spend", "attempts")):
            yield from differences(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list) and isinstance(other, list):
        for number, (left, right) in enumerate(zip_longest(one, other)):
            yield from differences(left, right, f"{path}[{number}]")
    elif one != other:
        yield f"{path}: {one!r:.120} alone, {other!r:.120} killed"


def shown(report: dict[str, Any]) -> str:
    """The report for a person."""
    lines = [f"{report['kills']} kills, at {', '.join(map(str, report['killed_at']))} of the exploration"]
    for name, file in report["files"].items():
        verdict = "equal" if file["equal"] else f"DIFFERS at {file['differs']}"
        lines.append(f"{name}: {file['lines'][0]} lines, {file['turns'][0]} turns, {file['branches'][0]} branches: {verdict}")
    lines.append("The killed run ended as the other one." if report["equal"] else f"They differ. {report['said']}")
    return "\n".join(lines)


def main() -> None:
    """Reads the arguments, does both runs and prints the report."""
    parser = argparse.ArgumentParser(description="a run that is killed again and again against one that is left alone")
    parser.add_argument("overrides", nargs="*", help="settings as a.b=value")
    parser.add_argument("--recipe", default="smoke")
    parser.add_argument("--model", type=Path, help="a checkpoint; by default the recipe's")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--out", type=Path, help="keeps the two runs there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = measure(options, folder)
    print(json.dumps(report, indent=1) if options.json else shown(report))
    raise SystemExit(not report["equal"])


if __name__ == "__main__":
    main()
