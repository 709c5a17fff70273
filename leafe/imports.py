"""Modules by name, a person's own in the working directory included, and what their errors say."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from types import ModuleType


def import_here(module: str) -> ModuleType:
    """Imports a module. Raises `ImportError` or `ValueError` where there is none, and whatever the module raises."""
    # An installed command does not look into the working directory, where a person's code lies. Last, so that it hides nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(module)


def told(error: BaseException) -> str:
    """An error of somebody else's code, with the last place that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)} line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
