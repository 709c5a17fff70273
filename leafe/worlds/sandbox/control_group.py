"""A control group around a sandbox, where this process may make one: the kernel's own limit on the memory of all its processes together.

The driver gives the verdict everywhere. A group ends a program that fills memory faster than the driver looks, and counts what the kernel
holds for it as well. Version 2 only, with the controller `memory`: as root, or in a group that was delegated, as `systemd-run --user
--scope -p Delegate=yes` does. Where no group can be made nothing is reported, because the sandbox's other limits hold alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path

MARGIN = 24 * 2**20  # bytes for what the driver and the kernel take beside the program
PATIENCE = 2.0  # seconds for the last process of a group to be gone
_numbers = count()


class Group:
    """One group, made for one sandbox."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, process: int) -> None:
        """Puts a process, which was started and waits, and its children into the group; what they hold already is not counted."""
        for pid in (*_children(process), process):
            (self._folder / "cgroup.procs").write_text(str(pid))

    def allow(self, size: int) -> None:
        """Sets how many bytes it may hold from now on; beyond it the kernel ends a process."""
        (self._folder / "memory.max").write_text(str(size + MARGIN))

    @property
    def ended(self) -> int:
        """How many processes were ended for lack of memory."""
        with suppress(OSError):
            events = dict(line.split() for line in (self._folder / "memory.events").read_text().splitlines())
            return int(events.get("oom_kill", 0))
        return 0


@contextmanager
def group() -> Iterator[Group | None]:
    """A new group until the block ends, by when its processes have ended; None where none can be made."""
    parent = home()
    folder = parent and parent / f"leafe-{os.getpid()}-{next(_numbers)}"
    try:
        if folder:
            folder.mkdir()
            with suppress(OSError):  # a kernel that cannot swap has no such file
                (folder / "memory.swap.max").write_text("0")
    except OSError:
        folder = None
    try:
        yield Group(folder) if folder else None
    finally:
        if folder:
            _remove(folder)


@cache
def home(mounts: str = "/proc/mounts", own: str = "/proc/self/cgroup") -> Path | None:
    """The nearest group, from this process's own upwards, in which groups with a limit of memory can be made. Remembered."""
    tables = [line.split() for line in Path(mounts).read_text().splitlines()]
    root = next((Path(words[1]) for words in tables if words[2] == "cgroup2"), None)
    place = next((line[3:].strip("/") for line in Path(own).read_text().splitlines() if line.startswith("0::")), None)
    if root is None or place is None or ".." in place.split("/"):
        return None
    here = root / place
    return next(filter(_takes_groups, (here, *(folder for folder in here.parents if folder.is_relative_to(root)))), None)


def _takes_groups(folder: Path) -> bool:
    """Whether a folder takes groups, by trying. A group with processes of its own cannot share out memory, the root group aside."""
    trial = folder / f"leafe-{os.getpid()}-trial"
    try:
        if "memory" not in (folder / "cgroup.controllers").read_text().split() or not os.access(folder / "cgroup.procs", os.W_OK):
            return False
        if "memory" not in (folder / "cgroup.subtree_control").read_text().split():
            (folder / "cgroup.subtree_control").write_text("+memory")
        _clear(folder)
        trial.mkdir(exist_ok=True)
        return (trial / "memory.max").exists()
    except OSError:
        return False
    finally:
        with suppress(OSError):
            trial.rmdir()


def _clear(folder: Path) -> None:
    """Removes groups that killed processes of leafe left behind."""
    for left in folder.glob("leafe-*-*"):
        pid = left.name.split("-")[1]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            with suppress(OSError):
                left.rmdir()


def _remove(folder: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.002)


def _children(process: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            found += [child, *_children(child)]
    return found
