"""Recipes: from YAML and `a.b=value` overrides to one checked `RunConfig`, and back to YAML.

A recipe's `method` names the section that it has beside the settings that all methods share. A setting of that section may be at the
top of a recipe as well, and sections of other methods are ignored, so that one recipe serves several methods. Bad input is one sentence
that names the setting, what was wanted and what was found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model

from leafe.errors import UnknownName, UserError
from leafe.known_methods import KnownMethod, asked, find, method_names
from leafe.settings import DEFAULT_METHOD, RunConfig
from leafe.yaml_text import DEEPEST, Dumper, read_yaml

Group = TypeVar("Group", bound=BaseModel)

# The settings of a prompt profile: those that depend on the length and the form of replies, and on the kind of model it was written for.
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


def _refuse_unknown(root: type[BaseModel], values: Mapping[str, Any], owner: str = "") -> None:
    def trajectory(model: type[BaseModel], values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if key not in model.model_fields:
                elsewhere = [path for path in _all_keys(root) if path.rpartition(".")[2] == key]
                raise UnknownName(
                    f"setting{owner}", f"{prefix}{key}", [*(prefix + known for known in model.model_fields), *elsewhere]
                )
            group = _group(model.model_fields[key].annotation)
            if group and isinstance(value, Mapping):
                trajectory(group, value, f"{prefix}{key}.")

    trajectory(root, values, "")


OWN_KEY = re.compile(r"\w+: wanted ")  # how a group of settings names one of its own
# The value that each of pydantic's complaints wanted; braces are filled from the complaint's context.
WANTED = {
    "missing": "a value",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', a letter or digit first",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "tuple_type": "a list, as [a, b]",
    "list_type": "a list, as [a, b]",
    "dict_type": "a group of settings",
    "model_type": "a group of settings",
}


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    if first["type"] == "value_error":
        said, group = str(context["error"]), ".".join(str(part) for part in first["loc"] if "[" not in str(part))
        return f"{group}.{said}" if group and OWN_KEY.match(said) else said
    # For a setting that may have several types pydantic names the type as well.
    key = ".".join(str(part) for part in first["loc"] if part not in ("[key]", "int", "float", "str") and "[" not in str(part))
    wanted = WANTED[first["type"]].format(**context) if first["type"] in WANTED else first["msg"]
    found = "nothing" if first["type"] == "missing" else f"{first['input']!r:.80}"
    return f"{key}: wanted {wanted}, found {found}"


def _refuse_what_is_no_group(values: Any, source: str, like: str = "name: trial") -> None:
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        found = "empty" if values is None else f"{values!r:.80}"
        raise UserError(f"{source} should be a group of settings, as `{like}`, and is {found}")


def _validate(values: Mapping[str, Any], method: KnownMethod) -> RunConfig:
    model = config_class(type(method))
    if not values.keys() <= model.model_fields.keys():
        _refuse_strays(model, values)
    _refuse_unknown(model, values)
    try:
        config = model.model_validate({model.section: {}, **values})
    except ValidationError as error:
        raise UserError(_sentence(error)) from None
    asked(method, "check()", lambda: method.check(config, config.own))
    return config


def _refuse_strays(model: type[RunConfig], values: Mapping[str, Any]) -> None:
    """Settings of the default method at the top of a recipe that chooses another one."""
    theirs = config_class(type(find(DEFAULT_METHOD)))
    if strays := [key for key in values if key not in model.model_fields and _belongs(theirs, key)]:
        raise UserError(
            f"{strays[0]} is a setting of the method {theirs.section}, and the method here is {model.section}; "
            f"write it as {theirs.section}.{strays[0]} in the recipe, or leave it out"
        )


def _method_of(values: Mapping[str, Any]) -> KnownMethod:
    chosen = values.get("method", DEFAULT_METHOD)
    if not isinstance(chosen, str):
        raise UserError(f"method: wanted a name of `leafe methods` or module:Class, found {chosen!r:.80}")
    return find(chosen)


@cache
def config_class(method: type[KnownMethod]) -> type[RunConfig]:
    """The settings of a run with the section of a method."""
    section = method.name
    if hasattr(RunConfig, section) or section in RunConfig.model_fields:
        raise UserError(f"a method cannot be called {section!r}, the name of something in every recipe; give it another name")
    own: Any = {section: (method.Settings, Field(default_factory=method.Settings))}
    model = create_model("RunConfig", __base__=RunConfig, __module__=__name__, **own)
    model.section = section
    return model


def _settled(values: Mapping[str, Any], source: str, model: type[RunConfig]) -> dict[str, Any]:
    """The settings with those of the method in its section, and without the sections of other methods."""
    if values.keys() <= model.model_fields.keys():
        return dict(values)
    others = method_names()
    settled = {key: value for key, value in values.items() if key in model.model_fields or key not in others}
    section = settled.get(model.section, {})
    at_the_top = [key for key in settled if _belongs(model, key)]
    if not at_the_top or not isinstance(section, dict):
        return settled
    if twice := [key for key in at_the_top if key in section]:
        raise UserError(f"{source} holds {twice[0]} twice, at the top and as {model.section}.{twice[0]}; keep one of them")
    settled[model.section] = {**section, **{key: settled.pop(key) for key in at_the_top}}
    return settled


def _belongs(model: type[RunConfig], key: str) -> bool:
    """Whether a name at the top of a recipe is that of a setting of the method."""
    group = _group(model.model_fields[model.section].annotation)
    return key not in model.model_fields and group is not None and key in group.model_fields


def read_override(text: str) -> tuple[list[str], Any]:
    """The groups and the name of a setting, with its value. Raises `UserError` for a text that is no override."""
    key, equals, value = text.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path) or len(path) > DEEPEST + 1:
        raise UserError(f"an override is written key=value, as train.epochs=3; found {text!r:.80}")
    return path, read_yaml(value, f"the value of {key.strip()}")


def _overridden(
    values: Mapping[str, Any], overrides: Iterable[tuple[list[str], Any, str]], model: type[RunConfig]
) -> dict[str, Any]:
    """Settings with others laid over them in turn, each with the text that it was read from."""
    settled = dict(values)
    for path, value, text in overrides:
        if path[0] not in model.model_fields and path[0] in method_names():
            raise UserError(f"{text!r:.80} is for the method {path[0]}, and the method of this run is {model.section}")
        _lay(settled, [model.section, *path] if _belongs(model, path[0]) else path, value, text)
    return settled


def _lay(values: dict[str, Any], path: Sequence[str], value: Any, text: str) -> None:
    *groups, last = path
    for depth, group in enumerate(groups, start=1):
        inner = values.get(group)
        # A copy, since an alias in the text may refer to the same group elsewhere.
        inner = values[group] = {} if inner is None else dict(inner) if isinstance(inner, dict) else inner
        if not isinstance(inner, dict):
            raise UserError(f"{'.'.join(groups[:depth])} is a single setting and holds no {last!r:.80}; found {text!r:.80}")
        values = inner
    values[last] = value


def dump(config: RunConfig) -> str:
    """Every setting as YAML that `parse` reads back as an equal configuration."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False)


