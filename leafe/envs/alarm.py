"""A time limit for calls made in the main thread: the system's timer interrupts a call that takes longer.

It interrupts Python code, sleeps and reads; a library's own code is interrupted when it returns to Python. Only one alarm at a time, and
only in the main thread, because signals are handled only there. Nothing else may use the timer meanwhile.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")
AGAIN = 1.0  # seconds after which it rings again, for code that swallows unknown exceptions


class TimeUp(BaseException):
    """The limit has passed. Not an `Exception`, because other people's code catches those."""


ENDS_MORE = (KeyboardInterrupt, TimeUp)  # what is meant for whoever called a world's code, whatever that code was doing


class Alarm:
    """The timer, taken from `__init__` to `close`."""

    def __init__(self) -> None:
        self._before = signal.signal(signal.SIGALRM, _ring)

    @staticmethod
    def can_be_set() -> bool:
        """Whether this is the main thread of a system that has such a timer, not in use."""
        if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
            return False
        return signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, None) and signal.getitimer(signal.ITIMER_REAL)[0] == 0

    def call(self, seconds: float, work: Callable[..., Result], *arguments: Any) -> Result:
        """Calls `work` with the arguments. Raises `TimeUp` after so many seconds."""
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
        try:
            return work(*arguments)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def close(self) -> None:
        """Gives the timer back."""
        signal.signal(signal.SIGALRM, self._before)


def _ring(number: int, frame: FrameType | None) -> None:
    """Interrupts the work, and nothing else: a ring may come when the work has ended and the timer is not yet stopped."""
    inner = None
    while frame is not None and frame.f_code is not Alarm.call.__code__:
        inner, frame = frame, frame.f_back
    if frame is not None and inner is not None:
        raise TimeUp
