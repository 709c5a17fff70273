"""Judges a program: public tests in their order, then the hidden ones, up to the first that fails, all in one sandbox.

Verdicts have to be the same every time, or a rollback could not be verified. So time is CPU time, and the clock that ends sleepers stops
while a program waits for a core. A program is ended only well beyond its limit; one that ended between the limit and that point is run
again and its least time counts, because other load on the machine can only add. A program that reads the clock cannot be made
repeatable. Expected outputs never enter the sandbox.
"""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leafe.worlds.programs.problem import Case, Problem, same_answer
from leafe.worlds.sandbox.limits import MIB, Limits, Outcome, Program, Verdict
from leafe.worlds.sandbox.sandbox import Sandbox

RUNNER = Path(__file__).with_name("call_runner.py")
SLACK = 1.2  # a program is ended at this many times its limit
AGAIN = 2  # further runs of one that ended in between
NOT_COMPILED = re.compile(r"(?:SyntaxError|IndentationError|TabError|ValueError: source code)\b")
RAN = re.compile(
    r'File "[^"\n]*program\.py", line \d+, in '
)  # a frame of the program, which a text that is not compiled has none of
SPARE_OUTPUT = 2  # a program may write this many times what is expected before it writes too much

Reason = Literal["wrong", "error", "time", "memory", "output"]
ENDED: dict[Verdict, Reason] = {Verdict.TIME: "time", Verdict.MEMORY: "memory", Verdict.OUTPUT: "output"}


@dataclass(frozen=True, slots=True)
class Failure:
    """Which test failed, counted from 1, whether it is hidden, why, and the run."""

    number: int
    hidden: bool
    case: Case
    reason: Reason
    outcome: Outcome

    @property
    def not_compiled(self) -> bool:
        """Whether the text is no Python program at all."""
        text = self.outcome.stderr
        return self.reason == "error" and NOT_COMPILED.match(last_line(text)) is not None and RAN.search(text) is None


def last_line(text: str) -> str:
    """The last line that holds something, as the one of a traceback that names the error."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def limits_of(problem: Problem) -> Limits:
    """The sandbox's limits: somewhat more time than the problem allows, and room for the longest answer."""
    longest = max(len(case.expected.encode("utf-8", "replace")) for case in (*problem.public, *problem.hidden))
    return Limits(
        cpu_seconds=problem.cpu_seconds * SLACK,
        wall_seconds=3 * problem.cpu_seconds + 2,
        memory_bytes=problem.memory_bytes,
        output_bytes=max(MIB, SPARE_OUTPUT * longest),
    )


def judge(sandbox: Sandbox, problem: Problem, source: str) -> Failure | None:
    """The first failure, or None for a program that passes everything."""
    program = Program(source, RUNNER.read_text(encoding="utf-8") if problem.kind == "call" else None)
    cases = [*problem.public, *problem.hidden]
    failed, late = _first_failure(sandbox, problem, program)
    for number in late:  # they come before the failure
        again = sandbox.run(program, [cases[number].input] * AGAIN, limits_of(problem))
        outcomes = [outcome for outcome in again if not _in_time(problem, outcome)]
        if len(outcomes) == AGAIN:
            return _failure(problem, number, "time", outcomes[-1])
    return failed


def _first_failure(sandbox: Sandbox, problem: Problem, program: Program) -> tuple[Failure | None, list[int]]:
    """The first failure, and the numbers of the cases before it that came to an end too late to be sure."""
    cases = [*problem.public, *problem.hidden]
    late: list[int] = []
    outcomes = sandbox.run(program, [case.input for case in cases], limits_of(problem))
    with closing(outcomes):
        for number, outcome in enumerate(outcomes):
            reason = _reason(problem, cases[number], outcome)
            if reason is not None:
                return _failure(problem, number, reason, outcome), late
            if not _in_time(problem, outcome):
                late.append(number)
    return None, late


def _failure(problem: Problem, number: int, reason: Reason, outcome: Outcome) -> Failure:
    public = len(problem.public)
    case = [*problem.public, *problem.hidden][number]
    return Failure(number + 1 if number < public else number + 1 - public, number >= public, case, reason, outcome)


def _reason(problem: Problem, case: Case, outcome: Outcome) -> Reason | None:
    """Why a run is no pass, apart from its exact time."""
    if outcome.verdict is Verdict.ERROR:
        return "memory" if last_line(outcome.stderr).startswith("MemoryError") else "error"
    if outcome.verdict is not Verdict.EXITED:
        return ENDED[outcome.verdict]
    found = answer(problem, outcome)
    # Of a function's value every space counts; of output none does.
    same = same_answer(case.expected, found, problem.answers) if problem.kind == "stdin" else case.expected == found
    return None if same else "wrong"


def _in_time(problem: Problem, outcome: Outcome) -> bool:
    return outcome.verdict is Verdict.EXITED and outcome.cpu_seconds <= problem.cpu_seconds


def answer(problem: Problem, outcome: Outcome) -> str:
    """A program's answer: all of its output, or the value of its function."""
    return outcome.stdout if problem.kind == "stdin" else outcome.stdout.rstrip("\n").rpartition("\n")[2]
