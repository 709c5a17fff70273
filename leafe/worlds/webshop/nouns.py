"""The nouns of a product's title, on which the reward's judgement of its type rests.

The original asks spaCy's tagger (en_core_web_sm) for nouns and proper nouns. `by_rules` stands in for it without a model: every word is
a noun but numbers, function words, participles and adverbs by their endings, and adjectives and verbs that titles use often. It gives the
title scores that the original's own tests expect of spaCy. `with_spacy` asks spaCy where it is installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from leafe.errors import MissingDependency, UnknownName

Nouns = Callable[[str], Sequence[str]]
_TOKEN = re.compile(r"[^\W\d_](?:[.'’](?=\w)|\w)*\.?(?<=\.)|[^\W_](?:[.'’](?=\w)|\w)*")
_POSSESSIVE = re.compile("['’]s$")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FUNCTION_WORDS = _words(
    "a about above across after against all also am an and another any are around as at be because been before behind"
    " below beneath beside between both but by can could did do does doing down during each either else ever every few"
    " for from had has have having he her here hers him his how i if in inside into is it its just least less many may me"
    " might mine more most much must my near neither never no none nor not of off on once one only onto or other our ours"
    " out outside over own per plus same shall she should since so some such than that the their them then there these"
    " they this those though through to too toward towards two three four five six seven eight nine ten twelve under"
    " until up upon us via very was we were what when where which while who whom whose why will with within without would"
    " yet you your yours"
)
_ADJECTIVES = _words(
    "able active adjustable adorable antique artificial automatic available basic beautiful best better big black blue"
    " bold brand brave breathable bright brown casual cheap classic clean clear cold comfortable comfy compact complete"
    " convenient cool cordless cosy cozy creative cruelty custom cute daily dark deep delicious delicate different"
    " digital dry durable easy eco elastic electric electronic elegant extra false fashionable fast fine firm flat"
    " flexible foldable formal free fresh friendly full functional funny furry fuzzy gentle genuine giant good gorgeous"
    " gray great green grey handmade handy happy hard healthy heavy high hot huge hypoallergenic ideal indoor instant"
    " invisible keto kosher large larger light lightweight little long loose lovely low luxurious magnetic manual matte"
    " mechanical medical medium mini minimalist modern multi multifunctional multiple musical narrow natural new"
    " nice nordic old optical orange organic original outdoor oval perfect personal pink plain plastic plush polished"
    " popular portable powerful practical premium pretty professional pure purple quick quiet raw real rechargeable red"
    " regular removable replaceable retro reusable rich round rustic safe sensitive sexy sharp shiny short shorter silent"
    " simple single skinny sleek sleeveless slim slimmer slippery small smart smooth soft solid soluble special spicy"
    " square stable steady sticky straight strong stylish super sweet swift tall textured thick thin tight tiny"
    " traditional transparent tropical ultimate unique universal useful vegan versatile vibrant vintage warm washable"
    " waterproof wearable wet white whole wide wild wireless wonderful wooden yellow young"
)
_VERBS = _words(
    "add build buy carry fit fits get give gives keep keeps make makes need put provide provides reduce see shop use wear"
)
_NOUNS = _words("assembly belly butterfly family finish jelly lily ply polish radish reply relish supply varnish vegetable")
_ENDINGS = re.compile(r"[a-z]{2,}(?:ly|able|ible|less|ful|ous|ish|proof|[b-df-hj-np-tv-z]ed|ated|ized|ised)")


def nouns_by(name: str) -> Nouns:
    """The function that finds nouns of this name, `rules` or `spacy`."""
    if name == "rules":
        return by_rules
    if name != "spacy":
        raise UnknownName("way to find nouns", name, ("rules", "spacy"))
    return with_spacy()


@lru_cache(maxsize=1 << 14)
def by_rules(title: str) -> tuple[str, ...]:
    """The nouns of a title in lower case, in its order and as often as they occur.

    >>> by_rules("Set of 3 Adjustable Bar Stools for the Kitchen, Padded")
    ('set', 'bar', 'stools', 'kitchen')
    """
    words = (_POSSESSIVE.sub("", word.lower()) for word in _TOKEN.findall(title) if not word[0].isdigit())
    return tuple(word for word in words if not _is_other(word))


def _is_other(word: str) -> bool:
    if word in _NOUNS:
        return False
    return word in _FUNCTION_WORDS or word in _ADJECTIVES or word in _VERBS or _ENDINGS.fullmatch(word) is not None


def with_spacy(model: str = "en_core_web_sm") -> Nouns:
    """spaCy's nouns, as the original asks for them. Raises `MissingDependency` where spaCy or its model is not installed."""
    try:
        import spacy

        tagger: Any = spacy.load(model)
    except (ImportError, OSError):
        install = f"pip install spacy && python -m spacy download {model}"
        raise MissingDependency(f"spaCy with its model {model}", install) from None

    @lru_cache(maxsize=1 << 14)
    def tagged(title: str) -> tuple[str, ...]:
        return tuple(token.text.lower() for token in tagger(title) if token.pos_ in ("NOUN", "PROPN"))

    return tagged
