"""One engine in workers, a replica in each: any request may be answered by any of them, so a lost one costs time and nothing else.

All requests about a task go to the same replica, which has computed the prefixes that they share. A lost replica is replaced, and
its requests are repeated: a completion is a function of the ask alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

from leafe.engines.base import Engine, EngineStats, Scores
from leafe.errors import EngineError, UserError
from leafe.records import Ask, Completion, Message
from leafe.scale.line import Crew, Line, Starter, WorkerLost

Request = tuple[str, tuple[Any, ...]]  # a method of the engine and its arguments
TRIES = 3  # replicas that a request may lose


class EngineService:
    """In a worker: an engine."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._engine = make()
        self._told = EngineStats()

    async def serve(self, request: Request | None) -> tuple[Any, EngineStats] | None:
        """The result of a method of the engine, and the counts since the last call. None asks whether the worker lives."""
        if request is None:
            return None
        method, arguments = request
        found = await (self._engine.score if method == "score" else self._engine.generate)(*arguments)
        now = EngineStats(*astuple(self._engine.stats))
        since = EngineStats(*(new - old for new, old in zip(astuple(now), astuple(self._told), strict=True)))
        self._told = now
        return found, since

    async def close(self) -> None:
        """Releases the model."""
        await self._engine.close()


class SpreadEngine:
    """`replicas` workers, each with the engine that `make` makes. `concurrency` is theirs together.

    The workers start with the first request, which raises the failure to make the engine, if any. `made_on` returns a maker of engines on
    another folder, for `load`.
    """

    continues = True  # true of every engine that holds its model

    def __init__(
        self,
        start: Starter,
        make: Callable[[], Engine],
        *,
        replicas: int,
        concurrency: int,
        made_on: Callable[[Path], Callable[[], Engine]] | None = None,
    ) -> None:
        self.stats = EngineStats()
        self.concurrency = concurrency
        self._start, self._make, self._made_on, self._size = start, make, made_on, replicas
        self._crew: Crew | None = None
        self._under_way: set[asyncio.Future[None]] = set()
        self._homes: dict[str, int] = {}
        self._tasks: Counter[int] = Counter()

    async def generate(self, ask: Ask) -> Completion:
        """One completion. Raises `EngineError`, also when a request has lost three replicas."""
        found: Completion = await self._asked("generate", ask.messages, (ask,))
        return found

    async def score(self, messages: Sequence[Message], ids: Sequence[int], top: int = 0) -> Scores:
        """The model's scores of `ids` after `messages`: see `Engine.score`."""
        found: Scores = await self._asked("score", messages, (tuple(messages), tuple(ids), top))
        return found

    async def load(self, folder: str | Path) -> None:
        """Ends the workers once they have answered; those that the next request starts have the weights in `folder`.

        The folder has to exist on every machine.
        """
        if self._made_on is None:
            raise UserError("these workers cannot be made on another folder; make a new engine there")
        before, self._crew, self._make = self._crew, None, self._made_on(Path(folder))
        await asyncio.gather(*self._under_way)
        if before is not None:
            await before.close()

    async def _asked(self, method: str, messages: Sequence[Message], arguments: tuple[Any, ...]) -> Any:
        if self._crew is None:
            self._crew = Crew(self._start, partial(EngineService, self._make), self._size)
        crew, root = self._crew, next((message.content for message in messages if message.role == "user"), "")
        over = asyncio.get_running_loop().create_future()
        self._under_way.add(over)
        try:
            return await self._answer(crew, self._home(root), (method, arguments))
        finally:
            self._under_way.discard(over)
            over.set_result(None)

    async def _answer(self, crew: Crew, home: int, request: Request) -> Any:
        lost, why = 0, ""
        while lost < TRIES:
            line = await crew.line(home)
            # When a machine is gone, some of its replicas are not known to be: one that has not answered was not lost by this request.
            if lost and not await _answers(line):
                continue
            try:
                found, since = await line.ask(request)
            except WorkerLost as how:
                lost, why = lost + 1, str(how)
                continue
            self._count(since)
            return found
        raise EngineError(f"a request lost {TRIES} replicas of the engine, the last one: {why}; the same command goes on from here")

    def _home(self, root: str) -> int:
        if root not in self._homes:
            self._homes[root] = min(range(self._size), key=lambda number: (self._tasks[number], number))
            self._tasks[self._homes[root]] += 1
        return self._homes[root]

    def _count(self, since: EngineStats) -> None:
        for name, amount in vars(since).items():
            setattr(self.stats, name, getattr(self.stats, name) + amount)

    async def close(self) -> None:
        """Ends the workers; requests in flight are cancelled."""
        if self._crew is not None:
            await self._crew.close()


async def _answers(line: Line) -> bool:
    try:
        await line.ask(None)
    except WorkerLost:
        return False
    return True
