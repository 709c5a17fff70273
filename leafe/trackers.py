"""TensorBoard, trackio and W&B, fed by one event stream with the figures of exploration, training and evaluation.

`report_to` names them; none is the default, and nothing leaves the machine then. A step of a stage is sent once: `tracked.jsonl` of the
run records each step before it is sent, so that a resumed run sends the rest. Each library is
imported here alone, when a run begins to use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from leafe.digest import digest
from leafe.errors import UserError
from leafe.jsonl import Appender, read_lines
from leafe.progress import Tracker

SCHEMA, LEDGER = "leafe.tracked/1", "tracked.jsonl"
FOLDER = "tensorboard"  # of a run, for its files
PROJECT = "leafe"


class Outlet(Protocol):
    """A tracker's own library, for one run."""

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Takes the figures of a step of a stage."""
        ...

    def close(self) -> None:
        """Writes the figures that it holds back."""
        ...


class TensorBoard:
    """Event files in the run's folder `tensorboard`."""

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / FOLDER))

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """A scalar for each figure, by stage."""
        for name, value in figures.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


class Trackio:
    """A run of trackio, which keeps it on this machine unless its own variables say otherwise."""

    def __init__(self, run: Path) -> None:
        import trackio

        self._library: Any = trackio
        trackio.init(project=PROJECT, name=_name(run), resume="allow")

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """One point; stages have steps of their own, so the step is a figure too."""
        self._library.log(_named(stage, step, figures))

    def close(self) -> None:
        """Ends trackio's run."""
        self._library.finish()


class WandB:
    """A run of W&B, which goes where `wandb login` and `WANDB_MODE` say; its id is the run directory's, so that a resumed one goes on."""

    def __init__(self, run: Path) -> None:
        import wandb

        name = _name(run)
        self._run: Any = wandb.init(project=PROJECT, name=name, id=name, resume="allow", dir=str(run))
        self._known: set[str] = set()

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """One point; each stage has an axis of its own."""
        if stage not in self._known:
            self._known.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log(_named(stage, step, figures))

    def close(self) -> None:
        """Ends W&B's run."""
        self._run.finish()


OUTLETS: dict[str, tuple[str, Callable[[Path], Outlet]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "trackio": ("trackio", Trackio),
    "wandb": ("wandb", WandB),
}


def _name(run: Path) -> str:
    return f"{run.name}-{digest(str(run.resolve()))[:8]}"


def _named(stage: str, step: int, figures: Mapping[str, float]) -> dict[str, float]:
    return {f"{stage}/{name}": value for name, value in figures.items()} | {f"{stage}/step": step}


def check_trackers(names: Sequence[str]) -> None:
    """Raises `UserError` for a tracker whose package is missing."""
    for name in names:
        package, _ = OUTLETS[name]
        if find_spec(package) is None:
            raise UserError(
                f"report_to={name} wants the package {package}, which is not installed; type: pip install 'leafe[{name}]'"
            )


class Trackers:
    """Sends each step to several outlets once, from the call of `open` on; before that, and without a name, to none."""

    def __init__(self, names: Sequence[str] = (), outlets: Mapping[str, tuple[str, Callable[[Path], Outlet]]] = OUTLETS) -> None:
        self._names, self._makers = names, outlets
        self._outlets: list[Outlet] = []
        self._told: set[tuple[str, int]] = set()
        self._ledger: Appender | None = None

    @property
    def active(self) -> bool:
        """Whether figures are sent anywhere."""
        return bool(self._outlets)

    def open(self, run: Path) -> None:
        """Begins to track a run, or resumes."""
        if not self._names:
            return
        path = run / LEDGER
        self._ledger = Appender(path, SCHEMA)
        self._told = {(line["stage"], line["step"]) for line in read_lines(path, SCHEMA)}
        self._outlets = [self._makers[name][1](run) for name in self._names]

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Sends the figures of a step of a stage, unless they were sent before."""
        if not self._outlets or self._ledger is None or (stage, step) in self._told:
            return
        self._told.add((stage, step))
        self._ledger.append({"stage": stage, "step": step})
        for outlet in self._outlets:
            outlet.log(stage, step, figures)

    def close(self) -> None:
        """Closes the outlets."""
        outlets, self._outlets = self._outlets, []
        for outlet in outlets:
            outlet.close()
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None


@contextmanager
def opened(tracker: Tracker, run: Path) -> Iterator[None]:
    """Tracks a run while the block lasts, where the tracker is one of these."""
    try:
        if isinstance(tracker, Trackers):
            tracker.open(run)
        yield
    finally:
        if isinstance(tracker, Trackers):
            tracker.close()
