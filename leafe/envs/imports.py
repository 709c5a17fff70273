"""Modules by name, a person's own in the working directory included."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType


def import_here(module: str) -> ModuleType:
    """Imports a module. Raises `ImportError` or `ValueError` where there is none, and whatever the module raises."""
    # An installed command does not look into the working directory, where a person's code lies. Last, so that it hides nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(module)
