"""A command that a launcher started several times: the first process does it, the others wait and help with each training.

    torchrun --nproc-per-node=8 -m leafe.cli run RECIPE train.sharding=fsdp

What is to be trained goes from the first process to the others through the launcher's own store, so a machine has to have the model at the
same path and nothing else. They wait as long as it takes, and end with the first one.
"""

from __future__ import annotations

import os
import pickle
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is in the documentation, and not in `__all__`

from leafe.group import launched

PATIENCE = timedelta(days=365)
_leading: list[Leader] = []


def leader() -> Leader | None:
    """Who others of this command follow, if this process is the first of several."""
    return _leading[0] if _leading else None


class Leader:
    """The first process: a context, in which what it trains others train with it."""

    def __init__(self) -> None:
        self._store, self._told = _store(), 0

    def tell(self, job: Any) -> None:
        """Lets the others begin the same job, which can be pickled."""
        self._told += 1
        self._store.set(_name(self._told), b64encode(pickle.dumps(job)).decode())

    def __enter__(self) -> Leader:
        _leading.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _leading.remove(self)
        self.tell(None)


def follow(work: Callable[[Any], object]) -> None:
    """Does the jobs that the first process begins, until it ends."""
    store, number = _store(), 1
    while True:
        store.wait([_name(number)], PATIENCE)
        job = pickle.loads(b64decode(store.get(_name(number))))
        if job is None:
            return
        work(job)
        number += 1


def is_first() -> bool:
    """Whether this process is the first of those that a launcher started, or the only one."""
    return not launched() or os.environ["RANK"] == "0"


def _name(number: int) -> str:
    return f"leafe/job/{number}"


def _store() -> TCPStore:
    """The store that processes of a launcher find each other by, which the launcher holds, or else the first process."""
    held = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    first = os.environ["RANK"] == "0" and not held
    host, port, world = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(os.environ["WORLD_SIZE"])
    return TCPStore(host, port, world, first, timeout=PATIENCE, wait_for_workers=False, multi_tenant=True)
