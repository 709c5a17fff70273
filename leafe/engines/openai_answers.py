"""Strict reading of a server's answers: an answer is a reply, a report that the context is full, or malformed.

Nothing is guessed and nothing is repaired, since answers are journaled and trained on. The one exception: reasoning that a server
split off from the reply is put back before it in `<think>` tags, where the model wrote it. `Malformed` names the field and its value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TOKEN_ID = "token_id:"
LARGEST_ID = 1 << 31
LARGEST_COUNT = 1 << 40
ROUNDING = 1e-3  # how far above zero a rounded logarithm of a probability near one may lie
FINISHES: dict[str, Literal["stop", "length", "repetition"]] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "repetition": "repetition",
}

# In the words of vLLM, SGLang, llama.cpp, TGI, Gemini, Together, Mistral, xAI and OpenAI.
OVERFLOW = re.compile(
    r"maximum context length|model.{1,6}s context length|longer than the maximum model length|context_length_exceeded|exceed_context_size"
    r"|context (?:size|window|length|limit)[^.]{0,40}exceed|exceed[^.]{0,60}context (?:size|window|length|limit)"
    r"|input token count[^.]{0,40}exceeds|inputs?`? must have less than \d+ tokens|`inputs` tokens \+ `max_new_tokens` must be"
    r"|exceeds? the maximum allowed (?:input )?length|input tokens exceed the configured limit|maximum prompt length"
    r"|prompt is too long|prompt contains \d+ tokens|too large for model with \d+ maximum context",
    re.IGNORECASE,
)
OVERFLOW_STATUSES = frozenset({200, 400, 413, 422, 500})


class Malformed(ValueError):
    """An answer that is no chat completion; the message names the field and its value."""


@dataclass(frozen=True)
class Answer:
    """The status and the body of an answer, cut if it was longer than allowed. `secret` is the key, which no message may repeat."""

    status: int
    body: bytes
    retry_after: str = ""
    secret: str = field(default="", repr=False)

    @property
    def text(self) -> str:
        """The body as text, invalid bytes replaced."""
        return self.body.decode("utf-8", "replace")

    @property
    def said(self) -> str:
        """The beginning of the body, fit for a message: no line breaks, nothing that a terminal would obey, and no key."""
        text = self.text.replace(self.secret, "***") if self.secret else self.text  # before it is cut: a part of a key is not found
        return repr(text[:200].strip())

    @property
    def is_overflow(self) -> bool:
        """Whether the server reports that the conversation does not fit into its context."""
        if self.status not in OVERFLOW_STATUSES or not OVERFLOW.search(self.text):
            return False
        return self.status != 200 or bool(error_of(self.body))  # a reply may speak of context lengths as well


@dataclass(frozen=True)
class Reply:
    """One sampled reply. `ids` and `logprobs` are empty if the server returned none, `counted` is None if it returned no count."""

    text: str
    finish: Literal["stop", "length", "repetition"]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_tokens: int
    reused_tokens: int
    counted: int | None


def json_of(body: bytes) -> Any:
    """The JSON in a body. Raises `Malformed`."""
    try:
        return json.loads(body)
    except RecursionError:
        raise Malformed("JSON that is nested too deeply") from None
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise Malformed(f"no JSON ({error!s:.100}): {Answer(200, body).said}") from None


def error_of(body: bytes) -> str:
    """The error that a body reports, empty where it reports none."""
    try:
        found = json_of(body)
    except Malformed:
        return ""
    found = found[0] if isinstance(found, list) and found else found
    error = found.get("error") if isinstance(found, Mapping) else None
    return _shown(error, 2000) if error else ""


def read_reply(body: bytes, *, most: int) -> Reply:
    """The reply in the body of a chat completion of at most `most` tokens. Raises `Malformed`."""
    found = json_of(body)
    if error := error_of(body):
        raise Malformed(f"an error instead of a completion: {error:.200}")
    choices = _field(found, "choices", list, "the answer")
    if len(choices) != 1:
        raise Malformed(f"{len(choices)} choices where one was asked for")
    choice = _group(choices[0], "choices[0]")
    usage = _optional(found, "usage")
    finish = _finish(choice.get("finish_reason"))
    ids, logprobs = _tokens(choice.get("logprobs"), most)
    counted = _count(usage, "completion_tokens")
    if counted is not None and counted > most:
        raise Malformed(f"usage.completion_tokens is {counted} where at most {most} were asked for")
    if counted is not None and len(ids) > counted:
        raise Malformed(f"{len(ids)} ids of tokens where {counted} were counted")
    text = _text(_group(choice.get("message"), "message"), finish, counted or len(ids))
    details = _optional(usage, "prompt_tokens_details")
    return Reply(
        text=text,
        finish=finish,
        ids=ids,
        logprobs=logprobs,
        prompt_tokens=_count(usage, "prompt_tokens") or 0,
        reused_tokens=_count(details, "cached_tokens") or 0,
        counted=counted if counted is not None else len(logprobs) or None,
    )


def _shown(value: Any, most: int = 80) -> str:
    """The beginning of a value, fit for a message."""
    try:
        return repr(value)[:most]
    except RecursionError:
        return "something nested too deeply"


def _field(group: Any, name: str, kind: type, where: str) -> Any:
    value = _group(group, where).get(name)
    if not isinstance(value, kind):
        raise Malformed(f"{where} holds {_shown(value)} as its {name}")
    return value


def _group(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{where} is {_shown(value)} and no group of fields")
    return value


def _optional(group: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A group of fields that may be missing or null."""
    value = group.get(name)
    return {} if value is None else _group(value, name)


