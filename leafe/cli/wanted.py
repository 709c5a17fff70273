"""The object that a command works on: a recipe, a run, or a model in an environment.

An unusable one is refused here, before a library for models is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from leafe.config import load_recipe, of_model, of_one_split, recipe_names
from leafe.errors import UnknownName, UserError
from leafe.refusals import refuse
from leafe.reproduce.asked import typed_recipe
from leafe.reproduce.spec import load_table
from leafe.run import RunDirectory
from leafe.settings import RunConfig


def recipe(name: str, overrides: Sequence[str], out: Path | None = None) -> RunConfig:
    """The settings of a recipe with overrides. Raises `UserError` where they cannot be carried out, in `out` if given."""
    config = load_recipe(name, overrides)
    refuse(config, out)
    return config


def model(
    name: str, env: str, overrides: Sequence[str], out: Path | None = None, *, part: Literal["train", "test"], **counts: int
) -> RunConfig:
    """The settings to try a model in an environment on the tasks of one part; `counts` are as in `of_model`."""
    config = of_one_split(of_model(name, env, overrides, **counts), part)
    refuse(config, out)
    return config


def run(path: Path) -> Path:
    """A run directory that can be worked on."""
    with RunDirectory.existing(path, read_only=True) as directory:
        refuse(directory.config)
    return path


def run_or_recipe(where: str, overrides: Sequence[str], out: Path | None) -> Path | RunConfig:
    """The object of a command: a run directory, or a recipe, with which a run is started in `out`."""
    names_recipe = where in recipe_names() or where.endswith((".yaml", ".yml"))
    given = bool(overrides or out)
    if names_recipe and (given or not (Path(where) / "config.yaml").is_file()):
        return recipe(where, overrides, out)
    if not Path(where).exists():
        raise UnknownName("run directory or recipe", where, recipe_names())
    if given:
        raise UserError(f"{where} is no recipe, and a run keeps the settings that it was started with; leave out all but {where}")
    return run(Path(where))


def table(name: str, recipe: str | None, overrides: Sequence[str]) -> None:
    """Refuses a table or a recipe that is not there. Raises `UserError`."""
    load_table(name)
    if recipe:
        typed_recipe(recipe, overrides)


def without_env(given: Mapping[str, object]) -> None:
    """Refuses options that go with --env alone. Raises `UserError`."""
    if named := next((name for name, value in given.items() if value is not None), None):
        raise UserError(f"{named} goes with --env; a run or a recipe says it by its settings, as tasks.test and evaluate.samples")
