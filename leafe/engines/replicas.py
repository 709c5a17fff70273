"""One engine in several processes, each with its own copy of the model, to use several cores or accelerators.

All requests about one task go to the same process, where the prefixes that they share were computed. On processors a completion is a
function of the ask alone, so the number of processes changes no draw; on GPUs this holds up to rounding. A process
that dies fails the requests that it had.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from leafe import lifeline
from leafe.engines.base import Engine, EngineStats, Scores
from leafe.errors import EngineError, LeafeError
from leafe.records import Ask, Completion, Message

PATIENCE = 10.0  # seconds that a process has to end by itself once it is asked to


@dataclass(frozen=True, slots=True)
class _Answer:
    """A process's answer: the result of request `number` or the reason why there is none, and the engine's statistics so far."""

    number: int
    result: Any
    refusal: LeafeError | None
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class _Request:
    """A call of an engine's method by its name."""

    method: str
    arguments: tuple[Any, ...]


class ReplicatedEngine:
    """A process for each of `makes`, which return equal engines and have to be picklable. `concurrency` is the sum of theirs,
    `obstacle` that of any.

    Raises what they raise. Requests may come from one event loop at a time.
    """

    continues = True  # true of every engine that holds its model

    def __init__(self, makes: Sequence[Callable[[], Engine]]) -> None:
        self.stats = EngineStats()
        self._replicas: list[_Replica] = []
        self._homes: dict[str, _Replica] = {}
        self._assigned: Counter[int] = Counter()
        try:
            for number, make in enumerate(makes):  # one by one: started processes are stopped when the next one fails
                self._replicas.append(_Replica(make, number, self._add_up))
            ready = [replica.ready() for replica in self._replicas]
            self.concurrency = sum(concurrency for concurrency, _ in ready)
            self.obstacle = next((obstacle for _, obstacle in ready if obstacle), "")
        except BaseException:
            for replica in self._replicas:
                replica.stop()
            raise

    async def generate(self, ask: Ask) -> Completion:
        """One completion, a function of the ask alone. Raises `EngineError` when its process failed or died."""
        completion: Completion = await self._home(ask.messages).call("generate", ask)
        return completion

    async def score(self, messages: Sequence[Message], ids: Sequence[int], top: int = 0) -> Scores:
        """Log-probabilities of `ids` after `messages`. Raises what the engine raises, and `EngineError` when its process died."""
        scores: Scores = await self._home(messages).call("score", tuple(messages), tuple(ids), top)
        return scores

    async def load(self, folder: str | Path) -> None:
        """Loads the weights in `folder` in one process after another, so that a folder that the first refuses changes none."""
        for replica in self._replicas:
            await replica.call("load", folder)

    def _home(self, messages: Sequence[Message]) -> _Replica:
        root = next((message.content for message in messages if message.role == "user"), "")
        if root not in self._homes:
            self._homes[root] = min(self._replicas, key=lambda replica: (replica.busy, self._assigned[replica.number]))
            self._assigned[self._homes[root].number] += 1
        return self._homes[root]

    async def close(self) -> None:
        """Ends the processes; requests in flight are cancelled."""
        for replica in self._replicas:
            replica.cancel()
        await asyncio.gather(*(asyncio.to_thread(replica.stop) for replica in self._replicas))

    def _add_up(self) -> None:
        sums = [sum(values) for values in zip(*(astuple(replica.stats) for replica in self._replicas), strict=True)]
        totals = EngineStats(*sums)
        self.stats.__dict__.update(totals.__dict__)


