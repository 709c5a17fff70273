"""Conditions over objects become masks over bits: for all choices of a condition's variables, or for those that one fact leaves open.

Facts that never change are joined away, so that only masks of changing facts remain. The operators of an action are not all made at
the start: those that need a certain fact, such as the player's place, are made when that fact first holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from leafe.envs.pddl.facts import Facts
from leafe.envs.pddl.formulas import Alternative, Effect, Literal

Binding = dict[str, str]
Check = tuple[int, int]  # the facts that have to hold, the facts that must not


def is_variable(term: str) -> bool:
    """Whether a term is a variable and no object."""
    return term.startswith("?")


def fact_of(literal: Literal, binding: Mapping[str, str]) -> tuple[str, ...]:
    """The fact that a literal speaks of, its variables replaced."""
    return (literal.predicate, *(binding.get(term, term) for term in literal.terms))


def holds(literal: Literal, binding: Mapping[str, str], facts: Facts) -> bool:
    """Whether the fact that a constant literal speaks of holds; its own sign is not looked at."""
    fact = fact_of(literal, binding)
    return fact[1] == fact[2] if literal.predicate == "=" else facts.holds_always(fact)


class Join:
    """One alternative, ready to be solved: constant literals in a good order, then the masks of the others.

    `key`, a literal of the alternative that can change, is given from outside; its variables are known before the rest is solved.
    """

    def __init__(self, alternative: Alternative, facts: Facts, key: Literal | None = None) -> None:
        self._facts, self.key = facts, key
        self._kinds = dict(alternative.variables)
        self.fixed = [one for one in alternative.literals if one.predicate not in facts.fluent]
        self.changing = [one for one in alternative.literals if one.predicate in facts.fluent]
        known = {term for term in key.terms if is_variable(term)} if key else set()
        self._steps = list(self._ordered(self.fixed, known))

    def _ordered(self, literals: list[Literal], known: set[str]) -> Iterator[Literal | str]:
        """Literals to look up or check, and variables to run through where no literal gives them."""
        waiting, known = list(literals), set(known)
        while waiting or not known >= self._kinds.keys():
            ready = [one for one in waiting if all(not is_variable(term) or term in known for term in one.terms)]
            givers = [one for one in waiting if one.positive and one.predicate != "="]
            if ready or givers:
                best = ready[0] if ready else min(givers, key=lambda one: self._cost(one, known))
                waiting.remove(best)
                known |= {term for term in best.terms if is_variable(term)}
                yield best
            else:
                variable = next((name for name in self._kinds if name not in known), None)
                if variable is None:
                    terms = {term for one in waiting for term in one.terms if is_variable(term)}
                    raise ValueError(f"no parameter is named {', '.join(sorted(terms - known))}")
                known.add(variable)
                yield variable

    def _cost(self, literal: Literal, known: set[str]) -> tuple[bool, int]:
        bound = any(not is_variable(term) or term in known for term in literal.terms)
        return (not bound, len(self._facts.rows(literal.predicate)))

    def solutions(self, fact: tuple[str, ...] | None = None) -> Iterator[Binding]:
        """Every choice of the variables for which the constant literals hold, with the key standing for `fact`."""
        binding: Binding = {}
        if self.key is not None and (fact is None or not self._bind(self.key, fact[1:], binding)):
            return
        yield from self._solve(0, binding)

    def _bind(self, literal: Literal, values: Sequence[str], binding: Binding) -> bool:
        for term, value in zip(literal.terms, values, strict=True):
            if not is_variable(term):
                if term != value:
                    return False
            elif term not in binding:
                if value not in self._facts.objects_of(self._kinds[term]):
                    return False
                binding[term] = value
            elif binding[term] != value:
                return False
        return True

    def _solve(self, at: int, binding: Binding) -> Iterator[Binding]:
        if at == len(self._steps):
            yield binding
            return
        step = self._steps[at]
        if isinstance(step, str):
            for value in sorted(self._facts.objects_of(self._kinds[step])):
                yield from self._solve(at + 1, {**binding, step: value})
        elif all(not is_variable(term) or term in binding for term in step.terms):
            if holds(step, binding, self._facts) == step.positive:
                yield from self._solve(at + 1, binding)
        else:
            for values, _ in self._candidates(step, binding):
                wider = dict(binding)
                if self._bind(step, values, wider):
                    yield from self._solve(at + 1, wider)

    def _candidates(self, literal: Literal, binding: Binding) -> Sequence[tuple[tuple[str, ...], int]]:
        for at, term in enumerate(literal.terms):
            if not is_variable(term) or term in binding:
                return self._facts.rows_with(literal.predicate, at, binding.get(term, term))
        return self._facts.rows(literal.predicate)

    def check(self, binding: Binding) -> Check | None:
        """The masks of a solution; None when it wants a fact both true and false."""
        need = ban = 0
        for literal in self.changing:
            mask = self._facts.bit(fact_of(literal, binding))
            if literal.positive:
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
    """What an operator does where one of `when` held before; `when` is empty where it always does."""

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
        self._effects = [(effect, [Join(one, facts) for one in effect.when]) for effect in effects]

    def may_idle(self, literals: Sequence[Literal]) -> bool:
        """Whether some choice of objects may change nothing where these literals hold; a quick look at the predicates only."""
        gains = {effect.literal.predicate for effect, _ in self._effects if effect.literal.positive}
        held = {literal.predicate for literal in literals if literal.positive}
        missing = {literal.predicate for literal in literals if not literal.positive}
        loses = {effect.literal.predicate for effect, _ in self._effects if not effect.literal.positive}
        return gains <= held and loses <= missing | gains

    def changes(self, binding: Binding) -> tuple[Change, tuple[Change, ...]]:
        """What always happens, and what happens under conditions."""
        gain = lose = 0
        conditional: list[Change] = []
        for effect, joins in self._effects:
            gains, loses = self._masks(effect.literal, binding)
            when = [_instance(join, binding, self._facts) for join in joins]
            if any(check == (0, 0) for check in when):
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

    __slots__ = ("_changes", "ban", "binding", "cast", "command", "effects", "need", "number")

    def __init__(self, number: int, effects: Effects, *, binding: Binding, cast: Binding, check: Check) -> None:
        self.number = number  # its action's place in the domain
        self.effects, self.binding = effects, binding
        self.cast = cast  # the chosen objects by the parameters' names
        self.need, self.ban = check
        self.command = ""
        self._changes: tuple[Change, tuple[Change, ...]] | None = None

    @property
    def changes(self) -> tuple[Change, tuple[Change, ...]]:
        """What always happens, and what happens under conditions."""
        if self._changes is None:
            self._changes = self.effects.changes(self.binding)
        return self._changes

    def applied(self, state: int) -> int:
        """The state after it. What is both lost and gained holds."""
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
