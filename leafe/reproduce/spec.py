"""A table as data: its rows, the method and settings of each, and the claims about them.

    about: The paper's main comparison.
    settings: [evaluate.samples=128]
    against: [base, leafe]
    rows:
      base: {}
      leafe: {method: leafe, settings: ["leafe.arms=[leafe]"]}
      grpo: {method: grpo}
      leafe-from-grpo: {method: leafe, arm: leafe, start: grpo}
    checks:
      - {claim: GRPO raises Pass@1, row: grpo, above: base, k: 1}

A row without a method measures what it starts from and trains nothing. Nothing here is carried out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files
from math import ceil
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from leafe.config import checked, read_override, recipe_names
from leafe.envs import registry
from leafe.errors import UnknownName, UserError
from leafe.settings import Name, Settings
from leafe.yaml_text import read_yaml

FOLDER, FIGURES = "recipes/tables", "recipes/paper/figures.yaml"
LARGEST = "largest"
BRACED = re.compile(r"\{[^}]*\}?|\}")
BASE = "base"  # the row that the others are compared with where a table does not say
ADVISED = re.compile(r"(\bexplore\.turns=)(\d{1,12})\b")
START = "start"  # what methods call the setting that names another model to start from
Texts = tuple[str, ...]
# The settings that a table fixes for all rows, so that they can be compared.
SETTLED = ("name", "method", "seed", "model", "tasks", "evaluate", "explore.turns", "explore.tokens")
# Settings that are fixed for each row, and where.
IDLE = {
    "name": "a run is named after its row, and --out names the table's directory",
    "method": "a row has its own, as rows: {mine: {method: grpo}}",
    "seed": "seeds are typed as --seeds 1,2,3",
}


class RowSettings(Settings):
    """One row.

    `arm` is reported, by default the method's name, or a `forest` by the name that it is shown under. `start` is another row, whose
    checkpoint is this row's model. `share` is how much of the table's turns this row itself plays with. `settings` are overrides, and
    `sizes` more of them for single recipes. A row that is not `shown` serves others as a start. `envs` are the environments that
    the row is for, by default all. `against` replaces the table's. `paper` is the row's name in the paper's table.
    `in_process` is for methods that give the engine new weights on the way and do not say so (`Method.samples_here`): where the recipe
    takes a server, the row samples here.
    """

    method: str = ""
    arm: str = ""
    forest: str = ""
    start: str = ""
    share: float = Field(1.0, gt=0, le=1)
    settings: Texts = Field((), strict=False)
    sizes: dict[str, list[str]] = Field(default_factory=dict)
    shown: bool = True
    envs: Texts = Field((), strict=False)
    against: Texts | None = Field(None, strict=False)
    paper: str = ""
    in_process: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.arm and self.forest:
            raise ValueError(f"arm and forest: wanted one of them, found {self.arm!r} and {self.forest!r}")
        if not self.method and (self.arm or self.forest or self.share != 1):
            raise ValueError("method: wanted one, as method: leafe, where a row has an arm, a forest or a share; found none")
        return self


class CheckSettings(Settings):
    """A claim to check: that a row is `above` another at `k`, or, without it, the highest of all shown rows.

    `k` is a power of two, as the columns of a table are, or the largest that was measured.
    """

    claim: str = Field(min_length=1)
    row: str
    above: str = ""
    k: int | str = LARGEST

    @model_validator(mode="after")
    def _k_is_a_column(self) -> Self:
        whole = isinstance(self.k, int) and not isinstance(self.k, bool) and self.k > 0
        if strange := [one for one in BRACED.findall(self.claim) if one != "{k}"]:
            raise ValueError(f"claim: wanted {{k}} alone in braces, for the k of a column, found {strange[0]!r:.80}")
        if self.k != LARGEST and not (whole and int(self.k).bit_count() == 1):
            raise ValueError(f"k: wanted a whole number that is a power of two, as 1 or 16, or {LARGEST}, found {self.k!r:.80}")
        return self


class TableSettings(Settings):
    """A table. `settings` are laid over the recipe, `sizes` more of them over single recipes; rows are minus each row of `against`.

    `environment` is the one that it is about, where none is asked for.
    """

    about: str = ""
    environment: str = ""
    settings: Texts = Field((), strict=False)
    sizes: dict[str, list[str]] = Field(default_factory=dict)
    against: Texts = Field((BASE,), strict=False)
    paper: str = ""
    rows: dict[str, Any]
    checks: list[Any] = Field(default_factory=list)


class _Named(Settings):
    name: Name


@dataclass(frozen=True)
class Row:
    """A row with its name."""

    name: str
    said: RowSettings

    @property
    def arm(self) -> str:
        """The arm that is reported."""
        return self.said.arm or self.said.method.rpartition(":")[2].lower() or BASE

    def advice(self, text: str) -> str:
        """A message of the row's method, in which the turns to type are the table's, of which the row has its share."""
        return ADVISED.sub(lambda found: f"{found[1]}{ceil(int(found[2]) / Decimal(str(self.said.share)))}", text)


@dataclass(frozen=True)
class Table:
    """A table with its name, its rows in their order."""

    name: str
    said: TableSettings
    rows: Mapping[str, Row]
    checks: tuple[CheckSettings, ...]

    def row(self, name: str) -> Row:
        """A row by its name. Raises `UnknownName`."""
        if name not in self.rows:
            raise UnknownName(f"row of the table {self.name}", name, self.rows)
        return self.rows[name]

    def chain(self, row: Row) -> list[Row]:
        """A row and the rows that it starts from, directly or through others, the first one first, the row itself last."""
        found = [row]
        while found[0].said.start:
            found.insert(0, self.row(found[0].said.start))
        return found


@cache
def paper_tables() -> dict[str, dict[str, dict[str, dict[str, list[float | None]]]]]:
    """The paper's figures: table, environment, model and row to Pass@1 and Pass@128."""
    found: dict[str, Any] = read_yaml((files("leafe") / FIGURES).read_text(encoding="utf-8"), FIGURES)
    return found


