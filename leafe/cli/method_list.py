"""`leafe methods`: which methods there are, where each comes from, and the settings of one."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python
from rich.markup import escape
from rich.table import Table

from leafe.cli.console import console, emit, only_json
from leafe.errors import UserError
from leafe.known_methods import KnownMethod, find, listed, origin
from leafe.records import encode


def methods(name: str | None, *, as_json: bool) -> None:
    """All methods, or the settings of one. Raises `UserError` at the end of the list where one of them cannot be used."""
    with only_json(as_json):  # a method's module may print when it is imported
        found = listed() if name is None else []
        method = None if name is None else find(name)
    if method is not None:
        _one(method, origin(name or ""), as_json=as_json)
        return
    if as_json:
        emit([encode(one) for one in found])
    else:
        for one in found:
            told = escape(one.summary) if not one.fault else "[red]cannot be used[/]"
            console.print(f"[bold]{escape(one.name)}[/]  {told} ({escape(one.origin)})", highlight=False, soft_wrap=True)
    if faults := list(dict.fromkeys(one.fault for one in found if one.fault)):
        for fault in faults[:-1]:
            print(f"leafe: {fault}", file=sys.stderr)
        raise UserError(faults[-1])


def _one(method: KnownMethod, origin: str, *, as_json: bool) -> None:
    settings = [_setting(method.name, key, field) for key, field in method.Settings.model_fields.items()]
    meaning = inspect.cleandoc(vars(method.Settings).get("__doc__") or "")
    if as_json:
        emit({"name": method.name, "summary": method.summary, "origin": origin, "about": meaning, "settings": settings})
        return
    console.print(f"[bold]{escape(method.name)}[/]  {escape(method.summary)} ({escape(origin)})", highlight=False, soft_wrap=True)
    if not settings:
        console.print("It has no settings of its own; those of every recipe are in docs/settings.md.", highlight=False)
        return
    table = Table(show_header=True, box=None, padding=(0, 2, 0, 0))
    for heading in ("setting", "default", "wants", ""):
        table.add_column(heading, overflow="fold")
    for setting in settings:
        default = json.dumps(setting["default"], ensure_ascii=False) if "default" in setting else "has to be given"
        table.add_row(*map(escape, (setting["name"], default, setting["wants"], setting["about"])))
    console.print(table)
    if meaning:
        console.print(escape(meaning), highlight=False, soft_wrap=True)


def _setting(section: str, key: str, field: FieldInfo) -> dict[str, Any]:
    """A setting of a method; without a default it has to be given."""
    default = {} if field.is_required() else {"default": to_jsonable_python(field.get_default(call_default_factory=True))}
    return {"name": f"{section}.{key}", "wants": ", ".join(_wants(field)), "about": field.description or "", **default}


def _wants(field: FieldInfo) -> Iterator[str]:
    yield inspect.formatannotation(field.annotation).replace("typing.", "")
    for bound, words in {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}.items():
        for constraint in field.metadata:
            if getattr(constraint, bound, None) is not None:
                yield f"{words} {getattr(constraint, bound)}"