def _profile_settings(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings of a prompt profile where the recipe has none, for all environments and then for its own: sizes that fit the prompts."""
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
    """`upper`, completed from `lower`, group by group."""
    if not isinstance(lower, dict) or not isinstance(upper, dict):
        return upper
    merged = {**lower, **upper}
    return merged | {key: _laid_over(lower[key], upper[key]) for key in lower.keys() & upper.keys()}


def parse(text: str, source: str, overrides: Sequence[str] = (), *, whole: bool = False) -> RunConfig:
    """A configuration from YAML text; `source` names it in messages.

    A setting that neither the text nor an override names comes from the prompt profile, or else has its default. A `whole` text,
    as a run directory keeps it, names every setting of its run.

    >>> parse("name: trial\\nenvironment: {name: sokoban}", "trial", ["train.epochs=3"]).train.epochs
    3.0

    Raises `UserError` with one sentence for the first thing that is wrong.
    """
    values = read_yaml(text, source)
    _refuse_what_is_no_group(values, source)
    read = [(*read_override(override), override) for override in overrides]
    chosen = [value for path, value, _ in read if path == ["method"]]
    method = _method_of({**values, **({"method": chosen[-1]} if chosen else {})})
    model = config_class(type(method))
    values = _overridden(_settled(values, source, model), read, model)
    return _validate(values if whole else _on_profile(values), method)


def of_model(model: str, environment: str, overrides: Sequence[str], **counts: int | None) -> RunConfig:
    """The settings to try a model in an environment, without a recipe. Trains nothing.

    An override whose name is no setting is an argument of the environment, as `levels=FILE`; `counts` are settings by their dotted names
    with `_` for the dot, those that are None left out. Raises `UserError` like `parse`.
    """
    section = config_class(type(find(DEFAULT_METHOD)))
    given = [f"{name.replace('_', '.', 1)}={count}" for name, count in counts.items() if count is not None]
    arguments = [text if text.partition("=")[0].partition(".")[0].strip() in section.model_fields else f"environment.args.{text}"
                 for text in overrides]  # fmt: skip
    own = {"name": "trial", "model": model, "environment": {"name": environment}, section.section: {"arms": [], "controls": []}}
    return parse(yaml.dump(own, Dumper=Dumper), f"--env {environment}", [*given, *arguments])


def of_one_split(config: RunConfig, part: Literal["train", "test"]) -> RunConfig:
    """The settings of a command that reads the tasks of one part alone. Those of the other come from the same split, for where there are
    tasks of no other, as in a file of held-out levels.
    """
    split = getattr(config.tasks, f"{part}_split")
    return config.model_copy(update={"tasks": config.tasks.model_copy(update={"train_split": split, "test_split": split})})


def configured(values: Mapping[str, Any], source: str) -> RunConfig:
    """A configuration from nested settings, completed from the prompt profile. Raises `UserError` like `parse`."""
    _refuse_what_is_no_group(values, source)
    method = _method_of(values)
    return _validate(_on_profile(_settled(values, source, config_class(type(method)))), method)


def checked(model: type[Group], values: Any, source: str, *, like: str = "name: trial") -> Group:
    """A group of settings that is no recipe; messages name it `source` and show one `like` it. Raises `UserError` like `parse`."""
    _refuse_what_is_no_group(values, source, like)
    try:
        _refuse_unknown(model, values, f" of {source}")
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(f"{source}: {_sentence(error)}") from None


def _on_profile(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings laid over those of their prompt profile."""
    settled: dict[str, Any] = {}
    for layer in (*_profile_settings(values), values):
        settled = _laid_over(settled, layer)
    return settled


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
