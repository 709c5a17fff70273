"""An episode of programming: a submission a turn, feedback from public tests, success by hidden ones.

The state is the list of submissions, so snapshots are exact by nature: nothing is run again to go back. A replay gives the same verdicts
because they are made repeatable (see `judge`), and one instance remembers the programs that it has judged. Text that is no Python
program is answered and changes nothing; the explorer counts its turn. Splits and schemas are those of the adapters.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from leafe.digest import seed_for, text_digest
from leafe.envs.base import FrozenStateEnvironment, Placement
from leafe.envs.seeds import split_named
from leafe.errors import CorruptFile, UnknownName, UserError
from leafe.records import Observation, Task
from leafe.replies import program_in
from leafe.worlds.programs.feedback import NO_PROGRAM, feedback, opening
from leafe.worlds.programs.files import check_files, places, problem_files, row_at
from leafe.worlds.programs.judge import judge
from leafe.worlds.programs.problem import Excluded, Problem
from leafe.worlds.sandbox.probe import require
from leafe.worlds.sandbox.sandbox import Sandbox

OWN = Path(__file__).parent / "own"  # problems of our own, in the published schemas
LONGEST_PROGRAM = 60_000  # characters
REMEMBERED = 512  # judged programs
EXPERTS = 3  # published solutions that are tried for one that passes


@dataclass(frozen=True, slots=True)
class Episode:
    """The whole state: the problem, digests of the submissions, and the last observation once the problem is solved."""

    problem: Problem
    submissions: tuple[str, ...] = ()
    final: Observation | None = None


class Programming(FrozenStateEnvironment[Episode]):
    """The shared part of CodeContests and MBPP. `path` is a file or folder of problems, by default our own.

    `hidden_tests` caps the hidden tests of a problem (0: all), `time_factor` stretches its time limit, `sandbox` is the kind of sandbox.
    """

    placement = Placement.THREAD  # it waits for programs to end
    computes = True  # the programs do
    splits: ClassVar[tuple[str, ...]]
    columns: ClassVar[tuple[str, ...]]  # that the schema must have
    own: ClassVar[str]  # where our own problems are
    several_lines = True

    def __init__(
        self,
        *,
        path: str | None = None,
        horizon: int = 4,
        hidden_tests: int = 0,
        time_factor: float = 1.0,
        sandbox: str = "bubblewrap",
        interpreter: str | None = None,
    ) -> None:
        if horizon < 1 or hidden_tests < 0 or time_factor <= 0:
            given = f"horizon={horizon}, hidden_tests={hidden_tests}, time_factor={time_factor:g}"
            raise UserError(
                f"{self.name} wants a horizon of at least 1, hidden_tests of at least 0, a time_factor above 0; found {given}"
            )
        self._sandbox = Sandbox(sandbox, interpreter=interpreter)
        require(sandbox, interpreter)
        self._root = Path(path).expanduser() if path is not None else OWN / self.own
        check_files(self._root, self.columns)
        self._horizon, self._most, self._time_factor = horizon, hidden_tests, time_factor
        self._judged: OrderedDict[tuple[str, str], Observation] = OrderedDict()

    @abstractmethod
    def problem_of(self, row: Mapping[str, Any]) -> Problem:
        """The problem in a row of the published schema.

        Raises `Excluded` for one that cannot be judged, `KeyError`, `TypeError` or `ValueError` for any other row.
        """

    @abstractmethod
    def split_of(self, row: Mapping[str, Any], file: Path) -> str:
        """The split that a row belongs to."""

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        """`count` problems of a split in an order that the seed draws. See `Environment.tasks`."""
        split = split_named(split)
        if split not in self.splits:
            raise UnknownName("split", split, self.splits)
        found: dict[str, Task] = {}
        excluded: Counter[str] = Counter()
        for file, place in self._drawn(split, seed) if count else ():
            problem = self._read(file, place, split, excluded)
            if problem is not None:
                task = self._task(problem, file, place)
                found.setdefault(task.id, task)
            if len(found) == count:
                return list(found.values())
        if count:
            left_out = ", ".join(f"{number} for {reason}" for reason, number in sorted(excluded.items())) or "none"
            where = f"found {len(found)} in {self._root}; left out: {left_out}"
            raise UserError(f"{self.name}: wanted {count} tasks of split {split!r}, {where}; ask for fewer or give path=DIR")
        return []

    def census(self, split: str) -> Mapping[str, int]:
        """How many problems of a split can be judged (`judged`), and how many are left out for which reason. Reads all of them."""
        counted: Counter[str] = Counter()
        split = split_named(split)
        for file, place in self._drawn(split, 0):
            counted["judged"] += self._read(file, place, split, counted) is not None
        return dict(counted)

    def _drawn(self, split: str, seed: int) -> Iterator[tuple[Path, int]]:
        """Every row, files and rows in seeded orders."""
        draw = random.Random(seed_for(self.name, seed, split))
        files = problem_files(self._root)
        for file in draw.sample(files, len(files)):
            found = places(file)
            for place in draw.sample(found, len(found)):
                yield file, place

    def _read(self, file: Path, place: int, split: str | None, excluded: Counter[str]) -> Problem | None:
        """The problem of a row; None where it belongs to another split or is excluded, which is counted."""
        row = row_at(file, place)
        try:
            if split is not None and self.split_of(row, file) != split:
                return None
            problem = self.problem_of(row)
        except Excluded as reason:
            excluded[str(reason)] += 1
            return None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise CorruptFile(
                f"{file}, at {place}, is no problem of {self.name}'s schema ({what:.120}); see docs/environments.md"
            ) from None
        return replace(problem, cpu_seconds=problem.cpu_seconds * self._time_factor)

    def _task(self, problem: Problem, file: Path, place: int) -> Task:
        name = file.relative_to(self._root).as_posix() if self._root.is_dir() else file.name
        payload = {"name": problem.name, "file": name, "place": place, "mark": problem.mark}
        return Task(f"{self.name}-{problem.mark}", self.name, problem.statement, self._horizon, payload)

    def reset(self, task: Task) -> Observation:
        """Shows the problem and the limits. Raises `UserError` when the task's problem is not where it was."""
        self._now = Episode(self._problem(task))
        return Observation(opening(self._now.problem))

    def _problem(self, task: Task) -> Problem:
        mend = f"give {self.name} the path, and the hidden_tests, that the task was drawn with"
        try:
            name, place, mark = task.payload["file"], task.payload["place"], task.payload["mark"]
            file = self._root / name if self._root.is_dir() else self._root
            problem = self._read(file, place, None, Counter()) if file.name == Path(name).name else None
        except (KeyError, TypeError, CorruptFile):
            raise UserError(f"task {task.id!r} names no problem in {self._root}; {mend}") from None
        if problem is None or problem.mark != mark:
            raise UserError(f"the problem of task {task.id!r} is not in {self._root}, or has other tests there; {mend}")
        return problem

    def step(self, action: str) -> Observation:
        """Submits a program. Once the problem is solved nothing changes any more and the last observation is repeated."""
        now = self._present()
        if now.final is not None:
            return now.final
        source = program_in(action).encode("utf-8", "replace").decode()
        if not source.strip() or "\0" in source or len(source) > LONGEST_PROGRAM:
            length = f"That is longer than {LONGEST_PROGRAM} characters. " if len(source) > LONGEST_PROGRAM else ""
            return Observation(f"{length}{NO_PROGRAM[now.problem.kind]}", info={"verdict": "none"})
        observation = self._judgement(now.problem, source)
        if observation.info["verdict"] != "none":
            final = observation if observation.done else None
            self._now = Episode(now.problem, (*now.submissions, text_digest(source)), final)
        return observation

    def _judgement(self, problem: Problem, source: str) -> Observation:
        key = (problem.mark, text_digest(source))
        if key in self._judged:
            self._judged.move_to_end(key)
            return self._judged[key]
        failure = judge(self._sandbox, problem, source)
        if failure is None:
            verdict = "passed"
        elif failure.not_compiled and not failure.hidden:
            verdict = "none"
        else:
            verdict = ("hidden " if failure.hidden else "public ") + failure.reason
        solved = failure is None
        text = feedback(problem, failure)
        self._judged[key] = Observation(text, done=solved, success=solved, reward=float(solved), info={"verdict": verdict})
        if len(self._judged) > REMEMBERED:
            self._judged.popitem(last=False)
        return self._judged[key]

    def expert(self) -> Sequence[str]:
        """A published solution that passes here when tried; empty when the problem is solved or the first few fail."""
        now = self._present()
        tried = now.problem.solutions[:EXPERTS] if now.final is None else ()
        return next(([source] for source in tried if self._judgement(now.problem, source).success), [])

    def example_actions(self) -> Sequence[str]:
        """Programs for this problem that are right, wrong in a known way, and wrong in any case."""
        problem = self._present().problem
        return [*problem.solutions[:1], *problem.wrong[:3], "print(0)"]
