"""The index of a catalogue's files: the place of each product and its attributes, its number of goals, and the inverted index.

The files are read once from end to end; afterwards a product is read when it is used. A large catalogue's tables are kept in a
folder and mapped, so that a second start takes no time and many processes share the memory.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from leafe.digest import digest, text_digest
from leafe.errors import CorruptFile, UserError
from leafe.worlds.webshop.analyser import terms
from leafe.worlds.webshop.json_stream import array_values, object_values
from leafe.worlds.webshop.postings import Allocate, Array, Postings, PostingsMaker, in_memory
from leafe.worlds.webshop.products import accepted_asin, indexed_text, product

FORMAT = 1  # of the kept tables; another number means that they are made anew
LARGE = 64 << 20  # bytes of a product file from which on its tables are kept in a folder
MOST_COMBINATIONS = 100_000  # goals of one product; a few products have options by the dozen, whose combinations cannot be listed
_EDGE = 1 << 20  # bytes at either end of a file that its stamp reads


@dataclass(frozen=True, slots=True)
class Tables:
    """One row a product, in the file's order. `attribute_starts` is -1 without attributes; `goals` is 0 without an instruction."""

    asins: Array
    starts: Array
    lengths: Array
    attribute_starts: Array
    attribute_lengths: Array
    goals: Array
    postings: Postings


def open_tables(products: Path, attributes: Path, folder: Path | None) -> Tables:
    """The tables of two data files, made now or kept from an earlier time.

    `folder` is where to keep them; without one, only those of a large catalogue are kept, in the user's cache folder.
    """
    if folder is None and _size(products) < LARGE:
        return make_tables(products, attributes)
    place = (folder or _cache_folder()) / digest(FORMAT, _stamp(products), _stamp(attributes))
    if not (place / "tables.json").is_file():
        _make_in(place, products, attributes)
    try:
        return _mapped(place)
    except (OSError, ValueError, KeyError) as error:
        raise CorruptFile(f"the index {place} cannot be read ({error}); delete that folder and it is made anew") from None


def make_tables(products: Path, attributes: Path, allocate: Allocate = in_memory) -> Tables:
    """Reads both files from end to end."""
    asins: dict[str, int] = {}
    places = {name: array("q") for name in ("starts", "lengths", "combinations")}
    maker = PostingsMaker(allocate)
    for placed in array_values(products):
        try:
            asin = accepted_asin(placed.value)
            if asin is None or asin in asins:
                continue
            one = product(placed.value, None)
        except (ValueError, TypeError, AttributeError) as error:
            raise CorruptFile(
                f"{products} holds no product at byte {placed.start}: {error}; give WebShop's items_shuffle file"
            ) from None
        asins[asin] = len(asins)
        maker.add(terms(indexed_text(one)))
        combinations = min(MOST_COMBINATIONS, prod(len(values) for _, values in one.options))
        for name, value in (("starts", placed.start), ("lengths", placed.length), ("combinations", combinations)):
            places[name].append(value)
    if not asins:
        raise CorruptFile(f"{products} holds no product at all; give WebShop's items_shuffle file")
    starts, lengths, instructed = _attribute_places(attributes, asins)
    return Tables(
        asins=_put(allocate, "asins", np.array([asin.encode() for asin in asins], "S10")),
        starts=_put(allocate, "product-starts", np.array(places["starts"], np.int64)),
        lengths=_put(allocate, "product-lengths", np.array(places["lengths"], np.int32)),
        attribute_starts=_put(allocate, "attribute-starts", starts),
        attribute_lengths=_put(allocate, "attribute-lengths", lengths),
        goals=_put(allocate, "goals", np.array(places["combinations"], np.int32) * instructed),
        postings=maker.finish(),
    )


def _attribute_places(path: Path, asins: dict[str, int]) -> tuple[Array, Array, Array]:
    """The place of each product's attributes, and whether they come with an instruction."""
    starts, lengths = np.full(len(asins), -1, np.int64), np.zeros(len(asins), np.int32)
    instructed = np.zeros(len(asins), np.int32)
    for asin, placed in object_values(path):
        number = asins.get(asin)
        if number is None:
            continue
        if not isinstance(placed.value, dict):
            raise CorruptFile(f"{path} holds no attributes for {asin!r} at byte {placed.start}; give WebShop's items_ins_v2 file")
        starts[number], lengths[number] = placed.start, placed.length
        instructed[number] = bool(placed.value.get("instruction")) and bool(placed.value.get("instruction_attributes"))
    return starts, lengths, instructed


def _put(allocate: Allocate, name: str, values: Array) -> Array:
    store = allocate(name, values.dtype.str, len(values))
    store[:] = values
    return store


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give the path of a data file in WebShop's format") from None


def _stamp(path: Path) -> Sequence[Any]:
    """A stamp that tells a file from another one without reading gigabytes."""
    size = _size(path)
    with path.open("rb") as file:
        head = file.read(_EDGE)
        file.seek(max(0, size - _EDGE))
        tail = file.read()
    return (size, path.stat().st_mtime_ns, text_digest(head.hex() + tail.hex()))


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return Path(root or Path.home() / ".cache") / "leafe" / "webshop"


def _make_in(place: Path, products: Path, attributes: Path) -> None:
    """Makes the tables beside their place and moves them there when they are whole; a process that comes second discards its own."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=place.parent, prefix="making-"))
    except OSError as error:
        raise UserError(f"cannot keep an index in {place.parent}: {error.strerror}; name a folder to write to: index=DIR") from None
    try:
        tables = make_tables(products, attributes, _in_files(making))
        for block in making.glob("block-*"):
            block.unlink()
        (making / "tables.json").write_text(json.dumps({"tokens": tables.postings.tokens}), encoding="utf-8")
        del tables
        if not place.exists():
            making.rename(place)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _in_files(folder: Path) -> Allocate:
    def allocate(name: str, dtype: str, length: int) -> Array:
        if length == 0:  # nothing can be mapped
            np.save(folder / f"{name}.npy", np.zeros(0, dtype))
            return np.zeros(0, dtype)
        mapped: Array = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.dtype(dtype), shape=(length,))
        return mapped

    return allocate


def _mapped(place: Path) -> Tables:
    def load(name: str) -> Array:
        file = place / f"{name}.npy"
        # A plain array over the mapped file: numpy's own class for such files costs time at every slice.
        found: Array = np.asarray(np.load(file, mmap_mode="r" if file.stat().st_size > 256 else None))
        return found

    tokens = int(json.loads((place / "tables.json").read_text(encoding="utf-8"))["tokens"])
    arrays = {item.name: load(item.name) for item in fields(Postings) if item.name != "tokens"}
    return Tables(
        asins=load("asins"),
        starts=load("product-starts"),
        lengths=load("product-lengths"),
        attribute_starts=load("attribute-starts"),
        attribute_lengths=load("attribute-lengths"),
        goals=load("goals"),
        postings=Postings(**arrays, tokens=tokens),
    )
