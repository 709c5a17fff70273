"""Runs inside the sandbox and starts the program once an input. It is given to the sandbox's own interpreter as a file.

Limits hold for all processes of a program together. Some memory is in no process's figures: files in the scratch folder, what pipes and
sockets hold, the kernel's records of threads, files and mappings. `Census` counts each at the most that it costs; what it could not
count the filter refuses (see `system_calls`).

In a container it is process 1, which no signal from inside can end, and not dumpable, so that the program can neither read nor change
it. It never holds a later input than the one being run, and no expected output at all. Every number and byte that it reports is checked
again outside. It imports nothing of ours: another Python than ours may run it.

    at the start: the byte R
    request: 4 bytes, the input's length, then the input
    answer:  a line `verdict status cpu wall memory clean out err` (microseconds, bytes, 0 or 1, two lengths), then the two texts
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # the signal module costs more to import than all else here
import ctypes
import os
import resource
import select
import sys
import time

TICK, SHORTEST_TICK = 0.01, 0.001  # seconds between looks at what all processes use
FILL = 8 * 2**30  # bytes a second that one core writes to at most
OVER = 1.1  # a look comes before even the fastest program is at this many times a limit
PATIENCE = 10  # on a machine that is too busy a program may take this many times its wall-clock seconds
TAIL = 4096  # bytes of standard error that are kept
HEADROOM = 512 * 2**20  # address space beyond the memory limit, for stacks that are reserved and never used
STACK = 64 * 2**20
DESCRIPTORS, CORES = 64, os.cpu_count() or 1
PAGE = resource.getpagesize()
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
# The most that the kernel itself holds for one of each, in bytes: page tables and the like, a stack, the contents of half a pipe, ...
PROCESS, THREAD, DESCRIPTOR, SOCKET, INODE, MAPPING = 512 * 2**10, 32 * 2**10, 64 * 2**10, 256 * 2**10, 2 * 2**10, 256
MOST_MAPPINGS, MANY, MAPPINGS_EVERY = 65530, 2**18, 4  # the kernel's limit for a process; bytes of text; looks
# prctl(PR_SET_PDEATHSIG, ...), prctl(PR_SET_DUMPABLE, 0), personality(ADDR_NO_RANDOMIZE)
TELL_OF_PARENT, DIE_WITH_PARENT, NOT_DUMPABLE, NO_ASLR = (1, 15), (1, 9), (4, 0), 0x0040000
MFD_ALLOW_SEALING, ADD_SEALS, ALL_SEALS = 2, 1033, 15
SIGINT, SIGTERM, SIGCHLD, SIG_IGN, SIG_DFL = 2, 15, 17, 1, 0


class Driver:
    """The limits, in the order of the command line, and the command that starts the program."""

    def __init__(self, arguments: list[str]) -> None:
        self.contained = os.getpid() == 1
        self.cpu, self.wall = int(arguments[0]) / 1e6, int(arguments[1]) / 1e6
        self.memory, self.processes, self.file_bytes, self.output = map(int, arguments[2:6])
        self.scratch, self.command = arguments[6], arguments[7:]
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.child = 0  # the program's first process while it runs

    def harden(self) -> None:
        """Shuts the program out of this process, makes addresses the same in every run, and ends when the process outside does."""
        if ignores_children():
            raise SystemExit("SIGCHLD is ignored here, so no program's end can be seen; start leafe with SIGCHLD at its default")
        if not self.contained:  # in a container bubblewrap sees to it
            _signal.signal(SIGTERM, lambda *_: self.give_up())
            self.libc.prctl(*TELL_OF_PARENT, 0, 0, 0)
        self.libc.prctl(*NOT_DUMPABLE, 0, 0, 0)
        self.libc.personality(NO_ASLR)
        self.libc.signal(SIGINT, ctypes.c_void_p(SIG_IGN))

    def give_up(self) -> None:
        """Ends this process and the program, which without a container could outlive it: one that becomes another forgets its parent."""
        if self.child and not self.contained:
            send_kill(self.child)
        os._exit(1)

    def serve(self) -> None:
        """Answers requests until there are no more."""
        write_all(b"R")
        while (header := read_exactly(4)) is not None and (text := read_exactly(int.from_bytes(header, "little"))) is not None:
            write_all(self.run(text))

    def run(self, text: bytes) -> bytes:
        """One run, its answer as bytes."""
        before = self.scratch_state()
        source = self.input_file(text)
        out, err = os.pipe(), os.pipe()
        started = time.monotonic()
        self.child = child = os.fork()
        if child == 0:
            self.become_program(source, out[1], err[1])
        for descriptor in (source, out[1], err[1]):
            os.close(descriptor)
        watch = Watch(self, child, (out[0], err[0]), started)
        reason = watch.until_over()
        wall = watch.charged()
        status, cpu, memory = self.end_everything(child)
        self.child, memory = 0, max(memory, watch.most)
        watch.drain()
        stdout, stderr = bytes(watch.texts[out[0]])[: self.output], bytes(watch.texts[err[0]])
        os.close(out[0])
        os.close(err[0])
        verdict = self.verdict(reason or watch.flood(), status, cpu, memory)
        clean = int(self.scratch_state() == before)
        numbers = (status, int(cpu * 1e6), int(wall * 1e6), memory, clean, len(stdout), len(stderr))
        return " ".join(map(str, (verdict, *numbers))).encode() + b"\n" + stdout + stderr

    def verdict(self, reason: str, status: int, cpu: float, memory: int) -> str:
        """The verdict on the run; `reason` is why this process ended it, if it did."""
        if reason or memory > self.memory:
            return reason or "memory"
        if cpu > self.cpu:
            return "time"
        return "error" if status else "exited"

    def scratch_state(self) -> object:
        """The state of the scratch folder that a program can change: files, mode, and space used, the folder's own attributes included."""
        if not self.contained:
            return ()  # it may write nowhere
        try:
            names, mode, held = os.listdir(self.scratch), os.stat(self.scratch).st_mode, os.statvfs(self.scratch)
        except OSError:
            return None
        return names, mode, held.f_bfree, held.f_ffree

    def input_file(self, text: bytes) -> int:
        """A descriptor that the program can read its input from and not write to."""
        if not self.contained:
            unnamed = os.memfd_create("input", MFD_ALLOW_SEALING)
            write_all(text, unnamed)
            os.lseek(unnamed, 0, os.SEEK_SET)
            self.libc.fcntl(unnamed, ADD_SEALS, ALL_SEALS)
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
                (kinds.RLIMIT_NOFILE, DESCRIPTORS),
                (kinds.RLIMIT_CORE, 0),
                (kinds.RLIMIT_MEMLOCK, 0),
                (kinds.RLIMIT_MSGQUEUE, 0),
                (kinds.RLIMIT_SIGPENDING, 128),  # timers count here too
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
        self.census = Census(child, driver.scratch if driver.contained else "", driver.memory)
        self.most, self.pause = 0, SHORTEST_TICK

    def until_over(self) -> str:
        """Returns when the program has ended (empty), or the verdict for which it must be ended."""
        poller, ended = select.poll(), os.pidfd_open(self.child)
        for descriptor in (*self.texts, ended):
            poller.register(descriptor, select.POLLIN)
        poller.register(0, 0)  # reports when the process outside is gone, however it went
        for descriptor in self.texts:
            os.set_blocking(descriptor, False)
        due = 0.0
        try:
            while True:
                ready = [descriptor for descriptor, _ in poller.poll(max(0.0, due - time.monotonic()) * 1000)]
                if 0 in ready:
                    self.driver.give_up()
                for descriptor in ready:
                    if descriptor != ended and not self.read(descriptor):
                        poller.unregister(descriptor)
                if reason := self.flood():
                    return reason
                if ended in ready:
                    self.excess()  # for what the rest of its processes hold; what it used is known when all are reaped
                    return ""
                if time.monotonic() >= due:
                    if reason := self.excess():
                        return reason
                    due = time.monotonic() + self.pause
        finally:
            os.close(ended)

    def read(self, descriptor: int) -> bool:
        """Reads what is available; False at the end of the stream."""
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
        """Reads what was written before the end and not read yet."""
        for descriptor in self.texts:
            while not self.flood():
                before = self.written[descriptor]
                if not self.read(descriptor) or self.written[descriptor] == before:
                    break

    def flood(self) -> str:
        """The verdict for too much output."""
        return "output" if max(self.written.values()) > self.driver.output else ""

    def excess(self) -> str:
        """The verdict for too much time or memory, all processes together; sets when to look again."""
        if time.monotonic() - self.started > self.driver.wall and self.charged() > self.driver.wall:
            return "time"
        cpu, memory, threads = self.census.look()
        self.most = max(self.most, memory)
        if memory > self.driver.memory:
            return "memory"
        pool = max(1, min(threads, CORES))
        soonest = min(OVER * self.driver.cpu - cpu, (OVER * self.driver.memory - memory) / FILL) / pool
        self.pause = max(SHORTEST_TICK, min(TICK, soonest))
        return "time" if cpu > self.driver.cpu else ""

    def charged(self) -> float:
        """Seconds since the start, less those in which the program, or this process, was ready to run and had to wait for a core."""
        elapsed = time.monotonic() - self.started
        waits = [waited(str(pid)) for pid in self.census.processes()]
        return max(elapsed - max([waited("self") - self.own_wait, *waits]), elapsed / PATIENCE)


