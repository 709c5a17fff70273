"""Where worlds live while many are played at once: in the event loop, on threads, or in processes of their own.

A job takes a session when it first needs a world, and leaves it at its end. A job that waits for the engine holds its session and no
thread's time. With threads each world has its own thread, and the bound is on simultaneous calls; with processes the bound is on
processes. An environment may bound its instances: a job that finds no room waits before its first call, so none waits for another.
A world whose job lost no episode is reused by the next job, because slow worlds are slow to make too; one that took longer than its limit,
or has played as many episodes as it may, is replaced. A world's answers do not depend on where it lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Protocol

from leafe.envs.alarm import Alarm, TimeUp
from leafe.envs.base import Environment, Placement
from leafe.envs.calls import Answer, Call, carry_out, patience_for, took_too_long
from leafe.envs.workers import PATIENCE, Worker
from leafe.envs.world import World
from leafe.envs.world_process import LIMIT, WorldProcess
from leafe.errors import EnvironmentFailure
from leafe.hardware import own_cores

PROCESSES_A_CORE = 4  # most of them wait for the engine most of the time


@dataclass(frozen=True)
class Terms:
    """How worlds are hosted. `workers` is how many calls (threads) or worlds (processes) there are at once; 0 lets the machine decide.

    `instances` is how many worlds there may be at once, whatever the other bounds allow. `timeout` is in seconds for a step, `recycle` in
    episodes that a world plays before it is replaced. All are 0 for no such limit. `computes` is whether a call keeps a core busy.
    """

    placement: Placement = Placement.INLINE
    workers: int = 0
    instances: int = 0
    timeout: float = LIMIT
    recycle: int = 0
    computes: bool = False


class Session(Protocol):
    """One job's world."""

    async def take(self, call: Call) -> Answer:
        """Carries out a call; raises what `carry_out` raises, and `StepTimeout`."""
        ...

    async def leave(self) -> None:
        """Releases the world; a failure to close it is ignored."""
        ...


class WorkerPool(Protocol):
    """Hands out sessions while a stage lasts."""

    async def session(self) -> Session:
        """A world for one job, as soon as there is room for it."""
        ...

    async def close(self) -> None:
        """Releases everything, once all sessions are left."""
        ...


def worker_pool(make: Callable[[], Environment], terms: Terms = Terms()) -> WorkerPool:
    """The pool that the terms ask for. Worlds that are called in line under a limit are on threads where no timer can interrupt them."""
    cores = own_cores()
    if terms.placement is Placement.PROCESS:
        most = min(terms.workers or PROCESSES_A_CORE * cores, terms.instances or 2**30)
        return _ThreadPool(lambda: WorldProcess(make, limit=terms.timeout), terms, room=most, calls=0)
    if terms.placement is Placement.THREAD:
        calls = terms.workers or (cores if terms.computes else 0)
        return _ThreadPool(lambda: _ThreadWorld(make), terms, room=terms.instances, calls=calls)
    if terms.timeout and not Alarm.can_be_set():
        return _ThreadPool(lambda: _ThreadWorld(make), terms, room=terms.instances, calls=1)
    return _Inline(make, terms)


class _Inline:
    """Worlds that answer at once."""

    def __init__(self, make: Callable[[], Environment], terms: Terms) -> None:
        self.make, self.terms = make, terms
        self.room = asyncio.Semaphore(terms.instances) if terms.instances else None
        self.alarm = Alarm() if terms.timeout else None

    async def session(self) -> Session:
        if self.room:
            await self.room.acquire()
        return _InlineSeat(self)

    async def close(self) -> None:
        if self.alarm:
            self.alarm.close()


