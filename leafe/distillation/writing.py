"""Targets made from texts that no policy sampled: an observation, an expert's action, a comparison.

Texts that do not survive the tokenizer's round trip or do not fit into the model's context are left out and counted by kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from leafe.digest import digest
from leafe.engines.tokens import ChatTokenizer
from leafe.records import Example, Message, Turn


@dataclass(frozen=True)
class Writer:
    """Makes examples in the ids of one tokenizer. `context` is in tokens, 0 for any number; `left_out` counts, as `world_model_no_room`."""

    tokens: ChatTokenizer
    context: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def example(
        self, kind: str, task: str, turn: Turn, *, messages: Sequence[Message], target: str, ids: Sequence[int] = ()
    ) -> list[Example]:
        """A list of one example whose origin is `turn`, or of none. `ids` are the sampled ones, if the policy wrote the target."""
        target_ids = tuple(ids) or (self.tokens.reply_ids(target) if target.strip() else ())
        why = "" if target_ids else "unwritable" if target.strip() else "empty"
        if target_ids and self.context and len(self.tokens.prompt_ids(messages)) + len(target_ids) > self.context:
            why = "no_room"
        if why:
            self.left_out[f"{kind}_{why}"] += 1
            return []
        return [Example(digest(kind, turn.id), kind, task, turn.attempt, turn.id, tuple(messages), target, target_ids)]
