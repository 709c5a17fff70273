"""An engine on a server that the run starts itself. The server starts with the first request and is restarted when it dies.

Requests wait while the server loads and while it is away, as with any server (`openai_http.py`); each carries its seed, so that nothing is
lost and no draw depends on a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

from leafe.engines.base import UNCONTINUED, EngineStats, Scores
from leafe.engines.openai import OpenAIEngine
from leafe.engines.serve import LOOK_EVERY, OwnServer
from leafe.errors import LeafeError, UserError
from leafe.records import Ask, Completion, Message

Connect = Callable[[Callable[[], str]], Awaitable[OpenAIEngine]]


class ServedEngine:
    """`connect` starts the server and returns an engine on it; it is passed a function that returns why waiting is useless, or nothing.

    Belongs to one event loop. The server stays when the engine is closed; the owner of the server ends it.
    """

    continues = True  # if the server does, which is known once it is there

    def __init__(self, server: OwnServer, connect: Connect, *, concurrency: int = 64) -> None:
        self.stats = EngineStats()
        self.concurrency = concurrency
        self._server, self._connect = server, connect
        self._connected: asyncio.Task[OpenAIEngine] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._lost = ""

    async def generate(self, ask: Ask) -> Completion:
        """One completion. Raises `EngineError` when the server cannot be started, died too often or answers something else."""
        engine = await self._ready()
        return await engine.generate(ask) if engine.continues or not ask.begun else UNCONTINUED

    async def score(self, messages: Sequence[Message], ids: Sequence[int], top: int = 0) -> Scores:
        """Log-probabilities of `ids` after `messages` under the served model: see `Engine.score`."""
        return await (await self._ready()).score(messages, ids, top)

    async def load(self, folder: str | Path) -> None:
        """Raises `UserError`: the server has the weights that it was started with."""
        raise UserError(
            f"a server takes no weights while it runs, found {str(folder)!r}; make an engine on that folder, whose server is started for it"
        )

    async def close(self) -> None:
        """Closes the connections; requests in flight fail."""
        for task in (self._watch, self._connected):
            if task and not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
        if self._connected and not self._connected.cancelled() and not self._connected.exception():
            await self._connected.result().close()

    async def _ready(self) -> OpenAIEngine:
        if self._connected is None:
            self._connected = asyncio.create_task(self._connection())
        # Shielded, since the cancellation of one request must not cancel the start that others wait for.
        return await asyncio.shield(self._connected)

    async def _connection(self) -> OpenAIEngine:
        engine = await self._connect(lambda: self._lost)
        engine.stats = self.stats
        self._watch = asyncio.create_task(self._watch_over(engine))
        return engine

    async def _watch_over(self, engine: OpenAIEngine) -> None:
        while not self._lost:
            await asyncio.sleep(LOOK_EVERY)
            if await asyncio.to_thread(lambda: self._server.ended):  # the remains of a dead server may take seconds to end
                try:
                    await self._server.restart()
                except LeafeError as error:
                    self._lost = str(error)
                except Exception as error:  # or requests would wait as long as for a server that may come back
                    self._lost = f"the server of this run died and cannot be started again ({type(error).__name__}: {error})"
                engine.move(self._server.base_url)
