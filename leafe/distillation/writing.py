"""Targets out of texts that no policy sampled: an observation, an expert's action, a comparison.

What the tokenizer does not give back as it was, and what does not fit into the model's context, is left out and counted by kind.
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
        """An example whose origin is `turn`, or nothing. `ids` are those that were sampled, where the policy wrote the target."""
        target_ids = tuple(ids) or (self.tokens.reply_ids(target) if target.strip() else ())
        why = "" if target_ids else "unwritable" if target.strip() else "empty"
        if target_ids and self.context and len(self.tokens.prompt_ids(messages)) + len(target_ids) > self.context:
            why = "no_room"
        if why:
            self.left_out[f"{kind}_{why}"] += 1
            return []
        return [Example(digest(kind, turn.id), kind, task, turn.attempt, turn.id, tuple(messages), target, target_ids)]
