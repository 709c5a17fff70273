"""Recipes: from YAML and `a.b=value` overrides to one checked `RunConfig`, and back to YAML.

Bad input is one sentence that names the setting, what was wanted and what was found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from leafe.errors import UnknownName, UserError
from leafe.settings import RunConfig
from leafe.yaml_text import DEEPEST, Dumper, read_yaml

# What a prompt profile may set: what goes with the length and the form of what is said, and with the kind of model that it was written for.
PROFILED = frozenset({"sampling", "engine", "history", "remind", "environment", "train"})


def _group(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field holds, if it holds one."""
    if get_origin(annotation) in (Union, UnionType):
        return next((group for group in map(_group, get_args(annotation)) if group), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key, field in model.model_fields.items():
        yield prefix + key
        if group := _group(field.annotation):
            yield from _all_keys(group, f"{prefix}{key}.")


def _refuse_unknown(model: type[BaseModel], values: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in values.items():
        if key not in model.model_fields:
            elsewhere = [path for path in _all_keys(RunConfig) if path.rpartition(".")[2] == key]
            raise UnknownName("setting", f"{prefix}{key}", [*(prefix + known for known in model.model_fields), *elsewhere])
        group = _group(model.model_fields[key].annotation)
        if group and isinstance(value, Mapping):
            _refuse_unknown(group, value, f"{prefix}{key}.")


# What each of pydantic's complaints wanted; braces are filled from the complaint's context.
WANTED = {
    "missing": "a value",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', a letter or digit first",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "tuple_type": "a list, as [a, b]",
    "dict_type": "a group of settings",
    "model_type": "a group of settings",
}


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    if first["type"] == "value_error":
        return str(context["error"])
    key = ".".join(str(part) for part in first["loc"] if part != "[key]")
    wanted = WANTED[first["type"]].format(**context) if first["type"] in WANTED else first["msg"]
    found = "nothing" if first["type"] == "missing" else f"{first['input']!r:.80}"
    return f"{key}: wanted {wanted}, found {found}"


def _validate(values: Any, source: str) -> RunConfig:
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{source} should be a group of settings, as `name: trial`, and is {values!r:.80}")
    _refuse_unknown(RunConfig, values)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(_sentence(error)) from None


def _override(values: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    *groups, last = (part.strip() for part in key.split("."))
    if not equals or not last or not all(groups) or len(groups) > DEEPEST:
        raise UserError(f"an override is written key=value, as train.epochs=3; found {text!r:.80}")
    for depth, group in enumerate(groups, start=1):
        inner = values.get(group)
        if inner is None:
            inner = values[group] = {}
        if not isinstance(inner, dict):
            raise UserError(f"{'.'.join(groups[:depth])} is a single setting and holds no {last!r:.80}; found {text!r:.80}")
        values = inner
    values[last] = read_yaml(value, f"the value of {key.strip()}")


def dump(config: RunConfig) -> str:
    """Every setting as YAML that `parse` reads back as an equal configuration."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False)


def _profile_settings(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a prompt profile sets where the recipe is silent, for all environments and then for its own: sizes that go with the prompts."""
    profile, environment = values.get("prompts", "terse"), values.get("environment")
    name = environment.get("name") if isinstance(environment, Mapping) else None
    shipped = files("leafe") / "prompts" / str(profile)
    try:
        folder = shipped if "/" not in str(profile) and shipped.is_dir() else Path(str(profile))
        known = (folder, folder / name) if isinstance(name, str) and ":" not in name and "/" not in name else (folder,)
        places = [place for place in known if (place / "settings.yaml").is_file()]
    except (OSError, ValueError) as error:  # a name that no folder can have
        raise UserError(
            f"there is no folder of prompts {profile!r:.80} for {name!r:.80}: {getattr(error, 'strerror', error)}"
        ) from None
    for place in places:
        found = read_yaml((place / "settings.yaml").read_text(encoding="utf-8"), str(place / "settings.yaml"))
        if not isinstance(found, dict) or not found.keys() <= PROFILED:
            raise UserError(f"{place / 'settings.yaml'} may set {', '.join(sorted(PROFILED))} and holds {found!r:.80}")
        yield found


def _laid_over(lower: Any, upper: Any) -> Any:
    """`upper`, with what it does not say taken from `lower`, group by group."""
    if not isinstance(lower, dict) or not isinstance(upper, dict):
        return upper
    merged = {**lower, **upper}
    return merged | {key: _laid_over(lower[key], upper[key]) for key in lower.keys() & upper.keys()}


def parse(text: str, source: str, overrides: Sequence[str] = (), *, whole: bool = False) -> RunConfig:
    """A configuration from YAML text; `source` names it in messages.

    What neither the text nor an override says is as the prompt profile has it, and what that does not say has the default. A `whole` text,
    as a run directory keeps it, says everything that it was made with.

    >>> parse("name: trial\\nenvironment: {name: sokoban}", "trial", ["train.epochs=3"]).train.epochs
    3.0

    Raises `UserError` with one sentence for the first thing that is wrong.
    """
    values = read_yaml(text, source)
    if not isinstance(values, dict):
        return _validate(values, source)
    for override in overrides:
        _override(values, override)
    return _validate(values, source) if whole else configured(values, source)


def configured(values: Mapping[str, Any], source: str) -> RunConfig:
    """A configuration from nested settings; what they do not say is as the prompt profile has it. Raises `UserError` like `parse`."""
    settled: dict[str, Any] = {}
    for layer in (*_profile_settings(values), values):
        settled = _laid_over(settled, layer)
    return _validate(settled, source)


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    entries = (files("leafe") / "recipes").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """A shipped recipe by its name, or any YAML file by its path, with `a.b=value` overrides laid over it in turn."""
    if not name_or_path.endswith((".yaml", ".yml")) and "/" not in name_or_path:
        if name_or_path not in recipe_names():
            raise UnknownName("recipe", name_or_path, recipe_names())
        return parse((files("leafe") / "recipes" / f"{name_or_path}.yaml").read_text(encoding="utf-8"), name_or_path, overrides)
    try:
        text = Path(name_or_path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        shipped = ", ".join(recipe_names())
        raise UserError(f"cannot read the recipe {name_or_path}: {error}; recipes by name: {shipped}") from None
    return parse(text, name_or_path, overrides)
