"""The process between leafe and a server that it started.

It leads the process group that the server lives in, and the kernel kills that group when leafe ends, however it ends and whatever the
server is busy with. It stays deaf to the signals that the group is sent, waits for the server and passes its exit status on, so that what a
dead server left behind in the group can still be ended. Nothing but the standard library is imported, for it starts with every server.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from leafe import lifeline

CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); from leafe.engines.serve_keeper import keep; keep(int(sys.argv[2]), sys.argv[3:])"
)
NOT_RUN = 126


def keeper_command(command: Sequence[str], descriptor: int) -> list[str]:
    """The command that runs another one under a keeper; `descriptor` is the lifeline's. The other one keeps its surroundings."""
    return [sys.executable, "-I", "-c", CODE, str(Path(lifeline.__file__).parent.parent), str(descriptor), *command]


def keep(descriptor: int, command: Sequence[str]) -> None:
    """Runs a command as part of this process's group and ends as it ends: with its status, or 128 and the number of its signal."""
    lifeline.hold(descriptor, group=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # what is ignored would be ignored by the command too
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        sys.stdout.write(f"error: {command[0]} cannot be run: {error.strerror}\n")
        raise SystemExit(NOT_RUN) from None
    status = process.wait()
    raise SystemExit(status if status >= 0 else 128 - status)
