"""Scores of many texts, with as many in flight as keep the engine busy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from leafe.engines.base import Engine, Scores
from leafe.errors import UserError
from leafe.records import Example, Message, Target

Answer = TypeVar("Answer")

TEXT = (Message("user", "a"),)
LIMITS = (20, 5, 1)  # on the most probable tokens of a position, as servers have them
Question = tuple[Sequence[Message], Sequence[int]]  # the messages, and ids as if sampled after them


async def most_probable(engine: Engine, ids: Sequence[int], top: int) -> int:
    """Has one short text scored; returns how many of `top` most probable tokens the engine gives: all, or a usual limit that is less.

    Raises as `Engine.score` does if it cannot score.
    """
    for most in (top, *(limit for limit in LIMITS if limit < top)):
        try:
            await engine.score(TEXT, ids, most)
            return most
        except UserError as error:
            refusal = error
    raise refusal


async def score_all(engine: Engine, questions: Sequence[Question], *, top: int = 0) -> list[Scores]:
    """The engine's scores of each question, in their order. Raises as `Engine.score` does."""

    async def one(question: Question) -> Scores:
        return await engine.score(*question, top)

    return await _bounded(engine, questions, one)


async def score_fitting(engine: Engine, questions: Sequence[Question]) -> list[Scores | None]:
    """The same for ids that the engine has sampled; None for a question that is longer than the context."""

    async def one(question: Question) -> Scores | None:
        try:
            return await engine.score(*question)
        except UserError:  # of the engine's own ids, only the length can be wrong
            return None

    return await _bounded(engine, questions, one)


async def _bounded(engine: Engine, questions: Sequence[Question], ask: Callable[[Question], Awaitable[Answer]]) -> list[Answer]:
    room = asyncio.Semaphore(engine.concurrency)

    async def one(question: Question) -> Answer:
        async with room:
            return await ask(question)

    return list(await asyncio.gather(*map(one, questions)))


async def with_references(engine: Engine, examples: Sequence[Example]) -> list[Example]:
    """The examples with the log-probabilities of their targets under the engine's model, which serves as the reference."""
    scores = await score_all(engine, [(example.messages, example.target_ids) for example in examples])
    return [_referenced(example, one.logprobs) for example, one in zip(examples, scores, strict=True)]


def _referenced(example: Example, logprobs: Sequence[float]) -> Example:
    targets = example.targets or tuple(map(Target, example.target_ids))
    pairs = zip(targets, logprobs, strict=True)
    return replace(example, targets=tuple(replace(target, reference=min(0.0, value)) for target, value in pairs))
