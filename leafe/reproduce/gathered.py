"""What a table's directory holds already: rows and seeds of earlier commands stay in its table, and it is of one table alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from leafe.errors import RunConflict, UserError
from leafe.reproduce.plan import Bench, Plan
from leafe.reproduce.spec import Row
from leafe.stages import Stage

JSON = "table.json"


def require_same_table(out: Path, name: str, environment: str, models: Sequence[str]) -> None:
    """Raises `RunConflict` where the table in a directory is another one, or has models that are not among these. Reads nothing else."""
    try:
        found = json.loads((out / JSON).read_text(encoding="utf-8"))
        before = tuple(str(found[key]) for key in ("name", "environment", "model"))
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return  # none, or what can only be replaced
    there = before[2].split(", ")
    if before[:2] != (name, environment) or not set(there) <= set(models):
        raise RunConflict(
            f"{out} holds the table {before[0]:.80} of {before[2]:.200} in {before[1]:.80}, and this is {name} of {', '.join(models)} in"
            f" {environment}; give another --out"
        )


def require_same_settings(plan: Plan) -> None:
    """Raises `RunConflict` where rows are finished in a table's directory, and all of them were made with other settings."""
    found: list[str] = []
    for row, seed in _finished(plan):
        try:
            changes = plan.changes(row, seed, plan.existing(row, seed))
        except UserError:
            continue
        if not changes:
            return
        found = found or [f"({'; '.join(changes)});{plan.typed_again(row, changes)}"]
    if found:
        raise RunConflict(f"{plan.out} holds a table of other settings {found[0]} give another --out")


def _finished(plan: Plan) -> Iterator[tuple[Row, int]]:
    for path in sorted(plan.out.glob("seed-*/*/DONE")):
        seed = path.parent.parent.name.removeprefix("seed-")
        if path.parent.name in plan.table.rows and seed.isdecimal() and len(seed) < 10:
            yield plan.table.row(path.parent.name), int(seed)


def with_all_there(plan: Plan, stages: dict[str, Sequence[Stage]], bench: Bench) -> Plan:
    """The plan, and every row and seed that is finished in its directory. `stages` receives those of the rows that are new."""
    finished = list(_finished(plan))
    there = {row.name for row, _ in finished}
    more = {name for name in there if plan.asked.rows and name not in plan.asked.rows and _fits(plan, name, stages, bench)}
    rows = tuple(name for name in plan.table.rows if name in {*plan.asked.rows, *more})
    return Plan(
        plan.table, replace(plan.asked, seeds=tuple(sorted({*plan.asked.seeds, *(seed for _, seed in finished)})), rows=rows)
    )


def _fits(plan: Plan, name: str, stages: dict[str, Sequence[Stage]], bench: Bench) -> bool:
    """Whether a row can be in a table of this environment and these settings."""
    row = plan.table.row(name)
    if not row.said.shown:
        return False
    try:
        # Elsewhere, where nothing that is damaged can be in the way of the stages' names.
        alone = Plan(plan.table, replace(plan.asked, rows=(name,), out=plan.out / "none"))
        found: Mapping[str, Sequence[Stage]] = {one.name: alone.stages(one, bench) for one in alone.rows if one.name not in stages}
    except UserError:
        return False
    stages.update(found)
    return True
