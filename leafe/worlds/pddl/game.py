"""One game: its state is an integer, its commands are operators, its answers are the grammar's words.

A game holds no player's position: `step` takes a state and returns the next one. The commands of a state are cached, because rollback
returns to states often; a game is not for two threads at once. It answers as the original engine does, with one difference that no
ALFWorld game can show: the original describes conditional effects as if they had all happened, and this engine those that did.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from leafe.worlds.pddl.domain import Schema, parse_domain, parse_problem
from leafe.worlds.pddl.facts import Facts, members_of
from leafe.worlds.pddl.formulas import Alternative, Effect, ObjectsNeeded, Reader
from leafe.worlds.pddl.gamefile import GameFile
from leafe.worlds.pddl.grammar import Grammar, Wording, parse_grammar
from leafe.worlds.pddl.grounding import Binding, Check, Effects, Join, Operator, ground_condition
from leafe.worlds.pddl.names import shown_names
from leafe.worlds.pddl.symbols import Entity, Symbol, names_read
from leafe.worlds.pddl.telling import Cast, Teller

NOTHING = "Nothing happens."  # the original's answer to anything but an admissible command
REMEMBERED = 500  # states whose commands are kept


@dataclass(frozen=True, slots=True)
class _Read:
    """A schema with its condition and effects parsed."""

    schema: Schema
    alternatives: tuple[Alternative, ...]
    effects: tuple[Effect, ...]


class _Action:
    """An action of one game: what makes operators of it."""

    def __init__(self, number: int, read: _Read, facts: Facts, *, wording: Wording, used: frozenset[str]) -> None:
        self.number, self.parameters, self.wording = number, read.schema.parameters, wording
        named = names_read(wording.template)
        # The parameters that its command names, where the command says nothing else.
        self.named = None if named is None else tuple(sorted(f"?{name}" for name in named))
        denials = frozenset(name.removeprefix("not_") for name in used if name.startswith("not_"))
        told = [effect for effect in read.effects if effect.literal.predicate in used or effect.literal.predicate in denials]
        self.effects = Effects(told, facts, denials)
        # An effect that nothing reads is left out, and is a change all the same.
        literals = [literal for one in read.alternatives for literal in one.literals]
        self.may_idle = len(told) == len(read.effects) and self.effects.may_idle(literals)
        self.joins = [self._join(alternative, facts) for alternative in read.alternatives]

    def _join(self, alternative: Alternative, facts: Facts) -> Join:
        """Keyed by the changing fact that is rarest at the start: a player is at one place and holds little."""
        keys = [one for one in alternative.literals if one.positive and one.predicate in facts.fluent]
        key = min(keys, key=lambda literal: facts.counts.get(literal.predicate, 0), default=None)
        return Join(Alternative(self.parameters + alternative.variables, alternative.literals), facts, key)

    def cast(self, binding: Binding) -> Cast:
        """The chosen objects by the parameters' names."""
        return {name[1:]: binding[name] for name, _ in self.parameters}


