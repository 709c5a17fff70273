"""One recipe through four engines: the same forests if sampling is greedy, else the same statistics within sampling error.

    python benchmarks/four_engines.py [--model MODEL] [--env NAME name=value ...] [--tasks 24] [--turns 24] [--seeds 3]
        [--vllm PYTHON] [--llama PYTHON --gguf FILE] [--ray] [a.b=value ...]

In this process; in two processes with the worlds in two more (with --ray in actors of a separate cluster); a vLLM that is started
for it; a llama.cpp server that is started for it and serves the same weights as GGUF. Engines that are not named are left out. The others
are compared with the first one.

Greedy forests are compared turn by turn, by the sampled ids (by texts if a server returns none). Other kernels round differently, and if
two tokens are almost equally likely the likelier one may differ: `first difference` shows the probabilities of both. Sampled forests are
compared by counts over all tasks and seeds: attempts that succeed, turns an attempt, tokens a turn, replies that cannot be read; `z` is
the difference in units of its standard error, with trees as independent samples, and above 3 it counts as a difference.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

import httpx

from leafe.compose import bench_of
from leafe.config import of_model
from leafe.experiment import ForestSpec, explore_tasks
from leafe.progress import Silent
from leafe.records import Tree

LIMIT = 3.0
LLAMA = """
import sys, time, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.port = sys.argv[1], int(sys.argv[2])
settings.n_ctx, settings.n_parallel, settings.warmup = 8192, 2, False
server = xllamacpp.Server(settings)
while True:
    time.sleep(1)
"""


@dataclass(frozen=True)
class Way:
    """An engine by its name and its settings."""

    name: str
    settings: tuple[str, ...]


def figures(trees: Sequence[Tree]) -> dict[str, list[float]]:
    """The statistics that are compared, a value for each task."""
    return {
        "attempts that succeed": [fmean(attempt.success for attempt in tree.attempts) for tree in trees],
        "turns an attempt": [tree.spend.turns / len(tree.attempts) for tree in trees],
        "tokens a turn": [tree.spend.sampled_tokens / tree.spend.turns for tree in trees],
        "replies unread": [fmean(not turn.parsed for turn in tree.turns) for tree in trees],
    }


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """The difference of two means in units of its standard error; 0 if both are constant and equal."""
    difference = fmean(one) - fmean(other)
    error = math.sqrt(variance(one) / len(one) + variance(other) / len(other))
    return difference / error if error else 0.0 if not difference else math.copysign(math.inf, difference)


def first_difference(one: Sequence[Tree], other: Sequence[Tree]) -> str:
    """The first difference between greedy forests, empty if there is none."""
    for mine, theirs in zip(one, other, strict=True):
        for number, (turn, twin) in enumerate(zip(mine.turns, theirs.turns, strict=False), start=1):
            said, heard = turn.completion, twin.completion
            if said.token_ids and heard.token_ids:
                place = next(
                    (at for at, pair in enumerate(zip(said.token_ids, heard.token_ids, strict=False)) if len(set(pair)) > 1), None
                )
                if place is not None:
                    pair = [found.logprobs[place] if found.logprobs else math.nan for found in (said, heard)]
                    return (
                        f"task {mine.task.id}, turn {number}, token {place + 1}: log-probabilities {pair[0]:.4f} and {pair[1]:.4f}"
                    )
            if said.text != heard.text:
                return f"task {mine.task.id}, turn {number}: {said.text!r:.60} and {heard.text!r:.60}"
        if len(mine.turns) != len(theirs.turns):
            return f"task {mine.task.id}: {len(mine.turns)} and {len(theirs.turns)} turns"
    return ""


def explored(options: argparse.Namespace, way: Way, *more: str, seed: int = 1) -> list[Tree]:
    """The forest of an engine."""
    overrides = [*options.overrides, f"explore.turns={options.turns}", *way.settings, *more]
    config = of_model(options.model, options.env, overrides, tasks_train=options.tasks, tasks_test=1)
    experiment = bench_of(config, Silent())
    try:
        return explore_tasks(experiment, way.name, ForestSpec("tree", seed, experiment.base))
    finally:
        experiment.free()


@contextmanager
def llama(python: str, weights: str) -> Iterator[str]:
    """The address of a llama.cpp server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([python, "-c", LLAMA, weights, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def ways(options: argparse.Namespace, address: str | None) -> Iterator[Way]:
    """The engines to compare."""
    yield Way("in process", ())
    ray = ("scale.ray=local", "scale.replicas=2", "scale.gpus=0", "scale.cpus=0.5", "scale.workers=2")
    yield Way("two actors", ray) if options.ray else Way("two processes", ("engine.processes=2", "scale.workers=2"))
    if options.vllm:
        yield Way("vLLM", ("engine.kind=vllm", f"engine.command=[{options.vllm}]", *options.vllm_settings))
    if address:
        yield Way(
            "llama.cpp", ("engine.kind=openai", f"engine.base_url={address}", "engine.tokenizer=model", "engine.concurrency=2")
        )


def compare(options: argparse.Namespace, address: str | None) -> list[dict[str, Any]]:
    """A row for each engine, printed when it is done."""
    rows, before = [], None
    for way in ways(options, address):
        begun = time.monotonic()
        greedy = explored(options, way, "sampling.act.temperature=0", "sampling.reflect.temperature=0")
        sampled = [tree for seed in range(options.seeds) for tree in explored(options, way, seed=seed + 1)]
        found = figures(sampled)
        row: dict[str, Any] = {"engine": way.name, "seconds": round(time.monotonic() - begun, 1)}
        row |= {name: round(fmean(values), 3) for name, values in found.items()}
        if before is None:
            before = greedy, found
        else:
            row["first difference"] = first_difference(before[0], greedy)
            row["z"] = {name: round(apart(before[1][name], values), 2) for name, values in found.items()}
            row["agrees"] = all(abs(z) <= LIMIT for z in row["z"].values())
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    """Prints a line for each engine; exit status 1 if one differs by more than chance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--env", default="sokoban")
    parser.add_argument("--tasks", type=int, default=24)
    parser.add_argument("--turns", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--vllm")
    parser.add_argument("--vllm-settings", nargs="*", default=["engine.arguments=[--enforce-eager]"])
    parser.add_argument("--llama")
    parser.add_argument("--gguf")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("overrides", nargs="*", help="settings and the environment's arguments")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with llama(options.llama, options.gguf) if options.llama else nullcontext(None) as address:
        rows = compare(options, address)
    sys.exit(0 if all(row.get("agrees", True) for row in rows) else 1)


if __name__ == "__main__":
    main()
