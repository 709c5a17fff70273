"""From a configuration to its engine, environment and experiment. Nothing is begun and nothing printed.

A server is asked a few questions when it is first needed in a process, or by `Experiment.check` before anything is begun.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from leafe.engines.base import Engine
from leafe.engines.loading import context_of, load_config, load_tokenizer
from leafe.engines.openai_findings import Findings
from leafe.engines.replicas import ReplicatedEngine
from leafe.engines.serve_programs import PROGRAMS
from leafe.engines.tokens import ChatTokenizer
from leafe.engines.transformers import TransformersEngine
from leafe.envs import registry
from leafe.experiment import Experiment
from leafe.hardware import own_cores
from leafe.launching import Launched
from leafe.model_folder import locate
from leafe.nano import CHECKPOINTS
from leafe.preflight import Meter
from leafe.progress import Progress
from leafe.run import check_checkpoint
from leafe.serving import probe_server, served_engine
from leafe.settings import EngineSettings, RunConfig
from leafe.spreading import check_of, host_of, loader_of
from leafe.trackers import Trackers, check_trackers
from leafe.training.checkpoint import device_of, dtype_of, processes_of

GIB = 1 << 30


def threads_of(settings: EngineSettings) -> int:
    """How many threads torch may use: as the setting says, or one for each core that is this process's own."""
    return settings.threads or own_cores()


def load_local_engine(settings: EngineSettings, folder: Path) -> Engine:
    """An engine in this process, or several, on a model."""
    processes = settings.processes or processes_of(settings.device, folder, threads_of(settings))
    devices = [device_of(settings.device, number) for number in range(processes)]
    loads = [
        partial(
            TransformersEngine.from_folder,
            folder,
            device=device,
            dtype=None if settings.dtype == "auto" and device.startswith("cuda") else dtype_of(settings.dtype),
            slots=max(1, min(settings.slots, settings.concurrency) // processes),
            max_context=settings.max_context,
            cache_bytes=int(settings.cache_gib * GIB / processes),
            sharers=devices.count(device),
            threads=max(1, threads_of(settings) // (1 if settings.threads else processes)),
        )
        for device in devices
    ]
    return loads[0]() if len(loads) == 1 else ReplicatedEngine(loads)


def slower(settings: EngineSettings, device: str, obstacle: str) -> list[str]:
    """Why an engine in this process is slower than it could be on the device, in sentences with what to type."""
    said = []
    if device.startswith("cuda") and settings.dtype == "float32":
        said.append(
            "the engine samples in float32 on a GPU, with twice the memory and a fraction of the speed of bfloat16; type engine.dtype=auto"
            " for what the GPU and the checkpoint allow"
        )
    if obstacle:
        said.append(
            f"the engine takes the plain forward pass, several times slower than its own steps, since with those {obstacle:.160};"
            " engine.kind=vllm may be faster for this model"
        )
    return said


def _told(load: Callable[[Path], Engine], config: RunConfig, progress: Progress) -> Callable[[Path], Engine]:
    """The same loader, which also reports once what makes an engine slow."""
    told: set[str] = set()

    def loaded(folder: Path) -> Engine:
        engine = load(folder)
        if isinstance(engine, (TransformersEngine, ReplicatedEngine)):
            for sentence in slower(config.engine, device_of(config.engine.device), engine.obstacle):
                if sentence not in told:
                    progress.say(sentence)
                told.add(sentence)
        return engine

    return loaded


def bench_of(config: RunConfig, progress: Progress) -> Experiment:
    """The experiment of a configuration. Raises `UserError` when its model is missing, or was changed since a run trained it."""
    check_trackers(config.report_to)
    base = check_checkpoint(locate(config.model, CHECKPOINTS))
    if config.engine.kind in PROGRAMS:
        return _bench_on_own_server(config, base, progress)
    load = _told(loader_of(config, load_local_engine), config, progress)
    probed = cache(partial(probe_server, config, base, progress)) if config.engine.kind == "openai" else None

    def explores(folder: Path) -> Engine:
        # A server serves the base and nothing else: models trained from it are loaded here.
        return served_engine(config, base, progress, probed()) if probed and folder == base else load(folder)

    return Experiment(
        config=config,
        base=base,
        load_engine=explores,
        load_here=load if probed else None,
        probe=probed,
        make_environment=partial(registry.make, config.environment.name, config.environment.args),
        progress=progress,
        threads=threads_of(config.engine),
        load_meter=partial(_meter, config.engine, base, probed),
        host=host_of(config.scale),
        check_workers=check_of(config.scale),
        tracker=Trackers(config.report_to),
    )


def bench_without_server(config: RunConfig, progress: Progress) -> Experiment:
    """The same to check before anything is begun: a server that the run would start is not started."""
    experiment = bench_of(config, progress)
    if config.engine.kind not in PROGRAMS:
        return experiment
    return replace(experiment, probe=None, load_meter=partial(_meter, config.engine, experiment.base, None))


def _bench_on_own_server(config: RunConfig, base: Path, progress: Progress) -> Experiment:
    """The same where the run starts a server, through which base and arms are explored and measured."""
    launched = Launched(config, base, progress)
    return Experiment(
        config=config,
        base=base,
        load_engine=launched.engine,
        load_here=_told(loader_of(config, load_local_engine), config, progress),
        probe=launched.probe,
        require=launched.server.require,
        free=launched.server.free,
        keep_logs_in=launched.server.keep_logs_in,
        make_environment=partial(registry.make, config.environment.name, config.environment.args),
        progress=progress,
        threads=threads_of(config.engine),
        load_meter=partial(_meter, config.engine, base, launched.probe),
        host=host_of(config.scale),
        check_workers=check_of(config.scale),
        tracker=Trackers(config.report_to),
    )


def _meter(settings: EngineSettings, base: Path, probed: Callable[[], Findings] | None) -> Meter:
    """Counts with the tokenizer of the base. Only the server knows its own context."""
    tokens = ChatTokenizer(load_tokenizer(base))
    told = (probed().max_context, settings.max_context) if probed else (context_of(load_config(base), settings.max_context),)
    context = min((limit for limit in told if limit), default=0)
    return Meter(lambda messages: len(tokens.prompt_ids(messages)), tokens.count, context, tokens.notes)
