"""The policy's feedback on its program: everything about the first public test that failed, and nothing about a hidden one.

Of a hidden failure only its existence is reported. The texts are a function of the failure alone, without times and addresses that differ
from run to run, and every character of them is printable.
"""

from __future__ import annotations

import re

from leafe.worlds.programs.judge import Failure, answer, last_line
from leafe.worlds.programs.problem import Problem

LONGEST = 400  # characters of an input or output that are shown
NO_PROGRAM = {
    "stdin": "Submit a whole Python 3 program that reads standard input and writes standard output.",
    "call": "Submit Python 3 code that defines the function.",
}
PASSED = "All tests pass."
HIDDEN = (
    "All {count} public tests pass, but a hidden test does not: on some input that is not shown the program is wrong or too slow."
)
_FRAME = re.compile(r'File "[^"\n]*program\.py", line (\d+)')
_ADDRESS = re.compile(r"\b0x[0-9a-f]{8,16}\b")


def opening(problem: Problem) -> str:
    """The text before the first submission."""
    tests = f"Public tests: {len(problem.public)}. Hidden tests decide."
    return (
        f"{NO_PROGRAM[problem.kind]} Time limit: {problem.cpu_seconds:g} s. Memory limit: {problem.memory_bytes >> 20} MiB. {tests}"
    )


def feedback(problem: Problem, failure: Failure | None) -> str:
    """The text about a submission."""
    if failure is None:
        return PASSED
    if failure.not_compiled and not failure.hidden:
        return f"That is no Python program: {_error(failure)}. {NO_PROGRAM[problem.kind]}"
    if failure.hidden:
        return HIDDEN.format(count=len(problem.public))
    what = {
        "wrong": "the answer is wrong",
        "error": f"the program fails: {_error(failure)}",
        "time": f"the program takes longer than the limit of {problem.cpu_seconds:g} s",
        "memory": f"the program takes more memory than the limit of {problem.memory_bytes >> 20} MiB",
        "output": "the program writes too much",
    }[failure.reason]
    lines = [f"Public test {failure.number} of {len(problem.public)}: {what}."]
    lines += _part("Input" if problem.kind == "stdin" else "Call", failure.case.shown)
    lines += _part("Expected", failure.case.expected)
    if failure.reason == "wrong":
        lines += _part("Got", answer(problem, failure.outcome))
    return "\n".join(lines)


def _error(failure: Failure) -> str:
    """The error's own line and where in the program it was."""
    status, text = failure.outcome.status, failure.outcome.stderr
    words = last_line(text)
    if status < 0:
        return f"it was ended by signal {-status}"
    frames = _FRAME.findall(text)
    where = f"line {frames[-1]}: " if frames else ""
    return where + (plain(words)[:LONGEST].rstrip(".") or f"exit status {status}")


def _part(title: str, text: str) -> list[str]:
    shown = plain(text.strip("\n"))
    if len(shown) > LONGEST:
        half = LONGEST // 2
        shown = f"{shown[:half]} ... ({len(shown) - 2 * half} characters left out) ... {shown[-half:]}"
    return [f"{title}:", shown or "(nothing)"]


def plain(text: str) -> str:
    """The text with unprintable characters written out, and addresses, which carry no information, as 0x..."""
    seen = "".join(character if character.isprintable() or character in "\n\t" else repr(character)[1:-1] for character in text)
    return _ADDRESS.sub("0x...", seen)
