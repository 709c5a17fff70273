"""Where the commands print, and how values are typed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml
from rich.console import Console

from leafe.errors import UserError

console = Console()


def emit(value: Any) -> None:
    """Prints a value as JSON."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def values_of(texts: Sequence[str]) -> dict[str, Any]:
    """`name=value` texts, each value read as YAML. Raises `UserError` for what is none."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"wanted name=value, as boxes=2, found {text!r}")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"cannot read the value in {text!r}; quote it") from None
    return values
