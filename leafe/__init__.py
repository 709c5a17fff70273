"""leafe: training language-model agents to recover from their own mistakes.

An open implementation of LEAFE (Learning Feedback-Grounded Agency from Reflective Experience, arXiv 2603.16843): explore with
reflection and verified rollback, distil the corrections, measure by Pass@k.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leafe.api import (
        Forest,
        aexplore,
        check_environment,
        compare,
        diagnose,
        distill,
        evaluate,
        explore,
        load_engine,
        make,
        read_forest,
        train,
    )

__version__ = "0.1.0"
__all__ = [
    "Forest",
    "aexplore",
    "check_environment",
    "compare",
    "diagnose",
    "distill",
    "evaluate",
    "explore",
    "load_engine",
    "make",
    "read_forest",
    "train",
]


def __getattr__(name: str) -> Any:
    """Public names are loaded on first use, and torch with them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("leafe.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
