"""Conversations as token ids, and sampled ids as text.

The invariant: `ChatTokenizer.prompt_ids` always equals the tokenizer's own `apply_chat_template` with a generation prompt, of the
conversation as `ChatTemplate` arranges it and with control tokens sanitized. Where the chat template is concatenative (a message
renders to the same text in any position) and no token crosses the border of a message, the ids are put together from a cache per
message; otherwise each conversation is rendered and tokenised whole. Sampled text is never tokenised again here: callers keep
the sampled ids.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

from leafe.engines.template import ChatTemplate, Turns
from leafe.growing import Growing
from leafe.records import Message

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

# Contents that show whether a template trims, rewrites or parses messages, and whether tokens merge across their borders.
SAMPLE_TEXTS = (
    "go left",
    " two\n lines \n",
    "<think>\nwhy\n</think>\n\ntake it",
    "é\u0301 \u4e2d 12345",
    "",
    "\n\n  ",
    "x</think>y",
)
SPOT_CHECKS = 64
# Conversations of up to so many messages are compared when their sequence of roles is new; longer ones only if they are half as long
# # again as the longest so far, since the cost of a comparison grows with the length.
EACH_COMPARED = 64
AGAIN = 1.5
REMEMBERED = 512  # conversations whose ids are kept to be extended


class Recent(Generic[Key, Value]):
    """A cache of the `size` most recently used values, by key."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """The value kept under `key`, which counts as a use of it."""
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key]

    def put(self, key: Key, value: Value) -> Value:
        """Keeps `value` and forgets the least recently used one when there are too many."""
        self._items[key] = value
        if len(self._items) > self._size:
            self._items.popitem(last=False)
        return value


@dataclass(frozen=True, slots=True)
class _Said:
    """The ids of a conversation so far, without a generation prompt, and its roles' initials. `joins`: whether ids may be joined."""

    roles: str = ""
    ids: tuple[int, ...] = ()
    joins: bool = True


