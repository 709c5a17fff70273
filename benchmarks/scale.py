"""The scaling of exploration to several GPUs and a thousand worlds: simulated on a virtual clock, and measured with worlds that sleep.

    python benchmarks/scale.py --simulate [--gpus 1 2 4 8] [--worlds 64 250 1000] [--card 7b] [--step 0.1:0.8] [--slow 0.01:10]
    python benchmarks/scale.py [--workers 1 2 4] [--worlds 256] [--ray]

Both play the package's explorers through its driver. The simulation's parts are in `cluster.py`: an engine is given by the seconds of a
pass and worlds by the seconds of a step, and hours are simulated in seconds. The measurement takes real time: worlds that sleep in
workers, each a process that holds many worlds (with `--ray` an actor), and a script that answers after a while. It is printed beside the
simulation's prediction.

A world is one environment instance; so many tasks are played at once. `ideal` is the longest of three: the engine's work with every slot
full, the worlds' work with every worker busy, the longest task alone. `busy` is the share of the time in which replicas had work to
do, `best` the share of the time in which full slots would have done it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cluster import CARDS, CHOICES, Card, Errand, Lengths, Pace, Processor, SimulatedEngine, SimulatedWorlds, Spread, run_virtually

from leafe.digest import digest
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Placement
from leafe.envs.calls import Answer, Call
from leafe.envs.worker_pool import Session, Terms, WorkerPool
from leafe.errors import LeafeError
from leafe.forest.builder import Rules, TreeBuilder
from leafe.forest.driver import Rollout, Runtime, drive
from leafe.forest.explore import explore
from leafe.prompts import load_prompts
from leafe.records import Ask, Completion, Sampling, encode
from leafe.scale.cluster import RayWorkers, connect
from leafe.scale.line import Starter
from leafe.scale.process import start_process
from leafe.scale.worlds import spread

FULL = 0.8  # of the best that full slots would give


def script(ask: Ask) -> str:
    """An action, or a turn with an advice: a function of the seed."""
    draw = random.Random(ask.seed)
    action = f"try {draw.randrange(CHOICES)}"
    turns = max(1, sum(message.sampled for message in ask.messages))
    return action if ask.purpose == "act" else f"turn {draw.randint(1, turns)}: {action}"


@dataclass(frozen=True)
class Plan:
    """The load: `tasks` tasks with a budget of `turns` each in episodes of `horizon`, `worlds` at once."""

    tasks: int
    worlds: int
    turns: int = 30
    horizon: int = 15
    snapshots: bool = True
    seed: int = 1

    def rollouts(self) -> list[Rollout[Any]]:
        """The explorers."""
        rules = Rules(
            load_prompts("terse", "errand"), self.seed, turns=self.turns, act=Sampling(), reflect=Sampling(), max_attempts=8
        )
        tasks = Errand(horizon=self.horizon).tasks("train", self.tasks, self.seed)
        return [Rollout(task.id, task, explore(TreeBuilder(task, rules))) for task in tasks]

    @property
    def make(self) -> partial[Errand]:
        """Worlds that answer at once."""
        return partial(Errand, horizon=self.horizon, snapshots=self.snapshots)


def hosted(engine: Any, make: Callable[[], Errand], worlds: WorkerPool) -> Runtime:
    """A runtime with worlds in the given pool."""
    return Runtime(engine, make, host=lambda make, terms: worlds)


@dataclass(frozen=True)
class Outcome:
    """The result of a simulation; times in seconds, queues as (mean, 95th percentile, most)."""

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
        """The lower bound of the time of any plan."""
        return max(self.engine, self.pool, self.longest)

    @property
    def bound(self) -> str:
        """The part that determines the ideal."""
        return {self.engine: "engine", self.pool: "worlds", self.longest: "longest task"}[self.ideal]


def simulated(plan: Plan, card: Card, replicas: int, pace: Pace, *, lengths: Lengths = Lengths(), overhead: float = 0.0) -> Outcome:
    """Plays a plan on a virtual clock."""

    async def work() -> Outcome:
        processor, loop = Processor(overhead), asyncio.get_running_loop()
        engine = SimulatedEngine(card, replicas, script, lengths, processor)
        worlds = SimulatedWorlds(plan.make, plan.worlds, pace, seed=plan.seed, processor=processor)
        trees = {}
        async for rollout, tree in drive(plan.rollouts(), hosted(engine, plan.make, worlds), concurrency=plan.worlds):
            trees[rollout.key] = tree
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
            digest=digest([[key, encode(trees[key].spend), [one.reward for one in trees[key].attempts]] for key in sorted(trees)]),
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
        print(
            f"\n{gpus} GPUs are filled ({FULL:.0%} of the best) by {fill.get(gpus, ['more than the most tried'])[0]} worlds", end=""
        )
    gpus, worlds, (share, factor) = options.gpus[-1], options.worlds[-1], options.slow
    print()
    if not share:
        return
    print(f"\nWith {share:.1%} of the worlds {factor:g} times as slow, {gpus} GPUs, {worlds} worlds:\n\n{HEAD}", flush=True)
    for slow in (pace, replace(pace, share=share, factor=factor)):
        print(row(gpus, worlds, play(gpus, worlds, slow)), flush=True)


class Late(ScriptedEngine):
    """A script that answers after so many seconds, any number of requests at once."""

    def __init__(self, seconds: float, concurrency: int, processor: Processor) -> None:
        super().__init__(script, concurrency=concurrency)
        self._seconds, self._processor = seconds, processor

    async def generate(self, ask: Ask) -> Completion:
        """The script's answer, late."""
        await self._processor.spend()
        self._processor.add(self._seconds)
        await asyncio.sleep(self._seconds)
        return await super().generate(ask)


