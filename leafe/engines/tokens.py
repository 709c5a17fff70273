"""Conversations as token ids, and sampled ids as text.

The invariant: `ChatTokenizer.prompt_ids` always equals the tokenizer's own `apply_chat_template` with a generation prompt. Where the
chat template is concatenative (a message renders to the same text wherever it stands) and no token crosses the border of a message,
the ids are put together from a cache per message; otherwise each conversation is rendered and tokenised whole. What a model sampled
is never tokenised again here: callers keep the sampled ids.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, Generic, TypeVar

from leafe.errors import UserError
from leafe.records import Message

Chat = list[dict[str, str]]
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

# Contents that show whether a template trims, rewrites or looks into messages, and whether tokens merge across their borders.
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


class Recent(Generic[Key, Value]):
    """The `size` values that were asked for last, by key."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """The value kept under `key`, which counts as asking for it."""
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key]

    def put(self, key: Key, value: Value) -> Value:
        """Keeps `value` and forgets the one that was asked for longest ago when there are too many."""
        self._items[key] = value
        if len(self._items) > self._size:
            self._items.popitem(last=False)
        return value


class ChatTokenizer:
    """A Hugging Face tokenizer with a chat template, made fast for conversations that grow by a message at a time."""

    def __init__(self, tokenizer: Any, *, remembered: int = 16384) -> None:
        """Raises `UserError` when the tokenizer has no chat template."""
        if not getattr(tokenizer, "chat_template", None):
            raise UserError("the tokenizer has no chat template; add one with `tokenizer.chat_template = ...` and save it again.")
        self.tokenizer = tokenizer
        self._pieces: Recent[tuple[str, str, bool], list[int]] = Recent(remembered)
        self._texts: Recent[tuple[int, ...], str] = Recent(remembered)
        self._closing: list[int] = []
        self._unchecked = SPOT_CHECKS
        self._shapes: set[tuple[str, ...]] = set()
        self.piecewise = self._is_piecewise()

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end a message: the tokenizer's end-of-sequence token."""
        ids = self.tokenizer.eos_token_id
        return frozenset(() if ids is None else [ids] if isinstance(ids, int) else ids)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids of the conversation followed by the generation prompt."""
        if not self.piecewise:
            return self._whole(messages)
        ids: list[int] = []
        for index, message in enumerate(messages):
            key = (message.role, message.content, index == 0)
            piece = self._pieces.get(key)
            ids += self._pieces.put(key, self._piece(*key)) if piece is None else piece
        ids += self._closing
        shape = tuple(message.role for message in messages)
        return ids if shape in self._shapes and self._unchecked <= 0 else self._checked(ids, messages, shape)

    def count(self, text: str) -> int:
        """How many tokens a text is by itself."""
        return len(self._tokenise(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids, special tokens dropped."""
        key = tuple(ids)
        text = self._texts.get(key)
        if text is None:
            text = self.tokenizer.decode(list(key), skip_special_tokens=True, clean_up_tokenization_spaces=False)
            self._texts.put(key, str(text))
        return str(text)

    def _checked(self, ids: list[int], messages: Sequence[Message], shape: tuple[str, ...]) -> list[int]:
        # A template can depend on something that no sample conversation showed, such as their number of messages, so the first
        # real ones, and the first of each sequence of roles, are compared as well.
        self._unchecked -= 1
        self._shapes.add(shape)
        whole = self._whole(messages)
        self.piecewise = self.piecewise and whole == ids
        return whole

    def _whole(self, messages: Sequence[Message]) -> list[int]:
        chat = [{"role": message.role, "content": message.content} for message in messages]
        ids = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        return [int(token) for token in ids]

    def _render(self, chat: Chat, *, prompt: bool = False) -> str:
        return str(self.tokenizer.apply_chat_template(chat, add_generation_prompt=prompt, tokenize=False))

    def _tokenise(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _piece_text(self, role: str, content: str, first: bool) -> str:
        before: Chat = [] if first else [{"role": "user", "content": "."}]
        if role == "user" and not first:
            before = [*before, {"role": "assistant", "content": "."}]
        start = self._render(before) if before else ""
        return self._render([*before, {"role": role, "content": content}])[len(start) :]

    def _piece(self, role: str, content: str, first: bool) -> list[int]:
        return self._tokenise(self._piece_text(role, content, first))

    def _is_piecewise(self) -> bool:
        """Whether pieces joined at message borders equal the whole, judged on sample conversations and on what stands at the borders."""
        try:
            bare = [{"role": "user", "content": "."}]
            closing = self._render(bare, prompt=True)[len(self._render(bare)) :]
            self._closing = self._tokenise(closing)
            return self._borders_are_fixed(closing) and all(self._joins(chat, closing) for chat in _sample_chats())
        except (
            Exception
        ):  # a template raises what it likes (`raise_exception`, jinja errors) on a conversation that it does not accept
            return False

    def _borders_are_fixed(self, closing: str) -> bool:
        """Whether each piece starts with an added token, or each ends with one: no merge can cross such a border."""
        texts = [
            [self._piece_text(role, content, first) for content in SAMPLE_TEXTS]
            for role, first in (("system", True), ("user", True), ("user", False), ("assistant", False))
        ]
        flat = [text for group in texts for text in group]
        added = [token for token in self.tokenizer.added_tokens_decoder.values() if not (token.normalized or token.single_word)]
        openers = tuple(token.content for token in added if not token.lstrip)
        closers = tuple(token.content for token in added if not token.rstrip)
        starts = all(text.startswith(openers) for text in [*flat, closing] if text)
        return bool(flat) and (starts or all(text.endswith(closers) for text in flat if text))

    def _joins(self, chat: Chat, closing: str) -> bool:
        pieces = [self._piece_text(turn["role"], turn["content"], index == 0) for index, turn in enumerate(chat)]
        text = self._render(chat, prompt=True)
        joined = [token for piece in pieces for token in self._tokenise(piece)] + self._closing
        return "".join(pieces) + closing == text and joined == self._tokenise(text)


def _sample_chats() -> list[Chat]:
    """Conversations with and without a system message, with every sample text in every role."""
    chats: list[Chat] = []
    for shift in range(len(SAMPLE_TEXTS)):
        for roles in (["system"], []):
            turns = [*roles, *(["user", "assistant"] * 4), "user"]
            texts = [SAMPLE_TEXTS[(shift + 3 * index) % len(SAMPLE_TEXTS)] for index in range(len(turns))]
            chats.append([{"role": role, "content": text} for role, text in zip(turns, texts, strict=True)])
    return chats
