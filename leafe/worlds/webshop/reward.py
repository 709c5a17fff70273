"""The paper's reward, term by term, as its published code computes it.

    reward = type * (attributes matched + options matched + price kept) / (attributes + options + 1)

Differences from the published code: none that is known in the numbers, but for the nouns (see `nouns`). Its quirks are kept: an option
of a synthetic goal is compared with its name, as the text "('size', 'x-large')", so that any of its words alone matches it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leafe.worlds.webshop.fuzzy import token_set_ratio
from leafe.worlds.webshop.nouns import Nouns
from leafe.worlds.webshop.products import Product

ALIKE = 85  # two texts match above this ratio
# In this order: the first that a value contains stands for it.
_COLOURS = (
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel camo caramel champagne"
    " charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream crystal dark denim eggplant elephant"
    " espresso fuchsia gold granite grape graphite grass gray green grey heather indigo ivory ivy khaki lavender lemon leopard light lilac"
    " lime magenta maroon mauve merlot midnight mint mocha multicolor mushroom mustard natural navy nude olive orange peach pewter pink"
    " plum purple rainbow red rose royal rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal"
    " tiger turquoise violet walnut wheat white wine yellow"
)
COLOURS = tuple(_COLOURS.split())


@dataclass(frozen=True, slots=True)
class Goal:
    """The product to buy. `options` are (name, value) for a synthetic goal and (None, value) for one that a person wrote."""

    title: str
    query: str
    path: str
    attributes: tuple[str, ...]
    options: tuple[tuple[str | None, str], ...]
    price_limit: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """A purchase's reward and its terms: matched attributes and options as counts, `kind` as the factor for the product's type."""

    reward: float
    kind: float
    attributes: int
    options: int
    price: bool


def judge(goal: Goal, product: Product, chosen: Mapping[str, str], *, price: float, nouns: Nouns) -> Judgement:
    """The reward of buying a product at a price with the options chosen."""
    attributes = attributes_matched(goal.attributes, product)
    options = options_matched(goal.options, list(chosen.values()))
    kind, kept = type_factor(goal, product, nouns), price <= goal.price_limit
    share = (attributes + options + kept) / (len(goal.attributes) + len(goal.options) + 1)
    return Judgement(share * kind, kind, attributes, options, kept)


def type_factor(goal: Goal, product: Product, nouns: Nouns) -> float:
    """1 for a product of the goal's type, 0.5 for a doubtful one, 0.1 and 0 for hardly or not at all the same nouns in the title."""
    categories = [{part.strip() for part in path.split("›")} for path in (goal.path, product.path)]
    wanted, found = nouns(goal.title), nouns(product.title)
    score = len(set(wanted) & set(found)) / len(wanted) if wanted else 0.2
    if score == 0:
        return 0.0
    if score < 0.1:
        return 0.1
    same = product.query == goal.query or len(categories[0] & categories[1]) >= 2 or score > 0.2
    return 1.0 if same else 0.5


def attributes_matched(wanted: Sequence[str], product: Product) -> int:
    """How many of the attributes are like one of the product's, or occur in its title, bullets or description."""
    texts = (product.title.lower(), " ".join(product.bullets).lower(), product.description.lower())

    def has(attribute: str) -> bool:
        alike = any(token_set_ratio(own, attribute) > ALIKE for own in product.attributes)
        return alike or any(attribute in text for text in texts)

    return sum(map(has, wanted))


def options_matched(wanted: Sequence[tuple[str | None, str]], chosen: Sequence[str]) -> int:
    """How many of the options are like one of the chosen values, colours reduced to their plain names."""
    values = [plain_colour(value) for value in chosen]
    texts = [_compared(name, value) for name, value in wanted]
    return sum(any(token_set_ratio(value, text) > ALIKE for value in values) for text in texts)


def plain_colour(value: str) -> str:
    """The first colour of the list that a value contains, or the value."""
    return next((colour for colour in COLOURS if colour in value), value)


def _compared(name: str | None, value: str) -> str:
    """The text as which a goal's option is compared. A pair is reduced to a colour only where its name or value is exactly that colour."""
    if name is None:
        return plain_colour(value)
    return next((colour for colour in COLOURS if colour in (name, value)), str((name, value)))
