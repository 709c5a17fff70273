"""`leafe nano build`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from leafe.cli.console import values_of
from leafe.errors import UnknownName, UserError
from leafe.model_folder import locate
from leafe.nano import CHECKPOINTS
from leafe.nano.build import SIZES, Plan, build
from leafe.nano.worlds import SHIPPED, world


@dataclass(frozen=True, slots=True)
class Taught:
    """The world that is taught: its name or `module:Class`, arguments as `name=value`, and the split, used where no checkpoint ships."""

    spec: str
    arguments: tuple[str, ...]
    split: str


@dataclass(frozen=True, slots=True)
class Effort:
    """Optimiser steps (None: the world's own number), processes, the seed, and the size of the model by its name."""

    steps: int | None
    processes: int
    seed: int
    size: str = "medium"


def build_nano(taught: Taught, out: Path | None, start: Path | None, effort: Effort) -> None:
    """Trains a small model for a world into `out`, from a checkpoint or from nothing."""
    args = values_of(taught.arguments)
    lessons = world(taught.spec, args, split=taught.split)
    if out is None and (taught.spec not in SHIPPED or args):
        raise UserError("no checkpoint ships for this world; say where the new one goes with --out DIR")
    if effort.size not in SIZES:
        raise UnknownName("size", effort.size, SIZES)
    if out is None and effort.size != "medium":
        raise UserError(f"the shipped checkpoint is medium; say where a {effort.size} one goes with --out DIR")
    plan = Plan(
        steps=effort.steps or lessons.steps,
        processes=effort.processes,
        seed=effort.seed,
        shape=replace(SIZES[effort.size], vocabulary=lessons.vocabulary),
        start=str(locate(str(start), CHECKPOINTS)) if start else "",
    )
    build(lessons.curriculum, out or CHECKPOINTS[SHIPPED[taught.spec].name], plan, partial(print, flush=True))
