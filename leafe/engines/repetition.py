"""Replies that repeat themselves without end, as small models write them until a limit cuts them.

A reply is ended when its end consists of the same `SHORTEST .. LONGEST` tokens `times` times in a row; a shorter period is found through
its multiples. The rule is that of vLLM's `repetition_detection`, so that engines end a reply at the same token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SHORTEST, LONGEST = 24, 64  # tokens: rows of a board and lists of zeros are shorter than four times 24


def repeats(ids: Sequence[int], times: int, start: int = 0) -> bool:
    """Whether `ids[start:]` ends with one pattern `times` times in a row. Never, if `times` is below 2."""
    size = len(ids)
    if times < 2 or size - start < SHORTEST * times:
        return False
    last = ids[-1]
    for length in range(SHORTEST, min(LONGEST, (size - start) // times) + 1):
        if ids[size - 1 - length] == last and _stands(ids, length, times):
            return True
    return False


def _stands(ids: Sequence[int], length: int, times: int) -> bool:
    stretch = ids[len(ids) - length * times :]
    return all(stretch[at] == stretch[at - length] for at in range(len(stretch) - 1, length - 1, -1))


def repetition_end(ids: Sequence[int], times: int) -> int:
    """The number of ids up to the first place at which `repeats` holds; all of them if it never does."""
    said: list[int] = []
    for token in ids:
        said.append(token)
        if repeats(said, times):
            break
    return len(said)


def repetition_field(times: int) -> dict[str, Any]:
    """The field of a request that asks vLLM for the same; none if `times` is below 2."""
    if times < 2:
        return {}
    return {"repetition_detection": {"min_pattern_size": SHORTEST, "max_pattern_size": LONGEST, "min_count": times}}