def _count(group: Mapping[str, Any], name: str) -> int | None:
    value = group.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < LARGEST_COUNT:
        raise Malformed(f"usage has {_shown(value)} for {name}, which is no count of tokens")
    return value


def _finish(reason: Any) -> Literal["stop", "length", "repetition"]:
    if not isinstance(reason, str) or reason not in FINISHES:
        raise Malformed(f"the reply ended for the reason {_shown(reason)}")
    return FINISHES[reason]


def _text(message: Mapping[str, Any], finish: str, drawn: int) -> str:
    """The text that the model wrote. A reply without text for which tokens were drawn is malformed, not empty."""
    if message.get("tool_calls") or message.get("function_call"):
        raise Malformed("a tool call where text was asked for; start the server without a parser for tool calls")
    content = _joined(message.get("content"))
    thoughts = _thoughts(message)
    if content is None and not thoughts:
        content = message.get("refusal")
        if not isinstance(content, str) and drawn > 1:  # one token is the one that ends a reply
            raise Malformed(f"content is null though {drawn} tokens were drawn")
    if thoughts:
        # A reply that was cut among its thoughts stays open, so that it is not taken for a whole one.
        content = f"<think>{thoughts}" + ("" if finish == "length" and not content else f"</think>\n{content or ''}")
    return _encodable(content or "")


def _thoughts(message: Mapping[str, Any]) -> str:
    """The model's reasoning, if the server takes it out of the reply: vLLM and others name the field differently."""
    for name in ("reasoning_content", "reasoning"):
        value = message.get(name)
        if value is not None and not isinstance(value, str):
            raise Malformed(f"message.{name} is {_shown(value)} and no text")
        if value:
            return value
    return ""


def _joined(content: Any) -> str | None:
    """A text, or the concatenated texts of its parts."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Malformed(f"content is {_shown(content)} and no text")
    return "".join(map(_part, content))


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    if not isinstance(text, str):
        raise Malformed(f"content holds a part that is no text: {_shown(part)}")
    return text


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Malformed(f"content holds half a character (a lone surrogate): {text[error.start : error.start + 10]!r}") from None
    return text


def _tokens(logprobs: Any, most: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Ids and log-probabilities: all of them or none. vLLM writes ids as `token_id:17` in place of the token, llama.cpp as `id`."""
    if logprobs is None:
        return (), ()
    entries = _group(logprobs, "logprobs").get("content")
    if entries is None:
        return (), ()
    if not isinstance(entries, list):
        raise Malformed(f"logprobs.content is {_shown(entries)} and no list")
    if len(entries) > most:
        raise Malformed(f"{len(entries)} tokens in logprobs.content where at most {most} were asked for")
    groups = [_group(entry, "an entry of logprobs.content") for entry in entries]
    ids = [number for number in map(_id, groups) if number is not None]
    if ids and len(ids) != len(groups):
        raise Malformed(f"{len(ids)} of {len(groups)} tokens with an id")
    values = tuple(map(_logprob, groups))
    return tuple(ids), values


def _id(entry: Mapping[str, Any]) -> int | None:
    token, number = entry.get("token"), entry.get("id")
    if isinstance(token, str) and token.startswith(TOKEN_ID):
        digits = token[len(TOKEN_ID) :]
        number = int(digits) if re.fullmatch(r"[0-9]{1,10}", digits) else digits
    if number is None:
        return None
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < LARGEST_ID:
        raise Malformed(f"{_shown(number)} as the id of a token")
    return number


def _logprob(entry: Mapping[str, Any]) -> float:
    value = entry.get("logprob")
    if not isinstance(value, int | float) or isinstance(value, bool) or not -LARGEST_COUNT < value <= ROUNDING:  # nor is NaN
        raise Malformed(f"{_shown(value)} as the log-probability of a token")
    return min(round(float(value), 5), 0.0)
