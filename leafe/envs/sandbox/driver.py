"""Runs inside the sandbox and starts the program once an input. It is given to the sandbox's own interpreter as a file.

In a container it is process 1, which no signal from inside can end, and not dumpable, so that the program can neither read nor change
it. It never holds a later input than the one being run, and no expected output at all. Every number and byte that it reports is checked
again outside. It imports nothing of ours: another Python than ours may run it.

    at the start: the byte R
    request: 4 bytes, the input's length, then the input
    answer:  a line `verdict status cpu wall memory clean out err` (microseconds, bytes, 0 or 1, two lengths), then the two texts
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import sys
import time

TICK = 0.01  # seconds between looks at what all processes use
PATIENCE = 10  # on a machine that is too busy a program may take this many times its wall-clock seconds
TAIL = 4096  # bytes of standard error that are kept
HEADROOM = 512 * 2**20  # address space beyond the memory limit, for stacks that are reserved and never used
STACK = 64 * 2**20
PAGE = resource.getpagesize()
# prctl(PR_SET_PDEATHSIG, SIGKILL), prctl(PR_SET_DUMPABLE, 0), personality(ADDR_NO_RANDOMIZE)
DIE_WITH_PARENT, NOT_DUMPABLE, NO_ASLR = (1, 9), (4, 0), 0x0040000
SIGINT, SIG_IGN, SIG_DFL = 2, 1, 0  # the signal module costs more to import than all else here


class Driver:
    """The limits, in the order of the command line, and the command that starts the program."""

    def __init__(self, arguments: list[str]) -> None:
        self.contained = os.getpid() == 1
        self.cpu, self.wall = int(arguments[0]) / 1e6, int(arguments[1]) / 1e6
        self.memory, self.processes, self.file_bytes, self.output = map(int, arguments[2:6])
        self.scratch, self.command = arguments[6], arguments[7:]
        self.libc = ctypes.CDLL(None, use_errno=True)

    def harden(self) -> None:
        """Shuts the program out of this process, makes addresses the same in every run, and ends when the process outside does."""
        if not self.contained:  # in a container bubblewrap sees to it
            self.libc.prctl(*DIE_WITH_PARENT, 0, 0, 0)
        self.libc.prctl(*NOT_DUMPABLE, 0, 0, 0)
        self.libc.personality(NO_ASLR)
        self.libc.signal(SIGINT, ctypes.c_void_p(SIG_IGN))

    def serve(self) -> None:
        """Answers requests until there are no more."""
        write_all(b"R")
        while True:
            header = read_exactly(4)
            if header is None:
                return
            text = read_exactly(int.from_bytes(header, "little"))
            if text is None:
                return
            write_all(self.run(text))

    def run(self, text: bytes) -> bytes:
        """One run, its answer as bytes."""
        source = self.input_file(text)
        out, err = os.pipe(), os.pipe()
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            self.become_program(source, out[1], err[1])
        for descriptor in (source, out[1], err[1]):
            os.close(descriptor)
        watch = Watch(self, child, (out[0], err[0]), started)
        reason = watch.until_over()
        wall = watch.charged()
        status, cpu, memory = self.end_everything(child)
        watch.drain()
        stdout, stderr = bytes(watch.texts[out[0]])[: self.output], bytes(watch.texts[err[0]])
        os.close(out[0])
        os.close(err[0])
        verdict = self.verdict(reason or watch.flood(), status, cpu, memory)
        clean = int(not self.contained or not os.listdir(self.scratch))
        numbers = f"{status} {int(cpu * 1e6)} {int(wall * 1e6)} {memory} {clean} {len(stdout)} {len(stderr)}"
        return f"{verdict} {numbers}\n".encode() + stdout + stderr

    def verdict(self, reason: str, status: int, cpu: float, memory: int) -> str:
        """What the run came to; `reason` is why it was ended from here, if it was."""
        if reason:
            return reason
        if memory > self.memory:
            return "memory"
        if cpu > self.cpu:
            return "time"
        return "error" if status else "exited"

    def input_file(self, text: bytes) -> int:
        """A descriptor that the program can read its input from and not write to."""
        if not self.contained:
            unnamed = os.memfd_create("input")
            write_all(text, unnamed)
            os.lseek(unnamed, 0, os.SEEK_SET)
            return unnamed
        path = os.path.join(self.scratch, "input")
        writing = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        write_all(text, writing)
        os.close(writing)
        reading = os.open(path, os.O_RDONLY)
        os.unlink(path)
        return reading

    def become_program(self, source: int, out: int, err: int) -> None:
        """In the child: limits, then the program in place of this one."""
        try:
            os.setsid()
            for descriptor, target in ((source, 0), (out, 1), (err, 2)):
                os.dup2(descriptor, target)
            os.closerange(3, 1024)
            if not self.contained:
                self.libc.prctl(*DIE_WITH_PARENT, 0, 0, 0)
            self.libc.signal(SIGINT, ctypes.c_void_p(SIG_DFL))
            seconds, kinds = int(self.cpu) + 2, resource
            limits: list[tuple[int, int]] = [
                (kinds.RLIMIT_CPU, seconds),
                (kinds.RLIMIT_AS, self.memory + HEADROOM),
                (kinds.RLIMIT_FSIZE, self.file_bytes),
                (kinds.RLIMIT_STACK, STACK),
                (kinds.RLIMIT_NOFILE, 64),
                (kinds.RLIMIT_CORE, 0),
                (kinds.RLIMIT_MEMLOCK, 0),
                (kinds.RLIMIT_MSGQUEUE, 0),
            ]
            if self.contained:
                limits.append((kinds.RLIMIT_NPROC, self.processes + 1))  # and this process's parent
            for kind, most in limits:
                kinds.setrlimit(kind, (most, most))
            os.execve(self.command[0], self.command, dict(os.environ))
        except BaseException as error:
            os.write(2, f"could not start: {error!r}".encode())
        os._exit(127)

    def end_everything(self, child: int) -> tuple[int, float, int]:
        """Ends and reaps all processes but this one; the program's status, all CPU seconds, and the largest resident size."""
        status, cpu, memory, reaped = 0, 0.0, 0, False
        while True:
            if self.contained:
                send_kill(-1)
            elif not reaped:  # -1 would be every process of the user; there the program has no processes of its own
                send_kill(child)
            try:
                pid, ended, usage = os.wait4(-1, 0)
            except ChildProcessError:
                return status, cpu, memory
            cpu += usage.ru_utime + usage.ru_stime
            memory = max(memory, usage.ru_maxrss * 1024)
            if pid == child:
                status, reaped = os.waitstatus_to_exitcode(ended), True