class _Replica:
    """The parent's side of one process: a pipe to it, and a thread that waits for its answers."""

    def __init__(self, make: Callable[[], Engine], number: int, counted: Callable[[], None]) -> None:
        self.number, self.stats, self._counted = number, EngineStats(), counted
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._lock = threading.Lock()
        self._asked = 0
        self._gone = ""
        context = _context()
        self._pipe, far = context.Pipe()
        with lifeline.connection() as life:
            self._process: BaseProcess = context.Process(
                target=_serve, args=(make, far, life), name=f"leafe-engine-{number}", daemon=True
            )
            self._process.start()
        far.close()  # so that the pipe ends with the process
        self._listener = threading.Thread(target=self._listen, name=f"leafe-engine-{number}", daemon=True)

    @property
    def busy(self) -> int:
        """Requests in flight."""
        return len(self._waiting)

    def ready(self) -> tuple[int, str]:
        """Waits until the engine is made; returns its concurrency and its obstacle, if any. Raises the error that prevented it."""
        try:
            first = self._pipe.recv()
        except EOFError:
            raise EngineError(f"an engine process ended while it loaded the model ({self._how_it_ended()})") from None
        except Exception as error:
            raise EngineError(f"an engine process failed with an error that cannot be read ({_in_words(error)})") from None
        if isinstance(first, BaseException):
            raise first
        self._listener.start()
        concurrency, obstacle = first
        return int(concurrency), str(obstacle)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Sends a request and waits for its answer."""
        number = self._asked
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked += 1
        with self._lock:
            if self._gone:
                raise EngineError(self._gone)
            self._waiting[number] = future
        try:
            self._send((number, _Request(method, arguments)))
            return await future
        except asyncio.CancelledError:
            self._send((number, None))
            raise
        finally:
            self._waiting.pop(number, None)

    def cancel(self) -> None:
        """Cancels the requests in flight."""
        for future in list(self._waiting.values()):
            future.cancel()

    def stop(self) -> None:
        """Ends the process: first by asking, then by force."""
        self._send(None)
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        if self._listener.is_alive():
            self._listener.join()
        self._pipe.close()

    def _send(self, message: tuple[int, _Request | None] | None) -> None:
        try:
            self._pipe.send(message)
        except OSError:  # it is gone: the listener fails the waiting requests
            return

    def _listen(self) -> None:
        wrong = ""
        while True:
            try:
                answer: _Answer = self._pipe.recv()
            except (EOFError, OSError):
                break
            except Exception as error:  # nobody may wait for ever for an answer that cannot be read
                wrong = f"an engine process sent an answer that cannot be read ({_in_words(error)})"
                break
            self.stats = answer.stats
            self._counted()
            self._tell(self._waiting.get(answer.number), answer.result, answer.refusal)
        with self._lock:
            self._gone = wrong or f"an engine process ended ({self._how_it_ended()}); the same command goes on from here"
            left = list(self._waiting.values())
        for future in left:
            self._tell(future, None, EngineError(self._gone))

    def _tell(self, future: asyncio.Future[Any] | None, result: Any, refusal: LeafeError | None) -> None:
        def settle() -> None:
            if future is None or future.done():
                return
            if refusal is None:
                future.set_result(result)
            else:
                future.set_exception(refusal)

        if future is not None:
            try:
                future.get_loop().call_soon_threadsafe(settle)
            except RuntimeError:  # the loop was closed, so nothing waits any more
                return

    def _how_it_ended(self) -> str:
        self._process.join(PATIENCE)
        return f"exit status {self._process.exitcode}; a negative one is a signal, and -9 is often a lack of memory"


def _in_words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _failure(error: Exception) -> EngineError:
    """A bug in a process as an error that can be sent, with its place."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return EngineError(f"an engine process failed with {_in_words(error)} ({at.filename}, line {at.lineno})")


def _context() -> Any:
    """A fork server with the libraries loaded, where the system has fork servers: a process then starts in less than a second."""
    if sys.platform == "win32" or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["leafe.engines.transformers"])
    return context


def _serve(make: Callable[[], Engine], pipe: Connection, life: Connection) -> None:
    """The main function of a process: makes its engine and answers until the pipe ends."""
    lifeline.hold(life)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt from the keyboard reaches the parent, which ends this process
    disable_progress_bar()  # only the parent shows progress
    try:
        engine = make()
    except Exception as error:  # raised again in the parent
        pipe.send(error)
        return
    pipe.send((engine.concurrency, getattr(engine, "obstacle", "")))
    asyncio.run(_answer_all(engine, pipe))


async def _answer_all(engine: Engine, pipe: Connection) -> None:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    running: dict[int, asyncio.Task[None]] = {}

    async def answer(number: int, request: _Request) -> None:
        try:
            reply = _Answer(number, await getattr(engine, request.method)(*request.arguments), None, engine.stats)
        except LeafeError as error:
            reply = _Answer(number, None, error, engine.stats)
        except Exception as error:
            reply = _Answer(number, None, _failure(error), engine.stats)
        finally:
            running.pop(number, None)
        try:
            pipe.send(reply)
        except OSError:  # the parent is gone
            return
        except Exception as error:  # what cannot be pickled
            pipe.send(_Answer(number, None, _failure(error), engine.stats))

    def take(number: int, request: _Request | None) -> None:
        if request is not None:
            running[number] = loop.create_task(answer(number, request))
        elif number in running:
            running[number].cancel()

    def listen() -> None:
        try:
            while (message := pipe.recv()) is not None:
                loop.call_soon_threadsafe(take, *message)
        except (EOFError, OSError):
            pass
        loop.call_soon_threadsafe(over.set)

    threading.Thread(target=listen, name="leafe-requests", daemon=True).start()
    await over.wait()
    for task in list(running.values()):
        task.cancel()
    await asyncio.gather(*running.values(), return_exceptions=True)
    await engine.close()