class Census:
    """The resources that all processes of the program hold and have used; `scratch` is its folder, empty where there is no container."""

    def __init__(self, child: int, scratch: str, limit: int) -> None:
        self.child, self.scratch, self.limit = child, scratch, limit
        self.looks = self.mappings = self.bare = 0
        self.bare = self.scratch_bytes()  # the input is in it, which is not the program's

    def look(self) -> tuple[float, int, int]:
        """CPU seconds, bytes, and the number of threads."""
        cpu, threads, kernel = 0.0, 0, 0
        resident: dict[int, int] = {}
        for pid in self.processes():
            fields = (peek(f"/proc/{pid}/stat") or b"").rpartition(b")")[2].split()
            try:
                cpu += time.clock_gettime((~pid << 3) | 2)  # the CPU clock of another process, as clock_getcpuclockid gives it
                cpu += (int(fields[13]) + int(fields[14])) / CLOCK_TICKS  # of its children that it waited for
            except (OSError, IndexError):
                continue  # it has just ended
            resident[pid], own_threads = int(fields[21]) * PAGE, int(fields[17])
            threads += own_threads
            kernel += PROCESS + own_threads * THREAD + max(0, descriptors(pid) - 3) * DESCRIPTOR
        self.looks += 1
        if self.looks % MAPPINGS_EVERY == 0:
            # Thousands of them take long to copy, to list and to clear up, and no honest program has them: they are too much memory.
            maps = [peek(f"/proc/{pid}/maps", MANY) for pid in resident]
            counts = (MOST_MAPPINGS if text is None else text.count(b"\n") if len(text) < MANY else self.limit for text in maps)
            self.mappings = sum(counts)
        kernel += self.mappings * MAPPING + self.scratch_bytes() + self.sockets() * SOCKET
        memory = sum(resident.values()) + kernel
        if memory > self.limit:  # pages that are shared were counted more than once, and files that are mapped
            memory = kernel + sum(proportional(pid, most) for pid, most in resident.items())
        return cpu, memory, threads

    def processes(self) -> list[int]:
        """The program's processes."""
        if not self.scratch:
            return [self.child]
        return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if pid != 1]

    def scratch_bytes(self) -> int:
        """The bytes in the scratch folder, open files without a name included."""
        if not self.scratch:
            return 0
        held = os.statvfs(self.scratch)
        return max(0, (held.f_blocks - held.f_bfree) * held.f_frsize + (held.f_files - held.f_ffree) * INODE - self.bare)

    def sockets(self) -> int:
        """How many sockets there are, also those that only a message in another one holds; without a container no more than descriptors."""
        return (peek("/proc/self/net/unix") or b"\n").count(b"\n") - 1 if self.scratch else 0


