"""Whether a text says something to a reader of words, or is a row of numbers."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")
_WORD = re.compile(r"[^\W\d_]{2,}")
NUMBERS_A_WORD = 4  # beyond that a text is a row of numbers


def wordless(text: str) -> int:
    """The count of numbers in a text that is numbers and hardly a word; 0 for a text of words.

    >>> wordless("0.1, 0.2, -3"), wordless("You have 3 coins.")
    (3, 0)
    """
    numbers, words = len(_NUMBER.findall(text)), len(_WORD.findall(text))
    return numbers if numbers > NUMBERS_A_WORD * words else 0


def complaint(text: str) -> str:
    """A sentence on an observation without words, empty where it has some."""
    count = wordless(text)
    if not count:
        return ""
    numbers = f"{count} number{'s' if count > 1 else ''}"
    return f"an observation is {numbers} without a word on what they mean; wrap the environment so that it describes them"
