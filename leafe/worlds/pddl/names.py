"""Objects' names as players read them: `Mug_bar__plus_01_dot_20` and its sisters become `mug 1`, `mug 2`, ...

An identifier's part before the first `_bar_` is its kind; the identifiers of a kind are numbered from the last in alphabetical order to
the first. An identifier with `basin` in it gets `basin` after its kind. One without `_bar_` is its own name, with a space after it: all
of it as in ALFWorld.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def shown_names(identifiers: Iterable[str]) -> dict[str, str]:
    """The name of each identifier."""
    ordered = sorted(set(identifiers), reverse=True)
    names: dict[str, str] = {}
    numbers: Counter[str] = Counter()
    for identifier in ordered:
        kind, bar, _ = identifier.partition("_bar_")
        if not bar:
            names[identifier] = f"{identifier} "
            continue
        kind += "basin" if "basin" in identifier else ""
        numbers[kind] += 1
        names[identifier] = f"{kind} {numbers[kind]}"
    return names