class _InlineSeat:
    def __init__(self, worker_pool: _Inline) -> None:
        self._pool = worker_pool
        self._world: World | None = World(worker_pool.make())
        self._episodes = 0

    async def take(self, call: Call) -> Answer:
        recycle, alarm = self._pool.terms.recycle, self._pool.alarm
        if call.begins and recycle and self._episodes >= recycle:
            self._let_go()
        self._episodes += call.plays_anew
        if self._world is None:
            self._world, self._episodes = World(self._pool.make()), 1
        if alarm is None:
            return carry_out(self._world, call)
        limit = patience_for(call, self._pool.terms.timeout)
        try:
            return alarm.call(limit, carry_out, self._world, call)
        except TimeUp:
            self._world = None  # interrupted at an unknown point: nothing in it can be relied on, not even its `close`
            raise took_too_long(call, limit) from None

    def _let_go(self) -> None:
        if self._world is not None:
            with suppress(EnvironmentFailure):
                self._world.close()
        self._world = None

    async def leave(self) -> None:
        self._let_go()
        if self._pool.room:
            self._pool.room.release()


class _Elsewhere(Protocol):
    """A world that is called from one thread."""

    def take(self, call: Call) -> Answer: ...

    def close(self) -> None: ...

    def kill(self) -> None: ...


class _ThreadWorld:
    """A world that is made where it is called."""

    def __init__(self, make: Callable[[], Environment]) -> None:
        self._make = make
        self._world: World | None = None

    def take(self, call: Call) -> Answer:
        if self._world is None:
            self._world = World(self._make())
        return carry_out(self._world, call)

    def close(self) -> None:
        if self._world is not None:
            self._world.close()

    def kill(self) -> None:
        """A thread cannot be ended; its work is waited for."""


@dataclass
class _Place:
    """A world on its thread, how many episodes it has begun, and whether it is still uncalled."""

    worker: Worker
    world: _Elsewhere
    episodes: int = 0
    fresh: bool = True


class _ThreadPool:
    """A thread for each world; `room` bounds the worlds that jobs hold at once, `calls` the simultaneous calls."""

    def __init__(self, make: Callable[[], _Elsewhere], terms: Terms, *, room: int, calls: int) -> None:
        self._make, self.terms = make, terms
        self._idle: list[_Place] = []
        self._room = asyncio.Semaphore(room) if room else None
        self.calls = asyncio.Semaphore(calls) if calls else None

    async def session(self) -> Session:
        if self._room:
            await self._room.acquire()
        return _LaneSeat(self, self._idle.pop() if self._idle else self.place())

    def place(self) -> _Place:
        """A new world on a new thread."""
        return _Place(Worker(), self._make())

    async def give_back(self, place: _Place, *, sound: bool) -> None:
        """Keeps a world for the next job, or closes it."""
        try:
            if sound:
                self._idle.append(place)
            else:
                place.world.kill()
                await self.end(place)
        finally:
            if self._room:
                self._room.release()

    async def end(self, place: _Place) -> None:
        """Closes a world, and its thread with it; one that is stuck is left behind."""
        try:
            with suppress(EnvironmentFailure):
                await place.worker.run(place.world.close, limit=2 * PATIENCE)
        except TimeoutError:
            place.worker.abandon()
            return
        place.worker.close()

    async def close(self) -> None:
        await asyncio.gather(*(self.end(place) for place in self._idle))
        self._idle.clear()


class _LaneSeat:
    def __init__(self, pool: _ThreadPool, place: _Place) -> None:
        self._pool, self._place = pool, place
        self._sound = True

    async def take(self, call: Call) -> Answer:
        recycle = self._pool.terms.recycle
        if call.begins and recycle and self._place.episodes >= recycle:
            await self._pool.end(self._place)
            self._place = self._pool.place()
        self._place.episodes += call.plays_anew
        sound, self._sound = self._sound, False
        answer = await self._within_limit(call)
        self._sound = sound
        return answer

    async def _within_limit(self, call: Call) -> Answer:
        place, timeout = self._place, self._pool.terms.timeout
        # A process keeps the limit itself, because it can be ended.
        limit = 0.0 if isinstance(place.world, WorldProcess) else patience_for(call, timeout, first=place.fresh)
        place.fresh = False
        async with AsyncExitStack() as stack:
            if self._pool.calls:
                await stack.enter_async_context(self._pool.calls)
            try:
                return await place.worker.run(lambda: place.world.take(call), limit)
            except TimeoutError:
                place.worker.abandon()
                self._place = self._pool.place()
                raise took_too_long(call, limit) from None

    async def leave(self) -> None:
        await self._pool.give_back(self._place, sound=self._sound)
