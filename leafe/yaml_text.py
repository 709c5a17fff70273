"""YAML texts to values: recipes, overrides and arguments, as text, numbers, lists and groups and nothing else.

A text that would take long or become large is refused by one sentence, like any other that cannot be read. A date is read as one and
then refused by its setting: no setting is a date.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from leafe.digest import canonical
from leafe.errors import UserError

LONGEST = 200_000  # characters of a text
LONGEST_NUMBER = 400  # characters of a number
MOST_VALUES = 20_000  # with what aliases repeat
DEEPEST = 40
PLAIN = frozenset(
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "merge", "timestamp")
)
NUMBERS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})
TOO_DEEP = f"it is nested too deeply; wanted at most {DEEPEST} levels"
_HALF = re.compile(r"[\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, where `1e-6` is a number, as in YAML 1.2, and a key appears once."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= DEEPEST:  # before the scanner looks ahead, which takes the square of the depth
            raise yaml.scanner.ScannerError(None, None, TOO_DEEP, self.get_mark())
        super().fetch_flow_collection_start(token)

    def add_indent(self, column: int) -> bool:
        if len(self.indents) >= DEEPEST:
            raise yaml.scanner.ScannerError(None, None, TOO_DEEP, self.get_mark())
        return super().add_indent(column)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _refusal(f"the key {key.value!r:.80} appears twice", key)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Quotes exactly the texts that would be read as something else."""


for _dialect in (_Loader, Dumper):
    _dialect.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))


def read_yaml(text: str, source: str) -> Any:
    """The value of a YAML text; `source` names it in messages. Raises `UserError`."""
    if len(text) > LONGEST:
        raise UserError(f"{source} has {len(text):,} characters; wanted at most {LONGEST:,}")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}," if mark else ""
        raise UserError(f"{source}{where} is not valid YAML: {_line(getattr(error, 'problem', None) or error)}") from None
    except RecursionError:
        raise UserError(f"{source} is not valid YAML: {TOO_DEEP}") from None
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:  # a tag that does not fit its value
        raise UserError(f"{source} is not valid YAML: {_line(error)}") from None
    finally:
        if loader is not None:
            loader.dispose()


def read_values(texts: Sequence[str]) -> dict[str, Any]:
    """`name=value` texts, each value read as YAML. Raises `UserError`."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"wanted name=value, as boxes=2, found {text!r:.80}")
        try:
            values[name] = read_yaml(value, "it")
            canonical(values[name])
        except UserError as error:
            raise UserError(f"cannot read the value in {text!r:.80}: {error}; quote it") from None
        except (TypeError, ValueError):
            raise UserError(f"{name:.80}: wanted what JSON can hold, found {values[name]!r:.80}; quote it") from None
    return values


def _refusal(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _check(node: yaml.Node) -> None:
    """Refuses values that would become large or deep, and kinds that no setting has, before any is made."""
    sizes: dict[int, tuple[int, int] | None] = {}

    def size(one: yaml.Node) -> tuple[int, int]:
        """How many values a node expands to and how deep they lie; None while that is being found out."""
        if id(one) in sizes:
            known = sizes[id(one)]
            if known is None:
                raise _refusal("a value holds itself", one)
            return known
        sizes[id(one)] = None
        _check_alone(one)
        inner = [size(child) for child in _children(one)]
        found = 1 + sum(count for count, _ in inner), 1 + max((depth for _, depth in inner), default=0)
        if found[0] > MOST_VALUES:
            raise _refusal(f"it stands for more than {MOST_VALUES:,} values", one)
        if found[1] > DEEPEST:
            raise _refusal(TOO_DEEP, one)
        sizes[id(one)] = found
        return found

    size(node)


def _children(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return (one for pair in node.value for one in pair)
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _check_alone(node: yaml.Node) -> None:
    if node.tag not in PLAIN:
        raise _refusal(
            f"wanted text, numbers, lists and groups, found a value of the kind {node.tag.removeprefix('tag:yaml.org,2002:'):.40}",
            node,
        )
    if not isinstance(node, yaml.ScalarNode):
        return
    if _HALF.search(node.value):
        raise _refusal("a text holds half a character (a lone surrogate)", node)
    if node.tag in NUMBERS and len(node.value) > LONGEST_NUMBER:
        raise _refusal(f"a number has {len(node.value):,} digits; wanted at most {LONGEST_NUMBER}", node)


def _line(problem: object) -> str:
    return " ".join(str(problem).split())[:200]
