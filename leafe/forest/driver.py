"""The one driver: carries out the effects of thousands of generators at once, with asyncio, and journals the results.

It handles worlds and an engine and does not depend on methods. Each task has a world to itself, in whatever process that runs. A resumed
task is first fed the results in the journal; its world is restored, verified like any rollback, only when it needs a new result.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from leafe.engines.base import UNCONTINUED, Engine, continues
from leafe.envs.base import Environment, Placement
from leafe.envs.calls import Call
from leafe.envs.worker_pool import Session, Terms, WorkerPool, worker_pool
from leafe.envs.world import observation_digest
from leafe.errors import EpisodeError
from leafe.forest.effects import Effect, Expert, Plan, Play, Reset, Restored, Rollback, Step
from leafe.forest.journal import Journal
from leafe.records import Ask, Completion, Task

Result = TypeVar("Result")


@dataclass(frozen=True)
class Rollout(Generic[Result]):
    """A generator to be driven. `key` is its name in the journal."""

    key: str
    task: Task
    play: Play[Result]


@dataclass(frozen=True)
class Runtime:
    """The means of carrying out effects. `noticed` is called with every completion, for progress bars.

    The other fields are the location and the limits of worlds; see `envs.worker_pool.Terms`. `host` makes the workers.
    """

    engine: Engine
    make_environment: Callable[[], Environment]
    journal: Journal | None = None
    noticed: Callable[[Ask, Completion], None] = lambda ask, completion: None
    placement: Placement = Placement.INLINE
    workers: int = 0
    instances: int = 0
    timeout: float = Terms.timeout
    recycle: int = 0
    computes: bool = False
    host: Callable[[Callable[[], Environment], Terms], WorkerPool] = worker_pool

    def worker_pool(self) -> WorkerPool:
        """The workers for the worlds of one stage."""
        terms = Terms(self.placement, self.workers, self.instances, self.timeout, self.recycle, self.computes)
        return self.host(self.make_environment, terms)


async def drive(
    rollouts: Iterable[Rollout[Result]], runtime: Runtime, *, concurrency: int
) -> AsyncGenerator[tuple[Rollout[Result], Result], None]:
    """Drives rollouts to their ends, `concurrency` at a time, and yields each with its result when it finishes.

    Rollouts are drawn from the iterable only when there is room for them. An exception that is no `EpisodeError` (a dead engine, a bug)
    cancels the rest and is raised here; the journal so far is kept.
    """
    waiting = iter(rollouts)
    running: set[asyncio.Task[tuple[Rollout[Result], Result]]] = set()
    worlds = runtime.worker_pool()
    try:
        while True:
            for rollout in _take(waiting, concurrency - len(running)):
                running.add(asyncio.create_task(_finish(rollout, runtime, worlds)))
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            # A dead engine breaks many at once: each error is retrieved, or asyncio complains; finished results are not lost.
            broken = [finished for finished in done if finished.exception() is not None]
            for finished in done.difference(broken):
                yield finished.result()
            if broken:
                broken[0].result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await worlds.close()


def _take(rollouts: Iterator[Rollout[Result]], count: int) -> Iterator[Rollout[Result]]:
    for _ in range(count):
        rollout = next(rollouts, None)
        if rollout is None:
            return
        yield rollout


async def _finish(rollout: Rollout[Result], runtime: Runtime, worlds: WorkerPool) -> tuple[Rollout[Result], Result]:
    hand = _Hand(rollout.key, rollout.task, runtime, worlds)
    try:
        answer: Any = None
        while True:
            try:
                effect = rollout.play.throw(answer) if isinstance(answer, EpisodeError) else rollout.play.send(answer)
            except StopIteration as stop:
                return rollout, stop.value
            answer = await hand.carry_out(effect)
    finally:
        rollout.play.close()
        await hand.close()


def _seeds(effect: Rollback) -> list[int | None]:
    return list(effect.seeds or [None] * len(effect.trajectory))


class _Hand:
    """Carries out the effects of one job: the journal first, then the engine or the job's own world."""

    def __init__(self, key: str, task: Task, runtime: Runtime, worlds: WorkerPool) -> None:
        self._key, self._task, self._means, self._worlds = key, task, runtime, worlds
        self._seat: Session | None = None
        self._number = 0
        # The state of the world, or the state to restore once it is needed: actions with observation digests, the reset's digest first.
        self._actions: list[str] | None = None
        self._digests: list[str] = []
        self._seeds: list[int | None] = []  # of the actions
        self._root = ""

    async def carry_out(self, effect: Effect) -> Any:
        """The result of an effect, or the `EpisodeError` that answers it."""
        journal, number = self._means.journal, self._number
        self._number += 1
        result = journal.recall(self._key, number, effect) if journal else None
        if result is None:
            result = await self._live(effect)
            if journal:
                journal.record(self._key, number, effect, result)
        self._follow(effect, result)
        return result

    async def _live(self, effect: Effect) -> Any:
        if isinstance(effect, Ask):
            if effect.begun and not continues(self._means.engine):
                return UNCONTINUED
            completion = await self._means.engine.generate(effect)
            self._means.noticed(effect, completion)
            return completion
        try:
            session = self._seat or await self._ready(effect)
            if isinstance(effect, Rollback):
                return await self._go_back(session, effect)
            if isinstance(effect, Expert):
                return Plan((await session.take(Call("expert"))).actions)
            call = Call("step", action=effect.action, seed=effect.seed) if isinstance(effect, Step) else Call("reset", effect.task)
            return (await session.take(call)).observation
        except EpisodeError as failure:
            return failure

    async def _go_back(self, session: Session, effect: Rollback) -> Restored:
        actions = [turn.action for turn in effect.trajectory]
        digests = [self._root, *(observation_digest(turn.observation) for turn in effect.trajectory)]
        seeds = _seeds(effect)
        stands = self._actions is not None and self._actions[: len(actions)] == actions and self._digests[: len(digests)] == digests
        if stands and self._seeds[: len(seeds)] == seeds:
            answer = await session.take(Call("rollback", turn=len(actions) + 1))
        else:
            answer = await session.take(self._replay(actions, digests, seeds))
        return Restored(answer.observation, answer.replayed_steps)

    async def _ready(self, effect: Effect) -> Session:
        """A session for the job, with its world in the state that the journal ends at."""
        self._seat = await self._worlds.session()
        if self._actions is not None and not isinstance(effect, Reset):
            await self._seat.take(self._replay(self._actions, self._digests, self._seeds))
        return self._seat

    def _replay(self, actions: list[str], digests: list[str], seeds: list[int | None]) -> Call:
        drawn = tuple(seeds) if any(seed is not None for seed in seeds) else ()
        return Call("replay", self._task, actions=tuple(actions), digests=tuple(digests), seeds=drawn)

    def _follow(self, effect: Effect, result: Any) -> None:
        """Keeps track of the state of the world; None if it cannot be used before a reset or a replay."""
        if isinstance(effect, Ask):
            return
        if isinstance(result, EpisodeError):
            self._actions = None
        elif isinstance(effect, Expert):
            return
        elif isinstance(effect, Reset):
            self._actions, self._digests, self._seeds = [], [observation_digest(result)], []
            self._root = self._root or self._digests[0]
        elif isinstance(effect, Step):
            assert self._actions is not None, "a step follows a reset or a rollback"
            self._actions.append(effect.action)
            self._digests.append(observation_digest(result))
            self._seeds.append(effect.seed)
        else:
            self._actions = [turn.action for turn in effect.trajectory]
            self._digests = [self._root, *(observation_digest(turn.observation) for turn in effect.trajectory)]
            self._seeds = _seeds(effect)

    async def close(self) -> None:
        """Gives the world back for other jobs."""
        if self._seat is not None:
            await self._seat.leave()
