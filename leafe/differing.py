"""Which settings make two configurations different runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from leafe.digest import canonical
from leafe.settings import MACHINE, RunConfig


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    else:
        yield path, canonical(value)


def differing_fields(before: RunConfig, after: RunConfig) -> list[str]:
    """The settings that make two configurations different runs, as `["train.epochs: 2.0 -> 3.0"]`; those of the machine are left out."""
    old, new = (dict(_leaves(config.model_dump(mode="json", exclude=MACHINE))) for config in (before, after))
    differing = [path for path in {**old, **new} if old.get(path) != new.get(path)]
    groups = {path[:depth] for path in differing for depth in range(len(path))}
    return [f"{'.'.join(path)}: {old.get(path, 'none')} -> {new.get(path, 'none')}" for path in differing if path not in groups]
