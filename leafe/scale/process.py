"""Workers in processes of this machine: each a fresh interpreter with a desk, connected by a socket.

It leads a process group of its own, and the kernel ends it when this process is gone. Messages are pickled: both ends are ours.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

from leafe import lifeline
from leafe.errors import UserError
from leafe.scale.desk import Answer, Desk, Order, Service
from leafe.scale.line import Link, WorkerLost

GRACE = 5.0  # seconds for a worker to close what it holds
SIZE = 8  # bytes of a message's length


async def start_process(make: Callable[[], Service]) -> Link:
    """A worker in a process. Raises `UserError` for a function that cannot be pickled."""
    try:
        recipe = pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"what lives in a worker wants to be made by a function that can be pickled; found {make!r:.80}: {error}"
        ) from None
    ours, theirs = socket.socketpair()
    said = tempfile.TemporaryFile("a+b")
    life = lifeline.descriptor()
    code = "import sys; from leafe.scale.process import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno()), str(life)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            pass_fds=(theirs.fileno(), life),
            start_new_session=True,
        )
    try:
        reader, writer = await asyncio.open_connection(sock=ours)
        link = ProcessLink(process, reader, writer, said)
        await link.send(recipe)
    except BaseException:  # otherwise the process would be left running
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return link


class ProcessLink:
    """The link to a started process, `pid`."""

    gather = 0.0  # a message costs next to nothing

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: IO[bytes]
    ) -> None:
        self.pid, self._ended = process.pid, False
        self._process, self._reader, self._writer, self._said = process, reader, writer, said

    async def send(self, message: bytes) -> None:
        """Sends one message. Raises `WorkerLost`."""
        try:
            self._writer.write(len(message).to_bytes(SIZE, "big") + message)
            await self._writer.drain()
        except OSError as error:
            raise WorkerLost(self._last_words()) from error

    async def hand_in(self, orders: list[Order]) -> None:
        """Sends orders."""
        await self.send(pickle.dumps(orders))

    async def collect(self) -> list[Answer]:
        """Waits for answers."""
        try:
            found: list[Answer] = await _message(self._reader)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise WorkerLost(self._last_words()) from error
        return found

    async def end(self) -> None:
        """Ends the process, gently at first, and all that it started."""
        if self._ended:
            return
        with suppress(OSError):
            if self._writer.can_write_eof():
                self._writer.write_eof()
        with suppress(TimeoutError, OSError):
            await asyncio.wait_for(self._drained(), GRACE)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)
        self._ended = True
        self._writer.close()
        self._said.close()

    async def _drained(self) -> None:
        while await self._reader.read(2**16):
            pass

    def _last_words(self) -> str:
        try:
            status = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "it closed its socket"
        how = f"it was ended by {signal.Signals(-status).name}" if status < 0 else f"it ended with exit status {status}"
        self._said.seek(0)
        words = self._said.read().decode("utf-8", "replace").strip().splitlines()
        return f"{how}: {words[-1].strip()[:300]}" if words else how


async def _message(reader: asyncio.StreamReader) -> Any:
    return pickle.loads(await reader.readexactly(int.from_bytes(await reader.readexactly(SIZE), "big")))


def serve(descriptor: int, life: int) -> None:
    """The work of a worker's process: serves orders until the socket is closed."""
    lifeline.hold(life, group=True)
    os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt from the keyboard reaches the parent, which ends us
    link = socket.socket(fileno=descriptor)
    length = int.from_bytes(link.recv(SIZE, socket.MSG_WAITALL), "big")
    make = pickle.loads(link.recv(length, socket.MSG_WAITALL))  # outside of the loop, for it may import anything
    asyncio.run(_serve(make, link))


async def _serve(make: Callable[[], Service], link: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=link)
    desk = Desk(make)

    async def answer() -> None:
        while True:
            message = pickle.dumps(await desk.collect())
            writer.write(len(message).to_bytes(SIZE, "big") + message)
            await writer.drain()

    answering = asyncio.create_task(answer())
    with suppress(asyncio.IncompleteReadError, OSError):
        while True:
            await desk.hand_in(await _message(reader))
    answering.cancel()
    await desk.close()
    writer.close()
