"""From a configuration to its workers: where worlds live, and which engine is loaded, once `scale` names more than this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from leafe.engines.base import Engine
from leafe.envs.base import Environment
from leafe.envs.worker_pool import Terms, WorkerPool, worker_pool
from leafe.scale.cluster import RayWorkers, connect, cores
from leafe.scale.engine import SpreadEngine
from leafe.scale.process import start_process
from leafe.scale.worlds import spread
from leafe.settings import EngineSettings, RunConfig, ScaleSettings

MOST = 64  # workers, unless their number is given
Host = Callable[[Callable[[], Environment], Terms], WorkerPool]
Load = Callable[[EngineSettings, Path], Engine]


def check_of(settings: ScaleSettings) -> Callable[[], None]:
    """The check before anything is begun: that the cluster exists. Raises what `connect` raises."""
    return partial(connect, settings.ray) if settings.ray else lambda: None


def host_of(settings: ScaleSettings) -> Host:
    """Where worlds live: here, in processes, or in actors of a cluster that is joined when the first stage wants worlds."""
    if settings.ray:
        return partial(_on_cluster, settings)
    return partial(spread, start_process, settings.workers) if settings.workers else worker_pool


def _on_cluster(settings: ScaleSettings, make: Callable[[], Environment], terms: Terms) -> WorkerPool:
    connect(settings.ray)
    workers = settings.workers or max(1, min(MOST, int(cores() / (settings.cpus or 1))))
    return spread(RayWorkers(cpus=settings.cpus), workers, make, terms)


def loader_of(config: RunConfig, load: Load) -> Callable[[Path], Engine]:
    """The loader of engines on a folder: `load` here, or in each of the replicas, where the folder has to exist too."""
    engine, scale = config.engine, config.scale
    if not scale.replicas:
        return partial(load, engine)
    one: Any = engine.model_copy(update={"processes": 1})
    room = scale.replicas * min(engine.slots, engine.concurrency)

    def on_cluster(folder: Path) -> Engine:
        connect(scale.ray)
        start = RayWorkers(cpus=scale.cpus, gpus=scale.gpus)
        made_on = partial(partial, load, one)
        return SpreadEngine(start, made_on(folder), replicas=scale.replicas, concurrency=room, made_on=made_on)

    return on_cluster
