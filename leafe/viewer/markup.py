"""HTML that is escaped by construction: a text becomes markup only through `tag`, which escapes every child and attribute.

A `Markup` is inserted as it is; outside this file only the package's own stylesheet is made one. Nothing here knows the design of a
page.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# Control characters and lone surrogates are no text in HTML or in UTF-8; a terminal's escape sequences come with them.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_VOID = frozenset({"meta", "br"})
# Invisible signs that change what is seen: they turn the order of a line, hide a text in another, or break a line.
_UNSEEN = re.compile("[\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]")

Attribute = str | int | float | bool | None


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """A text as markup that shows it, whatever it holds; an invisible sign is shown by its number, as `[U+202E]`."""
    if isinstance(text, Markup):
        return text
    seen = _UNSEEN.sub(lambda found: f"[U+{ord(found.group()):04X}]", _UNPRINTABLE.sub("\ufffd", text))
    return Markup(html.escape(seen, quote=True))


def join(parts: Iterable[str], between: str = "") -> Markup:
    """Texts and markup one after another."""
    return Markup(escape(between).join(escape(part) for part in parts))


def tag(name: str, *children: str, **attributes: Attribute) -> Markup:
    """An element. `class_` and `for_` lose their underscore, others turn it into a hyphen; None and False leave an attribute out.

    >>> tag("p", "1 < 2", class_="sum")
    '<p class="sum">1 &lt; 2</p>'
    """
    head = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None and value is not False)
    return Markup(f"<{name}{head}>" if name in _VOID else f"<{name}{head}>{join(children)}</{name}>")


def _attribute(key: str, value: Attribute) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    return f' {name}="{number(value) if isinstance(value, float) else escape(str(value))}"'


def number(value: float) -> str:
    """A coordinate with one digit at most."""
    return f"{value:z.1f}".removesuffix(".0")


def preformatted(text: str, class_: str = "seen") -> Markup:
    """A text with its line breaks. HTML drops one line break right after `<pre>`, so one is put there to be dropped."""
    return tag("pre", "\n" + text, class_=class_)


def shortened(text: str, length: int) -> str:
    """A text on one line, cut to `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def plural(count: int, noun: str) -> str:
    """A count with its noun, as `1 turn` or `1,204 turns`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
