"""Growing the trees of many tasks: those on the disk are kept, unfinished ones continue, and unused turns are redistributed.

A tree is written to the forest once it is final. If solved tasks leave turns to others (`passes.py`), the trees that continue are grown
anew from the journal, which returns every known result, and then further.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from leafe.forest.builder import Rules, TreeBuilder
from leafe.forest.driver import Rollout, Runtime, drive
from leafe.forest.explore import Explorer
from leafe.forest.first_wave import WAVE, FirstWave, forget_failures
from leafe.forest.journal import Journal
from leafe.forest.passes import shared_out, standing
from leafe.forest.store import ForestWriter, read_forest
from leafe.records import Task, Tree


@dataclass(frozen=True)
class Exploration:
    """An exploration: its tasks, explorer and rules, and the files of its trees and journal, if any.

    `mend` is the command that tries the world alone; `told` is called with all trees so far whenever one has grown.
    """

    tasks: Sequence[Task]
    rules: Rules
    explorer: Explorer
    path: Path | None = None
    journal: Path | None = None
    mend: str = "leafe check-env NAME"
    told: Callable[[Collection[Tree]], None] = lambda trees: None


class ForestBuilder:
    """The growing forest of an exploration; a context manager that holds its files open."""

    def __init__(self, exploration: Exploration) -> None:
        self._of = exploration
        path = exploration.path
        self._final = {tree.task.id: tree for tree in read_forest(path)} if path and path.exists() else {}
        self._grown = dict(self._final)  # trees grown to their present budgets, final or not
        self._budgets = {task.id: exploration.rules.turns for task in exploration.tasks}
        self._going = set(self._budgets)  # tasks with turns to take in the present pass
        self._files = ExitStack()
        self._journal: Journal | None = None
        self._writer: ForestWriter | None = None
        self._wave_failed = False

    def __enter__(self) -> ForestBuilder:
        of = self._of
        try:
            self._journal_path = of.journal
            if of.journal is None and of.rules.stop_when_solved:  # from which trees continue
                self._journal_path = Path(self._files.enter_context(TemporaryDirectory())) / "journal.jsonl"
            self._open_journal()
            if of.path:
                self._writer = ForestWriter(of.path)
                self._files.enter_context(self._writer)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._journal:
                self._journal.close()
            if self._wave_failed and self._of.journal:
                forget_failures(self._of.journal)
        finally:
            self._files.close()

    @property
    def missing(self) -> list[Task]:
        """The tasks whose trees are not final yet."""
        return [task for task in self._of.tasks if task.id not in self._final]

    @property
    def trees(self) -> list[Tree]:
        """The trees, in the order of tasks, once all are final."""
        return [self._final[task.id] for task in self._of.tasks]

    async def grow(self, runtime: Runtime) -> None:
        """Explores until every tree is final. Raises `UserError` when every attempt at the first tasks broke; none of these is kept."""
        while self.missing:
            await self._pass(replace(runtime, journal=self._journal))
            self._share_out()
            if self.missing:
                self._open_journal()  # reopened, since a journal recalls what it held when it was opened

    async def _pass(self, runtime: Runtime) -> None:
        """Grows the trees with turns to take, each to the end of its budget."""
        rollouts = [self._rollout(task) for task in self.missing if task.id in self._going]
        first = not self._final and not self._grown
        wave: FirstWave[Tree] = FirstWave((rollout.key for rollout in rollouts[:WAVE]) if first else (), self._of.mend)
        try:
            async with aclosing(drive(rollouts, runtime, concurrency=runtime.engine.concurrency)) as finished:
                async for rollout, ended in finished:
                    for tree in wave.through(rollout.key, ended.attempts, ended):
                        self._grown[tree.task.id] = tree
                        if self._is_final(tree):
                            self._keep(tree)
                        self._of.told(self._grown.values())
        finally:
            self._wave_failed = wave.failed

    def _rollout(self, task: Task) -> Rollout[Tree]:
        rules = replace(self._of.rules, turns=self._budgets[task.id])
        return Rollout(task.id, task, self._of.explorer(TreeBuilder(task, rules)))

    def _is_final(self, tree: Tree) -> bool:
        """Whether a tree would stay the same with further turns."""
        solved, budget = self._of.rules.stop_when_solved, self._budgets[tree.task.id]
        stands = standing(tree, budget)
        return not solved or stands.successes >= solved or stands.turns < budget

    def _keep(self, tree: Tree) -> None:
        self._final[tree.task.id] = tree
        if self._writer:
            self._writer.add(tree)

    def _share_out(self) -> None:
        """Gives the unused turns to the tasks that can use them; if there are none, every tree is final."""
        solved = self._of.rules.stop_when_solved
        if solved:
            trees = self._grown | self._final
            stands = {task.id: standing(trees[task.id], self._budgets[task.id]) for task in self._of.tasks}
            total = self._of.rules.turns * len(self._of.tasks)
            more = shared_out(self._budgets, stands, total=total, solved=solved)
            self._budgets |= more
            self._going = set(more)
            if more:
                return
        for task in self.missing:
            self._keep(self._grown[task.id])

    def _open_journal(self) -> None:
        if self._journal:
            self._journal.close()
        self._journal = Journal(self._journal_path) if self._journal_path else None