class Game:
    """A game that can be played from any of its states."""

    def __init__(self, file: GameFile) -> None:
        """Raises `ValueError` when the texts of the file are no game."""
        domain, grammar = parse_domain(file.domain), parse_grammar(file.grammar)
        problem = parse_problem(file.problem, domain)
        reader = Reader({kind: sorted(names) for kind, names in members_of(domain.types, problem.objects).items()})
        actions = _understood(domain.actions, reader)
        changed = {effect.literal.predicate for one in actions for effect in one.effects}
        self.facts = Facts(domain, problem, frozenset(changed | {f"not_{name}" for name in changed}))
        goal = reader.condition(problem.goal)
        used = grammar.predicates() | _predicates(goal) | {name for one in actions for name in _read_by(one)}
        self._actions = [
            _Action(number, read, self.facts, wording=_wording(grammar, read.schema.name), used=used)
            for number, read in enumerate(actions)
        ]
        named = {name for fact in problem.facts for name in fact[1:]}
        names = shown_names(named)
        entities = {name: Entity(name, problem.objects[name], names.get(name, name)) for name in problem.objects}
        self._teller = Teller(grammar, self.facts, entities)
        self._by_key: dict[int, list[Operator]] = {}
        self._words: dict[tuple[int | str, ...], str] = {}
        self._keyed = {join.key.predicate for action in self._actions for join in action.joins if join.key is not None}
        self._offers: dict[int, Mapping[str, Operator]] = {}
        self.goals: list[Check] = ground_condition(goal, self.facts)
        self.start = self.facts.start

    def tell(self, rule: str) -> str:
        """The text of a grammar's rule at the start; a player reads `intro` first, and `task` states the goal."""
        return self._teller.rule(rule, {}, self.start)

    def commands(self, state: int) -> Mapping[str, Operator]:
        """The admissible commands of a state."""
        offer = self._offers.get(state)
        if offer is None:
            if len(self._offers) >= REMEMBERED:
                self._offers.clear()
            offer = self._offers[state] = self._offered(state)
        return offer

    def _offered(self, state: int) -> dict[str, Operator]:
        found: dict[str, Operator] = {}
        for operator in self._candidates(state):
            if state & operator.need == operator.need and not state & operator.ban:
                command = self.command(operator)
                known = found.setdefault(command, operator)
                # Two operators of one command: which is meant must not depend on what was played before.
                if known is not operator and self._rank(operator) < self._rank(known):
                    found[command] = operator
        return found

    def command(self, operator: Operator) -> str:
        """The command that an operator is typed as. Most are never open to a player, so commands are made on first use."""
        if operator.command is None:
            action = self._actions[operator.number]
            if action.named is None:
                operator.command = self._told(operator, action.wording.template, self.start)
            else:  # a walk is typed as its end, wherever it begins
                key: tuple[int | str, ...] = (operator.number, *[operator.binding.get(name, "") for name in action.named])
                if key not in self._words:
                    self._words[key] = self._told(operator, action.wording.template, self.start)
                operator.command = self._words[key]
        return operator.command

    def _candidates(self, state: int) -> Iterator[Operator]:
        yield from self.operators(0, None)
        live = 0
        for predicate in self._keyed:
            live |= self.facts.masks.get(predicate, 0)
        for mask, fact in self.facts.holding(state & live):
            yield from self._by_key.get(mask) or self.operators(mask, fact)

    def is_key(self, fact: tuple[str, ...]) -> bool:
        """Whether operators are made when this fact first holds."""
        return fact[0] in self._keyed

    def operators(self, mask: int, fact: tuple[str, ...] | None) -> Sequence[Operator]:
        """The operators that need this fact first of all; for None those that need none. Made on first use."""
        made = self._by_key.get(mask)
        if made is None:
            made = self._by_key[mask] = [
                operator
                for action in self._actions
                for join in action.joins
                if (join.key.predicate if join.key else None) == (fact[0] if fact else None)
                for binding in join.solutions(fact)
                if (operator := self._operator(action, join, binding)) is not None
            ]
        return made

    def _operator(self, action: _Action, join: Join, binding: Binding) -> Operator | None:
        """None when it can never be taken, or would change nothing: a walk to where one stands is no command."""
        check = join.check(binding)
        if check is None:
            return None
        operator = Operator(action.number, action.effects, binding=binding, check=check)
        if action.may_idle and operator.idle():
            return None
        return operator

    def step(self, state: int, command: str) -> tuple[int, str]:
        """The state after a command, and the answer. Anything but an admissible command changes nothing."""
        operator = self.commands(state).get(command.strip())
        if operator is None:
            return state, NOTHING
        after = operator.applied(state)
        return after, self._told(operator, self._actions[operator.number].wording.feedback, after)

    def _told(self, operator: Operator, symbols: Sequence[Symbol], state: int) -> str:
        return self._teller.tell(symbols, self._actions[operator.number].cast(operator.binding), state)

    def _rank(self, operator: Operator) -> tuple[int, list[str]]:
        return operator.number, list(self._actions[operator.number].cast(operator.binding).values())

    def won(self, state: int) -> bool:
        """Whether the goal holds."""
        return any(state & need == need and not state & ban for need, ban in self.goals)


def _understood(schemas: tuple[Schema, ...], reader: Reader) -> tuple[_Read, ...]:
    try:
        return _understood_anywhere(schemas)
    except ObjectsNeeded:
        return _read(schemas, reader)


@lru_cache(maxsize=16)
def _understood_anywhere(schemas: tuple[Schema, ...]) -> tuple[_Read, ...]:
    """The part that games of one domain share."""
    return _read(schemas, Reader())


def _read(schemas: tuple[Schema, ...], reader: Reader) -> tuple[_Read, ...]:
    return tuple(_Read(one, reader.condition(one.condition), tuple(reader.effects(one.effect))) for one in schemas)


def _wording(grammar: Grammar, action: str) -> Wording:
    if action not in grammar.wordings:
        raise ValueError(f"the grammar has no words for the action {action!r}")
    return grammar.wordings[action]


def _predicates(alternatives: Sequence[Alternative]) -> frozenset[str]:
    return frozenset(literal.predicate for one in alternatives for literal in one.literals)


def _read_by(read: _Read) -> frozenset[str]:
    return _predicates([*read.alternatives, *(one for effect in read.effects for one in effect.when)])
