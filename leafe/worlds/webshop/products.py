"""A product as the shop shows it, made from an entry of the official files, and the text by which it is found.

A field that is missing is an empty one, as in the original; an entry that is no product at all is refused by name.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leafe.digest import seed_for

USUAL_PRICE = 100.0  # the price of a product without one
PRICE_LEVELS = [10.0 * step for step in range(1, 100)]
NO_LIMIT = 1_000_000.0  # the limit where fewer than two levels lie above a price
NO_ATTRIBUTES = ("DUMMY_ATTR",)  # the original's attributes for a product that its attribute file does not name


@dataclass(frozen=True, slots=True)
class Product:
    """One product. `prices` are the ends of its price's range, or its one price; `options` are names with their values in lower case."""

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    category: str
    query: str
    path: str
    price_tag: str
    prices: tuple[float, ...]
    options: tuple[tuple[str, tuple[str, ...]], ...]
    attributes: tuple[str, ...]


def accepted_asin(entry: Any) -> str | None:
    """The asin of an entry that the shop takes up, or None for one that the original leaves out. Raises `ValueError` for no product."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("asin"), str) or not isinstance(entry.get("name"), str):
        raise ValueError("wanted a product with asin and name")
    asin = entry["asin"]
    return asin if asin != "nan" and 0 < len(asin) <= 10 and asin.isascii() else None


def product(entry: Mapping[str, Any], attributes: Mapping[str, Any] | None) -> Product:
    """The product of an entry; `attributes` is its entry in the attribute file."""
    tag, prices = _pricing(_text(entry.get("pricing")))
    bullets = entry.get("small_description")
    return Product(
        asin=entry["asin"],
        title=entry["name"],
        description=_text(entry.get("full_description")),
        bullets=tuple(map(_text, bullets if isinstance(bullets, list) else [bullets])),
        category=_text(entry.get("category")),
        query=_text(entry.get("query")).lower().strip(),
        path=_text(entry.get("product_category")),
        price_tag=tag,
        prices=prices,
        options=_options(entry.get("customization_options")),
        attributes=NO_ATTRIBUTES if attributes is None else tuple(listed(attributes.get("attributes"))),
    )


def indexed_text(product: Product) -> str:
    """The text that the search engine reads of a product: title, description, first bullet and options."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options)
    return " ".join([product.title, product.description, *product.bullets[:1], options]).lower()


def price_of(product: Product, seed: int) -> float:
    """The price of a product: its own, or one drawn from its range, the same in every process."""
    if len(product.prices) == 1:
        return product.prices[0]
    return random.Random(seed_for("webshop price", seed, product.asin)).uniform(*product.prices)


def price_limit(price: float, *parts: Any) -> float:
    """A goal's upper price: the higher of two drawn from the four levels of ten dollars that come next above a price."""
    above = [level for level in PRICE_LEVELS if level > price][:4]
    return max(random.Random(seed_for("webshop limit", *parts)).sample(above, 2)) if len(above) >= 2 else NO_LIMIT


def one_line(text: str) -> str:
    """The text with a space for each line break, because an action cannot contain one."""
    return " ".join(part.strip() for part in text.splitlines()) if len(text.splitlines()) > 1 else text


def listed(value: Any) -> list[str]:
    """The texts of a list, or those of one text that parts them by commas; none for anything else."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [_text(one) for one in value] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _pricing(text: str) -> tuple[str, tuple[float, ...]]:
    """The price's label and its one or two numbers."""
    prices = [number for part in text.split("$")[1:] if (number := _number(part)) is not None][:2]
    if not prices:
        return f"${USUAL_PRICE}", (USUAL_PRICE,)
    return " to ".join(f"${price}" for price in prices), tuple(prices)


def _number(text: str) -> float | None:
    try:
        return float(re.sub(r"[^\d.]", "", text))
    except ValueError:
        return None


def _options(given: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Names and values as the original spells them: lower case, a slash set apart as a bar."""
    if not isinstance(given, Mapping):
        return ()
    found = {}
    for name, contents in given.items():
        if contents is not None:
            values = (_value(content) for content in (contents if isinstance(contents, list) else [contents]))
            texts = (one_line(value).strip() for value in values if value is not None)
            found[one_line(name).lower()] = tuple(text.replace("/", " | ").lower() for text in texts)
    return tuple(found.items())


def _value(content: Any) -> str | None:
    """An option's value, a text or a record of one; None for anything else."""
    if isinstance(content, Mapping):
        return _text(content.get("value"))
    return content if isinstance(content, str) else None
