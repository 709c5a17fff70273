"""The Java process that the simulator runs in: how it is started, what it may take, and that it ends with us, however we end.

Its flags are those here, whatever the environment variables say, and its output is discarded. Two make a replay exact: the simulator walks
through sets of objects by their identity hashes, which are random unless `hashCode=2` makes them all equal, and then it walks in the order
of insertion. The protocol with the simulator is not known here.
"""

from __future__ import annotations

import importlib.util
import os
import select
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from leafe.doctor import JAVA_INSTALL
from leafe.errors import MissingDependency, UserError
from leafe.hardware import java_command
from leafe.imports import install_command

EXACT = ("-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2")
# The serial collector has one thread and the least memory; a heap that is full ends the process and not just one of its threads.
SMALL = ("-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-XX:-UsePerfData", "-Djava.awt.headless=true")
OPEN = "--add-opens=java.base/java.util=ALL-UNNAMED"  # so that the state of the simulator's random generator can be read
OVERRIDES = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS")
FULL = 3  # Java's exit status when the heap is full
PATIENCE = 600  # seconds that one answer may take; far more than any does, because a busy machine is no failure


@dataclass(frozen=True, slots=True)
class Options:
    """How the process is started: whether replays are to be exact, and its heap's limit in MiB."""

    deterministic: bool = True
    heap: int = 256

    def flags(self) -> list[str]:
        """The flags for Java."""
        return [*(EXACT if self.deterministic else ()), *SMALL, f"-Xmx{self.heap}m", OPEN]


def needs() -> tuple[str, Path]:
    """The command `java` and the folder of the package. Raises `MissingDependency` for a missing one."""
    found = importlib.util.find_spec("scienceworld")
    if found is None or found.origin is None or importlib.util.find_spec("py4j") is None:
        raise MissingDependency("ScienceWorld", install_command("scienceworld"))
    java = java_command()
    if java is None:
        raise MissingDependency("Java, which scienceworld runs on,", JAVA_INSTALL)
    return java, Path(found.origin).parent


class JavaProcess:
    """The process, listening on `port` for those who know `token`."""

    def __init__(self, options: Options) -> None:
        self._java, folder = needs()
        self._owner, self._heap = os.getpid(), options.heap
        with tempfile.TemporaryFile() as complaints:
            self._process = _started([self._java, *options.flags()], folder, complaints)
            try:
                self.port, self.token = _address(self._process)
            except ValueError as error:
                self.end()
                complaints.seek(0)
                raise self.refusal(complaints.read().decode(errors="replace") or str(error)) from None

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def ours(self) -> bool:
        """Whether this process started it. A process that was forked off since did not."""
        return self._owner == os.getpid()

    @property
    def runs(self) -> bool:
        """Whether it is still running."""
        return self._process.poll() is None

    def refusal(self, said: str) -> UserError:
        """The error for a process that does not start the simulator."""
        return UserError(
            f"{self._java} does not start ScienceWorld, which wants OpenJDK 11 or later: {' '.join(said.split()):.300}"
        )

    def why(self, error: Exception) -> str:
        """Why a call was not answered. The process may still be ending."""
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return f"the simulator failed: {' '.join(str(error).split()):.300}"
        if status == FULL:
            return f"the simulator's heap of {self._heap} MiB is full; give scienceworld a larger argument heap"
        return f"the simulator's Java process ended with status {status}"

    def let_go(self) -> None:
        """Closes our end of its input and no more, as one that was forked off does."""
        if self._process.stdin:
            self._process.stdin.close()

    def end(self) -> None:
        """Ends it. It holds nothing that would be lost."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()


def _started(command: list[str], folder: Path, complaints: IO[bytes]) -> subprocess.Popen[bytes]:
    """The process. It ends when its input does, which is when we do, and it hears no signal that a terminal sends to us."""
    from py4j.java_gateway import find_jar_path

    surroundings = {name: value for name, value in os.environ.items() if name not in OVERRIDES}
    archives = os.pathsep.join([find_jar_path(), str(folder / "scienceworld.jar")])  # the second holds an old py4j too
    return subprocess.Popen(
        [*command, "-cp", archives, "py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=complaints,
        cwd=folder,  # the simulator reads a table that lies beside its archive
        env=surroundings,
        start_new_session=True,
    )


def _address(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """The port on which the process listens, and its token. Raises `ValueError` when it reports neither."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], PATIENCE)[0]:
        raise ValueError(f"it said nothing for {PATIENCE} s")
    port = process.stdout.readline().decode(errors="replace").strip()
    if not port.isdecimal():
        raise ValueError(port or "it said nothing")
    return int(port), process.stdout.readline().decode().strip()
