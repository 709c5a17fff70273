"""How far a policy has moved from a base: KL(policy || base) a turn, estimated on attempts of the policy's own.

The estimate is the sum over sampled tokens of the policy's log-probability minus the base's, divided by the turns. Both are an engine's
scores at temperature 1 of the ids that were sampled. The policy is scored under the prompts that it read, the base under the same prompts
without notes: what notes change is a part of the distance. Turns without ids, and those too long for the context, are left out of both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import fsum, isfinite
from pathlib import Path

from leafe.chat import Notes, Prompts, Scene, act_messages
from leafe.engines.base import Engine
from leafe.engines.scoring import Question, most_probable, score_fitting
from leafe.evaluation.transcripts import Transcript
from leafe.jsonl import read_records, write_lines
from leafe.records import encode

SCHEMA = "leafe.scores/1"
DIGITS = 5
ByTurn = tuple[float | None, ...]  # the nats of each turn's sampled tokens; None for one that was left out


@dataclass(frozen=True, slots=True)
class Drift:
    """The nats of an attempt's sampled tokens, minus the sum of their log-probabilities, under its own policy and under the base.

    They are of the same `turns` turns, which may be fewer than the attempt has.
    """

    task: str
    sample: int
    turns: int
    own: float
    base: float

    def __post_init__(self) -> None:
        if self.turns < 0 or not (isfinite(self.own) and isfinite(self.base)):
            raise ValueError(f"turns is {self.turns}, own is {self.own}, base is {self.base}")

    @property
    def moved(self) -> float:
        """How much more probable the tokens are under the policy, in nats; over many attempts its mean is the KL divergence."""
        return self.base - self.own


def questions(transcript: Transcript, prompts: Prompts, *, noted: bool) -> Iterator[Question]:
    """For each turn the messages that were read before it, with the attempt's notes or without, and the ids that were sampled."""
    tree = transcript.tree
    notes = Notes(notes=transcript.notes if noted else ())
    path = tree.trajectory(tree.attempts[-1].leaf)
    scene = Scene(prompts, tree.task, tree.root_of(path[-1]) if path else tree.root)
    for number, turn in enumerate(path):
        yield act_messages(scene, path[:number], notes, turn.shortening), turn.completion.token_ids


async def nats_by_turn(
    engine: Engine,
    transcripts: Sequence[Transcript],
    prompts: Prompts,
    *,
    noted: bool,
    told: Callable[[], object] = lambda: None,
) -> list[ByTurn]:
    """The nats of every turn under the engine's model. Raises as `Engine.score` does where it cannot score at all.

    The turns of an attempt are scored in their order, since each prompt begins with the one before. `told` is called after each attempt.
    """
    if ids := next((turn.completion.token_ids for one in transcripts for turn in one.tree.turns if turn.completion.token_ids), ()):
        await most_probable(engine, ids[:1], 0)
    room = asyncio.Semaphore(engine.concurrency)

    async def one(transcript: Transcript) -> ByTurn:
        async with room:
            found = [await _nats(engine, question) for question in questions(transcript, prompts, noted=noted)]
            told()
            return tuple(found)

    return list(await asyncio.gather(*map(one, transcripts)))


async def _nats(engine: Engine, question: Question) -> float | None:
    _, ids = question
    (scores,) = await score_fitting(engine, [question]) if ids else [None]
    return -fsum(scores.logprobs) if scores else None


def drifts(transcripts: Sequence[Transcript], own: Sequence[ByTurn], base: Sequence[ByTurn]) -> list[Drift]:
    """The nats of each attempt over the turns that both have scored."""
    return [_drift(*parts) for parts in zip(transcripts, own, base, strict=True)]


def _drift(transcript: Transcript, own: ByTurn, base: ByTurn) -> Drift:
    both = [(mine, theirs) for mine, theirs in zip(own, base, strict=True) if mine is not None and theirs is not None]
    mine, theirs = (round(fsum(pair[side] for pair in both), DIGITS) for side in (0, 1))
    return Drift(*transcript.key, len(both), mine, theirs)


def write_drifts(path: Path, found: Sequence[Drift]) -> None:
    """Writes a whole file, one attempt a line, or nothing."""
    write_lines(path, SCHEMA, map(encode, found))


def read_drifts(path: Path) -> tuple[Drift, ...]:
    """The attempts of a file. Raises `CorruptFile` with the line's number for a line that is none."""
    return tuple(read_records(path, SCHEMA, Drift, what="scored attempt", mend="restore the file"))