def table_names() -> list[str]:
    """The tables that come with the package."""
    entries = (files("leafe") / FOLDER).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_table(name_or_path: str) -> Table:
    """A shipped table by its name, or any YAML file by its path. Raises `UserError` in one sentence for the first thing that is wrong."""
    if not name_or_path.endswith((".yaml", ".yml")) and "/" not in name_or_path:
        if name_or_path not in table_names():
            raise UnknownName("table", name_or_path, table_names())
        return parse_table((files("leafe") / FOLDER / f"{name_or_path}.yaml").read_text(encoding="utf-8"), name_or_path)
    try:
        text = Path(name_or_path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the table {name_or_path}: {error}; tables by name: {', '.join(table_names())}") from None
    return parse_table(text, Path(name_or_path).stem)


def parse_table(text: str, name: str) -> Table:
    """A table from YAML text. Raises `UserError` like `load_table`."""
    source = f"the table {name}"
    checked(_Named, {"name": name}, source)
    said = checked(TableSettings, read_yaml(text, source), source, like="about: What it shows")
    if "against" not in said.model_fields_set and BASE not in said.rows:
        said = said.model_copy(update={"against": ()})
    for key, value in _overrides(said, source):
        refuse_for_all(key, value, source)
    rows = {key: _row(key, value, source) for key, value in said.rows.items()}
    checks = tuple(
        checked(CheckSettings, one, f"check {number} of {source}", like="claim: A raises Pass@1, row: a, above: base, k: 1")
        for number, one in enumerate(said.checks, start=1)
    )
    table = Table(name, said, rows, checks)
    _check(table, source)
    return table


def refuse_for_all(key: str, value: Any, source: str) -> None:
    """Refuses a setting for all rows that each row, or the command line, has in its own way."""
    if key in IDLE:
        raise UserError(f"{source} sets {key}, which has no effect on a table: {IDLE[key]}")
    _refuse_start(key, value, source)


def _refuse_start(key: str, value: Any, source: str) -> None:
    """Refuses a method's own setting of a model to start from, whose cost and whose checkpoint no row would know."""
    if (key.rpartition(".")[2] == START or (isinstance(value, Mapping) and START in value)) and not key.startswith("environment"):
        raise UserError(f"{source} sets {key} to start from a model; write it as a row's own start: ROW")


def _row(name: str, value: Any, source: str) -> Row:
    checked(_Named, {"name": name}, f"a row of {source}")
    row = Row(name, checked(RowSettings, {} if value is None else value, f"the row {name} of {source}", like="method: leafe"))
    for key, value in _overrides(row.said, f"the row {name} of {source}"):
        settled = [one for one in SETTLED if f"{key}.".startswith(f"{one}.")]
        if key in ("explore", "environment") or settled:
            raise UserError(f"the row {name} of {source} sets {key}, which a table settles for all its rows; leave it out")
        if key.startswith("environment.") and row.said.method:
            raise UserError(
                f"the row {name} of {source} sets {key} and has a method; only a row that measures what it starts from, without a method,"
                " may be in another environment"
            )
        _refuse_start(key, value, f"the row {name} of {source}")
    return row


def _overrides(said: RowSettings | TableSettings, owner: str) -> Iterator[tuple[str, Any]]:
    """The name and the value of each setting of a row or a table, those for single recipes included.

    Raises `UserError` for a text that is no setting and for a recipe that there is none of.
    """
    shipped = recipe_names()
    for recipe in said.sizes:
        if recipe not in shipped and not recipe.endswith((".yaml", ".yml")) and "/" not in recipe:
            raise UnknownName(f"recipe in the sizes of {owner}", recipe, shipped)
    for text in (*said.settings, *(one for many in said.sizes.values() for one in many)):
        try:
            path, value = read_override(text)
        except UserError as error:
            raise UserError(f"{owner}: {error}") from None
        yield ".".join(path), value


def _check(table: Table, source: str) -> None:
    """Refuses rows that start from a missing row or from themselves, and claims about missing rows."""
    if not any(row.said.shown for row in table.rows.values()):
        raise UserError(f"{source} has no row that is shown, and wants one at least")
    if (env := table.said.environment) and ":" not in env and env not in registry.names():
        raise UnknownName(f"environment of {source}", env, registry.names())
    if table.said.paper and table.said.paper not in paper_tables():
        raise UnknownName(f"table of the paper, in {source},", table.said.paper, paper_tables())
    folders: dict[str, str] = {}
    for row in table.rows.values():
        if (other := folders.setdefault(row.name.lower(), row.name)) != row.name:
            raise UserError(f"{source} has the rows {other} and {row.name}, which would be one folder on some disks; rename one")
        if unknown := [one for one in row.said.envs if ":" not in one and one not in registry.names()]:
            raise UnknownName(f"environment in the envs of the row {row.name}", unknown[0], registry.names())
        seen = [row.name]
        while start := table.row(seen[-1]).said.start:
            if start in seen:
                raise UserError(f"the row {row.name} of {source} starts from itself, by {' <- '.join([*seen, start])}")
            if table.row(start).said.forest or not table.row(start).said.method:
                raise UserError(
                    f"the row {seen[-1]} of {source} starts from {start}, which trains nothing; take a row with a method and an arm"
                )
            seen.append(start)
        for other in row.said.against or ():
            if table.row(other) is row:
                raise UserError(f"the row {row.name} of {source} has itself in against:; leave it out")
    for name in (*table.said.against, *(name for one in table.checks for name in (one.row, one.above) if name)):
        table.row(name)
    if itself := [one for one in table.checks if one.above == one.row]:
        raise UserError(
            f"{source} claims that {itself[0].row} is above {itself[0].above}, which is itself; name another row in above:"
        )
    if len({bool(row.said.forest) for row in table.rows.values() if row.said.shown}) > 1:
        raise UserError(f"{source} shows arms and forests; a table shows one or the other")
