"""A Gymnasium environment's observations as text: numbers without loss, groups of them, terminal colours as words, its description.

No digit is dropped: a rounded number would hide state from the policy, and from a replay, which compares observations.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

COLOURS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
DESCRIBED = 600  # characters of a description
_COLOURED = re.compile(r"\x1b\[([0-9;]*)m([^\x1b]*)")
# Sequences that a terminal obeys: with parameters, with a text of their own (titles, links), and those of one character.
_ESCAPED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\|$)|[ -/][0-~]|[0-Z\\^-~]|$)")


def uncoloured(text: str) -> str:
    """Terminal colours as words: a coloured `S` becomes `[red S]`; other escapes are removed.

    >>> uncoloured("\\x1b[41mS\\x1b[0mFF")
    '[red S]FF'
    """

    def named(match: re.Match[str]) -> str:
        codes = [int(code) for code in match.group(1).split(";") if code]
        colours = [COLOURS[code % 10] for code in codes if code // 10 in (3, 4, 9, 10) and code % 10 < 8]
        return f"[{' '.join(colours)} {match.group(2)}]" if colours and match.group(2) else match.group(2)

    return _ESCAPED.sub("", _COLOURED.sub(named, text)).replace("\r\n", "\n").replace("\r", "\n")


def in_words(found: Any) -> str:
    """Text, numbers, and groups of them, as text. Raises `TypeError` for anything else.

    >>> in_words({"at": (3, 0.5), "gold": 123456789})
    'at: 3, 0.5\\ngold: 123456789'
    """
    if isinstance(found, np.ndarray):
        found = found[()] if found.ndim == 0 else list(found)
    if isinstance(found, Mapping):
        return "\n".join(f"{key}: {in_words(value)}" for key, value in found.items())
    if isinstance(found, (list, tuple)):
        return ", ".join(in_words(value) for value in found)
    if isinstance(found, str):
        return uncoloured(found)
    if isinstance(found, bool | np.bool_):
        return str(bool(found))
    if isinstance(found, Integral):
        return str(int(found))
    if isinstance(found, Real):
        return _real(found)
    raise TypeError(f"an observation of {type(found).__name__} is no text; wrap the environment")


def _real(number: Real) -> str:
    """The shortest text that reads back as the same number in its own precision; whole ones without a point."""
    value = float(number)
    if value.is_integer() and abs(value) < 1e16:
        return str(int(value))
    return str(number) if isinstance(number, np.floating) else repr(value)


def described(environment: Any) -> str:
    """An environment's description: a `description` of its own or its metadata's, else its class's first paragraph."""
    inner = environment.unwrapped
    own = getattr(inner, "description", None) or (getattr(inner, "metadata", None) or {}).get("description")
    text = own if isinstance(own, str) else _paragraph(vars(type(inner)).get("__doc__"))
    words = " ".join(uncoloured(text).split())
    return words if len(words) <= DESCRIBED else words[:DESCRIBED].rsplit(" ", 1)[0] + " ..."


def _paragraph(documentation: Any) -> str:
    """The first paragraph of a docstring, headings left out."""
    if not isinstance(documentation, str):
        return ""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(documentation))
    texts = ("\n".join(line for line in one.splitlines() if not line.lstrip().startswith("#")).strip() for one in paragraphs)
    return next(filter(None, texts), "")
