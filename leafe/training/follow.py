"""A command that a launcher started several times: the first process executes it, the others wait and help with each training.

    torchrun --nproc-per-node=8 -m leafe.cli run RECIPE train.sharding=fsdp

Jobs go from the first process to the others through the launcher's store, so a machine needs only the model at the same path. The others
wait as long as it takes, and end with the first one.
"""

from __future__ import annotations

import os
import pickle
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import DistStoreError, TCPStore  # type: ignore[attr-defined]  # documented, but not in `__all__`

from leafe.errors import UserError
from leafe.group import launched

PATIENCE = timedelta(days=365)
GRACE = 10.0  # seconds between the refusals of two processes that were refused the same
_leading: list[Leader] = []


def leader() -> Leader | None:
    """The leader of this command's processes, if this process is the first of several."""
    return _leading[0] if _leading else None


class Leader:
    """The first process: a context in which the others take part in its trainings."""

    def __init__(self) -> None:
        self._store, self._told = _store(), 0

    def tell(self, job: Any) -> None:
        """Starts the same job, which has to be picklable, in the others."""
        self._told += 1
        self._store.set(_name(self._told), b64encode(pickle.dumps(job)).decode())

    def __enter__(self) -> Leader:
        _leading.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _leading.remove(self)
        self.tell(None)


def follow(work: Callable[[Any], object], grace: float = GRACE) -> None:
    """Does the jobs that the first process begins, until it ends.

    A job's `UserError` is raised unless the first process goes on or ends within `grace` seconds: then it was refused the same, and reports
    it. Otherwise it waits for this process, and the launcher ends it when this one fails.
    """
    store, number = _store(), 1
    while True:
        store.wait([_name(number)], PATIENCE)
        job = pickle.loads(b64decode(store.get(_name(number))))
        if job is None:
            return
        number += 1
        try:
            work(job)
        except UserError:
            if not _comes(store, number, grace):
                raise


def _comes(store: TCPStore, number: int, grace: float) -> bool:
    """Whether a job, or the end, is told within so many seconds."""
    try:
        store.wait([_name(number)], timedelta(seconds=grace))
    except DistStoreError:
        return False
    return True


def is_first() -> bool:
    """Whether this process is the first of those that a launcher started, or the only one."""
    return not launched() or os.environ["RANK"] == "0"


def _name(number: int) -> str:
    return f"leafe/job/{number}"


def _store() -> TCPStore:
    """The store through which a launcher's processes find each other, held by the launcher or else by the first process."""
    held = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    first = os.environ["RANK"] == "0" and not held
    host, port, world = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(os.environ["WORLD_SIZE"])
    return TCPStore(host, port, world, first, timeout=PATIENCE, wait_for_workers=False, multi_tenant=True)
