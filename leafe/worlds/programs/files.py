"""Problem files: JSON lines or parquet, one file or a folder of them, read row by row in place.

A row is named by its file and its place in it, so a task points at its problem and never carries the tests. Files may have
several gigabytes: nothing here reads one whole, except for the places of its lines, which are remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from leafe.envs.rows import blank, read_row
from leafe.errors import CorruptFile, MissingDependency, UserError
from leafe.imports import install_command

SUFFIXES = (".jsonl", ".parquet")


def problem_files(path: Path) -> list[Path]:
    """The file itself, or the `.jsonl` and `.parquet` files below a folder, sorted by path.

    Raises `UserError` when there is none.
    """
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files or not all(file.is_file() and file.suffix in SUFFIXES for file in files):
        raise UserError(f"no problem file at {path}; give a .jsonl or .parquet file in the published schema, or a folder of them")
    return files


def places(file: Path) -> tuple[int, ...]:
    """The places of a file's rows: byte offsets of JSON lines, row numbers of parquet."""
    about = file.stat()
    return _places(file, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=256)
def _places(file: Path, size: int, changed: int) -> tuple[int, ...]:
    if file.suffix == ".parquet":
        return tuple(range(_parquet(file).metadata.num_rows))
    found, offset = [], 0
    with open(file, "rb") as lines:
        for line in lines:
            if not blank(line):
                found.append(offset)
            offset += len(line)
    return tuple(found)


def check_files(path: Path, columns: tuple[str, ...]) -> None:
    """Raises a `UserError` when there are no problem files, or one of them does not begin with a row that has these columns."""
    for file in problem_files(path):
        about = file.stat()
        _check_file(file, about.st_size, about.st_mtime_ns, columns)


@lru_cache(maxsize=1024)
def _check_file(file: Path, size: int, changed: int, columns: tuple[str, ...]) -> None:
    rows = places(file)
    found = _parquet(file).schema_arrow.names if file.suffix == ".parquet" else row_at(file, rows[0]) if rows else ()
    missing = [column for column in columns if column not in found]
    if missing:
        has = ", ".join(list(found)[:12]) or "nothing"
        raise CorruptFile(f"{file} should hold problems with the column {missing[0]!r} and has {has}; see docs/environments.md")


def row_at(file: Path, place: int) -> Mapping[str, Any]:
    """One row. Raises `CorruptFile` when there is no row at the place, and `UserError` when the file cannot be read."""
    try:
        return _parquet_row(file, place) if file.suffix == ".parquet" else _line_at(file, place)
    except OSError as error:
        raise UserError(
            f"cannot read the problems {file}: {error.strerror or error}; give the path that the tasks were drawn from"
        ) from None


def _line_at(file: Path, offset: int) -> Mapping[str, Any]:
    with open(file, "rb") as lines:
        lines.seek(offset)
        line = lines.readline()
    return read_row(line, f"{file}, the line at byte {offset},", "a problem")


def _parquet(file: Path) -> Any:
    try:
        from pyarrow import ArrowException  # an optional library, wanted for this one format
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingDependency("pyarrow, which reads parquet files,", install_command("parquet")) from None
    try:
        return ParquetFile(file)
    except ArrowException as error:
        raise CorruptFile(f"{file} is no parquet file ({str(error)[:120]}); download it again") from None


def _parquet_row(file: Path, row: int) -> Mapping[str, Any]:
    about = _parquet(file)
    for group in range(about.metadata.num_row_groups):
        count = about.metadata.row_group(group).num_rows
        if row < count:
            found: dict[str, Any] = about.read_row_group(group).slice(row, 1).to_pylist()[0]
            return found
        row -= count
    raise CorruptFile(f"{file} has no row {row}; give the file that the tasks were drawn from")
