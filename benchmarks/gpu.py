"""All measurements of a GPU in one run: the machine and its ceilings, sampling, training, and the correctness of both.

    python benchmarks/gpu.py --out DIR [--minutes 5] [--only engine|training|correct]

Nothing is downloaded: models have random weights of Qwen2.5 shapes. Every figure is printed and written to DIR/gpu.jsonl at once, so
nothing is lost when the process is ended. A part that fails is reported with its traceback, and the rest continues.
`--shape tiny --device cpu` runs all of it in a minute without a GPU, only to see that it runs.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

PARTS = ("correct", "engine", "training")
SHARES = {"correct": 0.15, "engine": 0.4, "training": 1.0}  # of the remaining time when a part begins


class Results:
    """Figures as they come, printed and kept."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._file = (out / "gpu.jsonl").open("a", encoding="utf-8")
        self._start = time.monotonic()

    def say(self, name: str, /, **figures: Any) -> None:
        """Prints and keeps the figures of one measurement."""
        at = round(time.monotonic() - self._start, 1)
        print(f"[{at:6.1f} s] {name}: " + ", ".join(f"{key} {shown(value)}" for key, value in figures.items()), flush=True)
        self._file.write(json.dumps({**figures, "at": at, "name": name}, default=str) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def shown(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(map(shown, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def machine(device: str) -> dict[str, Any]:
    """The machine of the measurement."""
    transformers = importlib.import_module("transformers")
    found = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
    }
    if device != "cuda":
        return {"device": "cpu", **found}
    card = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    memory = {"gib": total / 2**30, "free_gib": free / 2**30}
    return {"device": card.name, **memory, "cuda": torch.version.cuda, "capability": f"{card.major}.{card.minor}", **found}


def ceilings(device: str) -> tuple[float, float]:
    """Floating-point operations a second of a large matmul on random data, and bytes a second of a copy on the device."""
    size, kind = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    left, right = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    operations = 2 * size**3 / fastest(lambda: left @ right, device)
    source = torch.empty(2**31 if device == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return operations, 2 * source.numel() / fastest(lambda: target.copy_(source), device)  # a copy reads and writes


def fastest(work: Callable[[], Any], device: str, repeats: int = 10) -> float:
    """Median seconds of some rounds, each of several calls."""
    rounds = []
    for _ in range(5):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.monotonic()
        for _ in range(repeats):
            work()
        if device == "cuda":
            torch.cuda.synchronize()
        rounds.append((time.monotonic() - start) / repeats)
    return sorted(rounds)[2]


@contextmanager
def guarded(results: Results, name: str) -> Iterator[None]:
    """A part that may fail without the others."""
    try:
        yield
    except Exception:  # any error; the other parts continue
        results.say(name, failed=traceback.format_exc())
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def engine(results: Results, deadline: float) -> None:
    """The engine's measurements, if that benchmark exists."""
    if importlib.util.find_spec("gpu_engine") is None:
        results.say("engine", skipped="there is no benchmarks/gpu_engine.py")
        return
    found = importlib.import_module("gpu_engine").measure(deadline)
    for name, figures in found.items():
        results.say(f"engine {name}", **(figures if isinstance(figures, dict) else {"found": figures}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--minutes", type=float, default=5.0, help="nothing new is begun after them")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part, once or more often")
    parser.add_argument(
        "--shape", choices=["tiny", "nano", "0.5b", "7b"], action="append", help="shapes of models, instead of 0.5b and 7b"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; add --shape tiny --device cpu to see that it runs")
    deadline, results, device = time.monotonic() + 60 * options.minutes, Results(options.out), options.device
    with guarded(results, "machine"):
        results.say("machine", **machine(device))
    operations, copied = math.inf, math.inf
    with guarded(results, "ceilings"):
        operations, copied = ceilings(device)
        results.say("ceilings", teraflops=operations / 1e12, copy_gigabytes_a_second=copied / 1e9)
    for part in [part for part in PARTS if part in (options.only or PARTS)]:
        now = time.monotonic()
        until = deadline if options.only and len(options.only) == 1 else now + SHARES[part] * (deadline - now)
        with guarded(results, part):
            if part == "engine":
                engine(results, until)
                continue
            training = importlib.import_module("gpu_training")
            if part == "correct":
                training.correct(results.say, device)
            else:
                shapes = tuple(options.shape or ("0.5b", "7b"))
                training.measure(results.say, device, until, operations, shapes if len(shapes) > 1 else shapes * 2)
    results.say("end", seconds=time.monotonic() - deadline + 60 * options.minutes)


if __name__ == "__main__":
    main()
