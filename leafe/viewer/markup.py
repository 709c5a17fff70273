"""HTML that is escaped by construction: a text becomes markup only through `tag`, which escapes every child and attribute.

A `Markup` is put in as it is; outside this file only the package's own stylesheet is made one. Nothing here knows what a page looks
like.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# Control characters and lone surrogates are no text in HTML or in UTF-8; a terminal's escape sequences come with them.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_VOID = frozenset({"meta", "br"})

Attribute = str | int | float | bool | None


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """A text as markup that shows it, whatever it holds."""
    return text if isinstance(text, Markup) else Markup(html.escape(_UNPRINTABLE.sub("\ufffd", text), quote=True))


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
