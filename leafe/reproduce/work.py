"""Carries a table out, row by row and seed by seed. After a kill at any moment the same plan resumes.

A row that cannot go on, for example because there was nothing to learn from, is named and skipped with those that start from it; an
engine that fails ends the table, which can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from leafe.errors import RunConflict, Unwritable, UserError
from leafe.experiment import Experiment
from leafe.lab import measure_base, run_recipe
from leafe.progress import Progress
from leafe.proofs import folder_digest
from leafe.reproduce.gap import measure_gap
from leafe.reproduce.plan import STARTED, Bench, Plan, told_for_tables
from leafe.reproduce.scoring import score_row
from leafe.reproduce.sharing import Shared
from leafe.reproduce.spec import Row
from leafe.run import RunDirectory
from leafe.settings import RunConfig
from leafe.trackers import opened
from leafe.viewer.report import write_report

ENDS_THE_TABLE = (RunConflict, Unwritable)  # other errors of a row end that row


@dataclass(frozen=True)
class Failure:
    """A row that ended without a result at a seed, and why."""

    row: str
    seed: int
    why: str


def check_setup(plan: Plan, bench: Bench) -> None:
    """The checks of every run, once for all rows that play in the same way, so that a fault of all is not told row by row.

    Raises `UserError`. Makes nothing.
    """
    seen: set[str] = set()
    for row in plan.rows:
        config = plan.config(row, plan.asked.seeds[0])
        plays = f"{config.engine.kind} {config.environment.model_dump_json()}"
        finished = all((plan.path(row, seed) / "DONE").is_file() for seed in plan.asked.seeds)
        if row.said.start or finished or plays in seen:
            continue
        seen.add(plays)
        experiment = bench(config)
        try:
            experiment.check()
        finally:
            experiment.free()


def carry_out(
    plan: Plan, bench: Bench, progress: Progress, told: Callable[[list[Failure]], object] = lambda failures: None
) -> list[Failure]:
    """Does everything that is not done yet, one seed after another. `told` is called after each row with the failures so far."""
    failures: list[Failure] = []
    tried: set[str] = set()
    for seed in plan.asked.seeds:
        lost: dict[str, str] = {}
        for row in plan.rows:
            try:
                if row.said.start in lost:
                    raise UserError(f"it starts from {row.said.start}, which did not end: {lost[row.said.start]}")
                if not carry_out_row(plan, row, seed, bench=bench, progress=progress, tried=tried):
                    continue
            except ENDS_THE_TABLE:
                raise
            except UserError as error:
                lost[row.name] = row.advice(str(error))
                failures.append(Failure(row.name, seed, lost[row.name]))
                progress.say(f"{row.name}, seed {seed}: {lost[row.name]}")
            told(failures)
    return failures


def carry_out_row(plan: Plan, row: Row, seed: int, *, bench: Bench, progress: Progress, tried: set[str] | None = None) -> bool:
    """Does what is left of one row at one seed; returns whether there was anything.

    `tried` holds the models and settings for which a step of training was tried in this process.
    """
    return _Row(plan, row, seed, set() if tried is None else tried).carry_out(bench, progress)


@dataclass(frozen=True)
class _Row:
    """A row at one seed."""

    plan: Plan
    row: Row
    seed: int
    tried: set[str]

    def carry_out(self, bench: Bench, progress: Progress) -> bool:
        """Does what is left of the row; returns whether there was anything."""
        path, config = self.plan.path(self.row, self.seed), self.plan.config(self.row, self.seed)
        with told_for_tables(self.plan.out):
            if (path / "DONE").is_file():
                with self._opened() as run:
                    if not run.report.is_file():  # a run that was killed before its page was written last
                        write_report(run)
                return False
            progress.say(f"{self.row.name}, seed {self.seed}: {path}")
            shared = Shared(path.parent, progress)
            experiment = replace(bench(config), once=shared, compared=self.plan.trains)
            try:
                self._check(experiment, RunDirectory(path, config, None), config)  # before its directory is made
                with self._opened() as run:
                    with shared, opened(experiment.tracker, path):
                        if self.row.said.method:
                            run_recipe(experiment, run)
                        else:
                            measure_base(experiment, run)
                    score_row(self.plan, self.row, experiment, run)
                    measure_gap(self.plan, self.row, experiment, run)
                    experiment.free()
                    write_report(run)
                    run.finish()  # last, since a finished run is left alone
            finally:
                experiment.free()
            return True

    def _opened(self) -> RunDirectory:
        """The run, held for this process, after what it starts from was checked."""
        path, config = self.plan.path(self.row, self.seed), self.plan.config(self.row, self.seed)
        run = RunDirectory.open(path, config, moved=bool(self.row.said.start))
        try:
            self._check_start(run)
        except BaseException:
            run.close()
            raise
        return run

    def _check(self, experiment: Experiment, run: RunDirectory, config: RunConfig) -> None:
        """The checks of every run before it is begun; training is tried once for the same model and settings."""
        trial = f"{config.model} {config.train.model_dump_json()}"
        has_method = bool(self.row.said.method)
        trains = has_method and experiment.trains
        experiment.check(trains=trains, tries=trains and not run.arms() and trial not in self.tried, scored=has_method)
        if trains:
            self.tried.add(trial)

    def _check_start(self, run: RunDirectory) -> None:
        """Records what the run starts from. Raises `RunConflict` where that is another checkpoint than before."""
        folder = self.plan.start(self.row, self.seed)
        if folder is None:
            return
        found = {"row": self.row.said.start, "weights": folder_digest(folder)}
        before = run.stages.get(STARTED)
        if before is None:
            run.finish_stage(STARTED, found)
        elif before != found:
            raise RunConflict(
                f"{run.path} started from another checkpoint than {folder} is now; delete {run.path}, and the same command makes it anew"
            )
