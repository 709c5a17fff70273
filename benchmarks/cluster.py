"""A model of a cluster under the real driver: a virtual clock, replicas of an engine, worlds behind a pool.

The explorers, the driver and the worlds' answers are the package's; only time is simulated. An event loop whose clock jumps to the next
event plays hours in seconds, and the same seed gives the same figures. The model: a pass of the engine takes
`base + sequence * batch + token * context` seconds, prompts are computed at a rate and cut into chunks, prefixes of a task are kept while
there is room, and the lengths of replies and the times of world calls are drawn from distributions. Not modelled are the network, loading
weights, memory that runs out in the middle of a reply, and any other interference between requests.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import selectors
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import exp, log, sqrt
from typing import Any, TypeVar

from leafe.engines.base import EngineStats
from leafe.envs.base import Environment, Fidelity, Placement
from leafe.envs.calls import Answer, Call, carry_out
from leafe.envs.world import World
from leafe.records import Ask, Completion, Message, Observation, Task

Result = TypeVar("Result")
CHOICES = 40  # actions of an errand, one of which succeeds


class _NoWaiting(selectors.DefaultSelector):  # type: ignore[valid-type, misc]
    """A selector that advances the clock instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0) if timeout is None else []
        if timeout is None and not ready:
            raise RuntimeError("every task waits and no event is left")
        self.now += max(0.0, timeout or 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a virtual clock. Nothing in it may wait for real events: no threads, processes or sockets."""

    def __init__(self) -> None:
        self._clock = _NoWaiting()
        super().__init__(self._clock)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._clock.now


def run_virtually(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of the work, on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


class Level:
    """A number that changes over time, with its mean, 95th percentile and maximum, weighted by time."""

    def __init__(self) -> None:
        self._clock = asyncio.get_running_loop().time
        self.value, self._since = 0, self._clock()
        self._held: dict[int, float] = {}

    def add(self, change: int) -> None:
        """Changes the number by `change`."""
        now = self._clock()
        if now > self._since:
            self._held[self.value] = self._held.get(self.value, 0.0) + now - self._since
        self.value, self._since = self.value + change, now

    @property
    def _times(self) -> list[tuple[int, float]]:
        self.add(0)
        return sorted(self._held.items())

    @property
    def mean(self) -> float:
        """The mean over time."""
        return sum(value * seconds for value, seconds in self._times) / (sum(self._held.values()) or 1.0)

    @property
    def busy(self) -> float:
        """The share of the time in which it was above zero."""
        return sum(seconds for value, seconds in self._times if value) / (sum(self._held.values()) or 1.0)

    def share(self, wanted: float) -> int:
        """The value that was not exceeded in this share of the time."""
        times, passed = self._times, 0.0
        enough = wanted * sum(self._held.values()) * (1 - 1e-9)
        for value, seconds in times:
            passed += seconds
            if passed >= enough:
                return value
        return 0

    @property
    def most(self) -> int:
        """The maximum over time."""
        return max(self._held, default=0)


@dataclass(frozen=True)
class Spread:
    """A distribution of positive numbers: always `mean`, or with `sigma` lognormal with that mean."""

    mean: float
    sigma: float = 0.0

    @classmethod
    def read(cls, text: str) -> Spread:
        """`0.1` is constant, `0.1:0.8` lognormal."""
        mean, _, sigma = text.partition(":")
        return cls(float(mean), float(sigma or 0))

    def draw(self, source: random.Random) -> float:
        """One number."""
        if not self.sigma:
            return self.mean
        return source.lognormvariate(log(self.mean) - self.sigma**2 / 2, self.sigma)

    @property
    def percentile_99(self) -> float:
        """The value that one in a hundred exceeds."""
        return self.mean * exp(2.326 * self.sigma - self.sigma**2 / 2) if self.sigma else self.mean


@dataclass(frozen=True)
class Card:
    """One replica: seconds of a pass by batch and context, tokens of prompts a second, and its capacity.

    `slots` are requests at once, `kept` tokens of keys and values, `chunk` tokens of prompts in one pass.
    """

    base: float
    sequence: float
    token: float
    prefill: float
    slots: int = 256
    kept: int = 1_500_000
    chunk: int = 8192

    def passes(self, count: int, batch: int, context: float) -> float:
        """Seconds of `count` passes over a batch that reads `context` tokens in the first and one more a request in each later one."""
        return count * (self.base + self.sequence * batch + self.token * context) + self.token * batch * count * (count - 1) / 2

    def best(self, sampled: float, context: float, fresh: float) -> float:
        """Seconds for so many tokens, sampled with every slot full and a mean `context` a request, and so many of prompts."""
        return sampled / self.slots * self.passes(1, self.slots, self.slots * context) + fresh / self.prefill


@dataclass(frozen=True)
class Lengths:
    """Tokens of the first prompt, of observations, and of replies."""

    first: int = 800
    observation: int = 120
    reply: Spread = Spread(150, 0.6)
    reflection: Spread = Spread(300, 0.6)
    most: int = 1024


@dataclass
class _Request:
    prompt: int
    fresh: int
    length: int
    done: asyncio.Future[None]


@dataclass
class _Replica:
    """Continuous batching: each pass draws a token for all running requests; new ones enter between two passes, prompts go in chunks.

    Passes without an event in between are taken in one jump, which an arrival cuts short.
    """

    card: Card
    queue: Level = field(default_factory=Level)
    batch: Level = field(default_factory=Level)
    _waiting: deque[_Request] = field(default_factory=deque)
    _filling: deque[_Request] = field(default_factory=deque)
    _running: list[tuple[int, int, _Request]] = field(default_factory=list)
    _known: OrderedDict[str, tuple[tuple[Message, ...], int]] = field(default_factory=OrderedDict)
    _remembered: int = 0
    _passed: int = 0
    _context: int = 0
    _number: int = 0
    _timer: asyncio.TimerHandle | None = None
    _jump: tuple[float, int] | None = None

    def submit(self, request: _Request) -> None:
        """Takes a request in."""
        self._waiting.append(request)
        self.queue.add(1)
        if self._timer is None:
            self._begin()
        elif self._jump and len(self._running) < self.card.slots:
            self._cut(*self._jump)

    def reused(self, root: str, messages: tuple[Message, ...], length: Callable[[Message], int]) -> int:
        """Tokens of a prompt kept from an earlier one of the same task; keeps this one, and forgets the least recently used."""
        before, held = self._known.pop(root, ((), 0))
        self._remembered -= held
        shared = 0
        for old, new in zip(before, messages, strict=False):
            if old != new:
                break
            shared += length(new)
        tokens = sum(map(length, messages))
        self._known[root], self._remembered = (messages, tokens), self._remembered + tokens
        while self._remembered > self.card.kept:
            self._remembered -= self._known.popitem(last=False)[1][1]
        # The reply after the earlier prompt was computed too, if this prompt continues from it.
        follows = shared and len(messages) > len(before) and messages[len(before)].sampled and messages[: len(before)] == before
        return shared + (length(messages[len(before)]) if follows else 0)

    def _begin(self) -> None:
        while self._waiting and len(self._running) + len(self._filling) < self.card.slots:
            self._filling.append(self._waiting.popleft())
            self.queue.add(-1)
            self.batch.add(1)
        self._timer = self._jump = None
        loop = asyncio.get_running_loop()
        seconds = self.card.passes(1, len(self._running), self._context)
        if self._filling:
            room, ready = self.card.chunk, list[_Request]()
            while self._filling and room:
                part = min(room, self._filling[0].fresh)
                self._filling[0].fresh -= part
                room -= part
                if not self._filling[0].fresh:
                    ready.append(self._filling.popleft())
            self._timer = loop.call_later(seconds + (self.card.chunk - room) / self.card.prefill, self._end, 1, ready)
        elif self._running:
            count = self._running[0][0] - self._passed
            self._jump = loop.time(), count
            seconds = self.card.passes(count, len(self._running), self._context)
            self._timer = loop.call_later(seconds, self._end, count, [])

    def _cut(self, began: float, count: int) -> None:
        """Ends a jump after its present pass."""
        assert self._timer is not None
        loop, batch = asyncio.get_running_loop(), len(self._running)
        each, more = self.card.passes(1, batch, self._context), self.card.token * batch
        past = loop.time() - began
        # The smallest number of passes that take at least so long: a quadratic, rounded to one side and corrected to the other.
        root = past / each if not more else (sqrt((each - more / 2) ** 2 + 2 * more * past) - (each - more / 2)) / more
        whole = max(1, min(count, int(root)))
        while whole < count and self.card.passes(whole, batch, self._context) < past:
            whole += 1
        self._timer.cancel()
        self._jump = None
        self._timer = loop.call_at(began + self.card.passes(whole, batch, self._context), self._end, whole, [])

    def _end(self, count: int, ready: Sequence[_Request]) -> None:
        self._passed += count
        self._context += len(self._running) * count
        for request in ready:  # requests whose prompt gave the first token
            self._number += 1
            self._context += request.prompt + 1
            heapq.heappush(self._running, (self._passed + request.length - 1, self._number, request))
        while self._running and self._running[0][0] <= self._passed:
            request = heapq.heappop(self._running)[2]
            self._context -= request.prompt + request.length
            self.batch.add(-1)
            if not request.done.done():
                request.done.set_result(None)
        self._begin()


class Processor:
    """The driver's single core: each effect takes `seconds` of it, one after another. `alone` is the time of each job alone."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.effects, self._free = seconds, 0, 0.0
        self.alone: dict[str, float] = {}

    def add(self, seconds: float) -> None:
        """Counts time that the present job waits for in any case."""
        rollout = asyncio.current_task()
        assert rollout is not None, "effects are carried out in tasks"
        self.alone[rollout.get_name()] = self.alone.get(rollout.get_name(), 0.0) + seconds

    async def spend(self) -> None:
        """Waits for the core and uses it."""
        self.effects += 1
        if self.seconds:
            now = asyncio.get_running_loop().time()
            self._free = max(self._free, now) + self.seconds
            await asyncio.sleep(self._free - now)


class SimulatedEngine:
    """N replicas; `answer` makes their replies, the card determines their times. A task stays with one replica, as in the package."""

    def __init__(self, card: Card, replicas: int, answer: Callable[[Ask], str], lengths: Lengths, processor: Processor) -> None:
        self.stats, self.concurrency = EngineStats(), card.slots * replicas
        self.card, self.lengths, self.read = card, lengths, 0
        self.replicas = [_Replica(card) for _ in range(replicas)]
        self._answer, self._processor = answer, processor
        self._homes: dict[str, _Replica] = {}
        self._assigned = Counter[int]()

    async def generate(self, ask: Ask) -> Completion:
        """A reply, when the replica of its task has drawn it."""
        await self._processor.spend()
        text, draw = self._answer(ask), random.Random(f"length {ask.seed}")
        spread = self.lengths.reply if ask.purpose == "act" else self.lengths.reflection
        length = max(1, min(self.lengths.most, round(spread.draw(draw))))
        root = next(message.content for message in ask.messages if message.role == "user")
        home = self._home(root)
        prompt = sum(map(self._length, ask.messages))
        fresh = max(1, prompt - home.reused(root, ask.messages, self._length))
        self.stats.requests += 1
        self.stats.prompt_tokens += prompt
        self.stats.reused_tokens += prompt - fresh
        self.stats.sampled_tokens += length
        self.read += (prompt + length // 2) * length  # context tokens read for it, over all passes
        self._processor.add(fresh / self.card.prefill + self.card.passes(length, 1, prompt))
        done = asyncio.get_running_loop().create_future()
        home.submit(_Request(prompt, fresh, length, done))
        await done
        return Completion(text, prompt_tokens=prompt, counted=length)

    def _length(self, message: Message) -> int:
        if message.sampled:
            return round(self.lengths.reply.mean)
        return self.lengths.first if message.role == "system" else self.lengths.observation

    def _home(self, root: str) -> _Replica:
        if root not in self._homes:
            numbers = range(len(self.replicas))
            number = min(
                numbers, key=lambda one: (self.replicas[one].batch.value + self.replicas[one].queue.value, self._assigned[one])
            )
            self._assigned[number] += 1
            self._homes[root] = self.replicas[number]
        return self._homes[root]

    def best(self) -> float:
        """Seconds of the same work with every slot of every replica always full."""
        stats = self.stats
        context = self.read / (stats.sampled_tokens or 1)
        fresh = stats.prompt_tokens - stats.reused_tokens
        return self.card.best(stats.sampled_tokens, context, fresh) / len(self.replicas)

    async def close(self) -> None:
        """Holds nothing."""


@dataclass(frozen=True)
class Pace:
    """The times of worlds: a step or reset, for a `share` of worlds `factor` times as long. `workers` calls run at once, 0 for any."""

    step: Spread
    share: float = 0.0
    factor: float = 1.0
    workers: int = 0


class SimulatedWorlds:
    """A pool of `room` worlds with the environment's answers and the times of `pace`."""

    def __init__(self, make: Callable[[], Environment], room: int, pace: Pace, *, seed: int, processor: Processor) -> None:
        self.make, self.pace, self.seed, self.processor = make, pace, seed, processor
        self.room = asyncio.Semaphore(room)
        self.workers = asyncio.Semaphore(pace.workers) if pace.workers else None
        self.sessions, self.queue, self.working = Level(), Level(), Level()
        self.seconds, self.steps = 0.0, 0

    async def session(self) -> _SimulatedSeat:
        """A world, when there is room."""
        await self.room.acquire()
        self.sessions.add(1)
        return _SimulatedSeat(self)

    async def close(self) -> None:
        """Holds nothing."""


class _SimulatedSeat:
    def __init__(self, worlds: SimulatedWorlds) -> None:
        self._worlds, self._world = worlds, World(worlds.make())
        self._draw, self._factor = random.Random(), 1.0

    async def take(self, call: Call) -> Answer:
        worlds = self._worlds
        await worlds.processor.spend()
        if call.task is not None:
            self._draw = random.Random(f"{worlds.seed} {call.task.id}") if self._world.turn == 1 else self._draw
            self._factor = worlds.pace.factor if _is_slow(worlds.seed, call.task.id, worlds.pace.share) else 1.0
        answer = carry_out(self._world, call)
        replayed = answer.replayed_steps + 1 if answer.replayed_steps else 0
        steps = replayed if call.verb in ("rollback", "replay") else 1
        seconds = sum(self._factor * worlds.pace.step.draw(self._draw) for _ in range(steps))
        worlds.seconds, worlds.steps = worlds.seconds + seconds, worlds.steps + steps
        worlds.processor.add(seconds)
        worlds.queue.add(1)
        if worlds.workers:
            await worlds.workers.acquire()
        worlds.queue.add(-1)
        worlds.working.add(1)
        try:
            await asyncio.sleep(seconds)
        finally:
            worlds.working.add(-1)
            if worlds.workers:
                worlds.workers.release()
        return answer

    async def leave(self) -> None:
        self._worlds.sessions.add(-1)
        self._worlds.room.release()


@cache
def _is_slow(seed: int, task: str, share: float) -> bool:
    return random.Random(f"slow {seed} {task}").random() < share


class Errand(Environment):
    """One of many actions succeeds; a step or reset takes `seconds`."""

    name = "errand"
    placement = Placement.THREAD

    def __init__(self, *, horizon: int = 30, seconds: float = 0.0, snapshots: bool = True) -> None:
        self.fidelity = Fidelity.SNAPSHOT if snapshots else Fidelity.REPLAY
        self._horizon, self._seconds = horizon, seconds
        self._right, self._over, self._steps = "", False, 0

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        draw = random.Random(f"{split} {seed}")
        return [
            Task(f"errand-{number}", self.name, f"Errand {number}.", self._horizon, {"right": f"try {draw.randrange(CHOICES)}"})
            for number in range(count)
        ]

    def reset(self, task: Task) -> Observation:
        self._wait()
        self._right, self._over, self._steps = str(task.payload["right"]), False, 0
        return Observation(f"{task.instruction} Say: try N.")

    def step(self, action: str) -> Observation:
        self._wait()
        self._over, self._steps = self._over or action == self._right, self._steps + 1
        return Observation(f"Tried {action!r:.20}.", self._over, self._over, float(self._over))

    def _wait(self) -> None:
        if self._seconds:
            time.sleep(self._seconds)

    def snapshot(self) -> Any:
        return self._right, self._over, self._steps

    def restore(self, snapshot: Any) -> None:
        self._right, self._over, self._steps = snapshot


# Of one H200 in bfloat16, decoding with a CUDA graph a bucket of batch and context, over which these lines are drawn: 7B shape 11.5 ms at
# 64 x 1,024 tokens and 22.7 ms at 128 x 2,048; 0.5B shape 3.98 ms at 32 x 512, 5.79 at 64 x 1,024, 13.5 at 256 x 1,024. Prompts: computed,
# two operations a weight and token at 45 % of 790 TFLOP/s. Kept tokens: what 90 % of 141 GB leaves beside the weights.
CARDS = {
    "7b": Card(base=7.77e-3, sequence=0.0, token=57e-9, prefill=23_000, kept=1_900_000),
    "0.5b": Card(base=3.38e-3, sequence=0.0, token=37e-9, prefill=350_000, kept=10_000_000),
}
