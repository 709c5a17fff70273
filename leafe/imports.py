"""Modules by name, including a person's own in the working directory, the text of their errors, and commands that install missing ones."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

CHECKOUT = Path(__file__).resolve().parent.parent  # the repository's folder, where leafe runs from there


def install_command(extra: str = "", *, again: str = "", folder: Path = CHECKOUT) -> str:
    """The command that installs leafe's requirements, with an extra, or that reinstalls the library `again`.

    In the repository's folder it keeps to the pinned versions; elsewhere leafe is an installed package.

    >>> install_command("ray", folder=Path("nowhere"))
    "pip install 'leafe[ray]'"
    """
    pinned = (folder / "constraints.txt").is_file() and (folder / "pyproject.toml").is_file()
    pip, name = ("pip install -c constraints.txt", "-e .") if pinned else ("pip install", "leafe")
    if again:
        return f"{pip} --force-reinstall {again}"
    quoted = f"-e '.[{extra}]'" if pinned else f"'leafe[{extra}]'"
    return f"{pip} {quoted if extra else name}"


def import_here(module: str) -> ModuleType:
    """Imports a module. Raises `ImportError` or `ValueError` where there is none, and whatever the module raises."""
    # An installed command does not look into the working directory, where a person's code lies. Last, so that it hides nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(module)


def offered(group: str) -> tuple[EntryPoint, ...]:
    """What the installed packages offer under a group of entry points; read again when a folder with packages has changed."""
    return _offered(group, tuple((folder, _changed(folder)) for folder in sys.path))


@lru_cache(maxsize=8)
def _offered(group: str, folders: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))  # reads a file of each package


def _changed(folder: str) -> int:
    try:
        return os.stat(folder or os.curdir).st_mtime_ns
    except OSError:  # an archive that is gone, or a name that only an import hook knows
        return 0


def told(error: BaseException) -> str:
    """An error of other people's code, with the last place that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)} line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
