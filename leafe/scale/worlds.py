"""Worlds in workers: a pool from which the driver takes sessions, as it does where worlds live in this process.

A worker hosts its worlds as `envs.worker_pool` does, so answers, and the cost of a crash or a limit, are the same as here. When a
worker is gone, each of its worlds is restored in another one by replay, verified observation by observation, and the call
that was under way is repeated. A world that declares no fidelity cannot be restored: its attempt ends as lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

from leafe.envs.base import Environment
from leafe.envs.calls import Answer, Call, patience_for
from leafe.envs.worker_pool import Session, Terms, worker_pool
from leafe.envs.world import observation_digest
from leafe.errors import EnvironmentFailure, EpisodeError
from leafe.records import Task
from leafe.scale.line import Crew, Line, Starter, WorkerLost

SILENCE = 300.0  # seconds that a worker may be silent beyond a call's limit, which it keeps itself, before it counts as lost
SHARED = 2  # workers with other worlds that a call may lose; the next one serves that call alone


class WorldService:
    """In a worker: sessions by number, each begun by its first call and ended by None."""

    def __init__(self, make: Callable[[], Environment], terms: Terms) -> None:
        self._pool = worker_pool(make, terms)
        self._seats: dict[int, asyncio.Task[Session]] = {}

    async def serve(self, request: tuple[int, Call | None]) -> Answer | None:
        """Carries out a call."""
        number, call = request
        if call is None:
            if number in self._seats:
                await (await self._seats.pop(number)).leave()
            return None
        if number not in self._seats:
            self._seats[number] = asyncio.create_task(self._pool.session())
        return await (await self._seats[number]).take(call)

    async def close(self) -> None:
        """Leaves every session."""
        taken = [task.result() for task in self._seats.values() if task.done() and task.exception() is None]
        await asyncio.gather(*(session.leave() for session in taken), return_exceptions=True)
        await self._pool.close()


@dataclass(frozen=True)
class _Place:
    """The state of a world after its last answered call: the arguments of `replay`."""

    task: Task
    digests: tuple[str, ...]
    actions: tuple[str, ...] = ()
    seeds: tuple[int | None, ...] = ()

    def after(self, call: Call, answer: Answer) -> _Place:
        """The state after a step, a rollback or a question to the expert."""
        if call.verb == "expert":
            return self
        if call.verb == "rollback":
            kept = call.turn - 1
            return _Place(self.task, self.digests[: call.turn], self.actions[:kept], self.seeds[:kept])
        digests = (*self.digests, observation_digest(answer.observation))
        return _Place(self.task, digests, (*self.actions, call.action), (*self.seeds, call.seed))

    def way(self) -> Call:
        """The call that restores the state."""
        seeds = self.seeds if any(seed is not None for seed in self.seeds) else ()
        return Call("replay", self.task, actions=self.actions, digests=self.digests, seeds=seeds)


class SpreadWorlds:
    """Hands out sessions in a crew of workers. `rebuilt` counts the worlds that were restored after their worker was lost."""

    def __init__(self, start: Starter, make: Callable[[], Environment], terms: Terms, *, workers: int) -> None:
        # The bound on worlds is for all workers together, so it is kept here.
        self._crew = Crew(start, partial(WorldService, make, replace(terms, instances=0)), workers)
        self._room = asyncio.Semaphore(terms.instances) if terms.instances else None
        self.timeout = terms.timeout
        self._numbers = count(1)
        self._suspects = asyncio.Lock()
        self.rebuilt = 0

    @property
    def replaced(self) -> int:
        """Workers that were lost."""
        return self._crew.replaced

    async def session(self) -> Session:
        """A world for one job, as soon as there is room for it."""
        if self._room:
            await self._room.acquire()
        return _SpreadSeat(self)

    async def close(self) -> None:
        """Ends the workers."""
        await self._crew.close()

    async def line(self) -> Line:
        """The worker that holds the fewest worlds."""
        return await self._crew.line()

    async def alone(self) -> Line:
        """A worker for one world."""
        return await self._crew.alone()

    @property
    def suspects(self) -> asyncio.Lock:
        """Of the calls that lost their workers, one at a time is tried alone."""
        return self._suspects

    def number(self) -> int:
        """A session's number, never used twice."""
        return next(self._numbers)

    def left(self) -> None:
        """Makes room for another session."""
        if self._room:
            self._room.release()


