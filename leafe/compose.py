"""From a configuration to what it is carried out with: engine, environment, bench. Nothing is begun and nothing printed."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from leafe.bench import Bench
from leafe.engines.base import Engine
from leafe.engines.loading import context_of, load_config, load_tokenizer
from leafe.engines.openai import OpenAIEngine
from leafe.engines.replicas import ReplicatedEngine
from leafe.engines.tokens import ChatTokenizer
from leafe.engines.transformers import TransformersEngine
from leafe.envs import registry
from leafe.nano import CHECKPOINTS
from leafe.preflight import Meter
from leafe.progress import Progress
from leafe.settings import EngineSettings, RunConfig
from leafe.train.checkpoint import device_of, dtype_of, locate, processes_of

GIB = 1 << 30


def threads_of(settings: EngineSettings) -> int:
    """How many threads torch may use: as the setting says, or one for each core that is this process's own."""
    # Not every system can say which cores are this process's own.
    return settings.threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _engine(settings: EngineSettings, base: Path, folder: Path) -> Engine:
    """An engine on a model. A server serves the base and nothing else: what is trained from it is loaded here."""
    if settings.kind == "openai" and folder == base:
        return OpenAIEngine(settings.base_url, settings.served_model or str(folder), concurrency=settings.concurrency)
    processes = settings.processes or processes_of(settings.device, folder, threads_of(settings))
    loads = [
        partial(
            TransformersEngine.load,
            folder,
            device=device_of(settings.device, number),
            dtype=dtype_of(settings.dtype),
            slots=max(1, min(settings.slots, settings.concurrency) // processes),
            max_context=settings.max_context,
            cache_bytes=int(settings.cache_gib * GIB / processes),
            sharers=processes,
            threads=max(1, threads_of(settings) // (1 if settings.threads else processes)),
        )
        for number in range(processes)
    ]
    return loads[0]() if len(loads) == 1 else ReplicatedEngine(loads)


def bench_of(config: RunConfig, progress: Progress) -> Bench:
    """The bench of a configuration. Raises `UserError` when its model cannot be had."""
    base = locate(config.model, CHECKPOINTS)
    return Bench(
        config=config,
        base=base,
        load_engine=partial(_engine, config.engine, base),
        make_environment=partial(registry.make, config.environment.name, config.environment.args),
        progress=progress,
        threads=threads_of(config.engine),
        load_meter=partial(_meter, config.engine, base),
    )


def _meter(settings: EngineSettings, base: Path) -> Meter:
    """Counts with the tokenizer of the base. What a server's context is, only the server knows."""
    tokens = ChatTokenizer(load_tokenizer(base))
    context = settings.max_context if settings.kind == "openai" else context_of(load_config(base), settings.max_context)
    return Meter(lambda messages: len(tokens.prompt_ids(messages)), tokens.count, context)
