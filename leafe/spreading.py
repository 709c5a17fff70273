"""From a configuration to its workers: where worlds live, and what engine is loaded, once `scale` names more than this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from leafe.engines.base import Engine
from leafe.envs.base import Environment
from leafe.envs.hosting import Hosting, Terms, hosting
from leafe.scale.cluster import RayWorkers, connect, cores
from leafe.scale.engine import SpreadEngine
from leafe.scale.line import Starter
from leafe.scale.process import start_process
from leafe.scale.worlds import spread
from leafe.settings import EngineSettings, RunConfig, ScaleSettings

MOST = 64  # workers, unless a number of them is said
Host = Callable[[Callable[[], Environment], Terms], Hosting]
Load = Callable[[EngineSettings, Path], Engine]


def host_of(settings: ScaleSettings) -> Host:
    """Where worlds live: here, in processes, or in actors. Raises what `connect` raises, at once."""
    if not settings.ray:
        return partial(spread, start_process, settings.workers) if settings.workers else hosting
    connect(settings.ray)
    start: Starter = RayWorkers(cpus=settings.cpus)
    return partial(spread, start, settings.workers or max(1, min(MOST, int(cores() / (settings.cpus or 1)))))


def loader_of(config: RunConfig, load: Load) -> Callable[[Path], Engine]:
    """What loads an engine on a folder: `load` here, or in each of the replicas, where the folder has to lie too."""
    engine, scale = config.engine, config.scale
    if not scale.replicas:
        return partial(load, engine)
    one: Any = engine.model_copy(update={"processes": 1})
    room = scale.replicas * min(engine.slots, engine.concurrency)
    start: Starter = RayWorkers(cpus=scale.cpus, gpus=scale.gpus)
    return lambda folder: SpreadEngine(start, partial(load, one, folder), replicas=scale.replicas, concurrency=room)
