"""The memory and processor time of every hostile program of the tests, over all its processes, measured from outside the sandbox.

Goal: none holds more than 1.25 times its memory limit or uses more than 1.25 times its processor limit, each ends with an expected verdict,
and the next input is answered. Started by `sandbox.py --hostile`. As root with a version 2 hierarchy of control groups the figures are the
kernel's for a group (processor time always; memory if the controller is available). Otherwise memory is the sum of every process's own
pages and of the whole machine's increase of shared memory, so that other programs can only add to it (too large a value is measured again,
the least counts), and processor time is that of the processes, sampled every few milliseconds.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hostile import ATTACKS, source  # noqa: E402

from leafe.worlds.sandbox.container import KINDS  # noqa: E402
from leafe.worlds.sandbox.limits import MIB, Limits, Program, Verdict  # noqa: E402
from leafe.worlds.sandbox.probe import objection  # noqa: E402
from leafe.worlds.sandbox.sandbox import Sandbox  # noqa: E402

LIMITS = Limits(cpu_seconds=0.6, wall_seconds=1.5, memory_bytes=128 * MIB, file_bytes=4 * MIB, output_bytes=200_000)
FACTOR = 1.25
AGAIN = 3
LOOK = 0.008  # seconds


@dataclass(frozen=True)
class Seen:
    """The verdict of one program, and its maxima, as shares of its limits."""

    verdict: Verdict
    words: str
    memory: float
    cpu: float
    expected: bool


class Observer(threading.Thread):
    """Samples all processes that this one started until it is stopped."""

    def __init__(self, group: Path | None, depth: int) -> None:
        super().__init__(daemon=True)
        self.group, self.depth, self.over = group, depth, threading.Event()
        self.memory = 0
        self.cpu: dict[int, float] = {}
        self.surroundings: dict[int, float] = {}  # the same of bubblewrap and of the driver
        self.shared_before, self.group_before = shared_memory(), self.group_figures()
        self.own_before = time.process_time()

    def run(self) -> None:
        while not self.over.wait(LOOK):
            self.look()

    def look(self) -> None:
        programs = list(self.processes(os.getpid(), 0))
        held = sum(own_pages(pid) for pid in programs)
        if self.group and (self.group / "memory.current").exists():
            self.memory = max(self.memory, self.group_figures()[1] - self.group_before[1])
        elif programs:
            self.memory = max(self.memory, held + max(0, shared_memory() - self.shared_before))

    def processes(self, pid: int, depth: int) -> Iterator[int]:
        """The programs' processes below this one; also records the processor time of all of them."""
        for child in children(pid):
            with suppress(OSError):
                (self.cpu if depth >= self.depth else self.surroundings)[child] = time.clock_gettime((~child << 3) | 2)
            if depth >= self.depth:
                yield child
            yield from self.processes(child, depth + 1)

    def group_figures(self) -> tuple[float, int]:
        """Processor seconds and bytes of the group that this process and all that it starts are in."""
        if not self.group:
            return 0.0, 0
        used = dict(line.split() for line in (self.group / "cpu.stat").read_text().splitlines())
        held: dict[str, str] = {}
        with suppress(OSError):
            held = dict(line.split() for line in (self.group / "memory.stat").read_text().splitlines())
        return int(used["usage_usec"]) / 1e6, sum(int(held.get(kind, 0)) for kind in ("anon", "shmem", "kernel", "sock"))

    def stopped(self) -> tuple[int, float]:
        """Bytes and processor seconds of the program."""
        self.over.set()
        self.join()
        if not self.group:
            return self.memory, sum(self.cpu.values())
        others = time.process_time() - self.own_before + sum(self.surroundings.values())
        return self.memory, self.group_figures()[0] - self.group_before[0] - others


