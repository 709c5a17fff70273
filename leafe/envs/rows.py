"""One line of a user's JSON lines file as a record. A line that cannot be read is refused with its remedy."""

from __future__ import annotations

import codecs
import json
from math import isfinite
from typing import Any

from leafe.errors import CorruptFile


def blank(line: bytes) -> bool:
    """Whether a line holds nothing, a byte-order mark aside."""
    return not line.removeprefix(codecs.BOM_UTF8).strip()


def read_row(line: bytes, where: str, what: str = "a JSON object") -> dict[str, Any]:
    """The JSON object that a line holds, whatever line breaks its texts contain.

    Raises `CorruptFile` for anything else; `where` and `what` name the place and the expected content.
    """
    try:
        text = line.decode("utf-8-sig")
        row = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except UnicodeDecodeError as error:
        found = f"the byte {line[error.start]:#x} is none of UTF-8"
        raise CorruptFile(f"{where} is no JSON: {found}; save the file as UTF-8, as with: iconv -f latin1 -t utf-8") from None
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{where} is no JSON ({str(error)[:120]}); fix that line or fetch the file again") from None
    if not isinstance(row, dict):
        raise CorruptFile(f"{where} should be {what} and is {text.strip()[:40]!r}")
    return row


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no JSON: write null, or leave the field out")


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"the number {text:.40} is too large")
    return value
