"""One engine in workers, a replica in each: any request may be answered by any of them, so a lost one costs time and nothing else.

All requests about a task go to the same replica, where the prefixes that they share were computed. A replica that is lost is replaced, and
what it had been asked is asked again: a completion is a function of the ask alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import astuple
from functools import partial

from leafe.engines.base import Engine, EngineStats
from leafe.errors import EngineError
from leafe.records import Ask, Completion
from leafe.scale.line import Crew, Line, Starter, WorkerLost

TRIES = 3  # replicas that a request may lose


class EngineService:
    """In a worker: an engine."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._engine = make()
        self._told = EngineStats()

    async def serve(self, request: Ask | None) -> tuple[Completion, EngineStats] | None:
        """A completion, and what was counted since the last one. None asks whether anybody is there."""
        if request is None:
            return None
        completion = await self._engine.generate(request)
        now = EngineStats(*astuple(self._engine.stats))
        since = EngineStats(*(new - old for new, old in zip(astuple(now), astuple(self._told), strict=True)))
        self._told = now
        return completion, since

    async def close(self) -> None:
        """Lets go of the model."""
        await self._engine.close()


class SpreadEngine:
    """`replicas` workers, each with the engine that `make` makes. `concurrency` is theirs together.

    The workers start with the first request; what keeps the engine from being made is raised by it.
    """

    def __init__(self, start: Starter, make: Callable[[], Engine], *, replicas: int, concurrency: int) -> None:
        self.stats = EngineStats()
        self.concurrency = concurrency
        self._start, self._make, self._size = start, make, replicas
        self._crew: Crew | None = None
        self._homes: dict[str, int] = {}
        self._tasks: Counter[int] = Counter()

    async def generate(self, ask: Ask) -> Completion:
        """One completion. Raises `EngineError`, also when a request has lost three replicas."""
        if self._crew is None:
            self._crew = Crew(self._start, partial(EngineService, self._make), self._size)
        root = next((message.content for message in ask.messages if message.role == "user"), "")
        lost, why = 0, ""
        while lost < TRIES:
            line = await self._crew.line(self._home(root))
            # Of the replicas on a machine that is gone some are not known to be: one that has not answered was not lost by this request.
            if lost and not await _answers(line):
                continue
            try:
                completion, since = await line.ask(ask)
            except WorkerLost as how:
                lost, why = lost + 1, str(how)
                continue
            self._count(since)
            found: Completion = completion
            return found
        raise EngineError(
            f"a request lost {TRIES} replicas of the engine, the last one so: {why}; the same command goes on from here"
        )

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
