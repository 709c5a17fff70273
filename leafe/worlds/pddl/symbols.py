"""The small language of the grammars' texts: `You see [{o.name | on(o:thing, r:place)}]. #task#` to symbols.

`{expression | query}` is the expression once for each answer of the query, `[{...}]` the same as a list with commas, `#rule#` another
rule's text. Reading stops at the first character that starts none of these, and white space and `//` lines at the very start are no
part of a text: the originals' own games rely on both.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Entity:
    """An object as texts refer to it."""

    id: str
    type: str
    name: str
    definite: str = "the"
    indefinite: str = "a"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Text:
    """Words as they are."""

    text: str


@dataclass(frozen=True, slots=True)
class Use:
    """Another rule's text."""

    rule: str


@dataclass(frozen=True, slots=True)
class Value:
    """An expression over the placeholders `names`, such as `o.indefinite + ' ' + o.name`.

    `evaluate` takes the cast, the object of each placeholder, and the entities.
    """

    evaluate: Evaluator
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Each:
    """A value or a rule, once for each answer of a query; without one, once."""

    inner: Value | Use
    query: Query | None


@dataclass(frozen=True, slots=True)
class Listing:
    """The same, as a list in words."""

    each: Each


Evaluator: TypeAlias = Callable[[Mapping[str, str], Mapping[str, Entity]], str | Entity]
Symbol: TypeAlias = Text | Use | Each | Listing
# Predicates with their placeholders, each a name and a type.
Query: TypeAlias = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]

_LEADING = re.compile(r"(?://.*|\s*)\n?")
_USE = r"#([\w()/!<>\-\s,.]+)#"
_EACH = r"\{(?:\s*" + _USE + r"|([^|\[\]{}\n<>]+?))(?:\s*\|\s*([^;|{}\n\[\]#]+))?\}"
_SYMBOL = re.compile(rf'\[{_EACH}\]|{_EACH}|{_USE}|"([^;|"<>\[\]#{{}}]*)"|([^;|"<>\[\]#{{}}]+)')
_PREDICATE = re.compile(r"\s*([\w-]+)\s*\(([^()]*)\)\s*")


@lru_cache(maxsize=4096)
def parse_symbols(text: str) -> tuple[Symbol, ...]:
    """The symbols of a text. Raises `ValueError` for an expression or a query that is none."""
    text = text.replace("\\n", "\n")
    at = 0
    while (found := _LEADING.match(text, at)) and found.end() > at:
        at = found.end()
    symbols: list[Symbol] = []
    while match := _SYMBOL.match(text, at):
        at = match.end()
        groups = match.groups()
        if match[0][0] == "[":
            symbols.append(Listing(_each(*groups[:3])))
        elif match[0][0] == "{":
            symbols.append(_each(*groups[3:6]))
        elif groups[6] is not None:
            symbols.append(Use(groups[6]))
        else:
            symbols.append(Text(groups[7] if groups[7] is not None else groups[8]))
    return tuple(symbols)


def _each(rule: str | None, expression: str | None, query: str | None) -> Each:
    inner = Use(rule) if rule is not None else parse_value(str(expression))
    return Each(inner, parse_query(query) if query is not None else None)


def parse_value(text: str) -> Value:
    """An expression that may name placeholders, their attributes and quoted words, joined by `+` and `or`; anything else is refused."""
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(f"the expression {text.strip()!r} cannot be read") from None
    return Value(_evaluator(body), frozenset(node.id for node in ast.walk(body) if isinstance(node, ast.Name)))


def names_read(symbols: tuple[Symbol, ...]) -> frozenset[str] | None:
    """The placeholders that a text is made of; None when it also asks about the state."""
    found: frozenset[str] = frozenset()
    for symbol in symbols:
        if isinstance(symbol, Each) and isinstance(symbol.inner, Value) and symbol.query is None:
            found |= symbol.inner.names
        elif not isinstance(symbol, Text):
            return None
    return found


def _evaluator(node: ast.expr) -> Evaluator:
    match node:
        case ast.Constant(value=str(value)):
            return lambda cast, entities: value
        case ast.Name(id=name):
            return lambda cast, entities: entities[cast[name]]
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if attribute in Entity.__dataclass_fields__:
            attribute_of = attrgetter(attribute)
            return lambda cast, entities: str(attribute_of(entities[cast[name]]))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            first, second = _evaluator(left), _evaluator(right)
            return lambda cast, entities: f"{first(cast, entities)}{second(cast, entities)}"
        case ast.BoolOp(op=ast.Or(), values=[*values]):
            choices = [_evaluator(choice) for choice in values]
            return lambda cast, entities: next((found for choice in choices if (found := choice(cast, entities))), "")
    fields = ", ".join(Entity.__dataclass_fields__)
    raise ValueError(
        f"the expression {ast.unparse(node)!r} may name placeholders, their {fields}, and quoted words, joined by + and or"
    )


@lru_cache(maxsize=1024)
def parse_query(text: str) -> Query:
    """`holds(a:agent, o:object) & on(o:object, r:place)` as predicates with placeholders."""
    found = []
    for part in text.split("&"):
        match = _PREDICATE.fullmatch(part)
        if match is None:
            raise ValueError(f"the condition {text.strip()!r} wants predicates such as holds(a:agent, o:object), joined by &")
        pairs = [placeholder.partition(":") for placeholder in match[2].split(",")] if match[2].strip() else []
        found.append((match[1], tuple((name.strip(), kind.strip() or name.strip()) for name, _, kind in pairs)))
    return tuple(found)
