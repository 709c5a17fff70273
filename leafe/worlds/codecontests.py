"""CodeContests as an environment: competitive programming, a program a turn.

Reads the published schema: `name`, `description`, `public_tests`, `private_tests` and `generated_tests` (each `{"input": [], "output": []}`
or a list of pairs), `solutions` and `incorrect_solutions` (`{"language": [], "solution": []}`), `time_limit`, `memory_limit_bytes`. Hidden
tests are the private and the generated ones. The judges of problems are not published: how answers are compared is read from the
statements (`programs.statement`), and problems with several right answers are left out and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from leafe.digest import seed_for
from leafe.worlds.programs.environment import Programming
from leafe.worlds.programs.problem import Case, Excluded, Problem, parted
from leafe.worlds.programs.statement import answers_of

PYTHON3 = 3  # the number of the language in the published schema
INTERACTIVE = re.compile(r"interactive\s+(?:problem|task)|flush\s+(?:the\s+)?(?:output|stdout)", re.IGNORECASE)


class CodeContests(Programming):
    """Competitive programming.

    A file belongs to the split that its name begins with or its folder is named after; problems of other files are split by name. With
    `special_judges` the problems that need a judge of their own are kept and compared like all others.
    """

    name = "codecontests"
    about = "competitive programming in the published schema, or problems of our own; exact snapshots"
    actions_help = "A whole Python 3 program."
    splits = ("train", "valid", "test")
    columns = ("name", "description", "public_tests", "private_tests")
    own = "codecontests"

    def __init__(self, *, special_judges: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self._special_judges = special_judges

    def split_of(self, row: Mapping[str, Any], file: Path) -> str:
        """The published split, where the file names it; else eight of ten problems are for training."""
        for split in self.splits:
            if file.name.startswith(split) or file.parent.name in (split, f"{split}ation"):
                return split
        draw = seed_for("codecontests-split", row["name"]) % 10
        return "train" if draw < 8 else "valid" if draw == 8 else "test"

    def problem_of(self, row: Mapping[str, Any]) -> Problem:
        """See `Programming.problem_of`."""
        statement = str(row["description"])
        if row.get("input_file") or row.get("output_file"):
            raise Excluded("input or output in a file")
        if INTERACTIVE.search(statement):
            raise Excluded("interaction")
        answers = answers_of(statement, special_judges=self._special_judges)
        hidden = [*_cases(row["private_tests"]), *_cases(row.get("generated_tests"))]
        # Some published examples are only in the statement and among the hidden tests.
        hidden = [case for case in hidden if not _stands_in(statement, case.input)]
        public, hidden_kept = parted(_cases(row["public_tests"]), hidden, self._most)
        return Problem(
            name=str(row["name"]),
            statement=statement.strip(),
            public=public,
            hidden=hidden_kept,
            cpu_seconds=_seconds(row.get("time_limit")) or 5.0,
            memory_bytes=max(int(row.get("memory_limit_bytes") or 0), 256 * 2**20),
            solutions=tuple(_in_python(row.get("solutions"))),
            wrong=tuple(_in_python(row.get("incorrect_solutions"))),
            answers=answers,
        )


def _cases(tests: Any) -> Iterator[Case]:
    """Tests as lists of inputs and outputs, or as a list of pairs.

    Published inputs may lack their last newline, and programs that cut off the last character of each line need it.
    A blank last line stays: it may be a word without letters.
    """
    pairs = zip(tests["input"], tests["output"], strict=True) if isinstance(tests, Mapping) else _fields(tests, "input", "output")
    for text, expected in pairs:
        text = str(text)
        text = text if text.endswith("\n") else text + "\n"
        yield Case(text, str(expected), text)


def _stands_in(statement: str, text: str) -> bool:
    """Whether an input is an example of the statement: the same lines in a row, blank ones left out."""
    whole, part = ("\n".join(line.strip() for line in one.splitlines() if line.strip()) for one in (statement, text))
    return f"\n{part}\n" in f"\n{whole}\n"


def _in_python(programs: Any) -> Iterator[str]:
    pairs = (
        zip(programs["language"], programs["solution"], strict=True)
        if isinstance(programs, Mapping)
        else _fields(programs, "language", "solution")
    )
    for language, source in pairs:
        if language in (PYTHON3, "PYTHON3"):
            yield str(source)


def _fields(items: Any, first: str, second: str) -> Iterator[tuple[Any, Any]]:
    for item in items or ():
        yield item[first], item[second]


def _seconds(limit: Any) -> float:
    return float(limit["seconds"] or 0) + float(limit.get("nanos") or 0) / 1e9 if limit else 0.0
