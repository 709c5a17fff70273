"""From a configuration to what it is carried out with: engine, environment, bench. Nothing is begun and nothing printed.

A server is asked a few questions when it is first needed in a process, or by `Bench.check` before anything is begun.
"""

from __future__ import annotations

import asyncio
import os
from functools import cache, partial
from pathlib import Path

from transformers import AutoTokenizer

from leafe.bench import Bench
from leafe.engines.base import Engine
from leafe.engines.openai import OpenAIEngine
from leafe.engines.openai_findings import Findings
from leafe.engines.openai_http import Client, Waiting
from leafe.engines.openai_probe import Question, probe
from leafe.engines.replicas import ReplicatedEngine
from leafe.engines.tokens import ChatTokenizer
from leafe.engines.transformers import TransformersEngine
from leafe.envs import registry
from leafe.errors import UserError
from leafe.nano import CHECKPOINTS
from leafe.progress import Progress
from leafe.settings import API_KEY_ENV, EngineSettings, RunConfig
from leafe.train.checkpoint import device_of, dtype_of, locate, processes_of

GIB = 1 << 30


def threads_of(settings: EngineSettings) -> int:
    """How many threads torch may use: as the setting says, or one for each core that is this process's own."""
    # Not every system can say which cores are this process's own.
    return settings.threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _key(settings: EngineSettings) -> str | None:
    """The key for a server. Raises `UserError` where a variable was named and is not set; only the usual one may be missing."""
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key and settings.api_key_env != API_KEY_ENV:
        raise UserError(
            "the environment variable that engine.api_key_env names is not set; type: export NAME=KEY, with its name and the key"
        )
    return key or None


def _waiting(settings: EngineSettings) -> Waiting:
    return Waiting(settings.timeout, settings.retries, settings.patience)


def _tokenizer(config: RunConfig, base: Path) -> ChatTokenizer:
    """The local tokenizer beside a server: the one that is named, or the model's."""
    named = config.engine.tokenizer
    folder = base if named in ("", "model") else locate(named, CHECKPOINTS)
    return ChatTokenizer(AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False))


def _probe(config: RunConfig, base: Path, progress: Progress) -> Findings:
    """What the server of a configuration is, told in lines. Raises `UserError` or `EngineError`, as `probe` does."""
    settings = config.engine
    question = Question(
        served=settings.served_model,
        names=(config.model, str(base)),
        sampling=config.sampling.act.sampling(),
        tokenizer=_tokenizer(config, base),
        fallback=bool(settings.tokenizer),
    )

    async def ask() -> Findings:
        client = Client(settings.base_url, api_key=_key(settings), waiting=_waiting(settings), told=progress.say)
        try:
            return await probe(client, question)
        finally:
            await client.close()

    found = asyncio.run(ask())
    for line in found.lines:
        progress.say(line)
    return found


def _served(config: RunConfig, base: Path, progress: Progress, found: Findings) -> Engine:
    """An engine on the server that was probed."""
    settings, tokens = config.engine, _tokenizer(config, base)
    return OpenAIEngine(
        settings.base_url,
        found.model,
        api_key=_key(settings),
        tokenizer=tokens.tokenizer if found.ids == "encoded" else None,
        dialect=found.dialect,
        max_context=found.max_context,
        cap=settings.max_context,
        count=lambda messages: len(tokens.prompt_ids(messages)),
        concurrency=settings.concurrency,
        waiting=_waiting(settings),
        told=progress.say,
    )


def _engine(settings: EngineSettings, folder: Path) -> Engine:
    """An engine in this process, or several, on a model."""
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
    load = partial(_engine, config.engine)
    probed = cache(partial(_probe, config, base, progress)) if config.engine.kind == "openai" else None

    def explores(folder: Path) -> Engine:
        # A server serves the base and nothing else: what is trained from it is loaded here.
        return _served(config, base, progress, probed()) if probed and folder == base else load(folder)

    return Bench(
        config=config,
        base=base,
        load_engine=explores,
        load_measured=load if config.arms else explores,
        probe=probed,
        make_environment=partial(registry.make, config.environment.name, config.environment.args),
        progress=progress,
        threads=threads_of(config.engine),
    )
