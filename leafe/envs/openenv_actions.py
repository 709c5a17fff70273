"""The form of an OpenEnv server's actions, and how a text becomes one, by the server's JSON schema.

A text fills one field of the action, converted to its type, or it is the whole action in JSON. Text that does not fit is refused here,
before it is sent; the server may refuse the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leafe.errors import UnknownName, UserError

WHOLE = "json"  # for an action that is written out


class NoAction(Exception):
    """A text that is no action; the message is a reason to append, or empty."""


@dataclass(frozen=True, slots=True)
class ActionForm:
    """`field` takes the text, or is `json`; `kind` is its JSON type, `any` where the schema names none; `choices` are all its values."""

    field: str
    kind: str
    help: str
    choices: tuple[str, ...] = ()

    @classmethod
    def of(cls, schema: Any, wanted: str, url: str) -> ActionForm:
        """The form of a server's actions. Raises `UserError` where a field has to be chosen, or the chosen one does not exist."""
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        if not isinstance(properties, Mapping):
            raise UserError(f"{url}/schema describes no actions: is url= that of an OpenEnv server?")
        fields = {str(name): given for name, given in properties.items() if name != "metadata" and isinstance(given, Mapping)}
        described = ", ".join(f"{name} ({_kind(given)})" for name, given in fields.items())
        if wanted == WHOLE:
            return cls(WHOLE, "object", f"An action is a JSON object with the fields: {described}.")
        if wanted and wanted not in fields:
            raise UnknownName(f"field of the actions of {url}", wanted, [*fields, WHOLE])
        needed = [name for name in schema.get("required", ()) if name in fields]
        chosen = wanted or (needed[0] if len(needed) == 1 else next(iter(fields)) if len(fields) == 1 else "")
        if not chosen or any(name != chosen for name in needed):
            raise UserError(
                f"actions of {url} have the fields {described}; name the one that takes the text, action=NAME, or action=json"
            )
        listed = fields[chosen].get("enum")
        choices = tuple(str(one) for one in listed) if isinstance(listed, list) else ()
        return cls(chosen, _kind(fields[chosen]), _help(chosen, fields[chosen], choices), choices)

    def read(self, text: str) -> dict[str, Any]:
        """The action that a text means. Raises `NoAction`."""
        if self.field != WHOLE and self.kind == "string":
            if not text.strip() or (self.choices and text.strip() not in self.choices):
                raise NoAction
            return {self.field: text.strip()}
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise NoAction from None
        if not _fits(value, self.kind):
            raise NoAction(f": wanted {self.kind}")
        return dict(value) if self.field == WHOLE else {self.field: value}


def _kind(given: Mapping[str, Any]) -> str:
    """The JSON type of a property; of several the first that is not null."""
    kinds = [given, *(option for option in given.get("anyOf", ()) if isinstance(option, Mapping))]
    found = [str(one["type"]) for one in kinds if isinstance(one.get("type"), str) and one["type"] != "null"]
    if not found and isinstance(given.get("enum"), list) and all(isinstance(one, str) for one in given["enum"]):
        return "string"
    return found[0] if found else "any"


def _help(name: str, given: Mapping[str, Any], choices: tuple[str, ...]) -> str:
    if choices:
        return f"An action is one of: {', '.join(choices)}."[:2000]
    words = " ".join(str(given.get("description") or "").split())[:500].rstrip(".")
    return f"An action is {name} ({_kind(given)})" + (f": {words}." if words else ".")


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
