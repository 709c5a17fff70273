"""Commands as people and language models write them: without regard to case, articles before names, blanks and a final full stop.

A lenient world understands a text as one of its commands if it differs from that one alone in nothing else. The result is a
function of the text and of the possible commands, so a replay of the same texts is the same episode.
"""

from __future__ import annotations

from collections.abc import Iterable

ARTICLES = frozenset({"the", "a", "an"})


def without_stop(text: str) -> str:
    """The text without blanks around it and a final full stop."""
    return text.strip().removesuffix(".").rstrip()


def without_article(text: str) -> str:
    """The text without an article at its beginning."""
    first, _, rest = text.strip().partition(" ")
    return rest.strip() if rest.strip() and first.casefold() in ARTICLES else text


def spoken(text: str) -> str:
    """The common form of texts with one meaning: words in lower case, without articles before others and a final full stop."""
    words = without_stop(text).casefold().split()
    return " ".join([word for word in words[:-1] if word not in ARTICLES] + words[-1:])


def understood(text: str, commands: Iterable[str]) -> str:
    """The command that a text means; the text itself where it is one, means none, or might mean several."""
    known = set(commands)
    if text.strip() in known:
        return text
    wanted = spoken(text)
    meant = [command for command in known if spoken(command) == wanted]
    return meant[0] if len(meant) == 1 else text