class Watch:
    """Reads what a program writes and looks at what it uses until it ends or goes too far."""

    def __init__(self, driver: Driver, child: int, streams: tuple[int, int], started: float) -> None:
        self.driver, self.child, self.started = driver, child, started
        self.texts = {stream: bytearray() for stream in streams}  # all that is allowed of standard output, the end of the other
        self.written = dict.fromkeys(streams, 0)
        self.errors = streams[1]
        self.own_wait = waited("self")

    def until_over(self) -> str:
        """Returns when the program has ended (empty), or the verdict for which it must be ended."""
        poller, ended = select.poll(), os.pidfd_open(self.child)
        for descriptor in (*self.texts, ended):
            poller.register(descriptor, select.POLLIN)
        for descriptor in self.texts:
            os.set_blocking(descriptor, False)
        try:
            while True:
                ready = [descriptor for descriptor, _ in poller.poll(TICK * 1000)]
                for descriptor in ready:
                    if descriptor != ended and not self.read(descriptor):
                        poller.unregister(descriptor)
                reason = self.flood() or self.excess()
                if reason or ended in ready:
                    return "" if ended in ready and reason != "output" else reason
        finally:
            os.close(ended)

    def read(self, descriptor: int) -> bool:
        """Takes what is there; False at the end of the stream."""
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return True
        kept = self.texts[descriptor]
        self.written[descriptor] += len(data)
        kept += data
        if descriptor == self.errors:
            del kept[:-TAIL]
        return bool(data)

    def drain(self) -> None:
        """What was written before the end and not read yet."""
        for descriptor in self.texts:
            while not self.flood():
                before = self.written[descriptor]
                if not self.read(descriptor) or self.written[descriptor] == before:
                    break

    def flood(self) -> str:
        """The verdict for too much output."""
        return "output" if max(self.written.values()) > self.driver.output else ""

    def excess(self) -> str:
        """The verdict for too much time or memory, all processes together."""
        if time.monotonic() - self.started > self.driver.wall and self.charged() > self.driver.wall:
            return "time"
        cpu, memory = 0.0, 0
        for pid in self.processes():
            try:
                cpu += time.clock_gettime((~pid << 3) | 2)  # the CPU clock of another process, as clock_getcpuclockid gives it
                with open(f"/proc/{pid}/statm", "rb") as file:
                    memory += int(file.read().split()[1]) * PAGE
            except OSError:
                continue  # it has just ended
        if memory > self.driver.memory:
            return "memory"
        return "time" if cpu > self.driver.cpu else ""

    def processes(self) -> list[int]:
        """The program's."""
        if not self.driver.contained:
            return [self.child]
        return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if pid != os.getpid()]

    def charged(self) -> float:
        """Seconds since the start, less those in which the program, or this process, was ready to run and had to wait for a core."""
        elapsed = time.monotonic() - self.started
        waits = [waited(str(pid)) for pid in self.processes()]
        return max(elapsed - max([waited("self") - self.own_wait, *waits]), elapsed / PATIENCE)


def waited(pid: str) -> float:
    """The seconds for which the thread of a process that waited longest for a core has waited."""
    most = 0.0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat", "rb") as file:
                most = max(most, int(file.read().split()[1]) / 1e9)
    except (OSError, IndexError):
        return most  # it has just ended, or the kernel does not count
    return most


def send_kill(target: int) -> None:
    """Ends a process, or with -1 all but this one; none there is fine."""
    try:  # noqa: SIM105 - contextlib costs milliseconds to import
        os.kill(target, 9)
    except ProcessLookupError:
        pass


def read_exactly(count: int) -> bytes | None:
    """That many bytes of standard input; None where it ends before."""
    parts = bytearray()
    while len(parts) < count:
        data = os.read(0, min(count - len(parts), 2**20))
        if not data:
            return None
        parts += data
    return bytes(parts)


def write_all(data: bytes, descriptor: int = 1) -> None:
    """Every byte, to standard output unless told otherwise."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    driver = Driver(sys.argv[1:])
    driver.harden()
    driver.serve()
