"""Environments by name: those that ship, those that other packages offer, and any class as `module:Class`.

Shipped environments and those of other packages are found by the same entry point group, `leafe.environments`; a shipped name always
means the shipped class. Nothing is imported from another package before it is asked for by name.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any, Union, get_args, get_origin, get_type_hints

from leafe.envs.alarm import ENDS_MORE
from leafe.envs.base import Environment
from leafe.envs.settled import settled
from leafe.errors import LeafeError, UnknownName, UserError
from leafe.imports import import_here, offered, told
from leafe.records import decode

GROUP = "leafe.environments"
HOME = "leafe"  # the distribution whose names no other can take


def _ours(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == HOME


@cache
def _shipped() -> dict[str, EntryPoint]:
    """Our own entry points, which stay the same while a process lives; searching all installed packages takes a millisecond a world."""
    return {point.name: point for point in offered(GROUP) if _ours(point)}


def _offered() -> dict[str, EntryPoint]:
    """Every entry point by its name; ours come last, so that no other package takes one of their names."""
    return {point.name: point for point in sorted(offered(GROUP), key=lambda point: (_ours(point), point.name))}


def names() -> tuple[str, ...]:
    """Every name that `make` answers to; nothing is imported. Raises `UserError` where leafe is not installed."""
    _require_installed()
    return tuple(_offered())


def _require_installed() -> None:
    if not _shipped():
        raise UserError("leafe runs here without being installed, so its environments have no names; type pip install -e FOLDER")


def known() -> dict[str, str]:
    """Every name that `make` answers to, with a line about it."""
    return {name: _load(name, point).about if _ours(point) else f"from {point.value}" for name, point in _offered().items()}


def make(spec: str, args: Mapping[str, Any] | None = None) -> Environment:
    """A fresh environment: `make("sokoban", {"boxes": 2})`, `make("my_package.worlds:Maze")`.

    Raises `UnknownName` for a name that nothing answers to and `UserError` for a class or arguments that do not fit.
    """
    chosen, given = _find(spec), dict(args or {})
    accepted = _accepted(chosen)
    for name, value in given.items():
        if name not in accepted and None not in accepted:
            listed = ", ".join(str(one) for one in accepted) or "none"
            raise UserError(f"{spec} takes no argument {name!r}; accepted: {listed}")
        _check_type(spec, name, value, accepted.get(name, Any))
    try:
        inspect.signature(chosen).bind(**given)
    except TypeError as error:
        listed = ", ".join(str(one) for one in accepted if one) or "none"
        raise UserError(f"{spec} cannot be made from {given}: {error}; accepted: {listed}") from None
    try:
        return settled(chosen(**given))
    except (LeafeError, *ENDS_MORE):
        raise
    except BaseException as error:  # whatever a foreign constructor raises
        raise UserError(f"{spec} cannot be made from {given}: {told(error)}") from error


def _find(spec: str) -> type[Environment]:
    if ":" in spec:
        return _checked(spec, _import(spec))
    _require_installed()
    if spec in _shipped():
        return _load(spec, _shipped()[spec])
    offered = _offered()
    if spec not in offered:
        raise UnknownName("environment", spec, offered)
    return _load(spec, offered[spec])


def _load(name: str, point: EntryPoint) -> type[Environment]:
    try:
        return _checked(name, point.load())
    except (ImportError, AttributeError) as error:
        raise UserError(f"environment {name!r} is offered by {point.value} and cannot be loaded: {error}") from error


def _import(spec: str) -> Any:
    module, _, name = spec.partition(":")
    try:
        found = import_here(module)
    except ENDS_MORE:
        raise
    except BaseException as error:  # whatever a foreign module does when it is run
        why = str(error) if isinstance(error, ImportError | ValueError) else told(error)
        raise UserError(f"cannot import {module!r} for the environment {spec!r}: {why}; write module:Class") from error
    if not hasattr(found, name):
        classes = [key for key, value in vars(found).items() if inspect.isclass(value) and issubclass(value, Environment)]
        raise UnknownName(f"environment class of {module}", name, classes)
    return getattr(found, name)


def _checked(spec: str, found: Any) -> type[Environment]:
    if not (inspect.isclass(found) and issubclass(found, Environment)):
        raise UserError(f"{spec!r} is no leafe.envs.base.Environment but {found!r:.80}; derive it from that class")
    if inspect.isabstract(found) or not hasattr(found, "name") or not hasattr(found, "fidelity"):
        raise UserError(f"environment {spec!r} lacks something: define name, fidelity, tasks, reset and step")
    return found


def _accepted(chosen: type[Environment]) -> dict[str | None, Any]:
    """The constructor's arguments with their types, including those that `**settings` passes up; the key None stands for any."""
    accepted: dict[str | None, Any] = {}
    for owner in chosen.__mro__:
        if "__init__" not in vars(owner) or owner is object:
            continue
        hints = _hints(vars(owner)["__init__"])
        parameters = list(inspect.signature(vars(owner)["__init__"]).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                accepted.setdefault(parameter.name, hints.get(parameter.name, Any))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return accepted
    return {**accepted, None: Any} if accepted else {}


def _hints(constructor: Any) -> dict[str, Any]:
    """The types of a constructor's arguments; none where an annotation cannot be read, as one imported under `if TYPE_CHECKING:`."""
    try:
        return get_type_hints(constructor)
    except Exception:  # an annotation is code of its author's
        return {}


def _check_type(spec: str, name: str, value: Any, kind: Any) -> None:
    """Refuses a plain value of the wrong type, as `boxes=two` from a command line; richer types are the class's own business."""
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    plain = [part for part in parts if part in (bool, int, float, str)]
    if not plain or len(plain) + (type(None) in parts) != len(parts) or (value is None and type(None) in parts):
        return
    for part in plain:
        try:
            decode(part, value)
            return
        except ValueError:
            continue
    wanted = " or ".join(part.__name__ for part in plain)
    raise UserError(f"{spec} wants {name} as {wanted}; found {value!r}")
