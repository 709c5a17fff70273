"""The driver's side: requests to one worker as awaitables, and a crew of workers in which a lost one is replaced.

The link decides what a worker is: a process, an actor, a fake. When a link reports that its worker is gone, every request under way
fails with `WorkerLost`, and the caller decides how to go on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import Any, Protocol

from leafe.errors import EngineError, UserError
from leafe.scale.desk import MANY, Answer, Order, Service

GRACE = 5.0  # seconds in which the last messages have to be sent
STARTS = 3  # workers in a row that may end in one place before they answered anything


class WorkerLost(Exception):
    """The worker is gone, with all that it held; the message is the reason."""


class Link(Protocol):
    """A link to one worker, which has a `Desk`. `gather` is for how many seconds orders are collected, where a message is expensive."""

    @property
    def gather(self) -> float:
        """Seconds, 0 for sending at once."""
        ...

    async def hand_in(self, orders: list[Order]) -> None:
        """Sends orders. Raises `WorkerLost`."""
        ...

    async def collect(self) -> list[Answer]:
        """Waits for answers. Raises `WorkerLost`; only one call at a time."""
        ...

    async def end(self) -> None:
        """Ends the worker, closed as far as it can be. May be called again, as when the first call was cancelled."""
        ...


Starter = Callable[[Callable[[], Service]], Awaitable[Link]]


class Line:
    """Requests to a worker. `busy` is how many wait for an answer, `held` how many worlds or tasks it holds, counted by its users."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._orders: list[Order] = []
        self._numbers = count(1)
        self._sending: asyncio.Task[None] | None = None
        self._listener = asyncio.create_task(self._listen())
        self.lost = ""
        self.held = 0
        self.answered = 0

    @property
    def busy(self) -> int:
        """Requests that wait for an answer."""
        return len(self._waiting)

    async def ask(self, request: Any, *, limit: float = 0.0) -> Any:
        """The service's answer. Raises what the service raised, and `WorkerLost`, also after `limit` seconds of silence (0: never)."""
        if self.lost:
            raise WorkerLost(self.lost)
        number, answer = next(self._numbers), asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._send(Order(number, request))
        try:
            async with asyncio.timeout(limit or None):
                found: Answer = await answer
            return found.opened()
        except TimeoutError:
            self._lose(WorkerLost(f"it did not answer in {limit:g} s"))
            raise WorkerLost(self.lost) from None
        except asyncio.CancelledError:
            self._send(Order(number, cancels=True))
            raise
        finally:
            self._waiting.pop(number, None)

    def tell(self, request: Any) -> None:
        """Sends a request that needs no answer."""
        self._send(Order(0, request))

    def _send(self, order: Order) -> None:
        """Adds an order to the batch that is sent when this turn of the event loop is over, or when the batch before it has been sent."""
        self._orders.append(order)
        if self._sending is None and not self.lost:
            self._sending = asyncio.create_task(self._send_all())

    async def _send_all(self) -> None:
        try:
            while self._orders:
                if self._link.gather and self.busy >= MANY:
                    await asyncio.sleep(self._link.gather)
                orders, self._orders = self._orders, []
                await self._link.hand_in(orders)
        except WorkerLost as why:
            self._lose(why)
        except Exception as error:  # as in `_listen`: Ray raises errors of its own before anything is sent
            self._lose(WorkerLost(f"{type(error).__name__}: {error}"))
        finally:
            self._sending = None

    async def _listen(self) -> None:
        try:
            while True:
                for answer in await self._link.collect():
                    self.answered += 1
                    future = self._waiting.get(answer.number)
                    if future is not None and not future.done():
                        future.set_result(answer)
        except WorkerLost as why:
            self._lose(why)
        except Exception as error:  # no caller may wait for ever, whatever a link raises
            self._lose(WorkerLost(f"{type(error).__name__}: {error}"))

    def _lose(self, why: WorkerLost) -> None:
        self.lost = self.lost or str(why) or "it ended"
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(WorkerLost(self.lost))

    async def close(self) -> None:
        """Ends the worker."""
        if self._sending is not None and not self.lost:
            await asyncio.wait((self._sending,), timeout=GRACE)  # the last messages are sent before
        tasks = [self._listener, *filter(None, [self._sending])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lose(WorkerLost("it was closed"))
        await self._link.end()


class Crew:
    """`size` workers that hold the same service. A lost one is replaced; until then the others do its work."""

    def __init__(self, start: Starter, make: Callable[[], Service], size: int) -> None:
        self._start, self._make = start, make
        self._lines: list[Line | None] = [None] * size
        self._starting: dict[int, asyncio.Task[None]] = {}
        self._failed: list[BaseException] = []
        self._vain: Counter[int] = Counter()  # by place, for a machine may be lost with many that had nothing to do yet
        self._first = True
        self.replaced = 0

    async def line(self, preferred: int | None = None) -> Line:
        """The preferred worker if it lives, else the one that holds least.

        Raises the error that kept all of them from starting, and `EngineError` when workers end again and again before they have answered.
        """
        while True:
            self._replace()
            if self._first and self._starting:  # or the first one to start would get all the work
                await asyncio.wait(self._starting.values())
            self._first = False
            live = {number: line for number, line in enumerate(self._lines) if line is not None and not line.lost}
            if preferred in live:
                return live[preferred]
            if live:
                return min(live.values(), key=lambda line: (line.held, line.busy))
            if not self._starting:
                raise self._failed[0]
            await asyncio.wait(self._starting.values(), return_when=asyncio.FIRST_COMPLETED)

    async def alone(self) -> Line:
        """A further worker, which is not replaced and which the caller closes. Raises `WorkerLost` where there is no room for it."""
        try:
            return Line(await self._start(self._make))
        except UserError as error:
            raise WorkerLost(f"there was no room for another worker: {error}") from None

    def _replace(self) -> None:
        for number, line in enumerate(self._lines):
            if number in self._starting or (line is not None and not line.lost):
                continue
            if line is not None:
                vain = self._vain[number] = 0 if line.answered else self._vain[number] + 1
                if vain >= STARTS:
                    raise EngineError(f"{vain} workers in a row ended before they answered anything, the last one: {line.lost}")
                self.replaced += 1
            elif self._failed:
                continue  # a failed start is not tried again
            self._starting[number] = asyncio.create_task(self._begin(number, line))

    async def _begin(self, number: int, before: Line | None) -> None:
        try:
            if before is not None:
                with suppress(Exception):  # how a lost worker ends does not matter
                    await before.close()
                self._lines[number] = None
            self._lines[number] = Line(await self._start(self._make))
        except WorkerLost as why:
            self._failed.append(EngineError(f"a worker ended before it was ready: {why}"))
        except Exception as error:
            self._failed.append(error)
        finally:
            del self._starting[number]

    async def close(self) -> None:
        """Ends all of them."""
        for task in list(self._starting.values()):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*self._starting.values(), return_exceptions=True)
        await asyncio.gather(*(line.close() for line in self._lines if line is not None), return_exceptions=True)
