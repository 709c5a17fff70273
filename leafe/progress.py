"""How a long stage tells how far it is and what it comes to: protocols for what shows or keeps it, and fakes that do neither."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol


class Gauge(Protocol):
    """One stage under way; a context manager."""

    def advance(self, amount: float = 1.0) -> None:
        """`amount` more of the total is done."""
        ...

    def __enter__(self) -> Gauge: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Progress(Protocol):
    """Displays progress."""

    def stage(self, name: str, total: float, unit: str) -> Gauge:
        """A new gauge that runs to `total`, counted in `unit` (a plural noun)."""
        ...

    def say(self, text: str) -> None:
        """One line that stays."""
        ...


class Tracker(Protocol):
    """Keeps figures as they come up: those of a step of a stage, which is counted from 1 in whatever the stage does."""

    @property
    def active(self) -> bool:
        """Whether figures are kept at all, where they cost something."""
        ...

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """The figures of a step; the same step of a stage is kept once."""
        ...


class Untracked:
    """Keeps nothing."""

    active = False

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Keeps nothing."""


class _Still:
    def advance(self, amount: float = 1.0) -> None:
        """Shows nothing."""

    def __enter__(self) -> Gauge:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


class Silent:
    """Shows nothing; for tests and for programs that have no screen."""

    def stage(self, name: str, total: float, unit: str) -> Gauge:
        """A gauge that shows nothing."""
        return _Still()

    def say(self, text: str) -> None:
        """Says nothing."""
