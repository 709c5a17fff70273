"""PDDL's nested lists: text to tuples of lower-case words. Words have no meaning here yet."""

from __future__ import annotations

import re
from typing import TypeAlias

Expression: TypeAlias = "str | tuple[Expression, ...]"

_COMMENT = re.compile(r";[^\n]*")
# A question mark starts a word even where no space stands before it. A comma is part of its word: `?l - location, ?r - receptacle`
# names a type `location,` that nothing has, and the original plays ALFWorld by that.
_TOKEN = re.compile(r"[()]|\?[^\s()?]*|[^\s()?]+")


def parse_expression(text: str) -> tuple[Expression, ...]:
    """The one list that a text holds. Raises `ValueError` when its parentheses do not pair up."""
    outer: list[Expression] = []
    stack: list[list[Expression]] = [outer]
    for token in _TOKEN.findall(_COMMENT.sub("", text.lower())):
        if token == "(":
            stack.append([])
        elif token == ")":
            if len(stack) == 1:
                raise ValueError("a closing parenthesis without an opening one")
            inner = tuple(stack.pop())
            stack[-1].append(inner)
        else:
            stack[-1].append(token)
    if len(stack) > 1:
        raise ValueError(f"{len(stack) - 1} parentheses are not closed")
    if len(outer) != 1 or not isinstance(outer[0], tuple):
        raise ValueError(f"wanted one list in parentheses, found {len(outer)} things")
    return outer[0]


def as_list(expression: Expression) -> tuple[Expression, ...]:
    """The expression, which has to be a list."""
    if isinstance(expression, str):
        raise ValueError(f"wanted a list in parentheses, found the word {expression!r}")
    return expression


def as_words(expressions: tuple[Expression, ...]) -> tuple[str, ...]:
    """Expressions that all have to be words."""
    words = tuple(expression for expression in expressions if isinstance(expression, str))
    if len(words) < len(expressions):
        raise ValueError(f"wanted words, found a list in ({' '.join(words)} ...)")
    return words


def typed(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Names with their types: `a b - room c` is a and b of type room, and c of type object."""
    found: list[tuple[str, str]] = []
    waiting: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "-":
            kind = next(rest, None)
            if kind is None:
                raise ValueError("a dash in a typed list wants a type after it")
            found += [(name, kind) for name in waiting]
            waiting = []
        else:
            waiting.append(word)
    return found + [(name, "object") for name in waiting]