def predicted(plan: Plan, step: float, latency: float, overhead: float) -> Predicted:
    """The simulation's prediction of a measurement, with `overhead` seconds of the driver's core for each effect."""

    async def work() -> Predicted:
        processor, trees = Processor(overhead), {}
        worlds = SimulatedWorlds(plan.make, plan.worlds, Pace(Spread(step)), seed=plan.seed, processor=processor)
        runtime = hosted(Late(latency, plan.worlds, processor), plan.make, worlds)
        async for rollout, tree in drive(plan.rollouts(), runtime, concurrency=plan.worlds):
            trees[rollout.key] = tree
        return Predicted(asyncio.get_running_loop().time(), max(processor.alone.values()), mark(trees))

    return run_virtually(work())


@dataclass(frozen=True)
class Predicted:
    """The predicted seconds, those that the longest task waits for in any case, and the forest's digest."""

    seconds: float
    longest: float
    digest: str


def mark(trees: dict[str, Any]) -> str:
    """The digest of trees in the order of their tasks."""
    return digest([encode(trees[key]) for key in sorted(trees)])


@dataclass(frozen=True)
class Measured:
    """The result of a measurement: wall-clock seconds, processor seconds of this process, effects, and the forest's digest."""

    seconds: float
    processor: float
    effects: int
    digest: str


def measured(plan: Plan, step: float, latency: float, host: Callable[..., WorkerPool]) -> Measured:
    """Plays a plan with worlds that sleep. The clock starts after the workers have started and played once."""
    make = partial(Errand, horizon=plan.horizon, seconds=step, snapshots=plan.snapshots)

    async def work() -> Measured:
        places = host(make, Terms(Placement.THREAD))
        warm, free = replace(plan, tasks=plan.worlds, turns=1), Processor(0.0)
        async for _ in drive(warm.rollouts(), hosted(Late(0.0, plan.worlds, free), make, Kept(places)), concurrency=plan.worlds):
            pass
        engine, sessions = Late(latency, plan.worlds, free), Kept(places)
        start, used, trees = time.perf_counter(), time.process_time(), {}
        async for rollout, tree in drive(plan.rollouts(), hosted(engine, make, sessions), concurrency=plan.worlds):
            trees[rollout.key] = tree
        seconds, processor = time.perf_counter() - start, time.process_time() - used
        await places.close()
        return Measured(seconds, processor, sessions.calls + len(engine.asks), mark(trees))

    return asyncio.run(work())


class Kept:
    """Worlds that outlive a drive; counts calls."""

    def __init__(self, places: WorkerPool) -> None:
        self._places, self.calls = places, 0

    async def session(self) -> Session:
        """A session in them."""
        return _CountedSeat(self, await self._places.session())

    async def close(self) -> None:
        """Leaves them open."""


