"""A text grammar file: the command and the answer of each action, and the rules that answers are made of.

    action open {
        template :: "open {r}";
        feedback :: "#open.feedback#";
        grammar :: ''' {"open.feedback": [{"condition": "locked(r:place)", "rhs": "It is locked."}, {"rhs": "Done."}]} ''';
    }

Of a rule's texts the first whose condition has an answer is taken. Of a rule that is given twice the last one counts.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from leafe.worlds.pddl.symbols import Each, Listing, Query, Symbol, parse_query, parse_symbols

_TOKEN = re.compile(r'(?P<skip>\s+|#[^\n]*)|(?P<block>"""(?:.|\n)*?""")|(?P<string>"[^"]*")|(?P<word>[\w/-]+)|(?P<sign>::|[{};])')


@dataclass(frozen=True, slots=True)
class Option:
    """One text of a rule, and the condition under which it is taken (None: always)."""

    condition: Query | None
    symbols: tuple[Symbol, ...]


@dataclass(frozen=True, slots=True)
class Wording:
    """The command of an action, and the answer to it."""

    template: tuple[Symbol, ...]
    feedback: tuple[Symbol, ...]


@dataclass(frozen=True, slots=True)
class Grammar:
    """The wordings by the action's name in lower case, and the rules by theirs."""

    wordings: Mapping[str, Wording]
    rules: Mapping[str, tuple[Option, ...]]

    def predicates(self) -> frozenset[str]:
        """The predicates that the texts ask about."""
        texts = [wording.template for wording in self.wordings.values()] + [one.feedback for one in self.wordings.values()]
        options = [option for options in self.rules.values() for option in options]
        queries = [option.condition for option in options] + [
            query for text in texts + [option.symbols for option in options] for query in _queries(text)
        ]
        return frozenset(predicate for query in queries if query for predicate, _ in query)


def _queries(symbols: tuple[Symbol, ...]) -> Iterator[Query | None]:
    for symbol in symbols:
        each = symbol.each if isinstance(symbol, Listing) else symbol
        if isinstance(each, Each):
            yield each.query


def parse_grammar(text: str) -> Grammar:
    """The grammar of a text. Raises `ValueError` when it is none."""
    wordings: dict[str, Wording] = {}
    rules: dict[str, tuple[Option, ...]] = {}
    tokens = _Tokens(text)
    while (word := tokens.next()) is not None:
        if word == "action":
            name = tokens.wanted("an action's name")
            fields = tokens.fields()
            wordings[name.lower()] = Wording(parse_symbols(fields.get("template", "")), parse_symbols(fields.get("feedback", "")))
            own = "\n".join(line for line in fields.get("grammar", "{}").split("\n") if not line.lstrip().startswith("#"))
            rules |= _rules(own)
        elif word == "grammar":
            rules |= _rules(tokens.value())
        else:
            raise ValueError(f"a grammar has 'action' and 'grammar' parts, found {word[:40]!r}")
    return Grammar(wordings, rules)


@lru_cache(maxsize=256)
def _rules(text: str) -> Mapping[str, tuple[Option, ...]]:
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a grammar's rules are no JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError("a grammar's rules want to be one JSON object")
    return {name: tuple(_option(name, option) for option in options) for name, options in data.items()}


def _option(name: str, option: Any) -> Option:
    if not isinstance(option, dict) or not isinstance(option.get("rhs"), str):
        raise ValueError(f'a text of the rule {name!r} wants {{"rhs": "..."}}')
    condition = option.get("condition", "")
    return Option(parse_query(condition) if condition else None, parse_symbols(option["rhs"]))


class _Tokens:
    """The words, strings and signs of a grammar file, comments left out; strings without their quotation marks."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def next(self) -> str | None:
        """The next one; None at the end."""
        while match := _TOKEN.match(self._text, self._at):
            self._at = match.end()
            if match.lastgroup == "block":
                return textwrap.dedent(match[0][3:-3])
            if match.lastgroup == "string":
                return match[0][1:-1]
            if match.lastgroup != "skip":
                return match[0]
        if self._at < len(self._text):
            raise ValueError(f"a grammar cannot go on with {self._text[self._at : self._at + 40]!r}")
        return None

    def wanted(self, what: str, *accepted: str) -> str:
        """The next one, which has to exist, and among `accepted` if any are named."""
        token = self.next()
        if token is None or (accepted and token not in accepted):
            raise ValueError(f"a grammar wants {what}, found {'its end' if token is None else repr(token[:40])}")
        return token

    def value(self) -> str:
        """The value in `:: value ;`."""
        self.wanted("'::'", "::")
        value = self.wanted("a text in quotation marks")
        self.wanted("';' after a text", ";")
        return value

    def fields(self) -> dict[str, str]:
        """The fields in `{ name :: value ; ... }`."""
        self.wanted("'{'", "{")
        found: dict[str, str] = {}
        known = ("template", "feedback", "grammar", "pddl")
        while (name := self.wanted("template, feedback, grammar or '}'", *known, "}")) != "}":
            found[name] = self.value()
        return found