def children(pid: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def own_pages(pid: int) -> int:
    """Bytes of a process that are in no file; pages shared with children count in proportion."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "SwapPss:")))
    with suppress(OSError, StopIteration):
        return next(
            int(line.split()[1]) * 1024 for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line[:7] == "RssAnon"
        )
    return 0


def shared_memory() -> int:
    """Bytes of all files in memory and shared pages of this machine."""
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines() if line[:6] == "Shmem:")


@contextmanager
def own_group() -> Iterator[Path | None]:
    """A control group with this process in it, if one can be made."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    place = next((Path(words[1]) for words in mounts if words[2] == "cgroup2"), None)
    if place is None or not os.access(place, os.W_OK) or os.geteuid() != 0:
        yield None
        return
    group = place / f"leafe-observer-{os.getpid()}"
    was = next(line[4:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::/"))
    with suppress(OSError):
        (place / "cgroup.subtree_control").write_text("+memory")
    group.mkdir()
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield group
    finally:
        (place / was / "cgroup.procs").write_text(str(os.getpid()))
        with suppress(OSError):
            group.rmdir()


@contextmanager
def surroundings() -> Iterator[dict[str, object]]:
    """The objects outside the sandbox that a program might reach."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        Path(folder).chmod(0o755)
        Path(folder, "secret").write_text("never-seen")
        Path(folder, "writable").write_text("never-seen")
        yield {
            "OUTSIDE": folder,
            "VICTIM": os.getpid(),
            "PORT": server.getsockname()[1],
            "ABSTRACT": "\0nothing",
            "HOME": os.path.expanduser("~"),
            "SECRET_NAME": "LEAFE_SECRET",
            "RETAL": "txen-eht-fo-drow-a",
            "TOKEN": "hostile",
        }


def seen(kind: str, name: str, outside: dict[str, object], group: Path | None) -> Seen:
    """One hostile program, then a harmless input."""
    attack = ATTACKS[name]
    observer = Observer(group, 2 if kind == "bubblewrap" else 1)
    observer.start()
    hostile, harmless = Sandbox(kind).run(Program(source(attack, outside)), ["attack\n", "harmless\n"], LIMITS)
    memory, cpu = observer.stopped()
    expected = hostile.verdict in attack.verdicts or (kind == "seccomp" and hostile.verdict is Verdict.ERROR)
    expected = expected and (harmless.verdict, harmless.stdout) == (Verdict.EXITED, "42\n") and "ESCAPED" not in hostile.stdout
    words = next(iter(reversed((hostile.stderr or hostile.stdout).strip().splitlines())), "")[:60]
    return Seen(hostile.verdict, words, memory / LIMITS.memory_bytes, cpu / LIMITS.cpu_seconds, expected)


def main(only: str = "") -> int:
    """Prints a line for each program in each kind and returns the number of those above a limit or with an unexpected verdict."""
    worst: list[Seen] = []
    failed = 0
    with own_group() as group, surroundings() as outside:
        for kind in KINDS:
            refused = objection(kind)
            if refused is not None:
                print(f"{kind}: {refused.why}")
                continue
            for name in (name for name in ATTACKS if only in name):
                found = seen(kind, name, outside, group)
                for _ in range(AGAIN - 1):
                    if found.memory > FACTOR or found.cpu > FACTOR:
                        again = seen(kind, name, outside, group)
                        least = min(found.memory, again.memory), min(found.cpu, again.cpu)
                        found = Seen(again.verdict, again.words, *least, again.expected and found.expected)
                bad = not found.expected or found.memory > FACTOR or found.cpu > FACTOR
                failed += bad
                worst.append(found)
                print(
                    f"{'BAD' if bad else 'ok':4}{kind:11} {name:42} {found.verdict:7} "
                    f"memory {found.memory:5.2f}  processor {found.cpu:5.2f}  {found.words}",
                    flush=True,
                )
    memory, cpu = max(found.memory for found in worst), max(found.cpu for found in worst)
    figures = "a control group's figures" if group else "no control group"
    print(f"{len(worst)} runs, {failed} bad; the most: {memory:.2f} of the memory, {cpu:.2f} of the processor time ({figures})")
    return failed
