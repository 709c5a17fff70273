"""The same work in several processes on this machine, as `torchrun` would start it."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from signal import getsignal
from tempfile import NamedTemporaryFile, TemporaryDirectory
from threading import Thread, current_thread, main_thread
from types import FrameType
from typing import Protocol, TypeVar

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from leafe import lifeline
from leafe.errors import UserError
from leafe.training.memory import give_back

T = TypeVar("T")
LAUNCHER = ("torch.distributed", "torch.multiprocessing")
ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
WHOLE = ".whole"  # ends the name of a file that is completely written


class ProgressCallback(Protocol):
    """A function that is called with the number of steps done and the total."""

    def __call__(self, done: int, total: int) -> None:
        """Called after every step."""
        ...


def in_processes(count: int, work: Callable[[Callable[..., None]], T], told: Callable[..., None]) -> T:
    """Runs `work` in `count` processes and returns the first one's result. `work` and its result have to be picklable.

    `told` is called with the values that the first process passes to its `work`'s argument. A failure of any process ends all of them: a
    `UserError` is raised here, another failure as torch's `ChildFailedError`. An interrupt, or another signal to end, is raised as
    `KeyboardInterrupt`. All of them end with this process.
    """
    # A pipe with one writer has no lock, which a process that is ended may hold for ever, as that of a queue.
    heard, steps = get_context("spawn").Pipe(duplex=False)
    listener = Thread(target=_listen, args=(heard, told), daemon=True)
    listener.start()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"leafe-{os.getpid()}",
        max_restarts=0,
        start_method="spawn",
        signals_to_handle="",  # torch would never restore their handlers, and passes SIGINT on, which a process may swallow
    )
    give_back()
    with TemporaryDirectory() as refusals, _Line() as line:
        try:
            with lifeline.connection() as life, _interruptible(line), _silent():
                results = elastic_launch(config, _first_tells)(work, steps, (life, line.held), Path(refusals))
            line.tell()
        except ChildFailedError:
            line.tell()
            if refused := _read_refusal(Path(refusals)):
                raise refused from None
            raise
        finally:
            steps.close()
            listener.join()
            heard.close()
    first: T = results[0]
    return first


class _Line:
    """A pipe that the processes hold, and that an interrupt cuts.

    Python loses an exception that a signal raises in a finalizer or in a callback of its garbage collector. The processes end nevertheless,
    and the interrupt is told afterwards.
    """

    def __init__(self) -> None:
        self._interrupted = False
        self.held, self._end = get_context("spawn").Pipe(duplex=False)

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *error: object) -> None:
        self.held.close()
        self._end.close()

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """A signal handler that ends the processes and raises `KeyboardInterrupt`."""
        self._interrupted = True
        self._end.close()
        raise KeyboardInterrupt

    def tell(self) -> None:
        """Raises `KeyboardInterrupt` if there was an interrupt whose exception was lost."""
        if self._interrupted:
            raise KeyboardInterrupt from None


@contextmanager
def _interruptible(line: _Line) -> Iterator[None]:
    """Makes signals to end cut the line and raise `KeyboardInterrupt`, except those that are ignored."""
    before = {number: getsignal(number) for number in ENDINGS} if current_thread() is main_thread() else {}
    # None is a handler that was not installed by Python and cannot be restored.
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, line.interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _silent() -> Iterator[None]:
    """Silences the launcher's loggers, which repeat what it raises, each with a level of its own."""
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith(LAUNCHER)]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_tells(work: Callable[[Callable[..., None]], T], steps: Connection, lines: Sequence[Connection], refusals: Path) -> T:
    for line in lines:
        lifeline.hold(line)
    first = os.environ["RANK"] == "0"
    try:
        return work(lambda *values: steps.send(values) if first else None)
    except UserError as error:
        _write_refusal(error, refusals)
    sys.exit(2)  # a failure, at which the launcher ends the others, who may wait for this process


def _write_refusal(error: UserError, folder: Path) -> None:
    """Keeps an error as its class and arguments, since a class may be made from others than it keeps."""
    with NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(pickle.dumps((type(error), error.args)))
    Path(file.name).rename(f"{file.name}{WHOLE}")


def _read_refusal(folder: Path) -> UserError | None:
    for file in sorted(folder.glob(f"*{WHOLE}")):
        kind, arguments = pickle.loads(file.read_bytes())
        error: UserError = kind.__new__(kind, *arguments)
        return error
    return None


def _listen(heard: Connection, told: Callable[..., None]) -> None:
    """Reports values until all processes that could send some have ended."""
    while True:
        try:
            values = heard.recv()
        except (EOFError, OSError):  # the latter in the middle of a value
            return
        told(*values)
