"""One sandbox from outside: starts it, hands it inputs, reads answers, and ends it whatever it does.

Output is not trusted: numbers and lengths are bounded, text is text, and a late answer is not waited for. A sandbox that is
lost after its start was lost to the program in it; one that never starts is our failure.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from types import TracebackType

from leafe.errors import EnvironmentFailure
from leafe.worlds.sandbox.container import Launch
from leafe.worlds.sandbox.control_group import group
from leafe.worlds.sandbox.driver import PATIENCE
from leafe.worlds.sandbox.limits import Limits, Outcome, Verdict

START = 120.0  # seconds for a sandbox to start on an overloaded machine
FAREWELL = 5.0  # seconds for a driver to end when asked to
GRACE = 20.0  # seconds for the driver to clear up and answer there
TAIL = 4096  # the most bytes of standard error that a driver sends


class Lost(Exception):
    """The driver does not answer as it should. `verdict` is the program's verdict then."""

    def __init__(self, why: str, verdict: Verdict = Verdict.ERROR) -> None:
        super().__init__(why)
        self.verdict = verdict


class Session:
    """A started sandbox with one program in it. To be used by the thread that made it: when that ends, the kernel ends the sandbox."""

    def __init__(self, launch: AbstractContextManager[Launch], limits: Limits) -> None:
        self.limits = limits
        self.clean = True  # whether the program left nothing behind in its scratch folder
        self._held = ExitStack()
        what = self._held.enter_context(launch)
        try:
            self._group = self._held.enter_context(group())
            self._process = self._held.enter_context(_started(what))
            self._await_start()
            self._shut_in()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _await_start(self) -> None:
        assert self._process.stdin and self._process.stdout and self._process.stderr
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            os.set_blocking(stream.fileno(), False)
        try:
            if self._read(1, time.monotonic() + START) != b"R":
                raise Lost("it answered with something else")
        except Lost as lost:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            words = (self._process.stderr.read() or b"").decode("utf-8", "replace").strip().splitlines()
            raise EnvironmentFailure(f"the sandbox did not start: {words[-1][:300] if words else lost}") from None

    def _shut_in(self) -> None:
        """The driver waits for its first input now; whatever it starts will be in the group too."""
        try:
            if self._group:
                self._group.take(self._process.pid)
        except OSError:
            self._group = None  # one that may be made and not be filled

    def run(self, text: bytes) -> Outcome:
        """Runs the program on an input. Raises `Lost`, after which the session can only be closed."""
        if self._group is None:
            return self._answer(text)
        before = self._group.ended
        # The driver holds the input more than once for a moment, and the program's output.
        self._group.allow(self.limits.memory_bytes + 4 * (len(text) + self.limits.output_bytes))
        try:
            outcome = self._answer(text)
        except Lost as lost:
            raise Lost(str(lost), Verdict.MEMORY if self._group.ended > before else lost.verdict) from None
        return replace(outcome, verdict=Verdict.MEMORY) if self._group.ended > before else outcome

    def _answer(self, text: bytes) -> Outcome:
        deadline = time.monotonic() + PATIENCE * self.limits.wall_seconds + GRACE
        self._write(len(text).to_bytes(4, "little") + text, deadline)
        header = b""
        while not header.endswith(b"\n"):
            if len(header) > 200:
                raise Lost("its answer has no form")
            header += self._read(1, deadline)
        return self._outcome(header, deadline)

    def _outcome(self, header: bytes, deadline: float) -> Outcome:
        try:
            word, *fields = header.decode("ascii").split()
            verdict = Verdict(word)
            status, cpu, wall, memory, clean, out, err = map(int, fields)
        except ValueError:
            raise Lost("its answer has no form") from None
        if not (0 <= out <= self.limits.output_bytes and 0 <= err <= TAIL and min(cpu, wall, memory) >= 0):
            raise Lost("its answer is larger than allowed")
        self.clean = clean == 1
        stdout, stderr = self._read(out, deadline), self._read(err, deadline)
        texts = (stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"))
        return Outcome(verdict, *texts, status, cpu / 1e6, wall / 1e6, memory)

    def _ready(self, descriptor: int, event: int, deadline: float) -> None:
        poller = select.poll()
        poller.register(descriptor, event)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise Lost("it does not answer", Verdict.TIME)

    def _write(self, data: bytes, deadline: float) -> None:
        assert self._process.stdin
        view, descriptor = memoryview(data), self._process.stdin.fileno()
        while view:
            self._ready(descriptor, select.POLLOUT, deadline)
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                continue
            except OSError:
                raise Lost("it is gone") from None

    def _read(self, count: int, deadline: float) -> bytes:
        assert self._process.stdout
        parts, descriptor = bytearray(), self._process.stdout.fileno()
        while len(parts) < count:
            self._ready(descriptor, select.POLLIN, deadline)
            data = os.read(descriptor, count - len(parts))
            if not data:
                raise Lost("it is gone")
            parts += data
        return bytes(parts)

    def close(self) -> None:
        """Ends the sandbox and everything in it."""
        self._held.close()


@contextmanager
def _started(what: Launch) -> Iterator[subprocess.Popen[bytes]]:
    """Starts the process, outside the sandbox."""
    process = subprocess.Popen(
        what.command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(what.surroundings),
        pass_fds=what.descriptors,
        cwd="/",
        user=what.user,
        group=what.user,
        extra_groups=None if what.user is None else [],
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.send_signal(what.farewell)
        try:
            process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                with suppress(OSError):
                    stream.close()
