"""The shipped fake of workers: they live in this event loop, hold what a worker holds, and may end between any two messages.

It keeps the limits of the real thing: everything passed is pickled, so nothing is shared, and the contents of an ended worker are gone.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

from leafe.errors import UserError
from leafe.scale.desk import Answer, Desk, Order, Service
from leafe.scale.line import Link, WorkerLost


class FakeWorkers:
    """Starts workers. `ends(n)` is whether the worker that exchanges message `n` of all, from 1, ends before it arrives.

    `swallows(n)` is whether only the message is lost, as in a worker that hangs. There may be `room` workers at once, 0 is any
    number. `gather` is as of any link.
    """

    def __init__(
        self,
        ends: Callable[[int], bool] = lambda message: False,
        *,
        swallows: Callable[[int], bool] = lambda message: False,
        room: int = 0,
        gather: float = 0.0,
    ) -> None:
        self.swallows, self.room, self.gather = swallows, room, gather
        self.ends, self.messages, self.started, self.orders = ends, 0, 0, 0
        self.open: list[FakeLink] = []

    async def __call__(self, make: Callable[[], Service]) -> Link:
        """A worker. Raises `UserError` where there is no room."""
        if self.room and len(self.open) >= self.room:
            raise UserError(f"there is room for {self.room}")
        self.started += 1
        link = FakeLink(self, pickle.loads(pickle.dumps(make)))
        self.open.append(link)
        return link


class FakeLink:
    """The link to one of them."""

    def __init__(self, workers: FakeWorkers, make: Callable[[], Service]) -> None:
        self._workers, self._desk = workers, Desk(make)
        self._dead, self._over = False, asyncio.Event()
        self.gather = workers.gather

    async def hand_in(self, orders: list[Order]) -> None:
        """Sends orders; after the worker's end they are lost without notice, as over a network."""
        await asyncio.sleep(0)
        if not self._ended() and not self._workers.swallows(self._workers.messages):
            self._workers.orders += len(orders)
            await self._desk.hand_in(_sent(orders))

    async def collect(self) -> list[Answer]:
        """Waits for answers, or for the end."""
        collecting, ending = asyncio.ensure_future(self._desk.collect(self.gather)), asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait((collecting, ending), return_when=asyncio.FIRST_COMPLETED)
            if self._dead:
                await ending
            if self._over.is_set() or self._ended():
                raise WorkerLost("the script says so")
            found: list[Answer] = _sent(collecting.result())
            return found
        finally:
            for task in (collecting, ending):
                task.cancel()
            await asyncio.gather(collecting, ending, return_exceptions=True)

    async def end(self) -> None:
        """Ends the worker and closes what it held, so that a test can see that nothing is left."""
        self._over.set()
        await self._desk.close()
        if self in self._workers.open:
            self._workers.open.remove(self)

    def kill(self, noticed: float = 0.0) -> None:
        """Ends the worker as a crash would, or the loss of its machine, which is noticed `noticed` seconds later."""
        self._dead = True
        asyncio.get_running_loop().call_later(noticed, self._over.set)

    def _ended(self) -> bool:
        self._workers.messages += 1
        if self._workers.ends(self._workers.messages):
            self._dead = True
            self._over.set()
        return self._dead


def _sent(message: Any) -> Any:
    return pickle.loads(pickle.dumps(message))
