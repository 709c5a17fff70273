"""Scores of given ids through a server: the requests to `/completions`, and how the answer is read.

The ids of a whole text are sent as the prompt, and the log-probabilities of the prompt are read: as `prompt_logprobs`, which vLLM gives, or
by `echo`, as older servers do. A server that gives neither cannot score.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from leafe.engines.base import Scores
from leafe.engines.openai_answers import TOKEN_ID, Malformed, error_of, json_of

TEXTS = "/completions"
Ranked = list[tuple[int, float]]  # ids with their log-probabilities


def requests(model: str, ids: Sequence[int], top: int) -> Iterator[dict[str, Any]]:
    """The requests for the log-probabilities of `ids`, the more likely supported one first."""
    fields = {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 1.0}
    yield {**fields, "prompt_logprobs": max(1, top)}
    yield {**fields, "echo": True, "logprobs": max(1, top), "return_tokens_as_token_ids": True}


def read_scores(body: bytes, prompt: int, ids: Sequence[int], top: int) -> Scores | None:
    """The scores of `ids`, which follow `prompt` other ids; None if the answer has none. Raises `Malformed`."""
    found = json_of(body)
    choices = found.get("choices") if isinstance(found, dict) else None
    if error_of(body) or not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Malformed(f"no single choice: {body[:80]!r}")
    listed = choices[0].get("prompt_logprobs")
    if isinstance(listed, list):
        if len(listed) != prompt + len(ids):
            raise Malformed(f"log-probabilities of {len(listed)} tokens where {prompt + len(ids)} were sent")
        ranked = [_by_id(place) for place in listed[prompt:]]
        return _scores([dict(place).get(one) for place, one in zip(ranked, ids, strict=True)], ranked, top)
    echoed = choices[0].get("logprobs")
    values = echoed.get("token_logprobs") if isinstance(echoed, dict) else None
    if not isinstance(echoed, dict) or not isinstance(values, list) or len(values) < prompt + len(ids):
        return None
    places = (echoed.get("top_logprobs") or [])[prompt : prompt + len(ids)] if top else []
    return _scores(values[prompt : prompt + len(ids)], [_by_name(place) for place in places], top)


def _scores(values: Sequence[Any], ranked: Sequence[Ranked], top: int) -> Scores:
    wrong = [value for value in values if not _is_logprob(value)]
    if wrong:
        raise Malformed(f"{wrong[0]!r:.40} as the log-probability of a token that was sent")
    best = [sorted(place, key=lambda pair: -pair[1])[:top] for place in ranked] if top else []
    if top and (len(best) != len(values) or not all(best)):
        raise Malformed("no ids of the most probable tokens")
    tops = tuple(tuple((one, math.exp(min(0.0, logprob))) for one, logprob in place) for place in best)
    return Scores(tuple(round(min(0.0, float(value)), 5) for value in values), tops)


def _by_id(place: Any) -> Ranked:
    """One position of `prompt_logprobs`: `{"17": {"logprob": -0.5, ...}, ...}`."""
    entries = place if isinstance(place, Mapping) else {}
    pairs = [(one, entry.get("logprob") if isinstance(entry, Mapping) else entry) for one, entry in entries.items()]
    return [(int(one), float(value)) for one, value in pairs if one.isdecimal() and value is not None and _is_logprob(value)]


def _by_name(place: Any) -> Ranked:
    """One position of `top_logprobs`: `{"token_id:17": -0.5, ...}`."""
    entries = place if isinstance(place, Mapping) else {}
    named = [(one.removeprefix(TOKEN_ID), value) for one, value in entries.items() if one.startswith(TOKEN_ID)]
    return [(int(one), value) for one, value in named if one.isdecimal() and _is_logprob(value)]


def _is_logprob(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value <= 1e-3
