"""The request for a table as it is typed, and the recipe that it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from leafe.config import load_recipe, recipe_names
from leafe.errors import UserError
from leafe.nano import CHECKPOINTS
from leafe.settings import RunConfig
from leafe.yaml_text import read_yaml

# The recipes of the bundled models, whose settings were chosen on the split `valid`.
NANO = {"sokoban": "quickstart", "household": "household-nano"}
PAPER = "paper-"
MODELS = "recipes/paper/models.yaml"


@dataclass(frozen=True)
class Asked:
    """The request as typed: `model` and `environment` choose a recipe, which may be named as well; `overrides` are for every row."""

    model: str = ""
    environment: str = ""
    recipe: str = ""
    seeds: tuple[int, ...] = (1, 2, 3)
    rows: tuple[str, ...] = ()
    out: Path | None = None
    overrides: tuple[str, ...] = ()


def paper_models() -> dict[str, list[str]]:
    """The paper's models by their names on the Hub, each with the settings that its size needs."""
    found: dict[str, list[str]] = read_yaml((files("leafe") / MODELS).read_text(encoding="utf-8"), MODELS)
    return found


def recipe_of(asked: Asked) -> tuple[str, tuple[str, ...]]:
    """The recipe of a model in an environment, and the overrides on it. Raises `UserError` where none ships."""
    bundled = asked.model in ("", *CHECKPOINTS)
    if asked.recipe:
        if asked.environment and asked.environment != (own := typed_recipe(asked.recipe, asked.overrides).environment.name):
            raise UserError(
                f"--env {asked.environment:.60} and --recipe {asked.recipe}, whose environment is {own}: leave one of them out"
            )
        return asked.recipe, () if not asked.model else (f"model={_in_world_of(asked)}",)
    environment = asked.environment or "sokoban"
    if bundled and environment in NANO:
        named = () if asked.model in ("", "nano") else (f"model={asked.model}",)
        return NANO[environment], named  # `nano` is the bundled model of that environment
    recipe = f"{PAPER}{environment}"
    if bundled or recipe not in recipe_names():
        of_papers = [name.removeprefix(PAPER) for name in recipe_names() if name.startswith(PAPER)]
        known = ", ".join(NANO if bundled else of_papers)
        other = (
            f"take another model, as --model {next(iter(paper_models()))}, or " if bundled and environment in of_papers else "else "
        )
        raise UserError(
            f"no recipe ships for {asked.model or 'nano'} in {environment!r:.60}; it ships for {known}; {other}name one: --recipe FILE"
        )
    return recipe, (*paper_models().get(asked.model, ()), f"model={asked.model}")


def _in_world_of(asked: Asked) -> str:
    """A model as typed; `nano` is the bundled model of the recipe's environment, where one ships."""
    environment = typed_recipe(asked.recipe, asked.overrides).environment.name if asked.model == "nano" else ""
    return load_recipe(NANO[environment]).model if environment in NANO else asked.model


def typed_recipe(recipe: str, overrides: Sequence[str]) -> RunConfig:
    """A recipe as it is typed for a table, whose rows have their own methods. Raises `UserError`."""
    of_all = {*RunConfig.model_fields} - {"method"}
    return load_recipe(recipe, [text for text in overrides if text.partition("=")[0].partition(".")[0].strip() in of_all])


def seeds_of(text: str) -> tuple[int, ...]:
    """Seeds as they are typed, `1,2,3`. Raises `UserError`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        raise UserError(f"--seeds: wanted whole numbers from 0 to 999,999,999, as 1,2,3, found {text!r:.80}")
    return tuple(int(part) for part in parts)


def names_of(text: str) -> tuple[str, ...]:
    """Names as they are typed, `a,b`."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
