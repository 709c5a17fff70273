"""The process between leafe and a server that it started.

It leads the server's process group and ends that group when leafe ends, for any reason: with SIGTERM, so that the server can free shared
memory that would outlive it, and with SIGKILL a few seconds later. It ignores the signals that its group is sent, waits for the server and
passes its exit status on, so that processes that a dead server left in the group can still be ended. Only the standard library is
imported, since a keeper starts with every server.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread
from time import sleep

CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); from leafe.engines.serve_keeper import keep; keep(int(sys.argv[2]), sys.argv[3:])"
)
NOT_RUN = 126
FAREWELL = 5.0  # seconds for a server whose run has ended
TIDYING = 2.0  # seconds for processes that it left in its group


def keeper_command(command: Sequence[str], descriptor: int) -> list[str]:
    """The command that runs another one under a keeper; `descriptor` is the lifeline's. The environment is passed on."""
    return [sys.executable, "-I", "-c", CODE, str(Path(__file__).parents[2]), str(descriptor), *command]


def keep(descriptor: int, command: Sequence[str]) -> None:
    """Runs a command in this process's group and exits with its status, or with 128 plus the number of its signal."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # a handler, since the command would inherit SIG_IGN
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        sys.stdout.write(f"error: {command[0]} cannot be run: {error.strerror}\n")
        raise SystemExit(NOT_RUN) from None
    alone = Event()
    Thread(target=_end_when_alone, args=(descriptor, alone), daemon=True).start()
    status = process.wait()
    if alone.is_set():
        sleep(TIDYING)
        os.killpg(0, signal.SIGKILL)
    raise SystemExit(status if status >= 0 else 128 - status)


def _end_when_alone(descriptor: int, alone: Event) -> None:
    """Waits for the end of the pipe that leafe holds open as long as it runs."""
    select.select([descriptor], [], [])
    alone.set()
    os.killpg(0, signal.SIGTERM)
    sleep(FAREWELL)
    os.killpg(0, signal.SIGKILL)
