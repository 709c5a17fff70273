"""The cost of the sandbox: the extra time of a small program in it over a bare run. Goal: a median of at most 40 ms.

    python benchmarks/sandbox.py [--runs 100] [--json]
    python benchmarks/sandbox.py --hostile [--only WORD]    # resources that hostile programs use; see hostile_observer.py

Bare and sandboxed runs alternate, so that other work on the machine affects both. A second figure is the cost of each further
input to the same program, a third the number of programs a second that several threads run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import hostile_observer

from leafe.worlds.sandbox.container import KINDS, SURROUNDINGS, interpreter_or_default
from leafe.worlds.sandbox.limits import Limits, Program
from leafe.worlds.sandbox.probe import objection
from leafe.worlds.sandbox.sandbox import Sandbox

PROGRAM = "print(int(input()) + 1)"
INPUTS = 10


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=int, default=100)
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--hostile", action="store_true")
    arguments.add_argument("--only", default="", help="hostile programs with this in their name")
    given = arguments.parse_args()
    if given.hostile:
        raise SystemExit(hostile_observer.main(given.only))
    report = {kind: measured(kind, given.runs) for kind in KINDS if objection(kind) is None}
    report |= {kind: {"refused": refused.why} for kind in KINDS if (refused := objection(kind)) is not None}
    report["machine"] = {"cores": os.cpu_count() or 1, "load": os.getloadavg()[0], "runs": given.runs}
    if given.json:
        print(json.dumps(report, indent=1))
        return
    for name, figures in report.items():
        print(
            f"{name:12}",
            *(f"{key} {value:.1f}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items()),
            sep="  ",
        )


def measured(kind: str, runs: int) -> dict[str, float | str]:
    """The figures of one kind of sandbox, in milliseconds unless they say otherwise."""
    sandbox, bare, one, many = Sandbox(kind), [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program.py")
        path.write_text(PROGRAM)
        for _ in range(runs):
            bare.append(seconds(lambda: run_bare(path)))
            one.append(seconds(lambda: sandbox.run_once(Program(PROGRAM), "41")))
            many.append(seconds(lambda: list(sandbox.run(Program(PROGRAM), ["41"] * INPUTS, Limits()))))
    start = perf_counter()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: sandbox.run_once(Program(PROGRAM), "41"), range(runs)))
    rate = runs / (perf_counter() - start)
    overhead = sorted(inside - outside for inside, outside in zip(one, bare, strict=True))
    further = [(all_of_them - first) / (INPUTS - 1) for all_of_them, first in zip(many, one, strict=True)]
    return {
        "median_overhead": 1000 * median(overhead),
        "overhead_90": 1000 * quantiles(overhead, n=10)[-1],
        "least_overhead": 1000 * (min(one) - min(bare)),
        "bare": 1000 * median(bare),
        "further_input": 1000 * median(further),
        "programs_a_second": rate,
    }


def run_bare(path: Path) -> None:
    """The same program under the same interpreter with nothing around it."""
    command = [interpreter_or_default(None), "-s", str(path)]
    done = subprocess.run(command, input="41", capture_output=True, text=True, env=SURROUNDINGS, check=True)
    assert done.stdout == "42\n"


def seconds(work: Callable[[], object]) -> float:
    """The duration of the work."""
    start = perf_counter()
    work()
    return perf_counter() - start


if __name__ == "__main__":
    main()
