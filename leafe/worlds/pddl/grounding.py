"""Conditions over objects become masks over bits: for all choices of a condition's variables, or for those that one fact leaves open.

Facts that never change are joined away, so that only masks of changing facts remain. The operators of an action are not all made at
the start: those that need a certain fact, such as the player's place, are made when that fact first holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

from leafe.worlds.pddl.facts import Facts
from leafe.worlds.pddl.formulas import ALWAYS, Alternative, Effect, Literal

Binding = dict[str, str]
Check = tuple[int, int]  # the facts that have to hold, the facts that must not


def is_variable(term: str) -> bool:
    """Whether a term is a variable and no object."""
    return term.startswith("?")


def fact_of(literal: Literal, binding: Mapping[str, str]) -> tuple[str, ...]:
    """The fact of a literal, its variables replaced."""
    return (literal.predicate, *[binding.get(term, term) for term in literal.terms])


def holds(literal: Literal, binding: Mapping[str, str], facts: Facts) -> bool:
    """Whether the fact of a constant literal holds; the literal's own sign is ignored."""
    fact = fact_of(literal, binding)
    return fact[1] == fact[2] if literal.predicate == "=" else facts.holds_always(fact)


@dataclass(frozen=True, slots=True)
class _Choose:
    """Run through the objects of a variable that no literal gives."""

    variable: str


@dataclass(frozen=True, slots=True)
class _Confirm:
    """Check a literal whose terms are all known by now."""

    literal: Literal


@dataclass(frozen=True, slots=True)
class _Find:
    """Look up the facts of a literal, by its term number `known` where one is known by now."""

    literal: Literal
    known: int | None


def _first_known(literal: Literal, known: set[str]) -> int | None:
    """The number of the first term that is an object or a known variable."""
    return next((at for at, term in enumerate(literal.terms) if not is_variable(term) or term in known), None)


class Join:
    """One alternative, ready to be solved: constant literals in a good order, then the masks of the others.

    `key`, a literal of the alternative that can change, is given from outside; its variables are known before the rest is solved.
    """

    def __init__(self, alternative: Alternative, facts: Facts, key: Literal | None = None) -> None:
        self._facts, self.key = facts, key
        self._objects = {variable: facts.objects_of(kind) for variable, kind in alternative.variables}
        self.fixed = [one for one in alternative.literals if one.predicate not in facts.fluent]
        self.changing = [one for one in alternative.literals if one.predicate in facts.fluent]
        known = {term for term in key.terms if is_variable(term)} if key else set()
        self._steps = list(self._ordered(self.fixed, known))
        self._masks = [(self._speaker(one), one.positive) for one in self.changing]

    def _speaker(self, literal: Literal) -> Callable[[Binding], tuple[str, ...]]:
        """`fact_of` for one literal, without a loop where all of its terms are variables."""
        predicate = literal.predicate
        if len(literal.terms) < 2 or not self._objects.keys() >= set(literal.terms):
            return partial(fact_of, literal)
        terms = itemgetter(*literal.terms)
        return lambda binding: (predicate, *terms(binding))

    def _ordered(self, literals: list[Literal], known: set[str]) -> Iterator[_Choose | _Confirm | _Find]:
        """The steps in order: each time the one that leaves the least to do after it."""
        waiting, known = list(literals), set(known)
        while waiting or not known >= self._objects.keys():
            ready = [one for one in waiting if all(not is_variable(term) or term in known for term in one.terms)]
            givers = [one for one in waiting if one.positive and one.predicate != "="]
            if ready or givers:
                best = ready[0] if ready else min(givers, key=lambda one: self._cost(one, known))
                waiting.remove(best)
                yield _Confirm(best) if ready else _Find(best, _first_known(best, known))
                known |= {term for term in best.terms if is_variable(term)}
            else:
                variable = next((name for name in self._objects if name not in known), None)
                if variable is None:
                    terms = {term for one in waiting for term in one.terms if is_variable(term)}
                    raise ValueError(f"no parameter is named {', '.join(sorted(terms - known))}")
                known.add(variable)
                yield _Choose(variable)

    def _cost(self, literal: Literal, known: set[str]) -> tuple[bool, int]:
        return (_first_known(literal, known) is None, len(self._facts.rows(literal.predicate)))

    def solutions(self, fact: tuple[str, ...] | None = None) -> list[Binding]:
        """Every choice of the variables for which the constant literals hold, with the key standing for `fact`."""
        start: Binding | None = {}
        if self.key is not None:
            start = None if fact is None else self._bound(self.key, fact[1:], {})
        found = [] if start is None else [start]
        for step in self._steps:
            found = self._widened(step, found)
        return found

    def _bound(self, literal: Literal, values: Sequence[str], binding: Binding) -> Binding | None:
        """The binding with the literal's variables standing for `values`; None where they cannot."""
        wider = dict(binding)
        for term, value in zip(literal.terms, values, strict=True):
            known = wider.get(term) if is_variable(term) else term
            if known is None:
                if value not in self._objects[term]:
                    return None
                wider[term] = value
            elif known != value:
                return None
        return wider

    def _widened(self, step: _Choose | _Confirm | _Find, found: list[Binding]) -> list[Binding]:
        if isinstance(step, _Find):
            literal = step.literal
            tried = (self._bound(literal, values, one) for one in found for values, _ in self._candidates(step, one))
            return [one for one in tried if one is not None]
        if isinstance(step, _Confirm):
            return [one for one in found if holds(step.literal, one, self._facts) == step.literal.positive]
        return [{**one, step.variable: value} for one in found for value in sorted(self._objects[step.variable])]

    def _candidates(self, step: _Find, binding: Binding) -> Sequence[tuple[tuple[str, ...], int]]:
        if step.known is None:
            return self._facts.rows(step.literal.predicate)
        term = step.literal.terms[step.known]
        return self._facts.rows_with(step.literal.predicate, step.known, binding.get(term, term))

    def check(self, binding: Binding) -> Check | None:
        """The masks of a solution; None when it wants a fact both true and false."""
        need = ban = 0
        for speaker, positive in self._masks:
            mask = self._facts.bit(speaker(binding))
            if positive:
                need |= mask
            else:
                ban |= mask
        return None if need & ban else (need, ban)


