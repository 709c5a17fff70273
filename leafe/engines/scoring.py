"""Scores of many texts at once, as many in flight as keep the engine busy."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from leafe.engines.base import Engine, Scores
from leafe.records import Example, Message, Target

Question = tuple[Sequence[Message], Sequence[int]]  # ids, had they been sampled after the messages


async def score_all(engine: Engine, questions: Sequence[Question], *, top: int = 0) -> list[Scores]:
    """What the engine makes of each question, in their order. Raises as `Engine.score` does."""
    room = asyncio.Semaphore(engine.concurrency)

    async def one(question: Question) -> Scores:
        async with room:
            return await engine.score(*question, top)

    return list(await asyncio.gather(*map(one, questions)))


async def with_references(engine: Engine, examples: Sequence[Example]) -> list[Example]:
    """The examples with the log-probabilities that the engine's model gives to their targets, as those of a reference."""
    scores = await score_all(engine, [(example.messages, example.target_ids) for example in examples])
    return [_referenced(example, one.logprobs) for example, one in zip(examples, scores, strict=True)]


def _referenced(example: Example, logprobs: Sequence[float]) -> Example:
    targets = example.targets or tuple(map(Target, example.target_ids))
    pairs = zip(targets, logprobs, strict=True)
    return replace(example, targets=tuple(replace(target, reference=min(0.0, value)) for target, value in pairs))
