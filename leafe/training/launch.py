"""The same work in several processes on this machine, as `torchrun` would start it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any, Protocol, TypeVar

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from leafe import lifeline
from leafe.errors import UserError

T = TypeVar("T")


class ProgressCallback(Protocol):
    """A function that is called with the number of steps done and the total."""

    def __call__(self, done: int, total: int) -> None:
        """Called after every step."""
        ...


def in_processes(count: int, work: Callable[[Callable[..., None]], T], told: Callable[..., None]) -> T:
    """Runs `work` in `count` processes and returns the first one's result. `work` and its result have to be picklable.

    `told` is called with the values that the first process passes to its `work`'s argument. A `UserError` of any process is raised here;
    another failure ends all of them and is raised as torch's `ChildFailedError`. All of them end with this process.
    """
    steps: Any = get_context("spawn").SimpleQueue()
    listener = Thread(target=_listen, args=(steps, told), daemon=True)
    listener.start()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"leafe-{os.getpid()}",
        start_method="spawn",
    )
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    try:
        with lifeline.connection() as life:
            results = elastic_launch(config, _first_tells)(work, steps, life)
    finally:
        steps.put(None)
        listener.join()
    for result in results.values():
        if isinstance(result, UserError):
            raise result
    first: T = results[0]
    return first


def _first_tells(work: Callable[[Callable[..., None]], T], steps: Any, life: Connection) -> T | UserError:
    lifeline.hold(life)
    first = os.environ["RANK"] == "0"
    try:
        return work(lambda *values: steps.put(values) if first else None)
    except UserError as error:
        return error


def _listen(steps: Any, told: Callable[..., None]) -> None:
    while (values := steps.get()) is not None:
        told(*values)
