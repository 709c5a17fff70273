"""Text to index terms, as the original's search engine makes them: Lucene's standard tokenizer, English stop words, Porter's stems.

The tokenizer follows the word boundaries of Unicode Standard Annex 29 with the character classes of Unicode 9, which Lucene 8 has: letters
and digits that touch are one word, a full stop or apostrophe joins two letters or two digits, a colon two letters, a comma two digits; an
ideograph or an emoji is a word of its own. Plain ASCII text takes a faster way to the same answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache

from leafe.worlds.webshop.porter import stem

_STOPPED = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these"
    " they this to was will with"
)
STOP_WORDS = frozenset(_STOPPED.split())
LONGEST = 255  # characters of a token; a longer one is cut into pieces, as Lucene does

# Ranges of code points as hexadecimal words, each `first-last` or a single one.
_EMOJI = (
    "a9 ae 203c 2049 2122 2194-2199 21a9-21aa 231a-231b 2328 2388 23cf 23e9-23f3 23f8-23fa 25aa-25ab 25b6 25c0 25fb-25fe 2600-2605"
    " 2607-2612 2614-2685 2690-2705 2708-2712 2714 2716 271d 2721 2728 2733-2734 2744 2747 274c 274e 2753-2755 2757 2763-2767"
    " 2795-2797 27a1 27b0 27bf 2934-2935 2b05-2b07 2b1b-2b1c 2b50 2b55 3030 303d 3297 3299 1f000-1f0ff 1f10d-1f10f 1f12f"
    " 1f16c-1f16f 1f18e 1f191-1f19a 1f1ad-1f1e5 1f201-1f20f 1f21a 1f22f 1f232-1f23a 1f23c-1f23f 1f249-1f53d 1f546-1f64f"
    " 1f680-1f6ff 1f774-1f77f 1f7d5-1f7ff 1f80c-1f80f 1f848-1f84f 1f85a-1f85f 1f888-1f88f 1f8ae-1f8ff 1f90c-1f93a 1f93c-1f945"
    " 1f947-1fffd"
)
_IDEOGRAPHS = (
    "2e80-2e99 2e9b-2ef3 2f00-2fd5 3007 3021-3029 3038-303a 3041-3096 309d-309f 3400-4db5 4e00-9fd5 f900-fa6d fa70-fad9 1f200"
)
_KATAKANA = "3031-3035 309b-309c 30a0-30fa 30fc-30ff 31f0-31ff 32d0-32fe 3300-3357 ff66-ff9d 1b000"
_UNPARTED = "e01-e3a e40-e4e e81-ecd 1000-103f 1050-108f 109a-109f 1780-17d3 17d7 17dc-17dd 1950-19da 1a20-1a7c aa60-aac2"
_MORE_LETTERS = "5f3 24b6-24e9 1f130-1f149 1f150-1f169 1f170-1f189"
_NO_WORDS = "200b ff9e-ff9f"  # a zero-width space parts words; two katakana signs are marks
_JOINS_LETTERS = r":\u00b7\u02d7\u0387\u05f4\u2027\ufe13\ufe55\uff1a"
_JOINS_DIGITS = r",;\u037e\u0589\u060c\u060d\u066c\u07f8\u2044\ufe10\ufe14\ufe50\ufe54\uff0c\uff1b"
_JOINS_BOTH = r"'.\u2018\u2019\u2024\ufe52\uff07\uff0e"
_CONNECTS = r"_\u202f\u203f\u2040\u2054\ufe33\ufe34\ufe4d-\ufe4f\uff3f"

_FOREIGN = re.compile(r"[^\x00-\x7f]")
_ASCII_WORD = re.compile(
    r"_*[a-z0-9][a-z0-9_]*(?:(?:(?<=[a-z])[:'.](?=[a-z])|(?<=[0-9])[,;'.](?=[0-9]))[a-z0-9_]+)*",
)


def terms(text: str) -> list[str]:
    """The terms of a text, in its order, repeated as often as they occur.

    >>> terms("The Men's 2.5mm cables, ionized; wi-fi A.B.C")
    ['men', '2.5mm', 'cabl', 'ioniz', 'wi', 'fi', 'a.b.c']
    """
    return [one for one in map(term, tokens(text)) if one]


def tokens(text: str) -> list[str]:
    """The words of a text in lower case, stop words and endings included."""
    text = text.lower()
    words = _ASCII_WORD.findall(text) if text.isascii() else list(_mixed(text))
    if max(map(len, words), default=0) <= LONGEST:
        return words
    return [word[start : start + LONGEST] for word in words for start in range(0, len(word), LONGEST)]


def _mixed(text: str) -> Iterator[str]:
    """The words of a text of which some have characters beyond ASCII; no word goes on behind a space."""
    at = 0
    while foreign := _FOREIGN.search(text, at):
        start = max(at, text.rfind(" ", at, foreign.start()) + 1)
        end = text.find(" ", foreign.end())
        end = end if end >= 0 else len(text)
        yield from _ASCII_WORD.findall(text, at, start)
        yield from _word().findall(text, start, end)
        at = end
    yield from _ASCII_WORD.findall(text, at)


@lru_cache(maxsize=1 << 18)
def term(token: str) -> str:
    """The index term of a lower-case token; empty for a stop word."""
    if token.endswith("s") and token[-2:-1] in ("'", "’", "＇"):
        token = token[:-2]
    return "" if token in STOP_WORDS else stem(token)


@cache
def _word() -> re.Pattern[str]:
    """The pattern for text with characters beyond ASCII; it takes a moment to make, so it is made on first use."""
    emoji, ideographs, katakana, unparted = (_class(_codes(words)) for words in (_EMOJI, _IDEOGRAPHS, _KATAKANA, _UNPARTED))
    letters, digits, marks = _letters_digits_and_marks()
    joint = (
        f"(?<=[{letters}{marks}])[{_JOINS_LETTERS}{_JOINS_BOTH}][{marks}]*(?=[{letters}])"
        f"|(?<=[{digits}{marks}])[{_JOINS_DIGITS}{_JOINS_BOTH}][{marks}]*(?=[{digits}])"
    )
    flag, follows = "[\U0001f1e6-\U0001f1ff]", f"[{marks}\U0001f3fb-\U0001f3ff]*"
    return re.compile(
        f"[0-9#*]\ufe0f?\u20e3|{flag}{flag}[{marks}]*"
        f"|\u200d?[{emoji}]{follows}(?:(?<=\u200d)[{emoji}]{follows})*"
        f"|[{ideographs}][{marks}]*|[{_CONNECTS}]*[{katakana}][{katakana}{marks}{_CONNECTS}]*|[{unparted}][{unparted}{marks}]*"
        f"|[{_CONNECTS}]*[{letters}{digits}][{letters}{digits}{marks}{_CONNECTS}]*"
        f"(?:(?:{joint})[{letters}{digits}{marks}{_CONNECTS}]+)*"
    )


def _codes(words: str) -> list[int]:
    """The code points that ranges in hexadecimal name."""
    ends = ([int(end, 16) for end in word.split("-")] for word in words.split())
    return [code for end in ends for code in range(end[0], end[-1] + 1)]


def _class(codes: list[int]) -> str:
    """Ascending code points as ranges, for a character class."""
    starts = [code for before, code in zip([-2, *codes], codes, strict=False) if code != before + 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -2], strict=True) if after != code + 1]
    return "".join(f"{re.escape(chr(start))}-{re.escape(chr(end))}" for start, end in zip(starts, ends, strict=True))


def _letters_digits_and_marks() -> tuple[str, str, str]:
    """Three character classes by general category, without the characters that have a class of their own."""
    others = {*_codes(_EMOJI), *_codes(_IDEOGRAPHS), *_codes(_KATAKANA), *_codes(_UNPARTED), *_codes(_NO_WORDS)}
    found: dict[str, list[int]] = {kind: [] for kind in ("L", "N", "M")}
    for code in range(0x20000):
        category = unicodedata.category(chr(code))
        if code in others or category == "No":
            continue
        kind = {"Nl": "L", "Cf": "M"}.get(category, category[0])
        if kind in found:
            found[kind].append(code)
    letters = sorted([*found["L"], *_codes(_MORE_LETTERS)])
    return _class(letters), _class(found["N"]) + "\u066b", _class(found["M"]) + "\uff9e\uff9f"
