"""A server in its own process group, which ends on request, when its server ends, or when this process ends."""

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

# A server first gets time to answer pending requests and to free its graphics memory in order.
ENDINGS = ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 10.0))
LAST_WORDS = 2.0  # seconds for the rest of a dead server's output
TIDYING = 15.0  # seconds for processes that it left in its group, which lets workers finish first


class ServerProcess:
    """Starts a command with the environment `surroundings`, whose `secret` is removed from its output.

    `endings` are the signals that are sent one after another to end it, and the seconds after each.
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
        """Whether the server has ended. If so, processes that it left in its group are ended."""
        if self._process.poll() is None:
            return False
        if not self._cleared:
            self._cleared = True
            self._clear()
            self.log.finish(LAST_WORDS)
        return True

    @property
    def last_words(self) -> str:
        """Why it ended and its last output, as part of a sentence."""
        status = self._process.poll()
        how = f"ended by {signal.Signals(status - 128).name}" if status in _SIGNALS else f"exit status {status}"
        how += ", often a lack of memory" if status == 128 + signal.SIGKILL else ""
        said = telling(self.log.lines)
        return f"{how}: {said}{self.log.where}" if said else f"{how}, without output{self.log.where}"

    def stop(self) -> None:
        """Ends the server by each of `endings` in turn, then by force. An interrupt meanwhile ends it by force at once."""
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
        """Ends the rest of the group. Python's resource tracker ignores the first signal and frees shared memory meanwhile."""
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
