"""From a table, a model and an environment to their runs: the recipe, the settings and the directory of each.

Each row at each seed is an ordinary run in `OUT/seed-N/ROW`. Everything that can be refused is refused here, before anything is begun.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path

from leafe.config import load_recipe, read_override
from leafe.differing import differing_fields
from leafe.engines.openai_findings import BASE_ALONE
from leafe.errors import CorruptFile, DamagedRun, RunConflict, UserError
from leafe.experiment import Experiment
from leafe.known_methods import find, method_names, samples_here, trains
from leafe.lab import stages_of
from leafe.reproduce.asked import Asked, recipe_of
from leafe.reproduce.spec import Row, RowSettings, Table, refuse_for_all
from leafe.run import RunDirectory
from leafe.settings import DEFAULT_METHOD, RunConfig
from leafe.stages import Stage, all_of

MEASURES_ONLY = (f"method={DEFAULT_METHOD}", f"{DEFAULT_METHOD}.arms=[]", f"{DEFAULT_METHOD}.controls=[]")
EXPLORES = "explore "
STARTED = "table start"  # the stage in which a run records the checkpoint that it starts from
# Settings whose value a row, its share or what it starts from decides, whatever is typed.
UNTYPED = ("name", "method", "seed", "model", "start", "explore.turns", "explore.tokens")
Bench = Callable[[RunConfig], Experiment]


@dataclass(frozen=True)
class Plan:
    """A table and the request for it. `rows` are those that are carried out, in an order in which each comes after its start."""

    table: Table
    asked: Asked

    @cached_property
    def base(self) -> RunConfig:
        """The settings that all rows share."""
        shared = (text for text in self._shared_by(()) if not self._of_other_method(text, DEFAULT_METHOD))
        return load_recipe(self._recipe[0], [*shared, *MEASURES_ONLY])

    @cached_property
    def _recipe(self) -> tuple[str, tuple[str, ...]]:
        asked = self.asked
        if not asked.recipe and not asked.environment:
            asked = replace(asked, environment=self.table.said.environment)
        return recipe_of(asked)

    @property
    def recipe(self) -> str:
        """The name or the path of the recipe."""
        return self._recipe[0]

    def _shared_by(self, sizes: Sequence[str]) -> tuple[str, ...]:
        """The overrides on the recipe. Typed ones take precedence over sizes, and the settings that define a row over both."""
        recipe, laid = self._recipe
        said = self.table.said
        return (*laid, *said.settings, *said.sizes.get(recipe, ()), *sizes, *self.asked.overrides)

    @cached_property
    def _sections(self) -> set[str]:
        """The names of all methods, those of the table's own classes included."""
        own = {row.said.method for row in self.table.rows.values() if ":" in row.said.method}
        return {*method_names(), *map(_section, own)}

    def _of_other_method(self, override: str, method: str) -> bool:
        """Whether a setting that all rows receive belongs to another method than this row's."""
        section = override.partition("=")[0].partition(".")[0].strip()
        return section not in ("", method, *RunConfig.model_fields) and section in self._sections

    @cached_property
    def out(self) -> Path:
        """The directory of the table; by default the same for the same table, model and environment, so that one command resumes it."""
        if self.asked.out:
            return self.asked.out
        model = Path(self.base.model).name
        return Path("runs") / f"{self.table.name}-{self.base.environment.name.rpartition(':')[2]}-{model}"

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows that were asked for, of this environment, and those that they start from."""
        table, here = self.table, self.base.environment.name
        known = [row for row in table.rows.values() if not row.said.envs or here in row.said.envs]
        wanted = [table.row(name) for name in self.asked.rows] or [row for row in known if row.said.shown]
        if not wanted:
            raise UserError(
                f"the table {table.name} has no row for {here}; take another environment, or write {here} in a row's envs:"
            )
        if strange := [row.name for row in wanted if row not in known]:
            raise UserError(f"the row {strange[0]} of the table {table.name} is not for {here}; leave it out of --rows")
        found: dict[str, Row] = {}
        for row in wanted:
            found |= {one.name: one for one in table.chain(row)}
        return tuple(found.values())

    @property
    def shown(self) -> tuple[Row, ...]:
        """The rows that are reported, in the table's order."""
        named = {row.name for row in self.rows if row.said.shown or row.name in self.asked.rows}
        return tuple(row for row in self.table.rows.values() if row.name in named)

    @cached_property
    def trains(self) -> bool:
        """Whether any row trains, so that the others are measured where its models can be."""
        configs = [self.config(row, self.asked.seeds[0]) for row in self.rows if row.said.method]
        return any(trains(config.method, config.own) for config in configs)

    @property
    def budget(self) -> int:
        """The turns that a row may play with, over all training tasks."""
        return self.base.explore.turns * self.base.tasks.train

    def path(self, row: Row, seed: int) -> Path:
        """The run directory of a row at a seed."""
        return self.out / f"seed-{seed}" / row.name

    def existing(self, row: Row, seed: int) -> RunDirectory:
        """The run of a row at a seed, to read. Raises `CorruptFile` where it is damaged."""
        with told_for_tables(self.out):
            return RunDirectory.existing(self.path(row, seed), read_only=True)

    def share(self, row: Row) -> float:
        """How much of the table's turns a row has played with, those of what it starts from included; 0 where nothing is trained."""
        return sum(one.said.share for one in self.table.chain(row) if one.said.method)

    def start(self, row: Row, seed: int) -> Path | None:
        """The checkpoint that a row starts from, None where that is the table's model."""
        if not row.said.start:
            return None
        source = self.table.row(row.said.start)
        return (self.path(source, seed) / "checkpoints" / source.arm).resolve()

    @cached_property
    def _configs(self) -> dict[tuple[str, int], RunConfig]:
        return {}

    def config(self, row: Row, seed: int) -> RunConfig:
        """The settings of a row's run. Raises `UserError` where the row's method or a setting of it does not exist."""
        key = row.name, seed
        if key not in self._configs:
            self._configs[key] = self._config(row, seed)
        return self._configs[key]

    def _config(self, row: Row, seed: int) -> RunConfig:
        said = row.said
        own: list[str] = list(said.settings)
        if said.method:
            explore = self.base.explore
            own += [f"method={said.method}", f"explore.turns={_share_of(explore.turns, said.share)}"]
            own += (
                [f"explore.tokens={max(1, _share_of(explore.tokens, said.share))}"] if explore.tokens else []
            )  # 0 would be no limit
        else:
            own = [*MEASURES_ONLY, *own]
        if start := self.start(row, seed):
            own += [f"model={start}"]
        if not said.shown:
            own += ["evaluate.samples=1"]  # it is only started from
        try:
            method = find(said.method or DEFAULT_METHOD).name
            own += self._in_process(said)
            shared = [text for text in self._shared_by(said.sizes.get(self.recipe, ())) if not self._of_other_method(text, method)]
            config = load_recipe(self.recipe, [*shared, f"name={row.name}", f"seed={seed}", *own])
            if start and config.engine.kind == BASE_ALONE:  # it would be sampled as if it were the checkpoint
                raise UserError(
                    f"it starts from the checkpoint of {said.start}, and the server of engine.kind=openai plays the table's model alone;"
                    " type engine.kind=vllm, which serves checkpoints, engine.kind=transformers, or write in_process: true in the row"
                )
            return config
        except UserError as error:
            raise UserError(f"the row {row.name} of the table {self.table.name} cannot be made: {error}") from None

    def _in_process(self, said: RowSettings) -> list[str]:
        """The settings by which a row samples in this process though the recipe takes a server."""
        kind, itself = self.base.engine.kind, bool(said.method) and samples_here(said.method)
        if kind == "transformers" or not (said.in_process or itself):
            return []
        if itself and kind != BASE_ALONE:  # while it trains; it is measured like the others
            return ["engine.processes=0"]
        return ["engine.kind=transformers", 'engine.base_url=""', "engine.processes=0"]

    def changes(self, row: Row, seed: int, run: RunDirectory) -> list[str]:
        """The settings that a row's run no longer has as it was begun. The checkpoint that it starts from may move; its row counts."""
        before, now = run.config, self.config(row, seed)
        if not row.said.start:
            return differing_fields(before, now)
        started = (run.stages.get(STARTED) or {}).get("row", "none")
        others = [f"start: {started} -> {row.said.start}"] if run.stages and started != row.said.start else []
        return [*others, *differing_fields(before.model_copy(update={"model": now.model}), now)]

    def check(self, bench: Bench) -> dict[str, tuple[Stage, ...]]:
        """The stages of each row. Raises `UserError` for any fault that can be seen before anything is begun."""
        self.check_request()
        found = {row.name: self.stages(row, bench) for row in self.rows}
        self._refuse_untrained_starts(found)
        return found

    def check_request(self) -> None:
        """Raises `UserError` for a fault of what is asked for, or of the directory, that no environment is needed to see."""
        if len(set(self.asked.seeds)) < len(self.asked.seeds) or not self.asked.seeds:
            raise UserError(f"--seeds: wanted each seed once, as 1,2,3, found {','.join(map(str, self.asked.seeds)) or 'nothing'}")
        for text in self.asked.overrides:
            path, value = read_override(text)
            refuse_for_all(".".join(path), value, repr(text)[:80])
        _require_place(self.out)
        self._refuse_what_is_not_there()
        self._refuse_idle()
        for row in self.rows:
            for seed in self.asked.seeds:
                self._require_same_run(row, seed)

    def _require_same_run(self, row: Row, seed: int) -> None:
        """Raises `RunConflict` where a run exists that was made with other settings, unless nothing is done in it yet."""
        path = self.path(row, seed)
        if not (path / "config.yaml").is_file():
            return
        run = self.existing(row, seed)
        if (changes := self.changes(row, seed, run)) and run.has_work:
            raise RunConflict(
                f"{path} was started with other settings ({'; '.join(changes)});{self.typed_again(row, changes)} give another --out"
            )

    def typed_again(self, row: Row, changes: Sequence[str]) -> str:
        """How to go on with the settings that a run has, where typing them reaches the row."""
        old = dict(change.rpartition(" -> ")[0].split(": ", 1) for change in changes)
        of_row = set(map(_key, row.said.settings))
        if any(key in of_row or key in UNTYPED or value == "none" for key, value in old.items()):
            return ""
        return f" to go on with them type {' '.join(shlex.quote(f'{key}={value}') for key, value in old.items())}, else"

    def _refuse_idle(self) -> None:
        """Raises `UserError` for a setting, typed or the table's, of a method that no row has."""
        said = self.table.said
        laid = (*said.settings, *(one for many in said.sizes.values() for one in many))
        for text, rows in (
            *((text, tuple(self.table.rows.values())) for text in laid),
            *((text, self.rows) for text in self.asked.overrides),
        ):
            key = _key(text)
            section, names = key.partition(".")[0], ", ".join(row.name for row in rows)
            if section not in self._sections or section in RunConfig.model_fields:
                mine = [row for row in rows if row.said.method]
            elif not (mine := [row for row in rows if row.said.method and _section(row.said.method) == section]):
                raise UserError(f"{text!r:.80} is for the method {section}, which none of the rows {names} has; leave it out")
            if mine and all(key in map(_key, row.said.settings) for row in mine) and text in self.asked.overrides:
                raise UserError(
                    f"{text!r:.80} has no effect, since {', '.join(row.name for row in mine)} set {key} in the table; leave it out"
                )

    def _refuse_untrained_starts(self, stages: Mapping[str, Sequence[Stage]]) -> None:
        """Raises `UserError` for a row that starts from one that trains no checkpoint of its arm."""
        for row in filter(lambda one: one.said.start, self.rows):
            source = self.table.row(row.said.start)
            names = [stage.name for stage in all_of(stages[source.name])]
            if f"train {source.arm}" not in names:
                raise UserError(
                    f"the row {row.name} of the table {self.table.name} starts from {source.name}, whose arm {source.arm!r} is not trained:"
                    f" it has no stage 'train {source.arm}'; start from another row, or write that row's arm: or settings:"
                )

    def _refuse_what_is_not_there(self) -> None:
        """Raises `UserError` for the first row whose method or settings do not exist, with the rows that are left without all such."""
        faults: dict[str, UserError] = {}
        for row in self.rows:
            try:
                self.config(row, self.asked.seeds[0])
            except UserError as error:
                faults[row.name] = error
        if faults:
            left = [row.name for row in self.shown if not faults.keys() & {one.name for one in self.table.chain(row)}]
            rest = f"; without such rows: --rows {','.join(left)}" if left else ""
            raise UserError(f"{next(iter(faults.values()))}{rest}")

    def stages(self, row: Row, bench: Bench) -> tuple[Stage, ...]:
        """The stages of a row's run. Raises `UserError` where its method cannot name them, or none has what it reports."""
        seed = self.asked.seeds[0]
        config = self.config(row, seed)
        there = self.start(row, seed)
        known = (
            config if there is None or (there / "config.json").is_file() else config.model_copy(update={"model": self.base.model})
        )
        with told_for_tables(self.out):
            experiment = replace(bench(known), config=config)
        try:
            stages = stages_of(experiment, RunDirectory(self.path(row, seed), config, None))
        except UserError as error:
            raise UserError(f"the row {row.name} of the table {self.table.name} cannot be made: {row.advice(str(error))}") from None
        arms = [stage.name.removeprefix("evaluate ") for stage in stages if stage.name.startswith("evaluate ")]
        if not row.said.forest and row.arm not in arms:
            raise UserError(
                f"the row {row.name} of the table {self.table.name} reports the arm {row.arm!r}, and its method measures"
                f" {', '.join(arms) or 'none'}; write the row's arm: or settings:"
            )
        if row.said.forest and not any(shows(stage, row.said.forest) for stage in all_of(stages)):
            grown = [stage.forest or stage.name.removeprefix(EXPLORES) for stage in all_of(stages) if stage.verb == "explore"]
            raise UserError(
                f"the row {row.name} of the table {self.table.name} reports the forest {row.said.forest!r}, and its method grows"
                f" {'; '.join(map(repr, grown)) or 'none'}; write the row's forest: or settings:"
            )
        return stages


