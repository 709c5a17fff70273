"""Workers as actors of a Ray cluster: one actor holds many worlds, or one replica of the engine. The only place that imports `ray`.

An actor is placed where its cores and GPUs are free, spread over the machines. Ray never restarts it, because its contents would be
lost; `line.Crew` replaces it. Only data is passed: pickled makers, requests, answers.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from leafe.errors import MissingDependency, UserError
from leafe.imports import install_command
from leafe.scale.desk import Answer, Desk, Order, Service
from leafe.scale.line import Link, WorkerLost

LOCAL = "local"
STORE = 128 * 2**20  # bytes of memory for what actors pass to each other, which is little
PLACED = 120.0  # seconds that an actor may wait for a place in the cluster
KNOCK = 10.0  # seconds in which an address has to accept a connection
GRACE = 5.0  # seconds for an actor to close what it holds


def connect(address: str) -> None:
    """Joins the cluster at `address`, `auto` for the one that this machine belongs to; `local` starts one for this process alone.

    Raises `MissingDependency` without Ray, `UserError` where no cluster answers. A cluster that is joined already is kept.
    """
    ray = _ray()
    if ray.is_initialized():
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        _knock(address)
        if address == LOCAL:
            ray.init(address=LOCAL, include_dashboard=False, object_store_memory=STORE, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        found = " ".join(str(error).split())[:200]
        raise UserError(
            f"scale.ray={address}: no Ray cluster answers ({found}); type: ray start --head, or scale.ray={LOCAL} for one of this machine"
        ) from None


def _knock(address: str) -> None:
    """Raises `OSError` where no server listens; Ray itself would retry for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=KNOCK).close()


def cores() -> int:
    """Cores of the cluster that is joined."""
    return int(_ray().cluster_resources().get("CPU", 1))


@dataclass(frozen=True)
class Recipe:
    """A pickled function, unpickled when it is called, so that the actor exists before it imports whatever the function needs."""

    pickled: bytes

    def __call__(self) -> Service:
        """The service that the function makes."""
        made: Service = pickle.loads(self.pickled)()
        return made


class RayWorkers:
    """Starts actors that take `cpus` cores and `gpus` GPUs each; see `line.Starter`."""

    def __init__(self, *, cpus: float = 1.0, gpus: float = 0.0, patience: float = PLACED) -> None:
        self._cpus, self._gpus, self._patience = cpus, gpus, patience

    async def __call__(self, make: Callable[[], Service]) -> Link:
        """An actor. Raises `UserError` where the cluster has no room for it, `WorkerLost` where it ends before it is ready."""
        ray = _ray()
        kind = ray.remote(Desk).options(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            # A class of a user's own is found where it is found here, as long as the machines share that folder.
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([*filter(None, sys.path), os.getcwd()])}},
        )
        actor = kind.remote(Recipe(ray.cloudpickle.dumps(make)))
        try:
            await asyncio.wait_for(_answer(actor.__ray_ready__.remote()), self._patience)
        except TimeoutError:
            ray.kill(actor)
            has = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
            wanted = f"{self._cpus:g} cores and {self._gpus:g} GPUs"
            found = f"no machine of the cluster had them free, which has {has['CPU']:g} cores and {has['GPU']:g} GPUs in all"
            raise UserError(
                f"a worker wants {wanted}, and in {self._patience:g} s {found}; "
                "type a smaller scale.workers or scale.replicas, or other scale.cpus and scale.gpus"
            ) from None
        except BaseException:
            ray.kill(actor)
            raise
        return RayLink(actor)


class RayLink:
    """The link to one `actor`."""

    gather = 0.003  # a call costs the driver a third of a millisecond, and steps of worlds that are worth an actor take longer

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    async def hand_in(self, orders: list[Order]) -> None:
        """Sends orders."""
        await _answer(self.actor.hand_in.remote(orders))

    async def collect(self) -> list[Answer]:
        """Waits for answers."""
        found: list[Answer] = await _answer(self.actor.collect.remote(self.gather))
        return found

    async def end(self) -> None:
        """Ends the actor, gently at first."""
        with suppress(Exception):  # it is killed in any case
            await asyncio.wait_for(_answer(self.actor.close.remote()), GRACE)
        _ray().kill(self.actor)


async def _answer(reference: Any) -> Any:
    """The result of an actor's call. Raises `WorkerLost` for whatever Ray reports about its end."""
    try:
        return await reference
    except _ray().exceptions.RayError as error:
        raise WorkerLost(" ".join(str(error).split())[:300]) from None


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine by default
    try:
        import ray
    except ImportError:
        raise MissingDependency("ray, which scale.ray wants,", install_command("ray")) from None
    return ray