def peek(path: str, most: int = -1) -> bytes | None:
    """The contents of a file of /proc, its start if `most` is given: empty for a process that has ended, None where access is refused."""
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except PermissionError:
        return None
    except OSError:
        return b""


def descriptors(pid: int) -> int:
    """How many descriptors a process has; where access is refused, the most that it may have."""
    try:
        return os.stat(f"/proc/{pid}/fd").st_size or len(os.listdir(f"/proc/{pid}/fd"))  # before Linux 6.2 the size is 0
    except OSError:
        return DESCRIPTORS


def proportional(pid: int, most: int) -> int:
    """A process's resident and swapped bytes, shared pages by share, files of the scratch folder left out; `most` if that is unknown."""
    text = peek(f"/proc/{pid}/smaps_rollup")
    if text is None:
        return most
    sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in text.splitlines()[1:]}
    return sizes.get(b"Pss:", 0) + sizes.get(b"SwapPss:", 0) - sizes.get(b"Pss_Shmem:", 0)


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


def ignores_children() -> bool:
    """Whether SIGCHLD is ignored, as a parent may have left it: then the end of a child is never reported."""
    ignored = (peek("/proc/self/status") or b"").partition(b"SigIgn:")[2].split()[0]
    return bool(int(ignored, 16) >> (SIGCHLD - 1) & 1)


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
    """Writes every byte, by default to standard output."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    driver = Driver(sys.argv[1:])
    driver.harden()
    driver.serve()
