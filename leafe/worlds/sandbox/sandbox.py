"""The sandbox: programs in, outcomes out. One container a program, however many inputs it is run on; many programs at once.

A program that leaves files behind, or that manages to lose its container, gets a fresh one for its next input, so that no run depends on
an earlier one. Threads may share a sandbox; over all of them no more containers run at once than there are cores, because a program
that waits for a core is charged for waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from functools import cache

from leafe.errors import UnknownName
from leafe.hardware import own_cores
from leafe.worlds.sandbox.container import KINDS, interpreter_or_default
from leafe.worlds.sandbox.limits import Limits, Outcome, Program
from leafe.worlds.sandbox.session import Lost, Session


@cache
def _slots() -> threading.BoundedSemaphore:
    return threading.BoundedSemaphore(own_cores())


class Sandbox:
    """Runs programs under one kind of containment: `bubblewrap`, or where asked for by name `seccomp`.

    Containment is not checked here: call `probe.require` first.
    """

    def __init__(self, kind: str = "bubblewrap", *, interpreter: str | None = None) -> None:
        if kind not in KINDS:
            raise UnknownName("sandbox", kind, KINDS)
        self.kind = kind
        self.interpreter = interpreter_or_default(interpreter)

    def run(self, program: Program, inputs: Iterable[str], limits: Limits) -> Generator[Outcome, None, None]:
        """The outcome on each input in turn, run only as it is asked for; until it is closed it holds a container's place.

        Raises `EnvironmentFailure` when no sandbox starts.
        """
        session: Session | None = None
        with _slots():
            try:
                for text in inputs:
                    session = session or Session(KINDS[self.kind](program, limits, self.interpreter), limits)
                    try:
                        outcome = session.run(text.encode("utf-8", "replace"))
                        lost = not session.clean
                    except Lost as reason:
                        outcome, lost = Outcome(reason.verdict, stderr=f"the sandbox: {reason}"), True
                    if lost:
                        session.close()
                        session = None
                    yield outcome
            finally:
                if session:
                    session.close()

    def run_once(self, program: Program, text: str = "", limits: Limits | None = None) -> Outcome:
        """The outcome on one input."""
        return next(iter(list(self.run(program, [text], limits or Limits()))))
