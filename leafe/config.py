"""What a run does, as one frozen value: the models, the shipped recipes, `a.b=value` overrides and the YAML they are written in.

Every setting stands here once; whatever follows from another is a property. A configuration is checked when it is made, so that the
rest of the program may believe it, and nothing here knows what is done with it. Bad input is one sentence that names the setting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from leafe.digest import canonical, digest
from leafe.errors import UnknownName, UserError
from leafe.records import Sampling

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """A group of settings: frozen, every key known, no value turned quietly into another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class EnvironmentSettings(Settings):
    """Which world is played; `args` go to its constructor.

    `workers` is for worlds that are not played in line: how many are called at once on threads, or live in processes; 0 means one thread
    a core, or four processes a core. It says how and not what.
    """

    name: Text
    args: dict[str, Any] = {}
    workers: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _args_are_json(self) -> Self:
        try:
            kept = json.loads(canonical(self.args)) == self.args
        except (TypeError, ValueError):
            kept = False
        if not kept:
            raise ValueError(f"environment.args: wanted what JSON can hold, found {self.args!r:.80}")
        return self


class TaskSettings(Settings):
    """How many tasks of which split. `seed` draws the tasks and is apart from the run's seed: runs may share their tasks."""

    train: int = Field(64, ge=1)
    test: int = Field(64, ge=1)
    train_split: Text = "train"
    test_split: Text = "test"
    seed: int = Field(0, ge=0)


class EngineSettings(Settings):
    """What draws the completions.

    `device`, `threads`, `processes`, `slots`, `concurrency` and `base_url` say how and where and not what: a run may be resumed with
    others. `device` is one of torch's, `auto` a GPU where there is one. Each of `processes` holds the model, on a GPU of its own where
    there are as many; `threads` is for each of them, 0 shares out the cores that are free. `max_context` is in tokens.
    """

    kind: Literal["transformers", "openai"] = "transformers"
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    device: Text = "auto"
    threads: int = Field(0, ge=0)
    processes: int = Field(1, ge=1)
    slots: int = Field(256, ge=1)
    concurrency: int = Field(512, ge=1)
    max_context: int = Field(1024, ge=16)
    base_url: str = ""
    served_model: str = ""

    @model_validator(mode="after")
    def _server_is_named(self) -> Self:
        if self.kind == "openai" and not self.base_url:
            raise ValueError("engine.kind openai wants engine.base_url, as http://localhost:8000/v1, and found none")
        return self


class DrawSettings(Settings):
    """How one completion is drawn; see `records.Sampling`."""

    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(16, ge=1)

    def sampling(self) -> Sampling:
        """The same as a record."""
        return Sampling(self.temperature, self.top_p, self.max_tokens)


class SamplingSettings(Settings):
    """One way of drawing for actions, another for reflections."""

    act: DrawSettings = DrawSettings()
    reflect: DrawSettings = DrawSettings(max_tokens=48)


class ExploreSettings(Settings):
    """The budget of one task, in turns that the policy takes, and when it looks back. `reflect_every` 0 means at the end only."""

    turns: int = Field(64, ge=1)
    max_attempts: int = Field(16, ge=1)
    max_depth: int = Field(4, ge=0)
    reflect_every: int = Field(0, ge=0)
    reflect_on_failure: bool = True

    @model_validator(mode="after")
    def _reflects_at_all(self) -> Self:
        if not self.reflect_every and not self.reflect_on_failure:
            raise ValueError("explore.reflect_every: wanted at least 1 where explore.reflect_on_failure is false, found 0")
        return self


class DistillSettings(Settings):
    """Which turns become examples. `qualify` is what a branch must have brought; `beta` weighs rehearsal against correction."""

    qualify: Literal["success", "improved", "any"] = "improved"
    branches_per_task: int = Field(3, ge=0)
    success_share: Share = 0.2
    beta: float = Field(1.0, ge=0)


