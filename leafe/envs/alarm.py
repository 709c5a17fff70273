"""A time limit for calls that are made in the main thread itself: the system's timer interrupts what takes longer.

It interrupts Python code, sleeps and reads; a library's own code is interrupted when it comes back to Python. Only one at a time, and only
in the main thread, for signals are handled nowhere else. Nobody else may use the timer meanwhile.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")
AGAIN = 1.0  # seconds after which it rings again, for code that swallows what it does not know


class TimeUp(BaseException):
    """The limit has passed. No `Exception`, for code of others catches those."""


class Alarm:
    """The timer, taken from `__init__` to `close`."""

    def __init__(self) -> None:
        self._before = signal.signal(signal.SIGALRM, _ring)

    @staticmethod
    def can_be_set() -> bool:
        """Whether this is the main thread of a system with such a timer that nobody uses."""
        if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
            return False
        return signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, None) and signal.getitimer(signal.ITIMER_REAL)[0] == 0

    def call(self, seconds: float, work: Callable[..., Result], *arguments: Any) -> Result:
        """Calls what is given. Raises `TimeUp` after so many seconds."""
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
        try:
            return work(*arguments)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def close(self) -> None:
        """Gives the timer back."""
        signal.signal(signal.SIGALRM, self._before)


def _ring(number: int, frame: FrameType | None) -> None:
    raise TimeUp
