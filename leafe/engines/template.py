"""A tokenizer's chat template, proved on a trial conversation of the shape that runs have.

The invariant: the rendering contains every message's content in order, as text and never as a control token, and the same conversation
gives the same ids on any day. The format that a template expects is found by trying: contents as text or in parts, the system message
as a separate message or ahead of the first user message. A template that no format suits is a `UserError` at load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from leafe.engines.control import ControlTokens
from leafe.errors import UserError
from leafe.records import Message

Turns = list[tuple[str, str]]  # (role, content)

# The date that a template receives: the day that Llama's templates fall back to, at noon.
FIXED_DATE = {
    "%d": "26", "%-d": "26", "%e": "26", "%m": "07", "%-m": "7", "%Y": "2024", "%y": "24", "%b": "Jul", "%B": "July", "%a": "Fri",
    "%A": "Friday", "%j": "208", "%H": "12", "%I": "12", "%M": "00", "%S": "00", "%p": "PM", "%F": "2024-07-26", "%T": "12:00:00",
    "%Z": "UTC", "%z": "+0000",
}  # fmt: skip
CLOCK = "strftime_now"
TRIAL: Turns = [
    ("system", "Rules first."),
    ("user", "Task second."),
    *((role, f"{said} number {turn}.") for turn in range(1, 9) for role, said in (("assistant", "Reply"), ("user", "Sight"))),
]
# Replies that templates are known to parse; they may be shortened, as long as nothing is raised.
REPLIES = ("<think>\nwhy\n</think>\n\nleft", "</think>", "{{ x }} {% if %}", "<tool_call>\n{}\n</tool_call>", " \n")
BLANKS = ("", " ", "(empty)")
MEND = "; put another chat_template.jinja beside the tokenizer"


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The format of conversations that a template expects: `parts` is whether contents are lists of parts.

    `system` is whether a system message is separate, is put ahead of the first user message, or may never be missing.
    """

    parts: bool
    system: Literal["own", "merged", "always"]

    def turns(self, turns: Turns) -> Turns:
        """The conversation with its system message in the expected place."""
        has_system = bool(turns) and turns[0][0] == "system"
        if self.system == "always" and not has_system:
            return [("system", ""), *turns]
        if self.system != "merged" or not has_system:
            return turns
        (_, system), *rest = turns
        ahead = f"{system}\n\n{rest[0][1]}" if rest else system
        return [("user", ahead), *rest[1:]]


