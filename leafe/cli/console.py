"""Where the commands print, and how values are typed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from leafe.yaml_text import read_values

console = Console()


def emit(value: Any) -> None:
    """Prints a value as JSON."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def values_of(texts: Sequence[str]) -> dict[str, Any]:
    """`name=value` texts, each value read as YAML. Raises `UserError` for what is none."""
    return read_values(texts)
