"""The progress and the figures of a long stage: protocols for displays and trackers, and fakes that do nothing."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol


class Gauge(Protocol):
    """One stage under way; a context manager."""

    def advance(self, amount: float = 1.0) -> None:
        """Adds `amount` to the work done."""
        ...

    def __enter__(self) -> Gauge: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Progress(Protocol):
    """Displays progress."""

    def stage(self, name: str, total: float, unit: str) -> Gauge:
        """A new gauge that runs to `total`, counted in `unit` (a plural noun)."""
        ...

    def say(self, text: str) -> None:
        """Prints one line that stays."""
        ...


class Tracker(Protocol):
    """Keeps figures as they arise, by stage and step; each stage counts its steps from 1."""

    @property
    def active(self) -> bool:
        """Whether figures are kept; if not, costly ones need not be computed."""
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
