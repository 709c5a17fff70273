"""Children that end when their parent does, however it ends and whatever they are doing.

A child holds the reading end of a pipe whose writing end is the parent's alone and stays open as long as the parent lives. When the pipe
ends the kernel itself kills the child: that takes no thread and not Python's lock, which a long search of a regular expression may hold.
Unlike PR_SET_PDEATHSIG it does not go off when only the thread ends that started the child.

    parent: subprocess.Popen([..., str(lifeline.descriptor())], pass_fds=(lifeline.descriptor(),))
    child:  lifeline.hold(int(sys.argv[1]))

Processes that a child starts in sessions of their own are the child's responsibility.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import threading
from functools import cache
from multiprocessing.connection import Connection


@cache
def _pipe() -> tuple[int, int]:
    return os.pipe()


def _forget() -> None:
    """Called in a forked process: the parent's pipe must end with the parent, so this copy is closed."""
    if _pipe.cache_info().currsize:
        for end in _pipe():
            os.close(end)
        _pipe.cache_clear()


os.register_at_fork(after_in_child=_forget)


def descriptor() -> int:
    """The reading end, which is passed down to children and never closed here."""
    return _pipe()[0]


def connection() -> Connection:
    """The same for a process of `multiprocessing`, as one of its arguments. The caller keeps it until the process has started."""
    return Connection(os.dup(descriptor()), writable=False)


def hold(end: int | Connection, *, group: bool = False) -> None:
    """Called in a child: from here on it is killed when its parent ends, with `group` all of the process group that it leads.

    If the parent is gone already, this call does not return.
    """
    given = end if isinstance(end, int) else end.fileno()
    held = _own(given)
    os.set_inheritable(held, False)
    target = -os.getpid() if group else os.getpid()
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(held, fcntl.F_SETOWN, target)
        fcntl.fcntl(held, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(held, fcntl.F_SETFL, fcntl.fcntl(held, fcntl.F_GETFL) | fcntl.FASYNC)
    else:
        threading.Thread(target=_wait, args=(held, target), name="leafe-lifeline", daemon=True).start()
    if select.select([given], [], [], 0)[0]:
        os.kill(target, signal.SIGKILL)


def _own(given: int) -> int:
    """The pipe opened once more: the kernel stores the target of its signal with the open file, which copies of a descriptor share."""
    try:
        # Without waiting for a writer, since there is none once the parent is gone.
        return os.open(f"/proc/self/fd/{given}", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # no /proc: then a thread waits, which shares nothing
        return os.dup(given)


def _wait(held: int, target: int) -> None:
    select.select([held], [], [])
    os.kill(target, signal.SIGKILL)
