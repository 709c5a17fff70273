"""The server that a run starts itself: started on a model, waited for, ended, and restarted when it dies.

One model is served at a time: for the weights of another model the server is ended and a new one started. It listens on this machine only,
at a free port, and requires a key that is made for it and passed in an environment variable. One line is printed when it starts,
one every half minute while it loads, one when it is ready, one for each restart.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import httpx

from leafe.engines.openai_http import BROUGHT_BACK, trusted
from leafe.engines.serve_command import ServeCommand
from leafe.engines.serve_process import ServerProcess
from leafe.errors import EngineError

QUIET = {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
WITHIN = 3600.0  # seconds, for the limit on restarts
PORTS = 3  # ports that are tried at a start
LOOK_EVERY = 0.2  # seconds
TELL_EVERY = 30.0  # seconds
TAKEN = "ddress already in use"


class OwnServer:
    """At most one server. `patience` is in seconds, for loading; `restarts` is the most restarts within `WITHIN` seconds."""

    def __init__(
        self,
        command: ServeCommand,
        *,
        patience: float = 600.0,
        restarts: int = 3,
        told: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.key = secrets.token_urlsafe(24)
        self.model: Path | None = None
        self.name = self.base_url = self.version = ""
        self._command, self._patience, self._restarts, self._told = command, patience, restarts, told
        self._begun: deque[float] = deque()  # the times of its restarts
        self._processes: list[ServerProcess] = []
        self._folder: Path | None = None
        self._adapters: dict[str, Path] = {}
        weakref.finalize(
            self, _stop_all, self._processes, os.getpid()
        )  # when this process ends in order; otherwise the keeper does it

    @property
    def ended(self) -> bool:
        """Whether no server runs."""
        return all(process.ended for process in self._processes)

    @property
    def last_words(self) -> str:
        """Why the server ended, and its last output."""
        return "; ".join(process.last_words for process in self._processes) or "it is gone"

    def require(self) -> None:
        """Raises `UserError` if there is no program to start."""
        self._command.program()

    async def start(self, model: Path, name: str) -> None:
        """Serves a folder under a name, by the running server or a new one; waits until it is ready.

        Raises `UserError` if there is no program to start, `EngineError` if it dies or is not ready in time.
        """
        if model == self.model and not self.ended:
            return
        await asyncio.to_thread(self.free)
        self.model, self.name = model, name
        self._adapters.clear()
        try:
            await self._launch()
        except BaseException:
            self.model = None
            raise

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Serves an adapter on the running model under a name, also after a restart of the server.

        Raises `EngineError` if the server does not take it.
        """
        if name not in self._adapters:
            await self._hand_over(name, folder)
            self._adapters[name] = folder

    async def _hand_over(self, name: str, folder: Path) -> None:
        body = {"lora_name": name, "lora_path": str(folder.absolute())}
        async with self._client(timeout=self._patience) as client:
            try:
                answer = await client.post(f"{self.base_url}/load_lora_adapter", json=body)
                said = "" if answer.status_code == 200 else f"{answer.status_code}: {answer.text.replace(self.key, '***'):.300}"
            except httpx.HTTPError as error:
                said = f"{type(error).__name__} {error}"
        if said:
            raise EngineError(
                f"{self._words} does not take the adapter in {folder} ({said}); set train.lora.keep=false to serve merged weights"
            )

    def _client(self, timeout: float = 10.0) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.AsyncClient(headers=headers, timeout=timeout, transport=httpx.AsyncHTTPTransport(verify=trusted()))

    async def restart(self) -> None:
        """Replaces a server that died, perhaps at another address. Raises `EngineError` once it has died too often."""
        while True:
            died, now = self.last_words, monotonic()
            while self._begun and now - self._begun[0] > WITHIN:
                self._begun.popleft()
            if len(self._begun) >= self._restarts:
                times = f"{len(self._begun) + 1} times within {WITHIN / 60:g} minutes (engine.restarts={self._restarts})"
                raise EngineError(f"the server of this run died {times}, at last with {died}", BROUGHT_BACK)
            self._begun.append(now)
            self._told(f"the server died ({died}); starting it again, {len(self._begun)} of at most {self._restarts} times")
            try:
                await self._launch()
                for name, folder in self._adapters.items():
                    await self._hand_over(name, folder)
            except EngineError:
                continue
            return

    def free(self) -> None:
        """Ends the server to free its memory; it starts again when it is needed."""
        self.model = None
        _stop_all(self._processes, os.getpid())

    def keep_logs_in(self, folder: Path) -> None:
        """Sets the folder of logs, one file a start: `server-001.log` and so on. It also gets the output of the running server so far."""
        if self._folder is None and self._processes:
            self._processes[-1].log.keep_in(_next_log(folder))
        self._folder = folder

    async def _launch(self) -> None:
        for last in (False,) * (PORTS - 1) + (True,):
            with self._starting() as (process, port):
                if await self._is_ready(process, port):
                    return
                words = process.last_words
                if last or TAKEN not in "".join(process.log.lines):
                    raise EngineError(
                        f"{self._words} died before it was ready, {words}{self._command.in_settings(words)}{self._saved(process)}"
                    )
                self._told(f"port {port} was taken meanwhile; trying another")

    @contextmanager
    def _starting(self) -> Iterator[tuple[ServerProcess, int]]:
        """A newly started process and its port. An error ends it."""
        assert self.model is not None
        port = _free_port()
        program, key_file = self._command.server, self._key_file()
        line = self._command.line(self.model, self.name, port, key_file)
        self._told(f"starting a server for {self.name} at 127.0.0.1:{port} ({self._words}); loading may take minutes")
        key = {program.key: self.key} if program.key else {}
        key |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"} if self._command.rank else {}
        process = ServerProcess(line, {**QUIET, **program.surroundings, **os.environ, **key}, secret=self.key)
        self._processes[:] = [process]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        if self._folder:
            process.log.keep_in(_next_log(self._folder))
        try:
            yield process, port
        except BaseException:
            process.stop()
            raise
        finally:
            if key_file:
                key_file.unlink(missing_ok=True)

    def _key_file(self) -> Path | None:
        """The key in a file that only this user can read and that is removed once the server is ready, if its program needs one."""
        if self._command.server.key:
            return None
        descriptor, path = tempfile.mkstemp(prefix="leafe-server-", suffix=".yaml")
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(f"api-key: {self.key}\n")
        return Path(path)

    async def _is_ready(self, process: ServerProcess, port: int) -> bool:
        """Waits until the process answers (true) or has died (false). Raises `EngineError` when it takes too long."""
        begun = told = monotonic()
        async with self._client() as client:
            while not process.ended:
                if await self._lists(client):
                    version = await _version(client, f"http://127.0.0.1:{port}{self._command.server.version}")
                    self.version = f"{self._command.server.title} {version}" if version else ""
                    of = f" ({self.version})" if version else ""
                    self._told(f"the server is ready after {monotonic() - begun:.0f} s{of}")
                    return True
                now = monotonic()
                if now - begun > self._patience:
                    waited = f"{self._patience:g} seconds (engine.patience)"
                    said = f"its last line: {(process.log.lines or ['none'])[-1]:.200}"
                    raise EngineError(f"{self._words} was not ready within {waited}; {said}{self._saved(process)}")
                if now - told > TELL_EVERY:
                    told = now
                    self._told(f"loading for {now - begun:.0f} s: {(process.log.lines or ['no output yet'])[-1]:.160}")
                await asyncio.sleep(LOOK_EVERY)
        return False

    async def _lists(self, client: httpx.AsyncClient) -> bool:
        """Whether the server lists the model: another server that took the port meanwhile does not."""
        try:
            answer = await client.get(f"{self.base_url}/models")
            entries = answer.json()["data"] if answer.status_code == 200 else []
            return any(entry["id"] == self.name for entry in entries)
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return False

    @property
    def _words(self) -> str:
        program, *more = self._command.program()
        return " ".join([Path(program).name, *more])

    def _saved(self, process: ServerProcess) -> str:
        """A sentence's end with the path of the whole log, a new file if there is no run directory yet."""
        if process.log.where:
            return ""
        descriptor, path = tempfile.mkstemp(prefix="leafe-server-", suffix=".log")
        os.close(descriptor)
        process.log.keep_in(Path(path))
        return process.log.where


def _stop_all(processes: list[ServerProcess], owner: int) -> None:
    while processes and os.getpid() == owner:  # a forked process that ends must not end the server
        processes[-1].stop()
        processes.pop()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _next_log(folder: Path) -> Path:
    taken = [path.stem.removeprefix("server-") for path in folder.glob("server-*.log")]
    number = max((int(suffix) for suffix in taken if suffix.isdecimal()), default=0) + 1
    return folder / f"server-{number:03d}.log"


async def _version(client: httpx.AsyncClient, address: str) -> str:
    try:
        found: Any = (await client.get(address)).json()["version"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return ""
    return str(found)[:40]
