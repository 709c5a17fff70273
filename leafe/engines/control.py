"""Control tokens in texts: whatever a world or a model wrote stays text, even if it spells out a control token.

A text that spells one out is encoded as text by the tokenizer itself if that can tell the two apart; otherwise a space is put into it.
Signs that a tokenizer turns into a control token only after rewriting them, such as full-width ones, count as spelling it out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

TRIES = 8  # an inserted space can make another control token of the rest
BREAK = " "
UNKNOWN = "\ufffd"  # replaces a token of a single sign, which no space can break
_TEXT = "{% for m in messages %}{{ m.content }}{% endfor %}"
_KEPT = 4096  # texts that are remembered as plain


class ControlTokens:
    """The `tokens` of a tokenizer that no text may turn into."""

    def __init__(self, tokenizer: Any, tokens: Sequence[str]) -> None:
        self.tokens = tuple(sorted(filter(str.strip, tokens), key=len, reverse=True))  # the longest first: it may hold others
        self._pattern = re.compile("|".join(map(re.escape, self.tokens)) or "(?!)")
        self._ids = frozenset(tokenizer.convert_tokens_to_ids(list(self.tokens)))
        self._plain: dict[str, bool] = {}
        self._original = tokenizer
        self.tokenizer = copy(tokenizer)  # a copy: the setting must not be saved with a trained model
        self.tokenizer.chat_control_tokens = list(self.tokens)
        # A token that the vocabulary also makes of plain text cannot be told apart, so its text is broken.
        self._inseparable = [token for token in self.tokens if not self._is_separable(token)]

    def is_plain(self, text: str) -> bool:
        """Whether a text spells out no control token."""
        known = self._plain.get(text)
        if known is None:
            if len(self._plain) >= _KEPT:
                self._plain.clear()
            known = self._plain[text] = self._pattern.search(text) is None and self._ids.isdisjoint(self._encoded(text))
        return known

    def spelled(self, text: str) -> str:
        """The text, with a space in those control tokens that the tokenizer cannot tell from the template's."""
        for token in self._inseparable:
            text = _parted(text, token)
        return self._rewritten_apart(text)

    def broken(self, text: str) -> str:
        """The text, with a space in every control token."""
        for _ in range(TRIES):
            for token in self.tokens:
                text = _parted(text, token)
            text = self._rewritten_apart(text)
            if self._pattern.search(text) is None:
                return text
        return self._pattern.sub(UNKNOWN, text)

    def ids(self, text: str) -> list[int]:
        """The ids of a text by itself; a control token that it spells out is encoded as text."""
        if self.is_plain(text):
            return self._encoded(text)
        text = self.spelled(text)
        try:
            ids = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                chat_template=_TEXT,
                tokenize=True,
                return_dict=False,
                sanitize_control_tokens=True,
            )
        except (ValueError, NotImplementedError):
            ids = self._encoded(self.broken(text))
        return [int(one) for one in ids]

    def _encoded(self, text: str) -> list[int]:
        return list(self._original(text, add_special_tokens=False)["input_ids"])

    def _rewritten_apart(self, text: str) -> str:
        """The text, with a space in whatever becomes a control token only once the tokenizer has rewritten it."""
        for _ in range(TRIES):
            spans = list(self._rewritten(text))
            for start, end in reversed(spans):
                text = text[: start + 1] + BREAK + text[start + 1 :] if end - start > 1 else text[:start] + UNKNOWN + text[end:]
            if not spans:
                return text
        return self._pattern.sub(UNKNOWN, text)

    def _rewritten(self, text: str) -> Iterator[tuple[int, int]]:
        if self._ids.isdisjoint(self._encoded(self._pattern.sub(UNKNOWN, text))):
            return
        found = self._original(text, add_special_tokens=False, return_offsets_mapping=True)
        for one, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            if one in self._ids and end > start and self._pattern.fullmatch(text[start:end].strip()) is None:
                yield start, end

    def _is_separable(self, token: str) -> bool:
        try:
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": token}], chat_template=_TEXT, tokenize=True, sanitize_control_tokens=True
            )
        except (ValueError, NotImplementedError):
            return False
        return True


def _parted(text: str, token: str) -> str:
    """Puts a space behind the first sign of each such token until none is left."""
    for _ in range(TRIES):
        if token not in text:
            break
        text = text.replace(token, f"{token[0]}{BREAK}{token[1:]}" if len(token) > 1 else UNKNOWN)
    return text
