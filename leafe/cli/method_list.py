"""`leafe methods`: which methods there are, where each comes from, and the settings of one."""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any

from pydantic_core import to_jsonable_python
from rich.markup import escape
from rich.table import Table

from leafe.cli.console import console, emit
from leafe.errors import UserError
from leafe.known_methods import KnownMethod, find, listed, origin
from leafe.records import encode


def methods(name: str | None, *, as_json: bool) -> None:
    """All methods, or the settings of one. Raises `UserError` at the end of the list where one of them cannot be used."""
    if name is not None:
        _one(find(name), origin(name), as_json=as_json)
        return
    found = listed()
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
    meaning = inspect.cleandoc(method.Settings.__doc__ or "") if "__doc__" in vars(method.Settings) else ""
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
        table.add_row(*(escape(str(setting[key])) for key in ("name", "default", "wants", "about")))
    console.print(table)
    if meaning:
        console.print(escape(meaning), highlight=False, soft_wrap=True)


def _setting(section: str, key: str, field: Any) -> dict[str, str]:
    """A setting of a method as texts."""
    default = (
        "none: it must be given"
        if field.is_required()
        else json.dumps(to_jsonable_python(field.get_default(call_default_factory=True)))
    )
    wants = inspect.formatannotation(field.annotation)
    return {"name": f"{section}.{key}", "default": default, "wants": wants, "about": field.description or ""}
