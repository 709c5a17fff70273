"""Identity is content: digests that are equal in every process, and the seeds derived from them.

Nothing here depends on the builtin `hash`, on the clock or on the order of a dict.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

SEED_BITS = 63
# One encoder for all calls: `json.dumps` makes a new one whenever an argument is not its default.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, non-ASCII kept."""
    return _ENCODER.encode(value)


def digest(*values: Any, length: int = 16) -> str:
    """A hexadecimal digest of JSON-able values, `length` characters long (16 of them are 64 bits)."""
    return hashlib.sha256(canonical(values).encode()).hexdigest()[:length]


def lines_digest(values: Iterable[Any]) -> str:
    """The whole digest of JSON-able values, one a line, of which only one is held at a time."""
    sha = hashlib.sha256()
    for value in values:
        sha.update(canonical(value).encode() + b"\n")
    return sha.hexdigest()


def text_digest(text: str, length: int = 16) -> str:
    """A hexadecimal digest of one text."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def seed_for(*parts: Any) -> int:
    """A seed in `0 .. 2**63 - 1` that is a function of its parts alone, as `seed_for(run_seed, task_id, attempt, ask)`."""
    return int.from_bytes(hashlib.sha256(canonical(parts).encode()).digest()[:8], "big") >> (64 - SEED_BITS)
