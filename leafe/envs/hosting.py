"""Where worlds live while many are played at once: in the event loop, on threads, or in processes of their own.

A job takes a seat when it first needs a world, and leaves it at its end. Waiting for the engine holds a seat and no thread. With threads
the bound is on calls that are made at the same time: a world stays on the thread that made it, and many worlds may share one. With
processes the bound is on processes, and an environment may say itself how many of it there can be: a job that finds no room waits
before it has asked anybody anything, so none waits for another.
A world whose job lost no episode is used again by the next job, for what is slow is slow to make too. What a world answers does not
depend on where it lives.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol, TypeVar

from leafe.envs.base import Environment, Placement
from leafe.envs.calls import Answer, Call, carry_out
from leafe.envs.world import World
from leafe.envs.world_process import WorldProcess
from leafe.errors import EnvironmentFailure

Result = TypeVar("Result")
PROCESSES_A_CORE = 4  # most of them wait for the engine most of the time


class Seat(Protocol):
    """One job's world."""

    async def take(self, call: Call) -> Answer:
        """Has a call carried out; raises what `carry_out` raises."""
        ...

    async def leave(self) -> None:
        """Lets go of the world; a failure to close it hurts nobody."""
        ...


class Hosting(Protocol):
    """Gives seats out for as long as a stage lasts."""

    async def seat(self) -> Seat:
        """A world for one job, as soon as there is room for it."""
        ...

    async def close(self) -> None:
        """Lets go of everything, once all seats were left."""
        ...


def hosting(make: Callable[[], Environment], placement: Placement, workers: int = 0, instances: int = 0) -> Hosting:
    """A way of hosting. `workers` is how many calls (threads) or worlds (processes) there are at once; 0 lets the machine decide.

    `instances` is how many worlds there may be at once, whatever else would allow; 0 is any number.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if placement is Placement.THREAD:
        return _Lanes(lambda: _ThreadWorld(make), workers or cores, room=instances)
    if placement is Placement.PROCESS:
        most = min(workers or PROCESSES_A_CORE * cores, instances or 2**30)
        return _Lanes(lambda: WorldProcess(make), most, room=most)
    return _Inline(make, instances)


class _Inline:
    """Worlds that answer at once."""

    def __init__(self, make: Callable[[], Environment], instances: int) -> None:
        self._make = make
        self._room = asyncio.Semaphore(instances) if instances else None

    async def seat(self) -> Seat:
        if self._room:
            await self._room.acquire()
        return _InlineSeat(World(self._make()), self._room)

    async def close(self) -> None:
        return None


class _InlineSeat:
    def __init__(self, world: World, room: asyncio.Semaphore | None) -> None:
        self._world, self._room = world, room

    async def take(self, call: Call) -> Answer:
        return carry_out(self._world, call)

    async def leave(self) -> None:
        with suppress(EnvironmentFailure):
            self._world.close()
        if self._room:
            self._room.release()


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
        """A thread cannot be ended; what it does is waited for."""


class _Lane:
    """One thread, and how many worlds live on it."""

    def __init__(self) -> None:
        self.worlds = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="leafe-world")

    async def run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown()


class _Lanes:
    """At most `workers` threads with worlds on them, as evenly as can be; jobs wait where there is `room` for so many worlds only."""

    def __init__(self, make: Callable[[], _Elsewhere], workers: int, *, room: int) -> None:
        self._make, self._most = make, workers
        self._lanes: list[_Lane] = []
        self._idle: list[tuple[_Lane, _Elsewhere]] = []
        self._room = asyncio.Semaphore(room) if room else None

    async def seat(self) -> Seat:
        if self._room:
            await self._room.acquire()
        if self._idle:
            return _LaneSeat(self, *self._idle.pop())
        world = self._make()
        lane = min(self._lanes, key=lambda one: one.worlds, default=None)
        if lane is None or (lane.worlds and len(self._lanes) < self._most):
            lane = _Lane()
            self._lanes.append(lane)
        lane.worlds += 1
        return _LaneSeat(self, lane, world)

    async def give_back(self, lane: _Lane, world: _Elsewhere, *, sound: bool) -> None:
        """Keeps a world for the next job, or closes it."""
        try:
            if sound:
                self._idle.append((lane, world))
            else:
                world.kill()
                await self._end(lane, world)
        finally:
            if self._room:
                self._room.release()

    async def _end(self, lane: _Lane, world: _Elsewhere) -> None:
        lane.worlds -= 1
        with suppress(EnvironmentFailure):
            await lane.run(world.close)

    async def close(self) -> None:
        await asyncio.gather(*(self._end(lane, world) for lane, world in self._idle))
        self._idle.clear()
        for lane in self._lanes:
            lane.close()


class _LaneSeat:
    def __init__(self, lanes: _Lanes, lane: _Lane, world: _Elsewhere) -> None:
        self._lanes, self._lane, self._world = lanes, lane, world
        self._sound = True

    async def take(self, call: Call) -> Answer:
        sound, self._sound = self._sound, False
        answer = await self._lane.run(lambda: self._world.take(call))
        self._sound = sound
        return answer

    async def leave(self) -> None:
        await self._lanes.give_back(self._lane, self._world, sound=self._sound)
