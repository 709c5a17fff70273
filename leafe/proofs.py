"""The inputs that decide the files of a stage, as a digest: two stages with the same digest make the same files.

Settings of execution are left out, and so is every setting that the kind of stage does not read; a setting not known to be
unread counts, and so do all arguments of the stage. Models, tasks and examples count by their content. A stage whose inputs cannot be
identified by their content has no digest and is never taken for another. A loss, an explorer or an environment from a module that is
neither leafe's nor an installed package's counts with the text of that module; what such a module imports does not.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache, partial, wraps
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from leafe.digest import digest, lines_digest, seed_for
from leafe.forest.play import once
from leafe.manifest import described, manifest_of
from leafe.records import Example, encode
from leafe.run import RunDirectory
from leafe.settings import MACHINE
from leafe.shown import WATCHED
from leafe.stages import PROBE, Made, Policy, Proof

if TYPE_CHECKING:
    from leafe.experiment import Experiment, ForestSpec

Stage = TypeVar("Stage", bound=Callable[..., Made])  # takes an experiment and a run first
UNREAD_EXPLORING = ("distill", "train", "evaluate")
UNREAD_MEASURING = ("distill", "train", "evaluate.resamples", "evaluate.confidence")
UNREAD_BY_PLAIN_ATTEMPTS = ("sampling.reflect", "explore")  # an attempt is bounded by its task alone
LENGTH = 32


class _Untold(TypeError):
    """A value that cannot be identified by its content."""


def done_once(proof: Callable[..., Proof]) -> Callable[[Stage], Stage]:
    """Lets an experiment take over the work of a stage that was done elsewhere, by what `proof` returns for the same call."""

    def decorated(work: Stage) -> Stage:
        @wraps(work)
        def stage(experiment: Experiment, run: RunDirectory, *args: Any, **more: Any) -> Made:
            return experiment.once(
                run, partial(proof, experiment, run, *args, **more), partial(work, experiment, run, *args, **more)
            )

        return cast(Stage, stage)

    return decorated


def explored(experiment: Experiment, run: RunDirectory, stage: str, spec: ForestSpec, **more: Any) -> Proof:
    """The inputs that decide a forest."""
    said = {one.name: getattr(spec, one.name) for one in fields(spec) if one.name not in ("path", "journal")}
    said["prompts"] = experiment.prompts_of(spec.prompts) if spec.prompts else ""
    key = _digest("explore", said, more, _settings(experiment, UNREAD_EXPLORING), _tasks(experiment, "train"))
    return Proof(key, (spec.path,) if spec.path else ())


def measured(experiment: Experiment, run: RunDirectory, arm: str, policy: Policy, **more: Any) -> Proof:
    """The inputs that decide an arm's graded attempts; `more` is how they are played, where that is not plainly."""
    plain = more.get("player", once) is once
    unread = (*UNREAD_MEASURING, *(UNREAD_BY_PLAIN_ATTEMPTS if plain else ()))
    through = experiment.measures_here if experiment.probe else None
    how = {name: value for name, value in more.items() if value is not once}
    own = experiment.prompts_of(policy.prompts) if policy.prompts else ""
    key = _digest(
        "evaluate", replace(policy, prompts=""), own, how, through, _settings(experiment, unread), _tasks(experiment, "test")
    )
    return Proof(key, (run.evaluation(arm), run.evaluation(arm, WATCHED)), arm)


def trained(
    experiment: Experiment,
    run: RunDirectory,
    arm: str,
    model: Path,
    *,
    examples: Sequence[Example],
    files: Sequence[Path] = (),
    **more: Any,
) -> Proof:
    """The inputs that decide an arm's checkpoint."""
    config = experiment.config
    read = config.train.model_dump(mode="json", exclude=MACHINE["train"])
    seed, sent = seed_for(config.seed, "train", arm), run.stages.get(PROBE)
    key = _digest("train", read, seed, sent, more, model, lines_digest(map(encode, examples)))
    return Proof(key, (run.checkpoint(arm), *files))


def folder_digest(folder: Path) -> str:
    """The digest of every file in a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    stamps = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return _folder_digest(folder, stamps)


@lru_cache(maxsize=64)
def _folder_digest(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Computed once while the files keep their sizes and times: a model may be large."""
    return digest(manifest_of(folder, [folder]), length=LENGTH)


def _tasks(experiment: Experiment, part: str) -> str:
    return lines_digest(map(encode, experiment.tasks(part)))


def _settings(experiment: Experiment, unread: Iterable[str]) -> dict[str, Any]:
    """Every setting that counts. Tasks, models and prompts count by their content, the method's own section by its stages' arguments."""
    config = experiment.config
    kept = config.model_dump(mode="json", exclude=MACHINE)
    for name in ("name", "method", "model", "tasks", config.section, *unread):
        *groups, last = name.split(".")
        _at(kept, ".".join(groups)).pop(last, None)
    return {**kept, "prompts": experiment.prompts, "world": type(experiment.declared)}


def _at(values: Mapping[str, Any], name: str) -> Any:
    found: Any = values
    for part in filter(None, name.split(".")):
        found = found.get(part)
    return found


def _digest(*parts: Any) -> str | None:
    try:
        return digest(*(_told(part) for part in parts), length=LENGTH)
    except (TypeError, ValueError):
        return None


def _told(value: Any) -> Any:
    """A value in JSON: files by their content, classes and functions of modules by name and text. Raises `TypeError` for other ones."""
    if isinstance(value, Path):
        return folder_digest(value) if value.is_dir() else described(value)
    if is_dataclass(value) and not isinstance(value, type):
        return [_origin(type(value)), {one.name: _told(getattr(value, one.name)) for one in fields(value)}]
    if isinstance(value, type):
        return _origin(value)
    if isinstance(value, FunctionType):
        if value.__closure__ or "<" in value.__qualname__:
            raise _Untold(value)
        return _origin(value)
    if isinstance(value, Mapping):
        return {str(key): _told(one) for key, one in value.items()}
    return [_told(one) for one in value] if isinstance(value, tuple | list) else value


def _origin(named: type | FunctionType) -> list[str]:
    """The module and the name of a class or function, with the digests of the modules that may be edited between two runs."""
    modules = [one.__module__ for one in named.__mro__] if isinstance(named, type) else [named.__module__]
    return [f"{named.__module__}:{named.__qualname__}", *filter(None, map(_text_of, dict.fromkeys(modules)))]


def _text_of(module: str) -> str:
    """The digest of a module's text, empty for leafe's and for installed ones. Raises `TypeError` where it has no file."""
    top = module.partition(".")[0]
    if top == "leafe" or top in sys.stdlib_module_names:
        return ""
    place = getattr(sys.modules.get(module), "__file__", None)
    if place is None or not Path(place).is_file():
        raise _Untold(module)
    installed = (sysconfig.get_path(name) for name in ("purelib", "platlib"))
    return "" if any(Path(place).is_relative_to(folder) for folder in installed) else str(described(Path(place))["sha256"])
