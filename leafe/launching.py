"""From a configuration to a server of its own: its command, the probe of its properties, engines on the base and on trained arms.

One server at a time serves one folder, so a checkpoint is measured by ending the server of the base and starting one for it: base and arms
are sampled through the same program with the same options.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx

from leafe.digest import digest
from leafe.engines.base import Engine
from leafe.engines.openai import OpenAIEngine
from leafe.engines.openai_findings import Findings
from leafe.engines.serve import OwnServer
from leafe.engines.serve_command import ServeCommand
from leafe.engines.serve_engine import ServedEngine
from leafe.engines.serve_programs import ADAPTER, PROGRAMS
from leafe.errors import EngineError, UserError
from leafe.loops import wait_for
from leafe.progress import Progress
from leafe.serving import Door, probe_door, served_engine, tell
from leafe.settings import EngineSettings, LoraSettings, RunConfig
from leafe.training.checkpoint import device_of, dtype_of
from leafe.training.memory import give_back


def serve_command(settings: EngineSettings, lora: LoraSettings | None = None) -> ServeCommand:
    """The server's command by the settings. Raises `UserError` for arguments that cannot be passed on."""
    on_gpu = settings.dtype == "auto" and device_of("auto").startswith("cuda")
    return ServeCommand(
        server=PROGRAMS[settings.kind],
        command=settings.command,
        arguments=settings.arguments,
        # Given explicitly: by itself vLLM would serve a bfloat16 base and its float32 checkpoints with different precisions.
        dtype="bfloat16" if on_gpu else str(dtype_of(settings.dtype)).removeprefix("torch."),
        max_context=settings.max_context,
        tensor_parallel=settings.tensor_parallel,
        memory_share=settings.memory_share,
        rank=lora.rank if lora and lora.keep and settings.kind == "vllm" else 0,
    )


def _is_adapter_on(base: Path, adapter: Path) -> bool:
    """Whether a folder holds an adapter on the model in `base`: a training may start from another, such as that of the first round."""
    try:
        named = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        return Path(named).resolve() == base.resolve()
    except (OSError, ValueError, KeyError, TypeError):
        return False  # the merged weights beside it are served


class Launched:
    """The server of a configuration, started when it is first needed. Raises `UserError` for settings that cannot be used."""

    def __init__(self, config: RunConfig, base: Path, progress: Progress) -> None:
        self._config, self._base, self._progress = config, base, progress
        settings = config.engine
        command = serve_command(settings, config.train.lora)
        self._adapts = bool(command.rank)
        self.server = OwnServer(command, patience=settings.patience, restarts=settings.restarts, told=progress.say)
        self._found: Findings | None = None

    def probe(self) -> Findings:
        """The properties of the base's server, probed once and reported in lines. Raises `UserError` where it cannot be started or used."""
        if self._found is None:
            try:
                self._found = wait_for(self._probed(self._base))
            except EngineError as error:
                self.server.free()
                raise UserError(str(error)) from None
            tell(self._found, self._config.engine, self._progress)
        return self._found

    def engine(self, folder: Path) -> Engine:
        """An engine on the base or on a checkpoint, whose server starts with the first request."""

        async def connect(lost: Callable[[], str]) -> OpenAIEngine:
            known = self._found if folder == self._base else None
            if known:
                await self._start(folder)
            found = known or await self._probed(folder)
            return served_engine(self._config, folder, self._progress, found, door=self._door(lost, found.model))

        return ServedEngine(self.server, connect, concurrency=self._config.engine.concurrency)

    async def _probed(self, folder: Path) -> Findings:
        name = await self._start(folder)
        found = await probe_door(self._config, folder, self._progress, self._door(self._died, name))
        return replace(found, server=self.server.version)

    async def _start(self, folder: Path) -> str:
        """Serves a folder, by a server of its own, or as an adapter if it is one on the base; returns the name under which it is served."""
        give_back()
        adapter = folder / ADAPTER
        if self._adapts and folder != self._base and _is_adapter_on(self._base, adapter):
            await self.server.start(self._base, self._config.model)
            name = f"{folder.name}-{digest(str(folder))[:8]}"
            await self.server.load_adapter(name, adapter)
            self._progress.say(f"{folder.name} is served as an adapter on {self._config.model}")
            return name
        await self.server.start(folder, self._config.model if folder == self._base else folder.name)
        return self.server.name

    def _died(self) -> str:
        """Why the server died. It is not started again during the first questions, so that the cause is reported at once."""
        return f"the server died, {self.server.last_words}" if self.server.ended else ""

    def _door(self, lost: Callable[[], str], name: str) -> Door:
        # A transport of its own keeps requests to this machine from a proxy that the environment names.
        most = self._config.engine.concurrency
        transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=most, max_keepalive_connections=most))
        return Door(self.server.base_url, self.server.key, name, transport, lost)
