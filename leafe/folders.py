"""Folders that appear whole, by a rename, and numbered ones that no two processes share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from leafe.errors import UserError


def make_folder(path: Path, *, exist_ok: bool = True) -> None:
    """Makes a folder and those above it. Raises `UserError` where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and not exist_ok:
            raise
        raise UserError(f"cannot make the directory {path}: {error.strerror}; give another with --out") from None


def next_free(parent: Path, name: str) -> Path:
    """Makes and returns `parent/name-001`, or the number after the highest existing one; two processes never get the same one."""
    while True:
        taken = [path.name.removeprefix(f"{name}-") for path in parent.glob(f"{name}-*")]
        number = max((int(suffix) for suffix in taken if suffix.isdecimal()), default=0) + 1
        path = parent / f"{name}-{number:03d}"
        with suppress(FileExistsError):
            make_folder(parent)
            make_folder(path, exist_ok=False)
            return path


def settle_folder(path: Path) -> None:
    """Restores what `whole_folder` was about to put at `path` when it was killed, and removes its remains."""
    partial, old = _beside(path)
    if os.path.lexists(path):
        _remove(old)
    elif old.exists():
        (partial if partial.exists() else old).rename(path)  # the old one made way only when the new one was whole
        _remove(old)


def _beside(path: Path) -> tuple[Path, Path]:
    """Where `whole_folder` writes, and where the old folder waits until the new one is in its place."""
    return path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")


def _remove(path: Path) -> None:
    """Removes a folder with all that is in it, or a link but not its target."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _force_to_disk(folder: Path, *, deep: bool = True) -> None:
    """Forces a folder to the disk, so that a rename does not get there before its contents."""
    for place in (*(folder.rglob("*") if deep else ()), folder):
        if not place.is_symlink() and (place.is_file() or place.is_dir()):
            descriptor = os.open(place, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` to write into; it takes the place of `path` when the block ends without an error.

    At every moment the old folder or the new one is whole on the disk. A kill between the two renames leaves both beside `path`;
    `settle_folder` then puts the new one there.
    """
    partial, old = _beside(path)
    settle_folder(path)
    _remove(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        _force_to_disk(partial)
    except BaseException:
        _remove(partial)
        raise
    if os.path.lexists(path):
        path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    _force_to_disk(path.parent, deep=False)
    shutil.rmtree(old, ignore_errors=True)
