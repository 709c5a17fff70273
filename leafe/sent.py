"""Examples as they were sent to a server, so that training reads the same text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from leafe.distillation.store import with_texts
from leafe.engines.loading import load_tokenizer
from leafe.engines.tokens import ChatTokenizer
from leafe.records import Example
from leafe.run import RunDirectory
from leafe.stages import PROBE


def as_sent(run: RunDirectory, model: Path, examples: Sequence[Example]) -> Sequence[Example]:
    """The examples as they were sampled: text that a server would have taken for control tokens was sent with a space in it."""
    found = run.stages.get(PROBE)
    if not isinstance(found, dict) or found.get("controls", "text") == "text":
        return examples
    template = ChatTokenizer(load_tokenizer(model)).template
    return [with_texts(example, template.broken) for example in examples]
