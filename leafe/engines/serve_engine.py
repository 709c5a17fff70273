"""An engine on a server of this run's own. It starts with the first request, and a server that dies is started again meanwhile.

Requests wait while the server loads and while it is away, as with any server (`openai_http.py`); seeds are part of them, so that nothing is
lost and what is drawn does not depend on what died.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from leafe.engines.base import EngineStats
from leafe.engines.openai import OpenAIEngine
from leafe.engines.serve import LOOK_EVERY, OwnServer
from leafe.errors import EngineError
from leafe.records import Ask, Completion

Connect = Callable[[Callable[[], str]], Awaitable[OpenAIEngine]]


class ServedEngine:
    """`connect` starts the server and gives an engine on it; that engine asks what it is given whether waiting has become useless.

    Belongs to one event loop. The server stays when the engine is closed: who started it ends it.
    """

    def __init__(self, server: OwnServer, connect: Connect, *, concurrency: int = 64) -> None:
        self.stats = EngineStats()
        self.concurrency = concurrency
        self._server, self._connect = server, connect
        self._connected: asyncio.Task[OpenAIEngine] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._lost = ""

    async def generate(self, ask: Ask) -> Completion:
        """One completion. Raises `EngineError` when the server cannot be started, died too often or answers something else."""
        if self._connected is None:
            self._connected = asyncio.create_task(self._connection())
        # Shielded, since one request that is cancelled must not take the start from the others.
        engine = await asyncio.shield(self._connected)
        return await engine.generate(ask)

    async def close(self) -> None:
        """Closes the connections; requests in flight fail."""
        for task in (self._watch, self._connected):
            if task and not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
        if self._connected and not self._connected.cancelled() and not self._connected.exception():
            await self._connected.result().close()

    async def _connection(self) -> OpenAIEngine:
        engine = await self._connect(lambda: self._lost)
        engine.stats = self.stats
        self._watch = asyncio.create_task(self._watch_over(engine))
        return engine

    async def _watch_over(self, engine: OpenAIEngine) -> None:
        while not self._lost:
            await asyncio.sleep(LOOK_EVERY)
            if await asyncio.to_thread(lambda: self._server.ended):  # what is left of a dead one may take seconds to end
                try:
                    await self._server.restart()
                except EngineError as error:
                    self._lost = str(error)
                engine.move(self._server.base_url)
