"""A shop's catalogue: products by number or asin, search, and the goals that its files hold.

One catalogue serves every environment of a process, and threads may share it: it only reads. Prices and goals are not its business.
"""

from __future__ import annotations

import json
import os
import weakref
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from leafe.errors import CorruptFile, UserError
from leafe.worlds.webshop.analyser import terms
from leafe.worlds.webshop.products import Product, product
from leafe.worlds.webshop.ranking import Ranking
from leafe.worlds.webshop.tables import open_tables

SHIPPED = Path(__file__).parent / "shop" / "items_shuffle.json"
MOST_RESULTS = 50  # of a search, as in the original
REMEMBERED = 4096  # products and searches


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a catalogue. `instructions` are goals that people wrote; the file need not exist unless they are asked for."""

    products: Path
    attributes: Path
    instructions: Path


def files_of(data: str | None, attributes: str | None = None, instructions: str | None = None) -> Files:
    """The files for the path of a product file, of a folder that holds one, or (None) of the catalogue that ships.

    The other two are beside it under WebShop's names unless they are given. Raises `UserError` when one is missing.
    """
    products = SHIPPED if data is None else _product_file(Path(data).expanduser().resolve())
    named = products.name.replace("items_shuffle", "items_ins_v2")
    beside = products.with_name(named if named != products.name else "items_ins_v2.json")
    found = Files(
        products,
        Path(attributes).expanduser().resolve() if attributes else beside,
        Path(instructions).expanduser().resolve() if instructions else products.with_name("items_human_ins.json"),
    )
    if not found.attributes.is_file():
        raise UserError(f"no attribute file at {found.attributes}; name WebShop's items_ins_v2 file: attributes=PATH")
    return found


def _product_file(path: Path) -> Path:
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"no catalogue at {path}; give WebShop's items_shuffle file, or the folder that holds it: data=PATH")
        return path
    found = sorted(path.glob("items_shuffle*.json"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"wanted one items_shuffle file in {path}, found {names}; name the file itself: data=PATH")
    return found[0]


class Catalogue:
    """The products of a catalogue, numbered from 0 in the file's order. Make it with `open_catalogue`, which remembers it."""

    def __init__(self, files: Files, folder: Path | None) -> None:
        self.files = files
        self.tables = open_tables(files.products, files.attributes, folder)
        self._ranking = Ranking(self.tables.postings, self.tables.asins)
        self._by_asin = np.argsort(self.tables.asins)
        self._open = {path: os.open(path, os.O_RDONLY) for path in (files.products, files.attributes)}
        for descriptor in self._open.values():
            weakref.finalize(self, os.close, descriptor)
        self.product = lru_cache(maxsize=REMEMBERED)(self._product)
        self.search = lru_cache(maxsize=REMEMBERED)(self._search)

    def __len__(self) -> int:
        return len(self.tables.asins)

    def number(self, asin: str) -> int | None:
        """The number of the product with an asin."""
        asins = self.tables.asins
        at = int(np.searchsorted(asins, asin.encode(), sorter=self._by_asin))
        found = int(self._by_asin[at]) if at < len(asins) else None
        return found if found is not None and asins[found] == asin.encode() else None

    def attributes(self, number: int) -> dict[str, Any] | None:
        """The attribute file's entry for a product."""
        start = int(self.tables.attribute_starts[number])
        found: dict[str, Any] | None = self._read(self.files.attributes, start, int(self.tables.attribute_lengths[number]))
        return found

    def _product(self, number: int) -> Product:
        """The product of a number."""
        entry = self._read(self.files.products, int(self.tables.starts[number]), int(self.tables.lengths[number]))
        return product(entry, self.attributes(number))

    def _search(self, query: str) -> tuple[int, ...]:
        """The numbers of the products that a query finds, best first."""
        return tuple(self._ranking.search(terms(query), MOST_RESULTS))

    def _read(self, path: Path, start: int, length: int) -> Any:
        if start < 0:
            return None
        try:
            return json.loads(os.pread(self._open[path], length, start))
        except ValueError:
            raise CorruptFile(f"{path} has changed since its index was made; start again") from None


@lru_cache(maxsize=4)
def open_catalogue(files: Files, folder: Path | None = None) -> Catalogue:
    """The catalogue of some files; a second call in a process returns the same one."""
    return Catalogue(files, folder)
