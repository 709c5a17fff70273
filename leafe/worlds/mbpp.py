"""MBPP as an environment: short functions, a submission a turn.

Reads the published schema: `task_id`, `text` (or `prompt`), `code`, `test_list`, `challenge_test_list`, `test_setup_code` (or
`test_imports`). The first test is public, because only the tests name the function; the others decide. A test is kept where it
compares a call with a literal, which nearly all do: then the call alone goes into the sandbox, and the value that it should give never
does. Tests of other forms are left out, and problems that have only those are counted.
"""

from __future__ import annotations

import ast
import io
import json
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from leafe.worlds.programs.call_runner import LONG, SAFE_DIGITS, canonical
from leafe.worlds.programs.environment import Programming
from leafe.worlds.programs.problem import Case, Excluded, Problem, parted

# The published ranges of task ids; those from 1 to 10 were meant for prompts.
RANGES = {"prompt": range(1, 11), "test": range(11, 511), "valid": range(511, 601), "train": range(601, 975)}


class Mbpp(Programming):
    """Short functions. Splits are the published ranges of task ids."""

    name = "mbpp"
    about = "short functions in the published schema, or problems of our own; exact snapshots"
    actions_help = "Python 3 code that defines the function."
    splits = tuple(RANGES)
    columns = ("task_id", "test_list", "code")
    own = "mbpp.jsonl"

    def __init__(self, *, public_tests: int = 1, **settings: Any) -> None:
        super().__init__(**settings)
        self._public_tests = max(1, public_tests)

    def split_of(self, row: Mapping[str, Any], file: Path) -> str:
        """By the task's id."""
        number = int(row["task_id"])
        return next((split for split, ids in RANGES.items() if number in ids), "")

    def problem_of(self, row: Mapping[str, Any]) -> Problem:
        """See `Programming.problem_of`."""
        setup = "\n".join([*(row.get("test_imports") or []), row.get("test_setup_code") or ""]).strip()
        tests = [*row["test_list"], *(row.get("challenge_test_list") or [])]
        read = [(str(test).strip(), case) for test in tests for case in _case(str(test), setup)]
        cases = [case for _, case in read]
        if not cases:
            raise Excluded("no test that compares a call with a literal")
        public, hidden = parted(cases[: self._public_tests], cases[self._public_tests :], self._most)
        text, code = row.get("text") or row["prompt"], str(row["code"])
        examples = "\n".join(test for test, _ in read[: self._public_tests])
        return Problem(
            name=f"MBPP {int(row['task_id'])}",
            statement=f"{str(text).strip()}\nFor example:\n{examples}",
            public=public,
            hidden=hidden,
            kind="call",
            solutions=(code.replace("\r\n", "\n"),),
            wrong=(_wrong(public[0].shown),),
        )


def _case(test: str, setup: str) -> Iterator[Case]:
    """The test as a case, if it is `assert call == literal`. It is read and never run."""
    try:
        body = ast.parse(short_numbers(test.strip())).body
    except SyntaxError:
        raise ValueError(f"the test {test[:60]!r} is no Python") from None
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        return
    compared = body[0].test
    if not (isinstance(compared, ast.Compare) and len(compared.ops) == 1 and isinstance(compared.ops[0], ast.Eq)):
        return
    try:
        expected = canonical(ast.literal_eval(compared.comparators[0]))
    except ValueError:
        return
    call = _source(compared.left)
    yield Case(json.dumps({"setup": setup.replace("\r\n", "\n"), "call": call}), expected, call)


def short_numbers(source: str) -> str:
    """Source in which whole numbers of more digits than Python reads at once are written in hexadecimal."""
    if len(source) <= SAFE_DIGITS:
        return source
    lines = source.splitlines(keepends=True)
    long = [
        token
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.NUMBER and len(token.string) > SAFE_DIGITS and token.string.isdecimal()
    ]
    for token in reversed(long):
        (row, start), (_, end) = token.start, token.end
        lines[row - 1] = lines[row - 1][:start] + hex(_whole(token.string)) + lines[row - 1][end:]
    return "".join(lines)


def _whole(digits: str) -> int:
    if len(digits) <= SAFE_DIGITS:
        return int(digits)
    half = len(digits) // 2
    above: int = _whole(digits[:-half]) * 10**half
    return above + _whole(digits[-half:])


class _Long(ast.NodeTransformer):
    """Writes whole numbers that Python does not write out as names, which `ast.unparse` copies."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        """A long number's digits in hexadecimal."""
        if isinstance(node.value, int) and abs(node.value) >= LONG:
            return ast.Name(hex(node.value))
        return node


def _source(node: ast.expr) -> str:
    return ast.unparse(_Long().visit(node))


def _wrong(call: str) -> str:
    """A function of the right name that does nothing."""
    names = [node.func.id for node in ast.walk(ast.parse(call)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return f"def {names[-1] if names else 'nothing'}(*arguments):\n    return None"
