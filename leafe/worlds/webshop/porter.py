"""Porter's stemmer as Lucene has it: the published rules, with `bli` and `logi` in step 2, and words of up to two letters left alone.

M.F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980. Anything but a, e, i, o, u (and y behind a consonant) counts as
a consonant, digits and letters of other scripts included, because the original's search engine stems those too.
"""

from __future__ import annotations

from itertools import pairwise

STEP_2 = {
    "ational": "ate",
    "tional": "tion",
    "enci": "ence",
    "anci": "ance",
    "izer": "ize",
    "bli": "ble",
    "alli": "al",
    "entli": "ent",
    "eli": "e",
    "ousli": "ous",
    "ization": "ize",
    "ation": "ate",
    "ator": "ate",
    "alism": "al",
    "iveness": "ive",
    "fulness": "ful",
    "ousness": "ous",
    "aliti": "al",
    "iviti": "ive",
    "biliti": "ble",
    "logi": "log",
}
STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
STEP_4 = {
    "al",
    "ance",
    "ence",
    "er",
    "ic",
    "able",
    "ible",
    "ant",
    "ement",
    "ment",
    "ent",
    "ou",
    "ism",
    "ate",
    "iti",
    "ous",
    "ive",
    "ize",
}


def stem(word: str) -> str:
    """The stem of a lower-case word.

    >>> [stem(word) for word in ("relational", "hopping", "skies", "ties", "is")]
    ['relat', 'hop', 'ski', 'ti', 'is']
    """
    if len(word) <= 2:
        return word
    word = _past_and_gerund(_plural(word))
    if word.endswith("y") and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    word = _replaced(word, STEP_2)
    word = _replaced(word, STEP_3)
    return _final_e(_suffix_off(word))


def _consonants(word: str) -> list[bool]:
    found: list[bool] = []
    for letter in word:
        found.append(letter not in "aeiou" and not (letter == "y" and bool(found) and found[-1]))
    return found


def _measure(word: str) -> int:
    """How many times a consonant follows a vowel."""
    marks = _consonants(word)
    return sum(after and not before for before, after in pairwise(marks))


def _has_vowel(word: str) -> bool:
    return not all(_consonants(word))


def _ends_double(word: str) -> bool:
    return len(word) > 1 and word[-1] == word[-2] and _consonants(word)[-1]


def _ends_short(word: str) -> bool:
    """Consonant, vowel, consonant, the last of which is none of w, x, y."""
    return len(word) > 2 and _consonants(word)[-3:] == [True, False, True] and word[-1] not in "wxy"


def _plural(word: str) -> str:
    if word.endswith("sses") or word.endswith("ies"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past_and_gerund(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) else word
    ending = next((ending for ending in ("ed", "ing") if word.endswith(ending)), None)
    if ending is None or not _has_vowel(word[: -len(ending)]):
        return word
    word = word[: -len(ending)]
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if _ends_double(word):
        return word if word[-1] in "lsz" else word[:-1]
    return word + "e" if _measure(word) == 1 and _ends_short(word) else word


def _replaced(word: str, rules: dict[str, str]) -> str:
    """The longest suffix that a rule names decides, whether its rule applies or not."""
    suffix = max((suffix for suffix in rules if word.endswith(suffix)), key=len, default=None)
    if suffix is None or not _measure(word[: -len(suffix)]):
        return word
    return word[: -len(suffix)] + rules[suffix]


def _suffix_off(word: str) -> str:
    found = [suffix for suffix in STEP_4 if word.endswith(suffix)]
    found += ["ion"] if word.endswith(("sion", "tion")) else []
    suffix = max(found, key=len, default="")
    return word[: -len(suffix)] if suffix and _measure(word[: -len(suffix)]) > 1 else word


def _final_e(word: str) -> str:
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _ends_short(word[:-1])):
            word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word) > 1 else word
