"""MBPP as an environment: short functions, a submission a turn.

Reads the published schema: `task_id`, `text` (or `prompt`), `code`, `test_list`, `challenge_test_list`, `test_setup_code` (or
`test_imports`). The first test is public, for without it nobody knows the function's name; the others decide. A test is kept where it
compares a call with a literal, which nearly all do: then the call alone goes into the sandbox, and the value that it should give never
does. The other tests are left out, and problems that have none but those are counted.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from leafe.envs.programs.call_runner import canonical
from leafe.envs.programs.environment import Programming
from leafe.envs.programs.problem import Case, Excluded, Problem, parted

# The published ranges of task ids; those from 1 to 10 were meant for prompts.
RANGES = {"prompt": range(1, 11), "test": range(11, 511), "valid": range(511, 601), "train": range(601, 975)}


class Mbpp(Programming):
    """Short functions. Splits are the published ranges of task ids."""

    name = "mbpp"
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
        body = ast.parse(test.strip()).body
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
    call = ast.unparse(compared.left)
    yield Case(json.dumps({"setup": setup.replace("\r\n", "\n"), "call": call}), expected, call)


def _wrong(call: str) -> str:
    """A function of the right name that does nothing."""
    names = [node.func.id for node in ast.walk(ast.parse(call)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return f"def {names[-1] if names else 'nothing'}(*arguments):\n    return None"