class LoraSettings(Settings):
    """A low-rank adapter in place of full training; no `targets` means every linear layer."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    targets: tuple[str, ...] = Field((), strict=False)


class TrainSettings(Settings):
    """Supervised training. A batch is `batch_size` examples; `micro_tokens` is what one forward pass may hold.

    `attention`: `tree` in blocks, `flex` by FlexAttention (on a GPU), `dense` with a mask, for models that take nothing else.
    `checkpointing` computes activations twice to hold fewer of them. `processes` on this machine share every step.
    """

    epochs: float = Field(2.0, gt=0)
    learning_rate: float = Field(1e-6, gt=0)
    batch_size: int = Field(128, ge=1)
    micro_tokens: int = Field(8192, ge=16)
    warmup_share: Share = 0.05
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    attention: Literal["tree", "flex", "dense"] = "tree"
    checkpointing: bool = False
    processes: int = Field(1, ge=1)
    lora: LoraSettings | None = None


class EvaluateSettings(Settings):
    """How Pass@k is measured: `samples` attempts a task; intervals from `resamples` bootstrap draws over tasks."""

    samples: int = Field(64, ge=1)
    resamples: int = Field(2000, ge=1)
    confidence: float = Field(0.95, gt=0, lt=1)

    @property
    def ks(self) -> tuple[int, ...]:
        """The powers of two up to `samples`."""
        return tuple(2**power for power in range(self.samples.bit_length()))


class RunConfig(Settings):
    """A whole run. `controls` explore at the same budget, for comparison; `arms` are trained and measured beside the base."""

    name: Name
    seed: int = Field(1, ge=0)
    model: Text = "nano"
    environment: EnvironmentSettings
    prompts: Text = "terse"
    tasks: TaskSettings = TaskSettings()
    engine: EngineSettings = EngineSettings()
    sampling: SamplingSettings = SamplingSettings()
    explore: ExploreSettings = ExploreSettings()
    controls: tuple[Literal["independent", "refine"], ...] = Field((), strict=False)
    distill: DistillSettings = DistillSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    rounds: int = Field(1, ge=1)
    arms: tuple[Literal["leafe", "rehearsal", "independent"], ...] = Field(("leafe",), strict=False)

    @model_validator(mode="after")
    def _lists_agree(self) -> Self:
        for key, names in {"controls": self.controls, "arms": self.arms}.items():
            if len(set(names)) < len(names):
                raise ValueError(f"{key} wants each name once, found {list(names)}")
        if "independent" in self.arms and "independent" not in self.controls:
            raise ValueError("arms with 'independent' wants controls with 'independent', whose successes it is trained on")
        return self

    @model_validator(mode="after")
    def _replies_fit(self) -> Self:
        for key, draw in {"act": self.sampling.act, "reflect": self.sampling.reflect}.items():
            if draw.max_tokens >= self.engine.max_context:
                wanted = f"less than engine.max_context, which is {self.engine.max_context}"
                raise ValueError(f"sampling.{key}.max_tokens: wanted {wanted}, found {draw.max_tokens}")
        return self

    @property
    def digest(self) -> str:
        """The configuration's identity: equal exactly where `differing_fields` finds nothing."""
        return digest(self.model_dump(mode="json", exclude=MACHINE))

    def dump(self) -> str:
        """Every setting as YAML that `parse` reads back as an equal configuration."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


# How and where a run is done, not what comes out of it.
MACHINE = {
    "environment": {"workers"},
    "engine": {"device", "threads", "processes", "slots", "concurrency", "base_url"},
    "train": {"attention", "checkpointing", "processes"},
}


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    else:
        yield path, canonical(value)


def differing_fields(before: RunConfig, after: RunConfig) -> list[str]:
    """What makes two configurations different runs, as `["train.epochs: 2.0 -> 3.0"]`; settings of the machine are left out."""
    old, new = (dict(_leaves(config.model_dump(mode="json", exclude=MACHINE))) for config in (before, after))
    differing = [path for path in {**old, **new} if old.get(path) != new.get(path)]
    groups = {path[:depth] for path in differing for depth in range(len(path))}
    return [f"{'.'.join(path)}: {old.get(path, 'none')} -> {new.get(path, 'none')}" for path in differing if path not in groups]


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, where `1e-6` is a number, as in YAML 1.2, and a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what `_Loader` would take for something else."""


for _dialect in (_Loader, _Dumper):
    _dialect.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))


def _read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{where} is not YAML: {getattr(error, 'problem', None) or error}") from None


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
    if not equals or not last or not all(groups):
        raise UserError(f"an override is written key=value, as train.epochs=3; found {text!r}")
    for depth, group in enumerate(groups, start=1):
        inner = values.get(group)
        if inner is None:
            inner = values[group] = {}
        if not isinstance(inner, dict):
            raise UserError(f"{'.'.join(groups[:depth])} is a single setting and holds no {last!r}; found {text!r}")
        values = inner
    values[last] = _read_yaml(value, f"the value of {key.strip()}")


def parse(text: str, source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """A configuration from YAML text; `source` names it in messages.

    >>> parse("name: trial\\nenvironment: {name: sokoban}", "trial", ["train.epochs=3"]).train.epochs
    3.0

    Raises `UserError` with one sentence for the first thing that is wrong.
    """
    values = _read_yaml(text, source)
    if not isinstance(values, dict):
        return _validate(values, source)
    for override in overrides:
        _override(values, override)
    return _validate(values, source)


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