class ChatTokenizer:
    """A Hugging Face tokenizer with a chat template, made fast for conversations that grow by a message at a time."""

    def __init__(self, tokenizer: Any, *, remembered: int = 16384) -> None:
        """Raises `UserError` when the tokenizer has no chat template that renders whole conversations."""
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer)
        self.stop_ids = self._stop_ids()
        self._pieces: Recent[tuple[str, str, bool], list[int] | None] = Recent(remembered)
        self._said: Growing[_Said] = Growing(_Said(), self._with_message, remembered=REMEMBERED)
        self._texts: Recent[tuple[int, ...], str] = Recent(remembered)
        self._closing: list[int] = []
        self._unchecked = SPOT_CHECKS
        self._shapes: set[str] = set()
        self._longest = 0
        self.piecewise = self._is_piecewise()

    @property
    def notes(self) -> tuple[str, ...]:
        """The adaptations to the chat template that its user may not expect, a sentence each."""
        return self.template.notes

    def _stop_ids(self) -> frozenset[int]:
        """The ids that end a message: the tokenizer's end-of-sequence token, and the token that the template uses instead."""
        ids = self.tokenizer.eos_token_id
        known = frozenset(() if ids is None else [ids] if isinstance(ids, int) else ids)
        closing = self.template.closing_id(known)
        return known if closing is None else known | {closing}

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids of the conversation followed by the generation prompt."""
        if not self.piecewise:
            return self.template.ids(self.template.turns(messages))
        # A system message may be put ahead of the one that follows.
        ahead = 2 if messages and messages[0].role == "system" else 1
        said = self._said.of((tuple(messages[:ahead]), *messages[ahead:]))
        if not said.joins:
            return self.template.ids(self.template.turns(messages))
        ids = [*said.ids, *self._closing]
        return self._checked(ids, messages, said.roles) if self._is_new(said.roles) else ids

    def _with_message(self, said: _Said, item: Message | tuple[Message, ...]) -> _Said:
        """The conversation with one more message, or with its first ones."""
        if not said.joins:
            return said
        turns = self.template.turns(item) if isinstance(item, tuple) else self.template.arranged([(item.role, item.content)])
        roles, ids = said.roles, list(said.ids)
        for role, content in turns:
            piece = self._known_piece(role, content, first=not roles)
            if piece is None:
                return _Said(joins=False)
            roles, ids = roles + role[0], ids + piece
        return _Said(roles, tuple(ids))

    def _known_piece(self, role: str, content: str, *, first: bool) -> list[int] | None:
        """The ids of a message, None if they depend on the conversation."""
        key = (role, content, first)
        piece = self._pieces.get(key)
        return piece if piece is not None else self._pieces.put(key, self._piece(role, content, first))

    def _is_new(self, roles: str) -> bool:
        """Whether a conversation of such roles has yet to be compared with the tokenizer's rendering."""
        if self._unchecked > 0:
            return True
        spoken = roles.removeprefix("s")
        usual = spoken == ("ua" * len(spoken))[: len(spoken)]
        return roles not in self._shapes and (not usual or len(roles) <= EACH_COMPARED or len(roles) >= AGAIN * self._longest)

    def count(self, text: str) -> int:
        """The number of tokens of a text by itself."""
        return len(self.text_ids(text))

    def text_ids(self, text: str) -> list[int]:
        """The ids of a text by itself; a control token that it spells out is encoded as text."""
        return self.template.text_ids(text)

    def reply_ids(self, text: str) -> tuple[int, ...]:
        """The ids of a reply as a model would sample it, with the token that ends it.

        Empty if they would not decode to the text, or if no token is known that ends a reply.
        """
        ending = self.template.closing_id(frozenset())
        ending = min(self.stop_ids, default=None) if ending is None else ending
        ids = self.text_ids(text)
        return (*ids, ending) if ending is not None and self.decode([*ids, ending]) == text else ()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids, without special tokens and the token that ended it."""
        key = tuple(ids)
        text = self._texts.get(key)
        if text is None:
            kept = list(key[:-1] if key and key[-1] in self.stop_ids else key)
            text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            self._texts.put(key, str(text))
        return str(text)

    def _checked(self, ids: list[int], messages: Sequence[Message], roles: str) -> list[int]:
        # A template can depend on something that no sample conversation has shown, such as the number of messages, so the first
        # real ones, and the first of each sequence of roles, are compared as well.
        self._unchecked -= 1
        self._shapes.add(roles)
        self._longest = max(self._longest, len(roles))
        whole = self.template.ids(self.template.turns(messages))
        self.piecewise = self.piecewise and whole == ids
        return whole

    def _tokenise(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _before(self, role: str, first: bool) -> Turns:
        """The shortest conversation that a message of a role can follow."""
        return [] if first else [("user", "."), ("assistant", ".")] if role == "user" else [("user", ".")]

    def _piece_text(self, role: str, content: str, first: bool) -> str:
        before = self._before(role, first)
        start = self.template.text(before) if before else ""
        return self.template.text([*before, (role, content)])[len(start) :]

    def _piece(self, role: str, content: str, first: bool) -> list[int] | None:
        if self.template.plain(content):
            return self._tokenise(self._piece_text(role, content, first))
        before = self._before(role, first)
        start = self._tokenise(self.template.text(before)) if before else []
        whole = self.template.ids([*before, (role, content)])
        end = len(whole) - len(self._closing)
        joins = whole[: len(start)] == start and whole[end:] == self._closing
        return whole[len(start) : end] if joins else None

    def _is_piecewise(self) -> bool:
        """Whether pieces joined at message borders equal the whole, judged on sample conversations and on the text at the borders."""
        try:
            bare = [("user", ".")]
            closing = self.template.text(bare, prompt=True)[len(self.template.text(bare)) :]
            self._closing = self._tokenise(closing)
            # Each sample text is in many of the conversations.
            text, ids = cache(self._piece_text), cache(self._tokenise)
            return self._borders_are_fixed(closing, text) and all(
                self._joins(chat, closing, text=text, ids=ids) for chat in self._sample_chats()
            )
        except (
            Exception
        ):  # a template raises what it likes (`raise_exception`, jinja errors) on a conversation that it does not accept
            return False

    def _borders_are_fixed(self, closing: str, text_of: Callable[[str, str, bool], str]) -> bool:
        """Whether each piece starts with an added token, or each ends with one: no merge can cross such a border."""
        kinds = [("user", True), ("user", False), ("assistant", False)]
        if self.template.arrangement.system == "own":
            kinds.append(("system", True))
        texts = [[text_of(role, content, first) for content in SAMPLE_TEXTS] for role, first in kinds]
        flat = [text for group in texts for text in group]
        added = [token for token in self.tokenizer.added_tokens_decoder.values() if not (token.normalized or token.single_word)]
        openers = tuple(token.content for token in added if not token.lstrip)
        closers = tuple(token.content for token in added if not token.rstrip)
        starts = all(text.startswith(openers) for text in [*flat, closing] if text)
        return bool(flat) and (starts or all(text.endswith(closers) for text in flat if text))

    def _joins(self, chat: Turns, closing: str, *, text: Callable[[str, str, bool], str], ids: Callable[[str], list[int]]) -> bool:
        pieces = [text(role, content, index == 0) for index, (role, content) in enumerate(chat)]
        whole = self.template.text(chat, prompt=True)
        joined = [token for piece in pieces for token in ids(piece)] + self._closing
        return "".join(pieces) + closing == whole and joined == self._tokenise(whole)

    def _sample_chats(self) -> Iterator[Turns]:
        """Conversations with and without a system message, with every sample text in every role."""
        for shift in range(len(SAMPLE_TEXTS)):
            for roles in (["system"], []):
                names = [*roles, *(["user", "assistant"] * 4), "user"]
                texts = [SAMPLE_TEXTS[(shift + 3 * index) % len(SAMPLE_TEXTS)] for index in range(len(names))]
                yield self.template.arranged(list(zip(names, texts, strict=True)))
