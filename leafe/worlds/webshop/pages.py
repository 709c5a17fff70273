"""The shop's pages as the original's text mode writes them: the texts of a page, separated by [SEP], and the labels that can be clicked.

A character that cannot be printed is shown as a space. After a purchase the original shows a page of empty fields; here it has the product,
the options and the score alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from leafe.worlds.webshop.products import Product, one_line

SEPARATOR = " [SEP] "
WINDOW = 10  # products on a page of results
BACK, PREVIOUS, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
SUB_PAGES = ("Description", "Features", "Reviews")
Kind = Literal["search", "results", "item", "sub"]


@dataclass(frozen=True, slots=True)
class Visit:
    """The page that a shopper is on. `product` and `chosen` count on an item's page and on its sub pages, `sub` on the latter."""

    kind: Kind = "search"
    keywords: str = ""
    number: int = 1
    product: int | None = None
    chosen: tuple[tuple[str, str], ...] = ()
    sub: str = ""


def shown(nodes: Iterable[str]) -> str:
    """Pieces of text as one page; pieces without anything to see are left out."""
    clean = (printable(node).strip() for node in nodes)
    return SEPARATOR.join(node for node in clean if node)


def printable(text: str) -> str:
    """The text with a space for each character that cannot be printed."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def label_of(value: str) -> str:
    """The label of an option's value."""
    return printable(one_line(value)).strip().lower()


def search_page(instruction: str) -> str:
    """The page that an episode starts on."""
    return shown(["WebShop", "Instruction:", instruction, "Search"])


def results_page(instruction: str, visit: Visit, found: Sequence[Product], total: int) -> str:
    """A page of results; `found` are those of this page, `total` counts all."""
    nodes = ["Instruction:", instruction, BACK, f"Page {visit.number} (Total results: {total})"]
    nodes += [PREVIOUS] if visit.number > 1 else []
    nodes.append(NEXT)
    for product in found:
        nodes += [product.asin, product.title, product.price_tag]
    return shown(nodes)


def item_page(instruction: str, product: Product) -> str:
    """A product's page. As in the original's text mode it does not show which options are chosen."""
    nodes = ["Instruction:", instruction, BACK, PREVIOUS]
    for name, values in product.options:
        nodes += [name, *values]
    return shown([*nodes, product.title, f"Price: {product.price_tag}", "Rating: N.A.", *SUB_PAGES, BUY])


def sub_page(instruction: str, product: Product, sub: str) -> str:
    """A product's description, features or reviews; of the last there are none in the published files."""
    contents = {
        "Description": [product.description or "No Description"],
        "Features": list(product.bullets) if any(product.bullets) else ["No Features"],
        "Reviews": ["No reviews found"],
    }
    return shown(["Instruction:", instruction, BACK, PREVIOUS, *contents[sub]])


def final_page(product: Product, chosen: Mapping[str, str], reward: float) -> str:
    """The page after a purchase."""
    bought = ["Purchased", "asin", product.asin, "options", json.dumps(dict(chosen), ensure_ascii=False)]
    return shown(["Thank you for shopping with us!", *bought, "Reward", "Your score (min 0.0, max 1.0)", f"{reward:.4g}"])


def labels(visit: Visit, found: Sequence[Product]) -> dict[str, tuple[str, str]]:
    """The labels that can be clicked, in lower case, and what each is: a (button, name), a (product, asin) or an (option's name, value).

    `found` are the products of a page of results, or the one of an item's page. Of two options with one label the last counts.
    """
    if visit.kind == "search":
        return {}
    buttons = [BACK]
    if visit.kind != "results" or visit.number > 1:
        buttons.append(PREVIOUS)
    if visit.kind == "results":
        buttons.append(NEXT)
    if visit.kind == "item":
        buttons += [*SUB_PAGES, BUY]
    clickable = {name.lower(): ("button", name) for name in buttons}
    if visit.kind == "results":
        clickable |= {product.asin.lower(): ("product", product.asin) for product in found}
    if visit.kind == "item":
        options = {label_of(value): ("option " + name, value) for name, values in found[0].options for value in values}
        clickable = {**options, **clickable}  # a button hides an option of its name, as in the original
    return clickable
