"""One Java process with ScienceWorld's simulator in it, and the calls that an environment needs.

The process is ours alone: its flags are those here, whatever the surroundings say, its output goes nowhere, and it ends with us, however
we end. Two of the flags make a replay exact: the simulator walks through sets of objects by their identity hashes, which are random unless
`hashCode=2` makes them all equal, and then it walks in the order of insertion. Questions that change nothing in the world draw from the
simulator's only random generator, which its animals and plants draw from too; here they leave it as it was.

Nothing is known here of tasks, episodes and turns. The simulator keeps much of its state in one place for the whole process, so two
episodes cannot share one.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import select
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from leafe.doctor import JAVA_INSTALL, java_command
from leafe.envs.scienceworld.catalogue import Spec
from leafe.errors import EnvironmentFailure, MissingDependency, UserError

INSTALL = "pip install -c constraints.txt -e '.[scienceworld]'"
EXACT = ("-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2")
# The serial collector has one thread and the least memory; a heap that is full ends the process and not just one of its threads.
SMALL = ("-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-XX:-UsePerfData", "-Djava.awt.headless=true")
OPEN = "--add-opens=java.base/java.util=ALL-UNNAMED"  # so that the generator's state can be read
OVERRIDES = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS")
FULL = 3  # how Java ends when the heap is full
PATIENCE = 600  # seconds that one call may take; far more than any does, for a busy machine is no failure
SCRAMBLE = 0x5DEECE66D  # what java.util.Random turns a given seed over with


@dataclass(frozen=True, slots=True)
class Options:
    """How the process is started: whether replays are to be exact, and its heap's limit in MiB."""

    deterministic: bool = True
    heap: int = 256

    def flags(self) -> list[str]:
        """The flags for Java."""
        return [*(EXACT if self.deterministic else ()), *SMALL, f"-Xmx{self.heap}m", OPEN]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the simulator says to an action: its text, its score (to 100; below 0 once the episode is lost), and whether it is over."""

    text: str
    score: int
    completed: bool


def needs() -> tuple[str, Path]:
    """The command `java` and the folder of the package. Raises `MissingDependency` for what is not there."""
    found = importlib.util.find_spec("scienceworld")
    if found is None or found.origin is None or importlib.util.find_spec("py4j") is None:
        raise MissingDependency("ScienceWorld", INSTALL)
    java = java_command()
    if java is None:
        raise MissingDependency("Java, which scienceworld runs on,", JAVA_INSTALL)
    return java, Path(found.origin).parent


class Simulator:
    """The process and the simulator's interface in it."""

    def __init__(self, options: Options) -> None:
        java, folder = needs()
        self._owner, self._options = os.getpid(), options
        with tempfile.TemporaryFile() as complaints:
            self._process = _started([java, *options.flags()], folder, complaints)
            try:
                self._connect(*_address(self._process))
            except BaseException as error:
                self._end()
                if not isinstance(error, ValueError):
                    raise
                complaints.seek(0)
                said = " ".join(complaints.read().decode(errors="replace").split())
                raise UserError(
                    f"{java} does not start ScienceWorld, which wants OpenJDK 11 or later: {said or error!s:.300}"
                ) from None

    def _connect(self, port: int, token: str) -> None:
        from py4j.java_gateway import GatewayParameters, JavaGateway

        logging.getLogger("py4j").setLevel(logging.CRITICAL)  # it reports every broken connection, which we report ourselves
        self._gateway = JavaGateway(gateway_parameters=GatewayParameters(port=port, auth_token=token, read_timeout=PATIENCE))
        machine = self._gateway.jvm
        silence = machine.java.io.PrintStream(machine.java.io.OutputStream.nullOutputStream())
        machine.java.lang.System.setOut(silence)  # it prints every step, and would wait for a reader
        machine.java.lang.System.setErr(silence)
        self._join = machine.java.lang.String.join
        self._server = machine.scienceworld.runtime.pythonapi.PythonInterface()
        shared = getattr(getattr(machine.scala.util, "Random$"), "MODULE$")
        self._shared, self._random = shared, shared.self()
        self._seed = self._random.getClass().getDeclaredField("seed")
        self._seed.setAccessible(True)

    @property
    def alive(self) -> bool:
        """Whether the process runs and is this process's own: one that was forked off has none."""
        return self._owner == os.getpid() and self._process.poll() is None

    def load(self, spec: Spec) -> Answer:
        """Sets a task up and looks around, which takes no time there."""
        self._load(spec, gold=False)
        return self.step("look around")

    def _load(self, spec: Spec, *, gold: bool) -> None:
        trouble = str(self._call("load", spec.kind, spec.variation, spec.simplifications, gold))
        if trouble:
            raise EnvironmentFailure(f"the simulator cannot load {spec.id}: {trouble}")

    def step(self, action: str) -> Answer:
        """Takes an action. Raises `EnvironmentFailure` once the simulator itself has failed."""
        text = str(self._call("step", action))
        score = round(100 * self._server.getScore())
        if score < 0:
            with self._held() as hold:
                inner = hold(hold(self._server.agentInterface()).get())
                if inner.isInErrorState():
                    raise EnvironmentFailure(f"the simulator failed inside: {inner.getErrorStateMessage()}")
        return Answer(text, score, bool(self._server.getCompleted()))

    def gold_path(self, spec: Spec) -> tuple[str, ...]:
        """The actions of the simulator's own solver; whatever was loaded is lost. Not the shortest way."""
        self._load(spec, gold=True)
        return tuple(self._listed(self._call("getGoldActionSequence")))

    def objects(self) -> list[str]:
        """What can be named in an action now."""
        return self._asked("getPossibleObjects")

    def valid_actions(self) -> list[str]:
        """Every action that would be taken now, up to some thousands; in an ambiguity's menu its numbers."""
        return self._asked("getValidActionObjectCombinations")

    def descriptions(self, kind: str, variations: Sequence[int]) -> list[str]:
        """What is wanted in each variation of a task, told without building its world; whatever was loaded is lost.

        What the variations bring along piles up in one world, so ask for some tens at a time.
        """
        self._load(Spec(kind, variations[0], ""), gold=False)
        told = []
        with self._held() as hold:
            world = hold(hold(hold(self._server.agentInterface()).get()).universe())
            agent, maker = hold(hold(self._server.agent()).get()), hold(self._server.taskMaker())
            for variation in variations:
                self._shared.setSeed(variation)
                setup = hold(maker.doTaskSetup(kind, variation, world, agent))
                told.append(str(hold(hold(setup._1()).get()).description()).strip())
        return told

    @contextmanager
    def _held(self) -> Iterator[Callable[[Any], Any]]:
        """A way to hold Java objects to the end of a `with`. Python would drop them when it next looks for cycles, and they are large."""
        held: list[Any] = []

        def hold(thing: Any) -> Any:
            held.append(thing)
            return thing

        try:
            yield hold
        finally:
            for thing in held:
                self._gateway.detach(thing)

    def _call(self, method: str, *arguments: Any) -> Any:
        """A call of the simulator's interface. Raises `EnvironmentFailure` when Java raises or is no more."""
        from py4j.protocol import Py4JError

        try:
            return getattr(self._server, method)(*arguments)
        except Py4JError as error:
            raise EnvironmentFailure(self._why(error)) from None

    def _why(self, error: Exception) -> str:
        """What became of the process, which may still be ending."""
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return f"the simulator failed: {' '.join(str(error).split()):.300}"
        if status == FULL:
            return f"the simulator's heap of {self._options.heap} MiB is full; give scienceworld a larger argument heap"
        return f"the simulator's Java process ended with status {status}"

    def _asked(self, question: str) -> list[str]:
        state = int(self._seed.get(self._random))
        answer = self._listed(self._call(question))
        self._random.setSeed(state ^ SCRAMBLE)
        return answer

    def _listed(self, texts: Any) -> list[str]:
        """A list of Java's in one message and not in one for each of its texts."""
        joined = str(self._join("\n", texts))
        return joined.split("\n") if joined else []

    def close(self) -> None:
        """Ends the process. In a process that was forked off, only lets go of it."""
        self.disown()
        if self._owner == os.getpid():
            self._gateway._gateway_client.close()
            self._end()

    def disown(self) -> None:
        """Never speaks to the process again. One that was forked off does no more: the connection is its parent's."""
        self._gateway._gateway_client.is_connected = False  # or every Java object that Python drops is reported there
        if self._process.stdin:
            self._process.stdin.close()

    def _end(self) -> None:
        self._process.kill()  # it holds nothing that would be lost
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
    """Where the process listens and the word that it wants to hear. Raises `ValueError` when it says neither."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], PATIENCE)[0]:
        raise ValueError(f"it said nothing for {PATIENCE} s")
    port = process.stdout.readline().decode(errors="replace").strip()
    if not port.isdecimal():
        raise ValueError(port or "it said nothing")
    return int(port), process.stdout.readline().decode().strip()
