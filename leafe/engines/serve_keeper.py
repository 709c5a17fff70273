"""The process between leafe and a server that it started.

It leads the process group that the server lives in and ends that group when leafe ends, however that happens: with SIGTERM, so that the
server can give back memory that would outlive it, and with SIGKILL a few seconds later. It stays deaf to the signals that its group is
sent, waits for the server and passes its exit status on, so that what a dead server left behind in the group can still be ended. Nothing
but the standard library is imported, for it starts with every server.
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
FAREWELL = 5.0  # seconds for a server whose run is gone
TIDYING = 2.0  # seconds for what it left behind in its group


def keeper_command(command: Sequence[str], descriptor: int) -> list[str]:
    """The command that runs another one under a keeper; `descriptor` is the lifeline's. The other one keeps its surroundings."""
    return [sys.executable, "-I", "-c", CODE, str(Path(__file__).parents[2]), str(descriptor), *command]


def keep(descriptor: int, command: Sequence[str]) -> None:
    """Runs a command as part of this process's group and ends as it ends: with its status, or 128 and the number of its signal."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # what is ignored would be ignored by the command too
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
    """Waits for the end of the pipe that leafe holds open as long as it lives."""
    select.select([descriptor], [], [])
    alone.set()
    os.killpg(0, signal.SIGTERM)
    sleep(FAREWELL)
    os.killpg(0, signal.SIGKILL)