@contextmanager
def told_for_tables(out: Path) -> Iterator[None]:
    """Says of a damaged run of a table in `out` that the table's command makes it anew."""
    try:
        yield
    except DamagedRun as error:
        if not error.run.resolve().is_relative_to(out.resolve()):
            raise
        raise CorruptFile(f"{error.fault}; restore it, or delete {error.run}, and the same command makes that row anew") from None


def _key(override: str) -> str:
    """The setting that an override is for."""
    return ".".join(read_override(override)[0])


def _section(method: str) -> str:
    """The name of a method's section in a recipe; that of a class that cannot be had, which is told with its row, is its own name."""
    with suppress(UserError):
        return find(method).name
    return method


def _share_of(amount: int, share: float) -> int:
    """A share of an amount, rounded down; of the share as it was written, since 0.29 is a little less in binary."""
    return int(amount * Decimal(str(share)))


def shows(stage: Stage, forest: str) -> bool:
    """Whether a stage grows the forest of a name. One that does not say its forest's name before is known by its own."""
    if stage.verb != "explore":
        return False
    name = stage.name.removeprefix(EXPLORES)
    return stage.forest == forest if stage.forest else forest == name or forest.endswith(f", {name}")


def _require_place(path: Path) -> None:
    """Raises `UserError` for a directory that cannot be made or written in; makes nothing."""
    there = next(one for one in (path, *path.parents) if os.path.lexists(one) or one == one.parent)
    if not there.is_dir():
        raise UserError(f"cannot make the directory {path}: {there} is no directory; give another with --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"cannot write in {there}; give another directory with --out")
