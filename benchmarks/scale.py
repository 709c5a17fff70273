"""What exploration makes of several GPUs and a thousand worlds: simulated on a clock of its own, and measured with worlds that sleep.

    python benchmarks/scale.py --simulate [--gpus 1 2 4 8] [--worlds 64 250 1000] [--card 7b] [--step 0.1:0.8] [--slow 0.01:10]
    python benchmarks/scale.py [--workers 1 2 4] [--worlds 256] [--ray]

Both play the package's explorers through its driver. The simulation's parts are in `cluster.py`: it knows an engine by the seconds of a
pass and worlds by the seconds of a step, and takes seconds for hours. The measurement takes what it says: worlds that sleep in workers,
each a process that holds many worlds (with `--ray` an actor), and a script that answers after a while. Beside it stands what the
simulation predicts for the same.

A world is one environment instance; so many tasks are played at once. `ideal` is the longest of three: the engine's work with every slot
full, the worlds' work with every worker busy, the longest task alone. `busy` is the share of the time in which replicas had anything to
do, `best` the share in which full slots would have done it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cluster import CARDS, Card, Lengths, Pace, Processor, SimulatedEngine, SimulatedWorlds, Spread, run_virtually

from leafe.digest import digest
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Environment, Fidelity, Placement
from leafe.envs.hosting import Hosting
from leafe.forest.driver import Job, Means, drive
from leafe.forest.explore import explore
from leafe.forest.growth import Growth, Rules
from leafe.prompts import load_prompts
from leafe.records import Ask, Completion, Observation, Sampling, Task, encode

CHOICES = 40  # actions of an errand, one of which succeeds


class Errand(Environment):
    """One of many actions succeeds; a step or reset takes `seconds`."""

    name = "errand"
    placement = Placement.THREAD

    def __init__(self, *, horizon: int = 30, seconds: float = 0.0, snapshots: bool = True) -> None:
        self.fidelity = Fidelity.SNAPSHOT if snapshots else Fidelity.REPLAY
        self._horizon, self._seconds = horizon, seconds
        self._right, self._over, self._steps = "", False, 0

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        draw = random.Random(f"{split} {seed}")
        return [
            Task(f"errand-{number}", self.name, f"Errand {number}.", self._horizon, {"right": f"try {draw.randrange(CHOICES)}"})
            for number in range(count)
        ]

    def reset(self, task: Task) -> Observation:
        self._wait()
        self._right, self._over, self._steps = str(task.payload["right"]), False, 0
        return Observation(f"{task.instruction} Say: try N.")

    def step(self, action: str) -> Observation:
        self._wait()
        self._over, self._steps = self._over or action == self._right, self._steps + 1
        return Observation(f"Tried {action!r:.20}.", self._over, self._over, float(self._over))

    def _wait(self) -> None:
        if self._seconds:
            time.sleep(self._seconds)

    def snapshot(self) -> Any:
        return self._right, self._over, self._steps

    def restore(self, snapshot: Any) -> None:
        self._right, self._over, self._steps = snapshot


def script(ask: Ask) -> str:
    """An action, or a turn with an advice: a function of the seed."""
    draw = random.Random(ask.seed)
    action = f"try {draw.randrange(CHOICES)}"
    turns = max(1, sum(message.sampled for message in ask.messages))
    return action if ask.purpose == "act" else f"turn {draw.randint(1, turns)}: {action}"


@dataclass(frozen=True)
class Plan:
    """What is played: `tasks` tasks with a budget of `turns` each in episodes of `horizon`, `worlds` at once."""

    tasks: int
    worlds: int
    turns: int = 40
    horizon: int = 20
    snapshots: bool = True
    seed: int = 1

    def jobs(self) -> list[Job[Any]]:
        """The explorers."""
        rules = Rules(load_prompts("terse", "errand"), self.seed, turns=self.turns, act=Sampling(), look_back=Sampling(), max_attempts=8)
        tasks = Errand(horizon=self.horizon).tasks("train", self.tasks, self.seed)
        return [Job(task.id, task, explore(Growth(task, rules))) for task in tasks]

    @property
    def make(self) -> partial[Errand]:
        """Worlds that answer at once."""
        return partial(Errand, horizon=self.horizon, snapshots=self.snapshots)


@dataclass(frozen=True)
class Hosted(Means):
    """Means whose worlds live where they are told to."""

    worlds: Any = None

    def hosting(self) -> Hosting:
        """The worlds that were given."""
        found: Hosting = self.worlds
        return found


@dataclass(frozen=True)
class Outcome:
    """What a simulation came to; times in seconds, queues as (mean, 95th percentile, most)."""

    seconds: float
    engine: float
    pool: float
    longest: float
    turns: int
    busy: float
    batch: float
    queue: tuple[float, int, int]
    waiting: tuple[float, int, int]
    working: float
    driver: float
    reused: float
    digest: str

    @property
    def ideal(self) -> float:
        """No plan can be faster."""
        return max(self.engine, self.pool, self.longest)

    @property
    def bound(self) -> str:
        """What makes the ideal."""
        return {self.engine: "engine", self.pool: "worlds", self.longest: "longest task"}[self.ideal]


def simulated(plan: Plan, card: Card, replicas: int, pace: Pace, *, lengths: Lengths = Lengths(), overhead: float = 0.0) -> Outcome:
    """Plays a plan on a clock of its own."""

    async def work() -> Outcome:
        processor, loop = Processor(overhead), asyncio.get_running_loop()
        engine = SimulatedEngine(card, replicas, script, lengths, processor)
        worlds = SimulatedWorlds(plan.make, plan.worlds, pace, seed=plan.seed, processor=processor)
        trees = {}
        async for job, tree in drive(plan.jobs(), Hosted(engine, plan.make, worlds=worlds), concurrency=plan.worlds):
            trees[job.key] = tree
        seconds, most = loop.time(), min(pace.workers or plan.worlds, plan.worlds)
        levels = [replica.queue for replica in engine.replicas]
        queue = max((level.mean, level.share(0.95), level.most) for level in levels)
        return Outcome(
            seconds=seconds,
            engine=engine.best(),
            pool=worlds.seconds / most,
            longest=max(processor.alone.values()),
            turns=sum(tree.spend.turns for tree in trees.values()),
            busy=sum(replica.batch.busy for replica in engine.replicas) / replicas,
            batch=sum(replica.batch.mean for replica in engine.replicas) / replicas,
            queue=queue,
            waiting=(worlds.queue.mean, worlds.queue.share(0.95), worlds.queue.most),
            working=worlds.working.mean / most,
            driver=processor.effects * overhead / seconds,
            reused=engine.stats.reused_tokens / (engine.stats.prompt_tokens or 1),
            digest=digest([encode(trees[key]) for key in sorted(trees)]),
        )

    return run_virtually(work())



HEAD = (
    "| GPUs | worlds | seconds | ideal | x ideal | busy | best | batch a GPU | engine queue mean/95 %/most | workers busy "
    "| worlds' queue mean/95 %/most | driver | turns an hour |\n" + "|---" * 13 + "|"
)


def row(gpus: int, worlds: int, found: Outcome) -> str:
    """One line of the table."""
    queue, waiting = (f"{mean:.1f} / {most95} / {most}" for mean, most95, most in (found.queue, found.waiting))
    cells = [
        str(gpus),
        str(worlds),
        f"{found.seconds:,.0f}",
        f"{found.ideal:,.0f} ({found.bound})",
        f"{found.seconds / found.ideal:.2f}",
        f"{found.busy:.0%}",
        f"{found.engine / found.seconds:.0%}",
        f"{found.batch:.0f}",
        queue,
        f"{found.working:.0%}",
        waiting,
        f"{found.driver:.0%}",
        f"{3600 * found.turns / found.seconds:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def simulate(options: argparse.Namespace) -> None:
    """Prints the tables."""
    card = CARDS[options.card]
    given = {"base": options.base, "token": options.token, "prefill": options.prefill, "slots": options.slots}
    card = replace(card, **{name: value for name, value in given.items() if value is not None})
    pace = Pace(options.step, workers=options.cores)
    lengths = replace(Lengths(), reply=options.reply, observation=options.observation)

    def play(gpus: int, worlds: int, pace: Pace) -> Outcome:
        plan = Plan(2 * worlds, worlds, options.turns, options.horizon, not options.replays, options.seed)
        return simulated(plan, card, gpus, pace, lengths=lengths, overhead=options.overhead)

    print(f"{card}\n{pace}\n{lengths}\n\n{HEAD}", flush=True)
    fill: dict[int, list[str]] = {}
    for gpus in options.gpus:
        for worlds in options.worlds:
            found = play(gpus, worlds, pace)
            print(row(gpus, worlds, found), flush=True)
            if found.engine >= FULL * found.seconds:
                fill.setdefault(gpus, []).append(str(worlds))
    for gpus in options.gpus:
        print(f"\n{gpus} GPUs are filled ({FULL:.0%} of the best) by {fill.get(gpus, ['more than the most tried'])[0]} worlds", end="")
    gpus, worlds, (share, factor) = options.gpus[-1], options.worlds[-1], options.slow
    print(f"\n\nWith {share:.1%} of the worlds {factor:g} times as slow, {gpus} GPUs, {worlds} worlds:\n\n{HEAD}", flush=True)
    for slow in (pace, replace(pace, share=share, factor=factor)):
        print(row(gpus, worlds, play(gpus, worlds, slow)), flush=True)


FULL = 0.8  # of the best that full slots would give