class ChatTemplate:
    """The chat template of `tokenizer`. `notes` are the adaptations to it that its user may not expect, a sentence each."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises `UserError` when the template is missing or cannot render a whole conversation."""
        self._tokenizer = tokenizer
        self._source = _source(tokenizer)
        self._blank = BLANKS[0]
        self.arrangement = Arrangement(False, "own")
        self.arrangement = self._found()
        self._find_blank()
        self._check_replies()
        self._check_generation_prompt()
        self._control = ControlTokens(tokenizer, self._control_tokens())
        self.notes = tuple(self._notes())

    def turns(self, messages: Sequence[Message]) -> Turns:
        """A conversation as the template takes it."""
        return self.arranged([(message.role, message.content) for message in messages])

    def text(self, turns: Turns, *, prompt: bool = False) -> str:
        """Arranged turns as text, with a generation prompt on request. Control tokens in contents look like the template's."""
        return str(self._apply(self._tokenizer, turns, add_generation_prompt=prompt, tokenize=False))

    def ids(self, turns: Turns) -> list[int]:
        """The ids of arranged turns and the generation prompt; a control token that a content spells out is spelled out in ids too."""
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        if all(self.plain(content) for _, content in turns):
            return [int(token) for token in self._apply(self._tokenizer, turns, **options)]
        marked = [(role, self._control.spelled(content)) for role, content in turns]
        try:
            ids = self._apply(self._control.tokenizer, marked, sanitize_control_tokens=True, **options)
        except ValueError:  # the context makes a token of it, which no token alone has shown
            ids = self._apply(self._tokenizer, [(role, self.broken(content)) for role, content in turns], **options)
        return [int(token) for token in ids]

    def text_ids(self, text: str) -> list[int]:
        """The ids of a text by itself; a control token that it spells out is encoded as text."""
        return self._control.ids(text)

    def plain(self, content: str) -> bool:
        """Whether a content spells out no control token."""
        return self._control.is_plain(content)

    def broken(self, content: str) -> str:
        """The content with a space in every control token that it spells out, for servers that would take it for the token."""
        return content if self.plain(content) else self._control.broken(content)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The tokens that must not come from texts, the longest first."""
        return self._control.tokens

    def closing_id(self, stop_ids: frozenset[int]) -> int | None:
        """The token that the template ends an assistant message with, unless it is one of `stop_ids`: a reply stops there as well."""
        reply, sight = TRIAL[2][1], TRIAL[3][1]
        last = self._added(self.text(self.arranged(TRIAL[:3])).partition(reply)[2])
        between = self._added(self.text(self.arranged(TRIAL[:4])).partition(reply)[2].partition(sight)[0])
        first = next(iter([*last, *between]), None)
        return None if first in stop_ids else first

    def _apply(self, tokenizer: Any, turns: Turns, **options: Any) -> Any:
        chat = [{"role": role, "content": self._content(content)} for role, content in turns]
        return tokenizer.apply_chat_template(chat, chat_template=self._source, **options)

    def _content(self, content: str) -> str | list[dict[str, str]]:
        return [{"type": "text", "text": content}] if self.arrangement.parts else content

    def arranged(self, turns: Turns) -> Turns:
        """Plain turns as the template takes them."""
        return [
            (role, content if not self._blank or content.strip() else self._blank)
            for role, content in self.arrangement.turns(turns)
        ]

    def _found(self) -> Arrangement:
        """The first arrangement that renders the whole trial conversation, with and without a system message."""
        reason = ""
        for parts, system in product((False, True), ("own", "merged", "always")):
            self.arrangement = Arrangement(parts, system)  # type: ignore[arg-type]
            faults = (self._fault(TRIAL[start:stop]) for start, stop in ((0, 2), (0, None), (1, 2), (1, None)))
            found = next(filter(None, faults), "")
            if not found:
                return self.arrangement
            reason = reason or found
        raise UserError(f"the chat template cannot show a conversation: {reason}{MEND}.")

    def _fault(self, turns: Turns) -> str:
        """The fault in the rendering of a conversation, empty for none."""
        try:
            text = self.text(self.arranged(turns), prompt=True)
        except Exception as error:  # a template raises what it likes
            return f"it raises {_told(error)}"
        place = 0
        for role, content in turns:
            place = text.find(content, place)
            if place < 0:
                return f"it leaves out what the {role} says or puts it elsewhere"
            place += len(content)
        return ""

    def _find_blank(self) -> None:
        """Finds the replacement of an empty message, which not every template takes."""
        for self._blank in BLANKS:
            if not self._raised(""):
                return

    def _check_replies(self) -> None:
        for reply in REPLIES:
            raised = self._raised(reply)
            if raised:
                raise UserError(f"the chat template raises {raised} on the reply {reply!r}{MEND}.")

    def _raised(self, reply: str) -> str:
        """The error that the template raises when every reply is this one, empty for none."""
        turns = [(role, reply if role == "assistant" else content) for role, content in TRIAL]
        try:
            self.text(self.arranged(turns), prompt=True)
        except Exception as error:  # a template raises what it likes
            return _told(error)
        return ""

    def _check_generation_prompt(self) -> None:
        """Refuses a template that opens assistant messages with text that no prompt ends with."""
        asked, replied = self.arranged(TRIAL[:2]), self.arranged(TRIAL[:3])
        bare, prompt, whole = self.text(asked), self.text(asked, prompt=True), self.text(replied)
        opening = whole[len(bare) :].partition(TRIAL[2][1])[0]
        if prompt == bare and whole.startswith(bare) and opening.strip():
            raise UserError(
                f"the chat template has no generation prompt; wanted {opening!r} when add_generation_prompt is set: add that to "
                "chat_template.jinja beside the tokenizer."
            )

    def _is_forgeable(self) -> bool:
        """Whether one message that contains the template's separators between three messages has the ids of the three."""
        three = [("user", "Alpha."), ("assistant", "Beta."), ("user", "Gamma.")]
        try:
            between = self.text(self.arranged(three)).partition(three[0][1])[2].rpartition(three[2][1])[0]
            one = [("user", three[0][1] + between + three[2][1])]
            return self.ids(self.arranged(one)) == self.ids(self.arranged(three))
        except Exception:  # a template raises what it likes
            return False

    def _control_tokens(self) -> list[str]:
        """The special tokens, and the other added tokens that the template writes around plain messages."""
        written = {token for turns in (TRIAL, TRIAL[1:]) for token in self._added(self.text(self.arranged(turns)))}
        added = self._tokenizer.added_tokens_decoder
        return [token.content for number, token in added.items() if token.special or number in written]

    def _added(self, text: str) -> list[int]:
        """The added tokens in a text, in order, without those that are white space."""
        added = self._tokenizer.added_tokens_decoder
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return [token for token in ids if token in added and not added[token].content.isspace()]

    def _notes(self) -> Iterator[str]:
        if self.arrangement.system == "merged":
            yield (
                "the chat template has no place for a system message, so it is put ahead of the first user message, in sampling, "
                "training and measuring alike"
            )
        if self._is_forgeable():
            yield "the chat template parts messages by plain words, so a text that holds these reads like separate messages"
        if CLOCK in self._source:
            yield "the chat template asks for today's date and receives 26 July 2024, so that the same conversation stays the same tomorrow"


def _source(tokenizer: Any) -> str:
    """The template's text with a fixed date. Raises `UserError` when there is none, or several and none is the default."""
    source = getattr(tokenizer, "chat_template", None)
    if isinstance(source, list):
        source = {one["name"]: one["template"] for one in source}
    if isinstance(source, dict):
        if "default" not in source:
            known = ", ".join(sorted(source)) or "none"
            raise UserError(
                f"the tokenizer has several chat templates and none is named default; found {known}: name one of them so."
            )
        source = source["default"]
    if not source or not isinstance(source, str):
        raise UserError(
            "the tokenizer has no chat template; put a chat_template.jinja beside tokenizer.json, as its makers publish it."
        )
    return (_stopped_clock() if CLOCK in source else "") + source


def _stopped_clock() -> str:
    """A macro that replaces the clock of transformers and always returns the same time. It adds nothing to what a template renders."""
    # The longest codes first, lest "%-d" be read as "%-" and "d"; the line's end is eaten by the block before it.
    codes = sorted(FIXED_DATE, key=len, reverse=True)
    replaced = "".join(f" | replace('{code}', '{FIXED_DATE[code]}')" for code in codes)
    return "{% macro " + CLOCK + "(format) %}{{ format" + replaced + " }}{% endmacro %}\n"


def _told(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    reason = (str(error).strip().split("\n")[0] or "nothing said").rstrip(".")
    return f"{type(error).__name__}: {reason:.160}" + (f" (line {line})" if line else "")
