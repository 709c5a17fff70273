"""A thread that carries out work in order, for an event loop that waits without blocking.

Threads of this kind end with the process, whatever they are doing, and a stuck one can be left behind.
"""

from __future__ import annotations

import asyncio
import ctypes
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from leafe.envs.alarm import TimeUp

Result = TypeVar("Result")
PATIENCE = 5.0  # seconds that the end of a thread is waited for


class Worker:
    """One thread. Each `run` belongs to the event loop that it was called in."""

    def __init__(self, name: str = "leafe-world") -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while (work := self._work.get()) is not None:
                work()
        except TimeUp:
            return

    async def run(self, work: Callable[[], Result], limit: float = 0.0) -> Result:
        """Returns or raises the result of the work. Raises `TimeoutError` after `limit` seconds (0: never); the work then goes on alone."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()

        def carried_out() -> None:
            try:
                result = work()
            except TimeUp:
                raise
            except BaseException as error:
                _tell(loop, answer.set_exception, answer, error)
            else:
                _tell(loop, answer.set_result, answer, result)

        self._work.put(carried_out)
        async with asyncio.timeout(limit or None):
            return await answer

    def close(self) -> None:
        """Ends the thread once it has done its work."""
        self._work.put(None)
        self._thread.join(PATIENCE)

    def abandon(self) -> None:
        """Leaves a stuck thread behind; it ends when it next runs Python code."""
        self._work.put(None)
        if self._thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(TimeUp))


def _tell(loop: asyncio.AbstractEventLoop, tell: Callable[[Any], None], answer: asyncio.Future[Any], what: Any) -> None:
    """Hands a result to a loop that may be closed, for a caller that may have stopped waiting."""
    if isinstance(
        what, StopIteration | asyncio.CancelledError
    ):  # no future can hold the first, and the second would cancel the caller
        what = RuntimeError(type(what).__name__)
    try:
        loop.call_soon_threadsafe(lambda: None if answer.done() else tell(what))
    except RuntimeError:
        return
