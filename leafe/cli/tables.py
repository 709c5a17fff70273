"""`leafe reproduce`: a table of methods side by side, from its runs to the terminal, Markdown, JSON and a page."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as Shown
from transformers.utils.logging import disable_progress_bar

from leafe.cli.console import console, emit, only_json
from leafe.compose import bench_of, bench_without_server
from leafe.errors import UserError
from leafe.evaluation.tables import (
    Cells,
    TableResult,
    as_json,
    cost_rows,
    counted,
    explained_rows,
    extra_rows,
    flag_lines,
    markdown,
    paper_rows,
    result_rows,
    together,
)
from leafe.experiment import Experiment
from leafe.jsonl import told_if_unwritable, write_text_atomically
from leafe.nano import CHECKPOINTS
from leafe.progress import Progress, Silent
from leafe.reproduce.asked import Asked, names_of, seeds_of
from leafe.reproduce.cost import Estimate, estimate, longest_of, play_sample
from leafe.reproduce.gathered import JSON, require_same_settings, require_same_table, with_all_there
from leafe.reproduce.jobs import Share, carry_out_side_by_side, shares_here
from leafe.reproduce.plan import Plan
from leafe.reproduce.spec import load_table
from leafe.reproduce.summary import Stages, summary
from leafe.reproduce.work import Failure, carry_out, check_setup
from leafe.settings import RunConfig
from leafe.stages import Stage
from leafe.terminal import Bars, alarm
from leafe.viewer.table import render_table

disable_progress_bar()  # only our own bars are shown
MARKDOWN, PAGE = "table.md", "table.html"


@dataclass(frozen=True, slots=True)
class Typed:
    """The options as they were typed, None where they were not."""

    model: str
    env: str | None
    recipe: str | None
    seeds: str
    rows: str | None


def asked_of(typed: Typed, out: Path | None, overrides: Sequence[str]) -> list[Asked]:
    """The requests that the options mean, one a model. Raises `UserError`."""
    models, rows = names_of(typed.model), names_of(typed.rows or "")
    for option, text, found, wanted in (
        ("model", typed.model, models, "a model or several, as nano or A,B"),
        ("rows", typed.rows, rows, "names, as base,leafe"),
        ("env", typed.env, typed.env, "an environment's name, as household"),
        ("recipe", typed.recipe, typed.recipe, "a recipe's name or YAML file"),
    ):
        if text is not None and not found:
            raise UserError(f"--{option}: wanted {wanted}, found {repr(text) if text else 'nothing'}")
    one = Asked("", typed.env or "", typed.recipe or "", seeds_of(typed.seeds), rows, out, tuple(overrides))
    if len(models) == 1:
        return [replace(one, model="" if typed.recipe and typed.model == "nano" else models[0])]
    folders = [Path(model).name for model in models]
    if len(set(folders)) < len(folders):
        raise UserError(
            f"--model: wanted models whose last names differ, since each has a folder of that name, found {', '.join(models)}"
        )
    return [replace(one, model=model, out=out / name if out else None) for model, name in zip(models, folders, strict=True)]


def reproduce(name: str, asked: Sequence[Asked], *, jobs: int, dry: bool, json_only: bool) -> None:
    """Carries a table out for each model and shows it, or prints its cost. Raises `UserError` at the end where a row gave nothing."""
    plans = [Plan(load_table(name), one) for one in asked]
    progress: Progress = Silent() if json_only else Bars(console)
    with only_json(json_only):
        _require_same_tables(plans)
        for plan in plans:
            plan.check_request()
            require_same_settings(plan)
            if not dry:
                check_setup(plan, lambda config: bench_without_server(config, Silent()))
        stages = [plan.check(_quiet) for plan in plans]
        given = [shares_here(plan.base, jobs) if jobs > 1 else [] for plan in plans]
    failures: list[str] = []
    figures: list[dict[str, Any]] = []
    made: list[TableResult] = []
    for plan, known, share in zip(plans, stages, given, strict=True):
        failed: list[Failure] = []
        with only_json(json_only):
            done = _estimate(plan, known) if dry else _carried_out(plan, dict(known), progress, failed, shares=share)
        whose = f"{plan.base.model}: " if len(plans) > 1 else ""
        failures += [f"{whose}{one.row}, seed {one.seed}: {one.why}" for one in failed]
        figures.append(done.as_json() if isinstance(done, Estimate) else as_json(done))
        if isinstance(done, TableResult):
            made.append(done)
        if json_only:
            continue
        if isinstance(done, Estimate):
            _show_estimate(plan, done)
        else:
            _show(plan, done)
    if len(made) > 1:
        _show_together(plans, made, shown=not json_only)
    if json_only:
        emit(figures[0] if len(figures) == 1 else figures)
    if failures:
        raise UserError(failures[0])


def _quiet(config: RunConfig) -> Experiment:
    return bench_of(config, Silent())


def _require_same_tables(plans: Sequence[Plan]) -> None:
    """Refuses directories with another table, or with that of more models. Raises `RunConflict`."""
    name, environment = plans[0].table.name, plans[0].base.environment.name
    for plan in plans:
        require_same_table(plan.out, name, environment, [plan.base.model])
    if len(plans) > 1:
        require_same_table(_of_all(plans), name, environment, [Path(plan.base.model).name for plan in plans])


def _carried_out(
    plan: Plan, stages: dict[str, Sequence[Stage]], progress: Progress, failures: list[Failure], *, shares: Sequence[Share]
) -> TableResult:
    """The table once everything possible is done, with `shares` several rows at a time; adds each failure to `failures`."""
    told = partial(_write, plan, stages)
    if shares:
        found = carry_out_side_by_side(plan, bench_of, progress, told, given=shares)
    else:
        found = carry_out(plan, lambda config: bench_of(config, progress), progress, told)
    failures += found
    return _write(plan, stages, found)


def _write(plan: Plan, stages: dict[str, Sequence[Stage]], failures: Sequence[Failure]) -> TableResult:
    """The table as it is now, with the rows and seeds of earlier commands, in its three files."""
    whole = with_all_there(plan, stages, _quiet)
    return _kept(summary(whole, stages, failures, asked=plan), plan.out)


def _kept(table: TableResult, out: Path) -> TableResult:
    with told_if_unwritable(out):
        out.mkdir(parents=True, exist_ok=True)
    write_text_atomically(out / MARKDOWN, markdown(table))
    write_text_atomically(out / JSON, json.dumps(as_json(table), indent=1, ensure_ascii=False) + "\n")
    write_text_atomically(out / PAGE, render_table(table))
    return table


def _show_together(plans: Sequence[Plan], tables: Sequence[TableResult], *, shown: bool) -> None:
    """All models in one table, in the folder above theirs, or beside theirs under the table's and the environment's name."""
    out = _of_all(plans)
    table = _kept(
        together({Path(os.path.relpath(plan.out, out)).as_posix(): one for plan, one in zip(plans, tables, strict=True)}), out
    )
    if shown:
        _print(_table(table.title(), result_rows(table)))
        console.print(escape(f"The page of all models: {out / PAGE}"), soft_wrap=True, highlight=False)


def _of_all(plans: Sequence[Plan]) -> Path:
    """The directory of the table of several models."""
    first = plans[0]
    environment = first.base.environment.name.rpartition(":")[2]
    return first.out.parent if first.asked.out else first.out.with_name(f"{first.table.name}-{environment}")


def _show(plan: Plan, table: TableResult) -> None:
    _print(_table(table.title(), result_rows(table)))
    if len(behind := explained_rows(table)) > 1:
        _print(_table("What lies behind it", behind))
    _print(_table(f"What it cost; the budget is {table.budget:,} turns", cost_rows(table)))
    for line in flag_lines(table):
        console.print(escape(line), highlight=False, soft_wrap=True)
    if len(extra := extra_rows(table)) > 1:
        _print(_table("Exploration and what was learned of it, %", extra))
    if table.paper:
        _print(_table("The paper's figures (other models, another size), %", paper_rows(table)))
    for claim in table.claims:
        console.print(escape(claim), highlight=False, soft_wrap=True)
    for sentence in table.missing:
        console.print(alarm(sentence), highlight=False, soft_wrap=True)
    console.print(escape(f"The page: {plan.out / PAGE}"), soft_wrap=True, highlight=False)


def _table(title: str, rows: Sequence[Cells]) -> Shown:
    heading, *lines = rows
    shown = Shown(title=escape(title), title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, text in enumerate(heading):
        widest = max(map(len, text.split()), default=None)
        shown.add_column(
            escape(text), justify="right" if number else "left", no_wrap=number == 0, overflow="fold", min_width=widest
        )
    for line in lines:
        shown.add_row(*map(escape, line))
    return shown


def _print(shown: Shown) -> None:
    """Prints a table, as wide as its longest words want it: in a narrower terminal its lines go on below, but no digit is left out."""
    endless = console.options.update(max_width=1 << 16)
    least = Measurement.get(console, endless, shown).minimum
    least += len(shown.columns)  # what is between them
    shown.width = least if least > console.width else None
    console.print(shown, crop=False)


def _estimate(plan: Plan, stages: Stages) -> Estimate:
    """The cost of a plan, with a played sample where the model is at hand in this process."""
    experiment = _quiet(plan.base)
    longest = longest_of(experiment)
    at_hand = plan.base.model in CHECKPOINTS or Path(plan.base.model).is_dir()
    counted_only = estimate(plan, stages, longest)
    played = at_hand and plan.base.engine.kind == "transformers" and counted_only.attempts + counted_only.turns
    try:
        return replace(counted_only, sample=play_sample(experiment)) if played else counted_only
    finally:
        experiment.free()


def _show_estimate(plan: Plan, found: Estimate) -> None:
    rows = [("row", "seeds left", "turns to learn from", "attempts measured", "shared with another row")]
    rows += [(row.row, str(row.seeds), f"{row.turns:,}", f"{row.attempts:,}", ", ".join(row.shared)) for row in found.rows]
    title = f"{plan.table.name}: {plan.recipe}, {plan.base.model}, a seed; the budget of a row is {plan.budget:,} turns"
    _print(_table(title, rows))
    measured = f"{found.turns_of_attempts:,.0f} turns of measuring{'' if found.sample else ' at most'}"
    whole = all(row.seeds == found.seeds for row in found.rows)
    which = ("One seed" if found.seeds == 1 else f"All {found.seeds} seeds") if whole else "What is left"
    total = f"{which}: {found.turns:,} turns to learn from, {found.attempts:,} attempts, {measured}"
    console.print(total, highlight=False, soft_wrap=True)
    if not any(row.seeds for row in found.rows):
        console.print(escape(f"Nothing is left to do in {plan.out}."), highlight=False, soft_wrap=True)
        return
    if found.sample and found.seconds is not None:
        hours = f"{_time(found.seconds)} of playing{f' ({_time(found.seconds / found.seeds)} a seed)' if whole else ''}"
        rate = f"{found.sample.turns / found.sample.seconds:,.0f} turns/s"
        told = f"About {hours} and {counted(found.tokens)} tokens, by {found.sample.attempts} attempts played now at {rate}"
        console.print(f"{told}; training comes on top.", highlight=False, soft_wrap=True)
    else:
        console.print("No sample was played, so there is no estimate of the time.", highlight=False)
    console.print(escape(f"Runs would be made in {plan.out}."), highlight=False, soft_wrap=True)


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{max(1, round(seconds / 60))} min"
