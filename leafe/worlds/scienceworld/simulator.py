"""ScienceWorld's simulator in a Java process of its own, and the calls that an environment needs.

Questions that change nothing in the world draw from the simulator's only random generator, which its animals and plants draw from too;
here they leave it as it was. Nothing is known here of tasks, episodes and turns. The simulator keeps much of its state in one place for
the whole process, so two episodes cannot share one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from leafe.errors import EnvironmentFailure
from leafe.worlds.scienceworld.catalogue import Spec
from leafe.worlds.scienceworld.java import PATIENCE, JavaProcess, Options

SCRAMBLE = 0x5DEECE66D  # the number with which java.util.Random scrambles a given seed


@dataclass(frozen=True, slots=True)
class Answer:
    """The simulator's answer to an action: its text, its score (to 100; below 0 once the episode is lost), and whether it is over."""

    text: str
    score: int
    completed: bool


class Simulator:
    """The simulator's interface, and the `process` that it lives in."""

    def __init__(self, options: Options) -> None:
        from py4j.protocol import Py4JError

        self.process = JavaProcess(options)
        try:
            self._connect()
        except BaseException as error:
            self.process.end()
            if isinstance(error, Py4JError):
                raise self.process.refusal(str(error)) from None
            raise

    def _connect(self) -> None:
        from py4j.java_gateway import GatewayParameters, JavaGateway

        logging.getLogger("py4j").setLevel(logging.CRITICAL)  # it reports every broken connection, which we report ourselves
        parameters = GatewayParameters(port=self.process.port, auth_token=self.process.token, read_timeout=PATIENCE)
        self._gateway = JavaGateway(gateway_parameters=parameters)
        machine = self._gateway.jvm
        silence = machine.java.io.PrintStream(machine.java.io.OutputStream.nullOutputStream())
        machine.java.lang.System.setOut(silence)  # it prints every step, and would wait for a reader
        machine.java.lang.System.setErr(silence)
        self._join = machine.java.lang.String.join
        self._server = machine.scienceworld.runtime.pythonapi.PythonInterface()
        self._shared = getattr(getattr(machine.scala.util, "Random$"), "MODULE$")
        self._random = self._shared.self()
        self._seed = self._random.getClass().getDeclaredField("seed")
        self._seed.setAccessible(True)

    @property
    def alive(self) -> bool:
        """Whether it can be used: its process runs, and was started by this process and not by one that this was forked off from."""
        return self.process.ours and self.process.runs

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
        """The names that an action may use now."""
        return self._asked("getPossibleObjects")

    def valid_actions(self) -> list[str]:
        """Every action that would be taken now, up to some thousands; in an ambiguity's menu its numbers."""
        return self._asked("getValidActionObjectCombinations")

    def descriptions(self, kind: str, variations: Sequence[int]) -> list[str]:
        """The goal of each variation of a task, read without building its world; whatever was loaded is lost.

        Whatever the variations create accumulates in one world, so ask for some tens at a time.
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
        """Holds Java objects to the end of a `with`. Python would drop them when it next looks for cycles, and they are large."""
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
        """A call of the simulator's interface. Raises `EnvironmentFailure` when Java raises or is gone."""
        from py4j.protocol import Py4JError

        try:
            return getattr(self._server, method)(*arguments)
        except Py4JError as error:
            raise EnvironmentFailure(self.process.why(error)) from None

    def _asked(self, question: str) -> list[str]:
        state = int(self._seed.get(self._random))
        answer = self._listed(self._call(question))
        self._random.setSeed(state ^ SCRAMBLE)
        return answer

    def _listed(self, texts: Any) -> list[str]:
        """A Java list in one message and not in one for each of its texts."""
        joined = str(self._join("\n", texts))
        return joined.split("\n") if joined else []

    def close(self) -> None:
        """Ends the process. In a process that was forked off, only disconnects from it."""
        self.disown()
        if self.process.ours:
            self._gateway._gateway_client.close()
            self.process.end()

    def disown(self) -> None:
        """Never uses the connection again. A process that was forked off does no more: the connection is its parent's."""
        self._gateway._gateway_client.is_connected = False  # or every Java object that Python drops is reported there
        self.process.let_go()
