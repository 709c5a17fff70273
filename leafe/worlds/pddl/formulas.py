"""Conditions and effects of PDDL, and a condition's alternatives: what is left of it when `or` and `exists` are taken apart.

A condition holds exactly when one of its alternatives does, for some choice of its variables. Everything here is about names; no fact
is looked up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, product

from leafe.worlds.pddl.expressions import Expression, as_list, as_words, typed


@dataclass(frozen=True, slots=True)
class Literal:
    """A predicate of terms, or its denial. Terms are variables (`?x`) and objects; the predicate `=` compares two terms."""

    predicate: str
    terms: tuple[str, ...]
    positive: bool = True

    def denied(self) -> Literal:
        """The opposite."""
        return Literal(self.predicate, self.terms, not self.positive)

    def renamed(self, names: Mapping[str, str]) -> Literal:
        """The same literal with other terms."""
        return Literal(self.predicate, tuple(names.get(term, term) for term in self.terms), self.positive)


@dataclass(frozen=True, slots=True)
class Alternative:
    """Literals that all have to hold, and the variables that may be chosen for it beyond those of its surroundings."""

    variables: tuple[tuple[str, str], ...]
    literals: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Effect:
    """A literal that becomes true, whenever one of the alternatives held before (one without literals: always)."""

    literal: Literal
    when: tuple[Alternative, ...]


ALWAYS = (Alternative((), ()),)
Objects = Mapping[str, Sequence[str]]  # the objects of each type


class ObjectsNeeded(ValueError):
    """A condition that can only be understood in a game, because it ranges over all its objects."""


class Reader:
    """Reads conditions and effects. `objects` is what `forall` ranges over; without them it raises `ObjectsNeeded`.

    Every variable that `exists` brings gets a name of its own.
    """

    def __init__(self, objects: Objects | None = None) -> None:
        self._objects = objects
        self._fresh = count(1)

    def condition(self, expression: Expression, positive: bool = True) -> tuple[Alternative, ...]:
        """The alternatives of a condition, or of its denial. No alternative at all: it never holds."""
        parts = as_list(expression)
        if not parts or parts == ("and",):
            return ALWAYS if positive else ()
        head = parts[0]
        if head == "not":
            return self.condition(_only(parts), not positive)
        if head == "imply":
            return self.condition(("or", ("not", parts[1]), parts[2]), positive)
        if head in ("and", "or"):
            inner = [self.condition(part, positive) for part in parts[1:]]
            return tuple(_all_of(inner)) if (head == "and") == positive else tuple(one for part in inner for one in part)
        if head in ("exists", "forall"):
            return self._quantified(parts, positive, some=(head == "exists") == positive)
        predicate, *terms = as_words(parts)
        return (Alternative((), (Literal(predicate, tuple(terms), positive),)),)

    def _quantified(self, parts: tuple[Expression, ...], positive: bool, *, some: bool) -> tuple[Alternative, ...]:
        if len(parts) != 3:
            raise ValueError(f"{parts[0]} wants variables and one condition, found {len(parts) - 1} things")
        variables = typed(as_words(as_list(parts[1])))
        if some:
            names = {name: f"{name}#{next(self._fresh)}" for name, _ in variables}
            fresh = tuple((names[name], kind) for name, kind in variables)
            inner = self.condition(_renamed(parts[2], names), positive)
            return tuple(Alternative(fresh + one.variables, one.literals) for one in inner)
        if self._objects is None:
            raise ObjectsNeeded("forall wants to know the objects")
        kinds = [self._objects.get(kind, ()) for _, kind in variables]
        choices = product(*kinds)
        names_of = ({name: value for (name, _), value in zip(variables, values, strict=True)} for values in choices)
        return tuple(_all_of([self.condition(_renamed(parts[2], names), positive) for names in names_of]))

    def effects(self, expression: Expression, when: tuple[Alternative, ...] = ALWAYS) -> Iterator[Effect]:
        """The single effects of an effect. Costs are left out."""
        parts = as_list(expression)
        if not parts or parts[0] == "increase":
            return
        if parts[0] == "and":
            for part in parts[1:]:
                yield from self.effects(part, when)
        elif parts[0] == "when":
            yield from self.effects(parts[2], tuple(_all_of([when, self.condition(parts[1])])))
        elif parts[0] == "forall":
            raise ValueError("an effect with forall is not supported; write its effects one by one")
        else:
            [alternative] = self.condition(expression)
            [literal] = alternative.literals
            yield Effect(literal, when)


def _only(parts: tuple[Expression, ...]) -> Expression:
    if len(parts) != 2:
        raise ValueError(f"{parts[0]} wants one condition, found {len(parts) - 1}")
    return parts[1]


def _all_of(conditions: Sequence[tuple[Alternative, ...]]) -> Iterator[Alternative]:
    for chosen in product(*conditions):
        variables = tuple(variable for one in chosen for variable in one.variables)
        yield Alternative(variables, tuple(dict.fromkeys(literal for one in chosen for literal in one.literals)))


def _renamed(expression: Expression, names: Mapping[str, str]) -> Expression:
    if isinstance(expression, str):
        return names.get(expression, expression)
    # An inner quantifier that reuses a name means its own variable by it.
    if expression and expression[0] in ("exists", "forall") and len(expression) == 3:
        own = {name for name, _ in typed(as_words(as_list(expression[1])))}
        inner = {name: value for name, value in names.items() if name not in own}
        return (expression[0], expression[1], _renamed(expression[2], inner))
    return tuple(_renamed(part, names) for part in expression)
