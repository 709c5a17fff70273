"""The worker's side: a service that answers numbered requests as they come, and returns ready answers in batches.

Requests and answers travel in batches, since a message costs more than a step of a text world. `collect` waits until there is an answer,
so a slow one delays no other, and the collector learns at once that a worker is gone. The more workers there are, the smaller are the
batches of each and the more messages the driver pays for; where messages are expensive both sides therefore wait some milliseconds
for more. Only data travels: a service is made where it answers, and so are its connections.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from leafe.errors import EngineError, EnvironmentFailure, LeafeError, ReplayDiverged, StepTimeout, UserError

MANY = 8  # requests under way to one worker, from which on messages wait a little to become fewer
KINDS: dict[str, type[LeafeError]] = {
    kind.__name__: kind for kind in (EnvironmentFailure, StepTimeout, ReplayDiverged, EngineError, UserError)
}


class Service(Protocol):
    """The work that a worker does."""

    async def serve(self, request: Any) -> Any:
        """Answers one request. Requests are served at once, as many as there are."""
        ...

    async def close(self) -> None:
        """Releases everything."""
        ...


@dataclass(frozen=True, slots=True)
class Order:
    """One request. `number` 0 needs no answer; with `cancels` it cancels the earlier request of that number."""

    number: int
    request: Any = None
    cancels: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a request, or the class and the message of what it raised; an empty class is a bug, with its traceback."""

    number: int
    result: Any = None
    kind: str | None = None
    message: str = ""

    def opened(self) -> Any:
        """The result. Raises what the service raised, `RuntimeError` for a bug in the worker."""
        if self.kind is None:
            return self.result
        raise KINDS[self.kind](self.message) if self.kind else RuntimeError(f"in a worker:\n{self.message}")


class Desk:
    """Serves orders. The service is made by the first one, so that a failure to make it is an answer too."""

    def __init__(self, make: Callable[[], Service]) -> None:
        self._make = make
        self._service: Service | None = None
        self._ready: list[Answer] = []
        self._some = asyncio.Event()
        self._running: dict[int, asyncio.Task[None]] = {}
        self._quiet = 0

    async def hand_in(self, orders: Sequence[Order]) -> None:
        """Accepts orders, without waiting for their results."""
        for order in orders:
            if order.cancels:
                if order.number in self._running:
                    self._running.pop(order.number).cancel()
                continue
            if not order.number:
                self._quiet -= 1
            key = order.number or self._quiet
            self._running[key] = asyncio.create_task(self._serve(key, order.request))

    async def collect(self, gather: float = 0.0) -> list[Answer]:
        """All answers that are ready, at least one; where many are under way, those of `gather` more seconds as well."""
        await self._some.wait()
        if gather and len(self._running) >= MANY:
            await asyncio.sleep(gather)
        self._some.clear()
        ready, self._ready = self._ready, []
        return ready

    async def close(self) -> None:
        """Ends what is being served and closes the service."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._service is not None:
            with suppress(LeafeError):
                await self._service.close()

    async def _serve(self, key: int, request: Any) -> None:
        try:
            if self._service is None:
                self._service = self._make()
            answer = Answer(key, await self._service.serve(request))
        except LeafeError as failure:
            kind = next((name for name, one in KINDS.items() if type(failure) is one), None)
            answer = Answer(key, kind=kind or _nearest(failure), message=str(failure))
        except Exception:
            answer = Answer(key, kind="", message=traceback.format_exc())
        finally:
            self._running.pop(key, None)
        if key > 0:
            self._ready.append(answer)
            self._some.set()


def _nearest(failure: LeafeError) -> str:
    """The class as which a failure of another class is sent."""
    return next((name for name, kind in KINDS.items() if isinstance(failure, kind)), UserError.__name__)
