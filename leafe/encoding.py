"""The one conversion of frozen records to JSON and back, field by field.

It knows dataclasses, tuples, mappings, string enumerations, optional values and plain ones; no record by name.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import cache
from itertools import repeat
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# Metadata of a field that is written only where it is set, so that lines stay as older versions wrote them.
OMITTED = {"omitted": True}


def encode(value: Any) -> Any:
    """A record as JSON-able data. Fields that hold their default are kept, so that a line explains itself, unless they are `OMITTED`."""
    kind: type = type(value)
    if kind in _PLAIN:
        return value
    always, omitted = _fields(kind)
    if always:
        data = {name: encode(getattr(value, name)) for name in always}
        for name, unset in omitted:
            if (held := getattr(value, name)) != unset:
                data[name] = encode(held)
        return data
    if isinstance(value, (list, tuple)):
        return [item if type(item) in _PLAIN else encode(item) for item in value]
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    return value


_PLAIN = frozenset({str, int, float, bool, type(None)})


@cache
def _fields(kind: type) -> tuple[tuple[str, ...], tuple[tuple[str, Any], ...]]:
    """The fields of a record that are always written, and the others with their unset values; none for any other type."""
    every = fields(kind) if is_dataclass(kind) else ()
    always = tuple(item.name for item in every if "omitted" not in item.metadata)
    return always, tuple((item.name, item.default) for item in every if "omitted" in item.metadata)


@cache
def _hints(record: type) -> dict[str, Any]:
    return get_type_hints(record)


def decode(kind: Any, data: Any) -> Any:
    """The inverse of `encode` for a record type, checked field by field.

    >>> from leafe.records import Experience
    >>> decode(Experience, {"turn": 3, "text": "go left"})
    Experience(turn=3, text='go left')

    Raises `ValueError` when the data do not have the record's shape.
    """
    origin = get_origin(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return _decode_record(kind, data)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"wanted a list, found {type(data).__name__}")
        kinds = get_args(kind)
        if kinds[-1] is not Ellipsis and len(kinds) != len(data):
            raise ValueError(f"wanted {len(kinds)} values, found {data!r:.80}")
        each = repeat(kinds[0]) if kinds[-1] is Ellipsis else kinds
        return tuple(decode(one, item) for one, item in zip(each, data, strict=False))
    if origin in (Union, types.UnionType):
        return None if data is None else decode(get_args(kind)[0], data)
    if origin is Literal:
        if data not in get_args(kind):
            raise ValueError(f"wanted one of {get_args(kind)}, found {data!r}")
        return data
    return _decode_scalar(kind, origin, data)


def _decode_record(kind: type, data: Any) -> Any:
    hints = _hints(kind)
    if not isinstance(data, dict) or not data.keys() <= hints.keys():
        raise ValueError(f"wanted the fields of {kind.__name__}, found {data!r:.80}")
    try:
        return kind(**{name: decode(hints[name], item) for name, item in data.items()})
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None


def _decode_scalar(kind: Any, origin: Any, data: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(data)
    wanted = dict if origin is not None else kind
    accepted = (int, float) if wanted is float else (wanted,)
    if kind is not Any and (not isinstance(data, accepted) or (isinstance(data, bool) and wanted is not bool)):
        raise ValueError(f"wanted {getattr(wanted, '__name__', wanted)}, found {data!r:.80}")
    return float(data) if wanted is float else data
