"""The commands that read runs: their tables and pages, comparison, examples for other trainers. None of them needs a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.markup import escape

from leafe.cli.console import console, emit
from leafe.distillation import store
from leafe.errors import RunConflict, UserError
from leafe.evaluation.compare import compare as compare_arms
from leafe.evaluation.outcomes import ArmOutcomes, of_run
from leafe.evaluation.passk import Resampling
from leafe.forest.faults import Faults
from leafe.results import (
    BASE,
    alarms_of,
    arms_of,
    comparison_of,
    ends_of,
    exploration_of,
    faults_named,
    flags_of,
    notice_of,
    rows_of,
)
from leafe.results import (
    as_json as figures_of,
)
from leafe.run import RunDirectory
from leafe.settings import EnvironmentSettings, EvaluateSettings
from leafe.terminal import alarm, exploration_table, faults_table, pass_table
from leafe.viewer.report import write_report


def report(path: Path, *, as_json: bool) -> None:
    """Writes a run's page anew, and shows its tables or its figures."""
    with RunDirectory.existing(path) as directory:
        if as_json:
            emit({**figures_of(directory), "page": str(write_report(directory))})
        else:
            show(directory)


def compare(paths: Sequence[Path], *, k: int | None, base: str | None, as_json: bool) -> None:
    """Pass@k of the arms of runs, minus another arm: the one that is named, or the base where one was measured."""
    arms: list[ArmOutcomes] = []
    settings: list[EvaluateSettings] = []
    sentences: list[str] = []
    worlds: dict[str, EnvironmentSettings] = {}
    for path in paths:
        with RunDirectory.existing(path, read_only=True) as directory:
            settings.append(directory.config.evaluate)
            worlds[path.resolve().name] = directory.config.environment
            found = arms_of(directory)
            if not found:
                raise UserError(f"{path} has measured nothing yet; type: leafe evaluate {path}")
            named = found if len(paths) == 1 else of_run(path.resolve().name, found)
            arms += named
            sentences += alarms_of(faults_named([], named), directory.config)
    sentences = [*_in_other_worlds(worlds, base), *sentences]
    shared = min(settings, key=lambda one: one.samples).ks
    ks = () if k is None else tuple(sorted({*shared, k}))
    if base is None and any(arm.name.rpartition(":")[2] == BASE for arm in arms):
        base = BASE
    comparison = compare_arms(arms, base=base, ks=ks, how=Resampling(settings[0].resamples, settings[0].confidence))
    if as_json:
        emit(comparison.as_json())
        return
    console.print(pass_table(comparison))
    show_faults([(arm.name, arm.faults) for arm in comparison.arms], sentences)


def _in_other_worlds(worlds: Mapping[str, EnvironmentSettings], base: str | None) -> Iterator[str]:
    """A sentence for each run that was measured in another environment than the first; or than the base, which is refused.

    Tasks may have the same names there, so that they would be paired.
    """
    named = base.rpartition(":")[0] if base else ""
    first = named if named in worlds else next(iter(worlds))
    for name, world in worlds.items():
        if (world.name, world.args) == (worlds[first].name, worlds[first].args):
            continue
        told = " and ".join(
            f"{run} in {one.name} with {one.args or 'no arguments'}" for run, one in ((first, worlds[first]), (name, world))
        )
        if first == named:
            raise UserError(f"a difference wants one environment, and {told} were measured; leave --base out, or one of the runs")
        yield f"{told} were measured: their tasks are not the same, and their figures do not compare"


def export(path: Path, kind: str, out: Path) -> None:
    """The first round's examples as another trainer reads them."""
    with RunDirectory.existing(path, read_only=True) as directory:
        source = directory.check(directory.examples(1))
        if not source.exists():
            raise UserError(f"{path} has no examples yet; type: leafe distill {path}")
        if out.exists():
            raise RunConflict(f"{out} is there already; give another file")
        examples = list(store.read_examples(source))
        console.print(escape(f"{store.export(examples, kind, out)} examples in {out}; {store.HINTS[kind]}"), highlight=False)
        for sentence in store.remarks(examples):
            console.print(sentence, highlight=False)


def show(directory: RunDirectory, *, ends: bool = True) -> None:
    """Shows a run's tables, their warnings and the path of its page; with `ends` also why there was nothing to train on."""
    rows, arms = rows_of(exploration_of(directory)), arms_of(directory)
    if rows:
        console.print(exploration_table(rows))
        if notice := notice_of(directory):
            console.print(escape(notice), highlight=False)
    if arms:
        console.print(pass_table(comparison_of(directory)))
    named = faults_named(rows, arms)
    told = (*flags_of(directory), *alarms_of(named, directory.config), *(ends_of(directory) if ends else ()))
    show_faults(named, told)
    console.print(escape(f"The page: {write_report(directory)}"), soft_wrap=True, highlight=False)


def show_faults(named: Sequence[tuple[str, Faults]], sentences: Sequence[str]) -> None:
    """Shows the faults, and the warnings that must be read."""
    if named:
        console.print(faults_table(named))
    for sentence in sentences:
        console.print(alarm(sentence), highlight=False)
