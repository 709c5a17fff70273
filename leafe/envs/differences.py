"""How two observations differ, in words short enough for a sentence: which fields, and the part of a text where the two diverge."""

from __future__ import annotations

from leafe.records import Observation

BEFORE, AFTER = 30, 90  # characters shown around the first one that differs


def difference(first: Observation, second: Observation, names: tuple[str, str] = ("recorded", "replayed")) -> str:
    """The differences between two observations, by field; of a long text, the surroundings of the first differing character.

    >>> difference(Observation("a cup", reward=1), Observation("a mug", reward=1))
    "recorded 'a cup', replayed 'a mug'"
    """
    before, after = names
    parts = []
    if first.text != second.text:
        start = _shared(first.text, second.text)
        where = f"from character {start + 1} of the text on: " if max(len(first.text), len(second.text)) > BEFORE + AFTER else ""
        parts.append(f"{where}{before} {_around(first.text, start)}, {after} {_around(second.text, start)}")
    for name in ("done", "success", "reward"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            parts.append(f"{name}: {before} {one}, {after} {other}")
    return "; ".join(parts)


def shown(observation: Observation) -> str:
    """A whole observation, its text cut."""
    text = observation.text if len(observation.text) <= 160 else observation.text[:157] + "..."
    return f"{text!r} (done={observation.done}, success={observation.success}, reward={observation.reward:g})"


def _shared(first: str, second: str) -> int:
    """The length of the beginning that two texts share."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


def _around(text: str, start: int) -> str:
    if len(text) <= BEFORE + AFTER:
        return repr(text)
    begin, end = max(0, start - BEFORE), start + AFTER
    return f"{'...' if begin else ''}{text[begin:end]!r}{'...' if end < len(text) else ''}"
