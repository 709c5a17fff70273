"""Describes a state in the grammar's words.

A query is answered from the facts that hold, in the order of their arguments, and two placeholders of one description are never the same
object: both decide what a player reads. Placeholders are told apart by their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from leafe.worlds.pddl.facts import Facts
from leafe.worlds.pddl.grammar import Grammar
from leafe.worlds.pddl.symbols import Each, Entity, Listing, Query, Symbol, Text, Use, Value

Cast = dict[str, str]  # the object of each placeholder


class Teller:
    """Words for the facts of one game."""

    def __init__(self, grammar: Grammar, facts: Facts, entities: Mapping[str, Entity]) -> None:
        self._rules, self._facts, self._entities = grammar.rules, facts, entities

    def tell(self, symbols: Sequence[Symbol], cast: Cast, state: int) -> str:
        """The text of some symbols."""
        return "".join([self._text(symbol, cast, state) for symbol in symbols])

    def rule(self, name: str, cast: Cast, state: int) -> str:
        """The text of a rule: of its first option whose condition has an answer."""
        for option in self._rules.get(name, ()):
            if option.condition is None or next(self.answers(option.condition, cast, state), None) is not None:
                return self.tell(option.symbols, cast, state)
        raise ValueError(f"the grammar has no text for the rule {name!r} here")

    def _text(self, symbol: Symbol, cast: Cast, state: int) -> str:
        if isinstance(symbol, Text):
            return symbol.text
        if isinstance(symbol, Use):
            return self.rule(symbol.rule, cast, state)
        if isinstance(symbol, Listing):
            return self._listed(self._parts(symbol.each, cast, state), cast, state)
        return "".join(self._parts(symbol, cast, state))

    def _parts(self, each: Each, cast: Cast, state: int) -> list[str]:
        casts = [cast] if each.query is None else self.answers(each.query, cast, state)
        if isinstance(each.inner, Value):
            evaluate = each.inner.evaluate
            return [str(evaluate(chosen, self._entities)) for chosen in casts]
        return [self.rule(each.inner.rule, chosen, state) for chosen in casts]

    def _listed(self, parts: list[str], cast: Cast, state: int) -> str:
        if not parts:
            return self.rule("list_empty", cast, state)
        if len(parts) == 1:
            return parts[0]
        return self.rule("list_separator", cast, state).join(parts[:-1]) + self.rule("list_last_separator", cast, state) + parts[-1]

    def answers(self, query: Query, cast: Cast, state: int) -> Iterator[Cast]:
        """Every way to cast the query's placeholders so that all its predicates hold, the given cast kept."""
        (predicate, placeholders), rest = query[0], query[1:]
        for values, mask in self._candidates(predicate, placeholders, cast):
            if mask and not state & mask:
                continue
            wider = self._matched(placeholders, values, cast)
            if wider is None:
                continue
            if rest:
                yield from self.answers(rest, wider, state)
            else:
                yield wider

    def _candidates(
        self, predicate: str, placeholders: Sequence[tuple[str, str]], cast: Cast
    ) -> Sequence[tuple[tuple[str, ...], int]]:
        for at, (name, _) in enumerate(placeholders):
            if name in cast:
                return self._facts.rows_with(predicate, at, cast[name])
        return self._facts.rows(predicate)

    def _matched(self, placeholders: Sequence[tuple[str, str]], values: Sequence[str], cast: Cast) -> Cast | None:
        if len(placeholders) != len(values):
            return None
        wider = dict(cast)
        for (name, kind), value in zip(placeholders, values, strict=True):
            if name in wider:
                if wider[name] != value:
                    return None
            elif value in wider.values() or value not in self._facts.objects_of(kind):
                return None
            else:
                wider[name] = value
        return wider
