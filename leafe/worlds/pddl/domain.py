"""A PDDL domain and a problem as records: types, action schemas, objects, facts at the start, the goal.

Only what the games use is read: typing, negation, `or`, `imply`, quantifiers, conditional effects. Functions and costs are skipped,
because play knows no costs; derived predicates are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from leafe.worlds.pddl.expressions import Expression, as_list, as_words, parse_expression, typed

ROOT = "object"  # every type is below it


@dataclass(frozen=True, slots=True)
class Schema:
    """An action before its parameters are chosen: parameters with types, condition and effect as in the file."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    condition: Expression
    effect: Expression


@dataclass(frozen=True, slots=True)
class Domain:
    """Types with the type above each, constants with their types, and the actions in the file's order."""

    types: Mapping[str, str]
    constants: tuple[tuple[str, str], ...]
    actions: tuple[Schema, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Objects with their types, the facts that hold at the start, and the goal."""

    objects: Mapping[str, str]
    facts: frozenset[tuple[str, ...]]
    goal: Expression


def _sections(text: str, kind: str) -> Iterator[tuple[str, tuple[Expression, ...]]]:
    definition = parse_expression(text)
    named = as_list(definition[1]) if len(definition) > 1 else ()
    if definition[:1] != ("define",) or named[:1] != (kind,):
        raise ValueError(f"wanted (define ({kind} ...) ...)")
    for section in definition[2:]:
        parts = as_list(section)
        if not parts or not isinstance(parts[0], str):
            raise ValueError(f"a section of a {kind} starts with a word such as :objects")
        yield parts[0], parts[1:]


@lru_cache(maxsize=16)
def parse_domain(text: str) -> Domain:
    """The domain of a text. Raises `ValueError` when it is none."""
    types: dict[str, str] = {}
    constants: list[tuple[str, str]] = []
    actions: list[Schema] = []
    for name, parts in _sections(text, "domain"):
        if name == ":types":
            types |= {kind: above for kind, above in typed(as_words(parts)) if kind != ROOT}
        elif name == ":constants":
            constants += typed(as_words(parts))
        elif name == ":action":
            actions.append(_schema(parts))
        elif name in (":derived", ":axiom"):
            raise ValueError(f"the section {name} is not supported")
    return Domain(types, tuple(constants), tuple(actions))


def _schema(parts: tuple[Expression, ...]) -> Schema:
    if len(parts) % 2 == 0 or not isinstance(parts[0], str):
        raise ValueError("an action wants a name, and a value after each of its words")
    fields = {as_words((key,))[0]: value for key, value in zip(parts[1::2], parts[2::2], strict=True)}
    parameters = tuple(typed(as_words(as_list(fields.get(":parameters", ())))))
    return Schema(parts[0], parameters, fields.get(":precondition", ()), fields.get(":effect", ()))


def parse_problem(text: str, domain: Domain) -> Problem:
    """The problem of a text. Raises `ValueError` when it is none."""
    objects, facts = dict(domain.constants), set[tuple[str, ...]]()
    goal: Expression | None = None
    for name, parts in _sections(text, "problem"):
        if name == ":objects":
            objects |= dict(typed(as_words(parts)))
        elif name == ":init":
            facts |= {as_words(as_list(part)) for part in parts if as_list(part)[:1] not in (("=",), ("not",))}
        elif name == ":goal":
            goal = parts[0]
    if goal is None:
        raise ValueError("the problem has no goal")
    for fact in facts:
        for name in fact[1:]:
            if name not in objects:
                raise ValueError(f"the fact ({' '.join(fact)}) names {name!r}, which is no object")
    return Problem(objects, frozenset(facts), goal)