def ground_condition(alternatives: Sequence[Alternative], facts: Facts) -> list[Check]:
    """All masks of a condition without free variables: it holds when one of them does."""
    found: dict[Check, None] = {}
    for alternative in alternatives:
        join = Join(alternative, facts)
        for binding in join.solutions():
            check = join.check(binding)
            if check is not None:
                found[check] = None
    return list(found)


@dataclass(frozen=True, slots=True)
class Change:
    """The change by an operator where one of `when` held before; `when` is empty where it always happens."""

    gain: int
    lose: int
    when: tuple[Check, ...] = ()


class Effects:
    """The effects of one action. `denials` are the predicates whose becoming false is a fact of its own, `not_` before its name."""

    def __init__(self, effects: Sequence[Effect], facts: Facts, denials: frozenset[str]) -> None:
        self._facts, self._denials = facts, denials
        for effect in effects:
            if any(one.variables for one in effect.when):
                raise ValueError("an effect's condition with exists is not supported; name its objects as parameters")
        # Most effects have no condition, and are found without looking at one. None stands for those.
        self._effects = [(one.literal, None if one.when == ALWAYS else [Join(case, facts) for case in one.when]) for one in effects]

    def may_idle(self, literals: Sequence[Literal]) -> bool:
        """Whether some choice of objects may change nothing where these literals hold; a quick look at the predicates only."""
        gains = {effect.predicate for effect, _ in self._effects if effect.positive}
        held = {literal.predicate for literal in literals if literal.positive}
        missing = {literal.predicate for literal in literals if not literal.positive}
        loses = {effect.predicate for effect, _ in self._effects if not effect.positive}
        return gains <= held and loses <= missing | gains

    def changes(self, binding: Binding) -> tuple[Change, tuple[Change, ...]]:
        """The unconditional change, and the conditional ones."""
        gain = lose = 0
        conditional: list[Change] = []
        for literal, joins in self._effects:
            gains, loses = self._masks(literal, binding)
            when = [(0, 0)] if joins is None else [_instance(join, binding, self._facts) for join in joins]
            if (0, 0) in when:
                gain, lose = gain | gains, lose | loses
            elif possible := tuple(check for check in when if check is not None):
                conditional.append(Change(gains, loses, possible))
        return Change(gain, lose & ~gain), tuple(conditional)

    def _masks(self, literal: Literal, binding: Binding) -> tuple[int, int]:
        fact = fact_of(literal, binding)
        here = self._facts.bit(fact)
        denied = self._facts.bit((f"not_{fact[0]}", *fact[1:])) if fact[0] in self._denials else 0
        return (here, denied) if literal.positive else (denied, here)


def _instance(join: Join, binding: Binding, facts: Facts) -> Check | None:
    """The masks of a condition whose variables are all chosen already; None where its constant part fails."""
    if any(holds(literal, binding, facts) != literal.positive for literal in join.fixed):
        return None
    return join.check(binding)


class Operator:
    """An action with its parameters chosen: when it can be taken, and what it changes, worked out when first needed."""

    __slots__ = ("_changes", "ban", "binding", "command", "effects", "need", "number")

    def __init__(self, number: int, effects: Effects, *, binding: Binding, check: Check) -> None:
        self.number = number  # its action's place in the domain
        self.effects, self.binding = effects, binding
        self.need, self.ban = check
        self.command: str | None = None  # its typed form, once it was made
        self._changes: tuple[Change, tuple[Change, ...]] | None = None

    @property
    def changes(self) -> tuple[Change, tuple[Change, ...]]:
        """The unconditional change, and the conditional ones."""
        if self._changes is None:
            self._changes = self.effects.changes(self.binding)
        return self._changes

    def applied(self, state: int) -> int:
        """The state after it. A fact that is both lost and gained holds."""
        always, conditional = self.changes
        gain, lose = always.gain, always.lose
        for change in conditional:
            if any(state & need == need and not state & ban for need, ban in change.when):
                gain, lose = gain | change.gain, lose | change.lose
        return (state & ~lose) | gain

    def idle(self) -> bool:
        """Whether it changes nothing in any state in which it can be taken."""
        always, conditional = self.changes
        return not (conditional or always.gain & ~self.need or always.lose & ~self.ban)