class _CountedSeat:
    def __init__(self, kept: Kept, session: Session) -> None:
        self._kept, self._seat = kept, session

    async def take(self, call: Call) -> Answer:
        self._kept.calls += 1
        return await self._seat.take(call)

    async def leave(self) -> None:
        await self._seat.leave()


def measure(options: argparse.Namespace) -> None:
    """Prints a row for each number of workers, with the simulation's prediction."""
    if options.ray:
        connect(options.ray)
    start: Starter = RayWorkers(cpus=options.cpus) if options.ray else start_process
    plan = Plan(options.at_once, options.at_once, options.turns, options.horizon, not options.replays, options.seed)
    step, latency = options.step.mean, options.latency
    print(
        "| workers | seconds | ideal | x ideal | predicted | driver, ms an effect | driver busy | digest |\n" + "|---" * 8 + "|",
        flush=True,
    )
    for workers in options.workers:
        found = measured(plan, step, latency, partial(spread, start, workers))
        each = found.processor / found.effects
        expected = predicted(plan, step, latency, each)
        if expected.digest != found.digest:
            raise SystemExit(
                f"{workers} workers gave the forest {found.digest}, the simulation {expected.digest}; they should be equal"
            )
        ideal = expected.longest
        times = f"{found.seconds:.1f}", f"{ideal:.1f}", f"{found.seconds / ideal:.2f}", f"{expected.seconds:.1f}"
        used = f"{1000 * each:.2f}", f"{found.processor / found.seconds:.0%}"
        print(f"| {workers} | {' | '.join((*times, *used, found.digest))} |", flush=True)


def main() -> None:
    """Simulates or measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--simulate", action="store_true")
    add("--turns", type=int, default=30, help="the budget of a task")
    add("--horizon", type=int, default=15, help="the turns of an episode")
    add("--replays", action="store_true", help="worlds that go back by replay instead of a snapshot")
    add("--step", type=Spread.read, default=None, help="seconds of a step: MEAN, or MEAN:SIGMA for a lognormal one")
    add("--seed", type=int, default=1)
    told = parser.add_argument_group("simulated")
    add = told.add_argument
    add("--gpus", type=int, nargs="+", default=[1, 2, 4, 8], help="each holds a replica")
    add("--worlds", type=int, nargs="+", default=[64, 250, 1000], help="worlds at once; twice as many tasks are played")
    add("--card", choices=CARDS, default="7b")
    add("--base", type=float, help="seconds of a pass, whatever is in it")
    add("--token", type=float, help="further seconds for each token of context that a pass reads")
    add("--prefill", type=float, help="tokens of prompts a second")
    add("--slots", type=int, help="requests at once in a replica")
    add("--reply", type=Spread.read, default=Spread(150, 0.6), help="tokens of a reply")
    add("--observation", type=int, default=120, help="tokens of what a world answers")
    add("--cores", type=int, default=0, help="calls of worlds that are carried out at once; 0 any number")
    add("--slow", type=slow, default=(0.01, 10.0), help="SHARE:FACTOR of slow worlds; 0:1 leaves that table out")
    add("--overhead", type=float, default=0.0004, help="seconds of the driver's core that an effect takes")
    real = parser.add_argument_group("measured")
    add = real.add_argument
    add("--workers", type=int, nargs="+", default=[1, 2, 4])
    add("--at-once", type=int, default=256, help="worlds, each of which plays one task")
    add("--latency", type=float, default=0.1, help="seconds that the script takes to answer")
    add("--ray", nargs="?", const="local", help="actors of the cluster at this address instead of processes")
    add("--cpus", type=float, default=0.1, help="cores that an actor takes")
    options = parser.parse_args()
    options.step = options.step or (Spread(0.1, 0.8) if options.simulate else Spread(0.1))
    try:
        (simulate if options.simulate else measure)(options)
    except LeafeError as error:
        raise SystemExit(f"{parser.prog}: {error}") from None


def slow(text: str) -> tuple[float, float]:
    """A share and a factor."""
    share, _, factor = text.partition(":")
    return float(share), float(factor)


if __name__ == "__main__":
    main()
