"""How alike two short texts are as sets of words, 0 to 100: the measure by which the original's reward compares attributes and options.

The original pins thefuzz 0.19, which without a compiled helper measures with `difflib`; so does this.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from functools import lru_cache

_LATIN_1 = dict.fromkeys(range(128, 256))
_PARTING = re.compile(r"\W")


@lru_cache(maxsize=1 << 16)
def token_set_ratio(first: str, second: str) -> int:
    """The best of three comparisons: the shared words with each side's words, and both sides' words with each other.

    >>> token_set_ratio("natural ingredients", "made of natural ingredients"), token_set_ratio("tea tree", "tea leaf")
    (100, 50)
    """
    ours, theirs = _words(first), _words(second)
    if not ours or not theirs:
        return 0
    shared = " ".join(sorted(ours & theirs))
    left = f"{shared} {' '.join(sorted(ours - theirs))}".strip()
    right = f"{shared} {' '.join(sorted(theirs - ours))}".strip()
    return max(_ratio(shared, left), _ratio(shared, right), _ratio(left, right))


def _words(text: str) -> set[str]:
    return set(_PARTING.sub(" ", text.translate(_LATIN_1)).lower().split())


def _ratio(first: str, second: str) -> int:
    if first == second:
        return 100
    return round(100 * SequenceMatcher(None, first, second).ratio()) if first and second else 0
