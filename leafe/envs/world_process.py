"""A world in a process of its own: the handle that the parent holds, and the child's side.

The child is a fresh interpreter that receives a pickled function for making its environment; then calls and answers are lines of JSON
over a socket. It leads its own process group: everything it started ends with it, and the kernel ends both when the parent is gone. A
child that crashes or hangs is a lost episode (`EnvironmentFailure`); the next call starts another. One thread at a time may call a
handle; `kill` may come from any.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

from leafe import lifeline
from leafe.envs.base import Environment
from leafe.envs.calls import START, Answer, Call, carry_out, patience_for
from leafe.envs.world import World
from leafe.errors import EnvironmentFailure, EpisodeError, LeafeError, ReplayDiverged, StepTimeout, UserError
from leafe.records import decode, encode

LIMIT = 600.0  # seconds that a step may take
GRACE = 5.0  # seconds to close an environment in
LONGEST_OUTPUT = 2**20  # bytes of a child's output that are kept, for its last words
FAILURES: dict[str, type[LeafeError]] = {
    kind.__name__: kind for kind in (EnvironmentFailure, StepTimeout, ReplayDiverged, UserError)
}


class WorldProcess:
    """A world in a child, which the first call starts, and the first call after a loss starts anew."""

    def __init__(self, make: Callable[[], Environment], *, limit: float = LIMIT) -> None:
        try:
            self._recipe = base64.b64encode(pickle.dumps(make))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            wanted = "a function that can be pickled, as a class or functools.partial(registry.make, name, arguments)"
            raise UserError(
                f"an environment in a process of its own wants to be made by {wanted}; found {make!r}: {error}"
            ) from None
        self._limit = limit
        self._child: _Child | None = None

    def take(self, call: Call) -> Answer:
        """Carries out a call in the child. Raises what `carry_out` raises, `UserError`, and `RuntimeError` for a bug in the child."""
        if self._child is None:
            self._child = _Child(self._recipe)
        try:
            found = self._child.ask(json.dumps(encode(call)), patience_for(call, self._limit))
        except _Lost as lost:
            self._child.end()
            self._child = None
            kind = StepTimeout if lost.timed_out else EnvironmentFailure
            raise kind(f"the process that played the environment {lost}") from None
        if "bug" in found:
            raise RuntimeError(f"in the process that played the environment:\n{found['bug']}")
        if "error" in found:
            raise FAILURES[found["error"]](found["message"])
        answer: Answer = decode(Answer, found)
        return answer

    def close(self) -> None:
        """Closes the environment and ends the child, in a few seconds at most."""
        if self._child is not None:
            self._child.end(politely=True)
            self._child = None

    def kill(self) -> None:
        """Ends the child at once; a call under way is then lost."""
        child = self._child
        if child is not None:
            child.kill()


class _Lost(Exception):
    """Why no answer will come."""

    timed_out = False


class _Late(_Lost):
    """No answer came in time."""

    timed_out = True


class _Child:
    """A started child and the socket to it."""

    def __init__(self, recipe: bytes) -> None:
        self._socket, theirs = socket.socketpair()
        self._said: IO[bytes] = tempfile.TemporaryFile("a+b")
        self._gone = False
        surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        code = "import sys; from leafe.envs.world_process import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"
        life = lifeline.descriptor()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, str(theirs.fileno()), str(life)],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                env=surroundings,
                pass_fds=(theirs.fileno(), life),
                start_new_session=True,
            )
        self._answers = self._socket.makefile("rb")
        self._first = recipe + b"\n"

    def ask(self, request: str, limit: float) -> dict[str, Any]:
        """The answer to a request. Raises `_Lost`."""
        self._socket.settimeout((limit + START if self._first else limit) if limit else None)
        if os.fstat(self._said.fileno()).st_size > LONGEST_OUTPUT:
            self._said.truncate(0)
        try:
            self._socket.sendall(self._first + request.encode() + b"\n")
            self._first = b""
            line = self._answers.readline()
        except TimeoutError:
            raise _Late(f"did not answer in {limit:g} s and was ended; raise environment.timeout if that can be right") from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise _Lost(self._last_words())
        return dict(json.loads(line))

    def _last_words(self) -> str:
        """Why the process exited, with the last line of its output."""
        try:
            status = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "closed its socket"
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        self._said.seek(0)
        words = self._said.read().decode("utf-8", "replace").strip().splitlines()
        return f"{how}: {words[-1].strip()[:300]}" if words else how

    def end(self, *, politely: bool = False) -> None:
        """Ends the child and all that it started, and leaves nothing behind."""
        if politely:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
                self._socket.settimeout(GRACE)
                while self._socket.recv(4096):
                    pass
        self.kill()
        self._process.wait()
        self._gone = True
        self._answers.close()
        self._socket.close()
        self._said.close()

    def kill(self) -> None:
        """Ends the whole group, also where its first process is dead already and others live on."""
        with suppress(ProcessLookupError, PermissionError):
            if not self._gone:
                os.killpg(self._process.pid, signal.SIGKILL)


def serve(descriptor: int, life: int) -> None:
    """The child's work: makes the environment, then answers calls until the socket is closed."""
    lifeline.hold(life, group=True)
    os.set_inheritable(descriptor, False)
    link = socket.socket(fileno=descriptor)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(link, requests), daemon=True).start()
    recipe = requests.get()
    world: World | None = None
    while request := requests.get():
        try:
            if world is None:
                world = World(pickle.loads(base64.b64decode(recipe))())
            answer = encode(carry_out(world, decode(Call, json.loads(request))))
        except (EpisodeError, UserError) as failure:
            kind = type(failure) if type(failure).__name__ in FAILURES else UserError
            answer = {"error": kind.__name__, "message": str(failure)}
        except Exception:  # a bug of ours: the parent raises it, with this traceback
            answer = {"bug": traceback.format_exc()}
        link.sendall(json.dumps(answer).encode() + b"\n")
    if world is not None:
        with suppress(LeafeError):
            world.close()


def _listen(link: socket.socket, requests: queue.SimpleQueue[bytes]) -> None:
    """Passes requests on, and after the last one ends this process, whatever its environment is doing."""
    with suppress(OSError), link.makefile("rb") as lines:
        for line in lines:
            requests.put(line)
    requests.put(b"")
    time.sleep(GRACE)
    os.killpg(os.getpgrp(), signal.SIGKILL)
