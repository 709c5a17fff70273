"""Control characters in text from elsewhere, written out so that a terminal shows them instead of obeying them."""

from __future__ import annotations

import re

# All but tabs and line ends; also those that turn the direction of text around, and halves of characters, which cannot be printed.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with each control character as Python writes it.

    >>> print(visible("a\\x1b[2Jb"))
    a\\x1b[2Jb
    """
    return _CONTROLS.sub(lambda found: found.group().encode("unicode_escape").decode(), text.replace("\r\n", "\n"))
