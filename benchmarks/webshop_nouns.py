"""The change of WebShop's reward when nouns are found by rules and not by a tagger: `leafe.worlds.webshop.nouns` against a tagger.

    python benchmarks/webshop_nouns.py --data FOLDER --against spacy|textblob [--pairs 20000] [--json]

`spacy` is the original's tagger (spaCy with en_core_web_sm); `textblob` is a tagger with a word list in its own wheel (`pip install
textblob`), for machines without that model. The type factor, the only quantity that depends on the nouns, is compared on pairs of a
goal's product and a bought one: any two, two that one query finds, and the right one. Beside it is the result of taking every word for
a noun.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import mean
from typing import Any

from leafe.worlds.webshop.catalogue import Catalogue, files_of
from leafe.worlds.webshop.nouns import Nouns, by_rules, with_spacy
from leafe.worlds.webshop.products import Product
from leafe.worlds.webshop.reward import Goal, type_factor

Pair = tuple[Product, Product]


def every_word(title: str) -> Sequence[str]:
    """The crudest stand-in: every word that starts with a letter."""
    return re.findall(r"[^\W\d_][\w.'’]*", title.lower())


def with_textblob() -> Nouns:
    """TextBlob's tagger that needs no model."""
    from textblob.en.taggers import PatternTagger

    tagger: Any = PatternTagger()
    known: dict[str, tuple[str, ...]] = {}

    def tagged(title: str) -> tuple[str, ...]:
        if title not in known:
            known[title] = tuple(word.lower() for word, tag in tagger.tag(title) if tag.startswith("NN"))
        return known[title]

    return tagged


def main() -> None:
    """Reads the arguments, compares and prints."""
    parser = argparse.ArgumentParser(description="the type factor with nouns by rules against a tagger")
    parser.add_argument("--data", help="an items_shuffle file or its folder; the catalogue that ships unless given")
    parser.add_argument("--against", choices=("spacy", "textblob"), default="spacy")
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    catalogue = Catalogue(files_of(options.data), None)
    products = [catalogue.product(number) for number in range(len(catalogue))]
    try:
        tagger = with_spacy() if options.against == "spacy" else with_textblob()
    except ImportError as error:
        parser.error(str(error))
    report = {"against": options.against, "products": len(products), **words(products, tagger)}
    for name, pairs in pairs_of(products, options.pairs).items():
        for way, nouns in (("rules", by_rules), ("every_word", every_word)):
            report[f"{name}, {way}"] = agreement(pairs, nouns, tagger)
    print(json.dumps(report) if options.json else "\n".join(f"{name}: {value}" for name, value in report.items()))


def words(products: list[Product], tagger: Nouns) -> dict[str, float]:
    """The share of the rules' nouns that are nouns to the tagger, and the reverse."""
    pairs = [(set(by_rules(product.title)), set(tagger(product.title))) for product in products]
    both = sum(len(ours & theirs) for ours, theirs in pairs)
    return {"precision": both / sum(len(ours) for ours, _ in pairs), "recall": both / sum(len(theirs) for _, theirs in pairs)}


def pairs_of(products: list[Product], count: int) -> dict[str, list[Pair]]:
    """Pairs of a goal's product and a bought one."""
    draw = random.Random(0)
    kinds: defaultdict[str, list[Product]] = defaultdict(list)
    for product in products:
        kinds[product.query].append(product)
    several = [kind for kind in kinds.values() if len(kind) > 1]
    drawn = [draw.sample(draw.choice(several), 2) for _ in range(count)]
    return {
        "any two products": [(one, other) for one, other in (draw.sample(products, 2) for _ in range(count))],
        "two of one query": [(one, other) for one, other in drawn],
        "the right product": [(product, product) for product in products],
    }


def agreement(pairs: list[Pair], nouns: Nouns, tagger: Nouns) -> dict[str, float]:
    """The share of pairs with the same factor, and the mean difference of the factors."""
    factors = []
    for wanted, bought in pairs:
        goal = Goal(wanted.title, wanted.query, wanted.path, (), (), 0.0)
        factors.append((type_factor(goal, bought, nouns), type_factor(goal, bought, tagger)))
    return {
        "same": mean(float(ours == theirs) for ours, theirs in factors),
        "apart": mean(abs(ours - theirs) for ours, theirs in factors),
    }


if __name__ == "__main__":
    main()
