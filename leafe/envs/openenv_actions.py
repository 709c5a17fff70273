"""The form of an OpenEnv server's actions, and how a text becomes one, by the server's JSON schema.

A text fills one field of the action, converted to its type, or it is the whole action in JSON. Text that does not fit is refused here,
before it is sent; the server may refuse the rest. A schema's local references (`#/$defs/Move`) are followed, others are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from leafe.envs.openenv_texts import readable
from leafe.errors import UnknownName, UserError

WHOLE = "json"  # for an action that is written out
DEEPEST = 8  # references and alternatives that are followed one after another: a schema may refer to itself
ALTERNATIVES = ("anyOf", "oneOf", "allOf")


class NoAction(Exception):
    """A text that is no action; the message is a reason to append, or empty."""


@dataclass(frozen=True, slots=True)
class ActionForm:
    """`field` takes the text, or is `json`; `kind` is its JSON type, `any` where the schema names none.

    `choices` are the texts of all its `values`, where the schema lists them.
    """

    field: str
    kind: str
    help: str
    choices: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()

    @classmethod
    def of(cls, schema: Any, wanted: str, url: str) -> ActionForm:
        """The form of a server's actions. Raises `UserError` where a field has to be chosen, or the chosen one does not exist."""
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        if not isinstance(properties, Mapping):
            raise UserError(f"{url}/schema describes no actions: is url= that of an OpenEnv server?")
        fields = {name: _resolved(given, schema) for name, given in properties.items() if name != "metadata" and given is not None}
        described = readable(", ".join(f"{name} ({_kind(given)})" for name, given in fields.items()))[:2000]
        if wanted == WHOLE:
            return cls(WHOLE, "object", f"An action is a JSON object with the fields: {described}.")
        if wanted and wanted not in fields:
            raise UnknownName(f"field of the actions of {url}", wanted, [*map(readable, fields), WHOLE])
        required = schema.get("required")
        needed = [name for name in fields if name in required] if isinstance(required, list) else []
        chosen = wanted or (needed[0] if len(needed) == 1 else next(iter(fields)) if len(fields) == 1 else "")
        if not chosen or any(name != chosen for name in needed):
            raise UserError(
                f"actions of {url} have the fields {described}; name the one that takes the text, action=NAME, or action=json"
            )
        values = _values(fields[chosen])
        choices = tuple(readable(one if isinstance(one, str) else json.dumps(one)) for one in values)
        return cls(chosen, _kind(fields[chosen]), _help(chosen, fields[chosen], choices), choices, values)

    @property
    def takes_any_text(self) -> bool:
        """Whether every text that is not empty fits the field."""
        return self.field != WHOLE and self.kind in ("string", "any") and not self.choices

    def read(self, text: str) -> dict[str, Any]:
        """The action that a text means. Raises `NoAction`."""
        plain = text.strip()
        if self.choices:
            if plain not in self.choices:
                raise NoAction
            return {self.field: self.values[self.choices.index(plain)]}
        if not plain:
            raise NoAction
        if self.kind == "string":
            return {self.field: plain}
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            if self.takes_any_text:
                return {self.field: plain}
            raise NoAction from None
        if not _fits(value, self.kind):
            raise NoAction(f": wanted {self.kind}")
        return dict(value) if self.field == WHOLE else {self.field: value}


def _resolved(given: Any, root: Mapping[str, Any], depth: int = DEEPEST) -> dict[str, Any]:
    """A property with its references and the first of its alternatives that is not null put in."""
    one = _followed(given, root)
    own = {key: value for key, value in one.items() if key not in ALTERNATIVES}
    for options in (one.get(key) for key in ALTERNATIVES):
        if isinstance(options, list) and depth:
            found = next((option for option in options if _types(_followed(option, root)) != ["null"]), None)
            own = {**_resolved(found, root, depth - 1), **own}
    return own


def _followed(given: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """A property with what it refers to in the same schema."""
    one = dict(given) if isinstance(given, Mapping) else {}
    for _ in range(DEEPEST):
        place = one.pop("$ref", None)
        if not isinstance(place, str) or not place.startswith("#/"):
            return one
        target: Any = root
        for part in place[2:].split("/"):
            target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
        one = {**(target if isinstance(target, Mapping) else {}), **one}
    return {}


def _types(given: Mapping[str, Any]) -> list[str]:
    named = given.get("type")
    return [one for one in (named if isinstance(named, list) else [named]) if isinstance(one, str)]


def _values(given: Mapping[str, Any]) -> tuple[Any, ...]:
    """All values of a property, if the schema lists them."""
    listed = given.get("enum", [given["const"]] if "const" in given else None)
    return tuple(one for one in listed if one is not None) if isinstance(listed, list) else ()


def _kind(given: Mapping[str, Any]) -> str:
    """The JSON type of a property; of several the first that is not null."""
    found = [one for one in _types(given) if one != "null"]
    if not found and _values(given) and all(isinstance(one, str) for one in _values(given)):
        return "string"
    return found[0] if found else "any"


def _help(name: str, given: Mapping[str, Any], choices: tuple[str, ...]) -> str:
    if choices:
        return f"An action is one of: {', '.join(choices)}."[:2000]
    words = " ".join(str(given.get("description") or "").split())[:500].rstrip(".")
    return readable(f"An action is {name} ({_kind(given)})" + (f": {words}." if words else "."))


def _fits(value: Any, kind: str) -> bool:
    wanted = {
        "object": (dict,),
        "array": (list,),
        "integer": (int,),
        "number": (int, float),
        "boolean": (bool,),
        "string": (str,),
    }.get(kind)
    return wanted is None or (isinstance(value, wanted) and (kind == "boolean" or not isinstance(value, bool)))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
