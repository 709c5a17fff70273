"""A process that was killed leaves no child behind, whatever the child is busy with and whichever thread had started it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leafe.records import Observation
from leafe.worlds.fakes import Lookup

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")

STARTED = """
import os, subprocess, sys, threading, time
from leafe import lifeline
child = "import os, sys; from leafe import lifeline; lifeline.hold(int(sys.argv[1]), group={group}); " + {busy!r}
command = [sys.executable, "-c", child, str(lifeline.descriptor())]
def start():
    subprocess.Popen(command, pass_fds=(lifeline.descriptor(),), start_new_session=True)
thread = threading.Thread(target=start)
thread.start()
thread.join()
if not os.fork():  # one that was forked off must not keep the others alive
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""
# Holds Python's lock without end: no thread of that process runs any more.
SEARCH = "print(os.getpid(), flush=True); import re; re.match('(a+)+b', 'a' * 200)"
SLEEP = "import signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(60)"
FAMILY = "import subprocess, time; print(os.getpid(), subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"


def gone(pid: int, patience: float = 10) -> bool:
    """Whether a process ends within some seconds."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def killed(code: str, **surroundings: str) -> list[int]:
    """The numbers that a parent's children print, after the parent was killed."""
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path, **surroundings}) as parent:
        assert parent.stdout is not None
        numbers = [int(word) for word in parent.stdout.readline().split()]
        assert numbers and not any(gone(number, 0.05) for number in numbers)  # not with the thread that had started it
        parent.kill()
    return numbers


@pytest.mark.parametrize("busy", [SEARCH, SLEEP], ids=["in a search that holds the lock", "deaf to signals"])
def test_a_child_ends_with_its_parent_whatever_it_is_busy_with(busy: str) -> None:
    (child,) = killed(STARTED.format(busy=busy, group=False))
    assert gone(child)


SEVERAL = """
import os, subprocess, sys, time
from leafe import lifeline
child = "import os, sys, time; from leafe import lifeline; lifeline.hold(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(60)"
command = [sys.executable, "-c", child, str(lifeline.descriptor())]
several = [subprocess.Popen(command, pass_fds=(lifeline.descriptor(),), stdout=subprocess.PIPE) for _ in range(3)]
print(*(int(one.stdout.readline()) for one in several), flush=True)
time.sleep(60)
"""


def test_all_of_several_children_end_with_their_parent() -> None:
    children = killed(SEVERAL)
    assert len(children) == 3 and all(gone(child) for child in children)


def test_what_a_child_started_in_its_group_ends_too() -> None:
    child, other = killed(STARTED.format(busy=FAMILY, group=True))
    assert gone(child) and gone(other)


def test_a_child_that_comes_too_late_ends_at_once() -> None:
    code = "import os; from leafe import lifeline; r, w = os.pipe(); os.close(w); lifeline.hold(r); print('lives on')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-9, "")


class Hog(Lookup):
    """Tells its process's number in a file, then searches without end and never lets go of Python's lock."""

    def step(self, action: str) -> Observation:
        Path(os.environ["HOG"]).write_text(f"{os.getpid()}\n")
        re.match("(a+)+b", "a" * 200)
        return super().step(action)


WORLD = """
from players import key_in
from test_lifeline import Hog
from leafe.envs.calls import Call
from leafe.envs.world_process import WorldProcess
world = WorldProcess(Hog)
world.take(Call("reset", key_in(3)))
world.take(Call("step", action="open place1"))
"""


def test_no_world_outlives_its_parent_even_one_that_holds_the_lock(tmp_path: Path) -> None:
    told = tmp_path / "number"
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HOG": str(told)}
    with subprocess.Popen([sys.executable, "-c", WORLD], env=surroundings) as parent:
        while not told.exists() or not told.read_text().endswith("\n"):
            assert parent.poll() is None
            time.sleep(0.05)
        assert not gone(int(told.read_text()), 0.05)
        parent.kill()
    assert gone(int(told.read_text()))


TRAINERS = """
import os, sys, time
from leafe.training.launch import in_processes
def work(told):
    if os.environ["RANK"] == "0":
        told(os.getpid(), 0)
    time.sleep(600)
if __name__ == "__main__":
    in_processes(2, work, lambda done, total: print(done, flush=True))
"""


def test_no_trainer_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    script = tmp_path / "trainers.py"
    script.write_text(TRAINERS)
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=surroundings) as parent:
        assert parent.stdout is not None
        int(parent.stdout.readline())
        family = descendants(parent.pid)
        parent.kill()
    assert len(family) >= 2 and all(gone(pid) for pid in family)


def descendants(pid: int) -> set[int]:
    """Processes that this one started, and those that they started."""
    found: set[int] = set()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = {int(child) for child in file.read_text().split()}
        except OSError:
            continue
        found |= children.union(*(descendants(child) for child in children))
    return found
