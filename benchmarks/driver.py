"""The cost of the driver and its explorers: processor time an effect, and memory an explorer, with many of them at once.

    python benchmarks/driver.py [--explorers 50 400 2000] [--world lookup] [--turns 24] [--profile]

A script answers at once instead of a model, so only leafe's Python is measured: the explorer that asks and parses, the driver, the world,
and the journal of every effect. Each row runs in a separate process, one after another, in processor time of one core. `digest` is that
of the forest in the order of its tasks, the same for any number of explorers at once.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import pstats
import random
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from leafe.digest import digest
from leafe.envs.registry import make
from leafe.forest.builder import Rules, TreeBuilder
from leafe.forest.driver import Rollout, Runtime, drive
from leafe.forest.explore import explore
from leafe.forest.journal import Journal
from leafe.prompts import load_prompts
from leafe.records import Ask, Completion, Sampling, encode

WORLDS = {
    "lookup": ({"horizon": 6}, [f"open place{number}" for number in range(1, 6)]),
    "sokoban": ({"horizon": 16}, ["up", "down", "left", "right"]),
}


class Script:
    """Answers at once, as a function of the seed, and yields to other tasks."""

    concurrency = 0

    def __init__(self, actions: list[str], concurrency: int) -> None:
        self.actions, self.concurrency, self.asked = actions, concurrency, 0

    async def generate(self, ask: Ask) -> Completion:
        """A random action, or a turn with a random advice."""
        self.asked += 1
        await asyncio.sleep(0)
        draw = random.Random(ask.seed)
        action = draw.choice(self.actions)
        turns = max(1, (len(ask.messages) - 1) // 2)
        text = action if ask.purpose == "act" else f"turn {draw.randint(1, turns)}: {action}"
        return Completion(text, (1, 2, 3), (-0.5, -0.25, -0.125), prompt_tokens=100)

    async def close(self) -> None:
        """Holds nothing."""


def main() -> None:
    """Prints a row a number of explorers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--explorers", type=int, nargs="+", default=[50, 400, 2000])
    parser.add_argument("--world", choices=WORLDS, default="lookup")
    parser.add_argument("--turns", type=int, default=24)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row or options.profile:
        found = measured(options, options.explorers[0])
        print(json.dumps(found))
        return
    print("| explorers at once | effects | ms an effect | KiB an explorer | digest |\n|---|---|---|---|---|", flush=True)
    for explorers in options.explorers:
        own = ["--row", "--explorers", str(explorers), "--world", options.world, "--turns", str(options.turns)]
        said = subprocess.run([sys.executable, __file__, *own], check=True, capture_output=True, text=True).stdout
        row = json.loads(said)
        print(f"| {explorers} | {row['effects']} | {row['ms']:.3f} | {row['kib']:.0f} | {row['digest']} |", flush=True)


def measured(options: argparse.Namespace, explorers: int) -> dict[str, float | str]:
    """One row: as many tasks as there are explorers at once."""
    arguments, actions = WORLDS[options.world]
    gc.set_threshold(100_000, 20, 20)  # as in the command line
    tasks = make(options.world, arguments).tasks("train", explorers)
    prompts, room = load_prompts("terse", options.world), Sampling()
    rules = Rules(prompts, 1, turns=options.turns, act=room, reflect=room, max_attempts=8, reflect_every=0)
    engine = Script(actions, explorers)
    trees = {}

    async def work(journal: Journal) -> None:
        rollouts = (Rollout(task.id, task, explore(TreeBuilder(task, rules))) for task in tasks)
        runtime = Runtime(engine, partial(make, options.world, arguments), journal)
        async for rollout, tree in drive(rollouts, runtime, concurrency=explorers):
            trees[rollout.key] = tree

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    profile = cProfile.Profile() if options.profile else None
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder, "journal.jsonl"))
        start = time.process_time()
        if profile:
            profile.enable()
        asyncio.run(work(journal))
        if profile:
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(35)
        spent = time.process_time() - start
        journal.close()
        effects = Path(folder, "journal.jsonl").read_bytes().count(b"\n") - 1
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    mark = digest([encode(trees[task.id]) for task in tasks])
    return {"effects": effects, "ms": 1000 * spent / effects, "kib": held / explorers, "digest": mark}


if __name__ == "__main__":
    main()
