"""A server in a process group of its own, which ends when it is told to, when its server does, or when this process does."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic, sleep

from leafe import lifeline
from leafe.engines.serve_keeper import keeper_command
from leafe.engines.serve_log import ServerLog, telling

# A server first gets time to answer what it has on hand, and its graphics memory is given back in order.
ENDINGS = ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 10.0))
LAST_WORDS = 2.0  # seconds for what a dead server has still in its pipe
TIDYING = 15.0  # seconds for what it left behind in its group, which lets workers finish first


class ServerProcess:
    """Starts a command with the environment `surroundings`, whose `secret` is taken out of what it says.

    `endings` are the signals that end it one after another, and how many seconds each is given.
    """

    def __init__(
        self,
        command: Sequence[str],
        surroundings: Mapping[str, str],
        *,
        secret: str,
        endings: Sequence[tuple[int, float]] = ENDINGS,
    ) -> None:
        life = lifeline.descriptor()
        self._process = subprocess.Popen(
            keeper_command(command, life),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(surroundings),
            pass_fds=(life,),
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.log = ServerLog(self._process.stdout, secret)
        self._endings = endings
        self._cleared = False

    @property
    def pid(self) -> int:
        """The number of its process group."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the server is gone. What it left behind in its group is ended then."""
        if self._process.poll() is None:
            return False
        if not self._cleared:
            self._cleared = True
            self._clear()
            self.log.finish(LAST_WORDS)
        return True

    @property
    def last_words(self) -> str:
        """How it ended and what it said, for a sentence."""
        status = self._process.poll()
        how = f"ended by {signal.Signals(status - 128).name}" if status in _SIGNALS else f"exit status {status}"
        how += ", often a lack of memory" if status == 128 + signal.SIGKILL else ""
        said = telling(self.log.lines)
        return f"{how}: {said}{self.log.where}" if said else f"{how}, without a word{self.log.where}"

    def stop(self) -> None:
        """Ends the server: kindly, firmly, by force. An interrupt meanwhile ends it by force at once."""
        try:
            for number, patience in self._endings:
                if not self.ended:
                    self._signal(number)
                    with suppress(subprocess.TimeoutExpired):
                        self._process.wait(patience)
        except BaseException:
            self._signal(signal.SIGKILL)
            raise

    def _clear(self) -> None:
        """Ends what is left of the group. Python's resource tracker is deaf to the first signal and tidies shared memory up meanwhile."""
        self._signal(signal.SIGTERM)
        until = monotonic() + TIDYING
        with suppress(ProcessLookupError, PermissionError):
            while monotonic() < until:
                os.killpg(self._process.pid, 0)
                sleep(0.02)
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


_SIGNALS = {128 + number for number in signal.Signals}