class _SpreadSeat:
    def __init__(self, worlds: SpreadWorlds) -> None:
        self._worlds = worlds
        self._line: Line | None = None
        self._own = False  # whether the line is this session's alone
        self._number, self._seated = 0, False
        self._place: _Place | None = None  # None where the world cannot be used before a reset or a replay

    async def take(self, call: Call) -> Answer:
        try:
            answer = await self._taken(call)
        except EpisodeError:
            self._place = None
            raise
        self._follow(call, answer)
        return answer

    async def _taken(self, call: Call) -> Answer:
        if self._line is not None and (self._line.lost or (call.begins and self._own)):
            await self._let_go()
        lost = 0
        while lost < SHARED:
            # When a machine is gone, some of its workers are not known to be: only one that has answered can be lost through this call.
            if self._line is None and lost and not await self._answers():
                continue
            try:
                return await self._try(call, alone=False)
            except WorkerLost:
                lost += 1
                await self._let_go()
        async with self._worlds.suspects:
            try:
                return await self._try(call, alone=True)
            except WorkerLost as why:
                await self._let_go()
                what = f"step({call.action!r:.60})" if call.verb == "step" else call.verb
                raise EnvironmentFailure(f"{what} ended {SHARED} workers and was then tried alone: {why}") from None

    async def _try(self, call: Call, *, alone: bool) -> Answer:
        if self._line is None:
            await self._settle(alone=alone)
        assert self._line is not None
        if self._place is not None and not call.begins and not self._seated:
            self._worlds.rebuilt += 1
            await self._ask(self._place.way())
        return await self._ask(call)

    async def _settle(self, *, alone: bool) -> None:
        self._line = await (self._worlds.alone() if alone else self._worlds.line())
        self._own, self._number, self._seated = alone, self._worlds.number(), False
        self._line.held += 1

    async def _answers(self) -> bool:
        """Whether a worker that answers was found."""
        await self._settle(alone=False)
        assert self._line is not None
        try:
            await self._line.ask((self._number, None), limit=SILENCE)  # ending a session that is not begun yet does nothing
        except WorkerLost:
            await self._let_go()
            return False
        return True

    async def _ask(self, call: Call) -> Answer:
        assert self._line is not None
        # The first call may have to wait until there is room for a world.
        limit = patience_for(call, self._worlds.timeout) + SILENCE if self._seated and self._worlds.timeout else 0.0
        answer: Answer = await self._line.ask((self._number, call), limit=limit)
        self._seated = True
        return answer

    def _follow(self, call: Call, answer: Answer) -> None:
        if call.verb == "replay":
            seeds = call.seeds or (None,) * len(call.actions)
            assert call.task is not None
            self._place = _Place(call.task, call.digests, call.actions, seeds)
        elif call.verb == "reset":
            assert call.task is not None
            self._place = _Place(call.task, (observation_digest(answer.observation),))
        elif self._place is not None:
            self._place = self._place.after(call, answer)

    async def _let_go(self) -> None:
        line, own, self._line, self._own = self._line, self._own, None, False
        if line is not None:
            line.held -= 1
            line.tell((self._number, None))
            if own:
                await line.close()

    async def leave(self) -> None:
        await self._let_go()
        self._worlds.left()


def spread(start: Starter, workers: int, make: Callable[[], Environment], terms: Terms) -> SpreadWorlds:
    """The same as `worker_pool`, with workers; a `functools.partial` of the first two fits `Runtime.host`."""
    return SpreadWorlds(start, make, terms, workers=workers)
