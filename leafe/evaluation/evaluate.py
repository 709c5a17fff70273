"""Measuring a model: n independent attempts a task, each a line that survives a kill.

They are plain attempts, without reflection and rollback, unless the given player uses them; its turns count in the same way. The first
samples of each task may be watched: played again when they have ended, beside the environment's expert, and their transcripts are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from leafe.digest import seed_for
from leafe.errors import RunConflict
from leafe.evaluation.outcomes import SCHEMA, Outcome, read_outcomes
from leafe.evaluation.transcripts import Transcript, TranscriptWriter
from leafe.evaluation.watch import first_setback
from leafe.forest.builder import Rules, TreeBuilder
from leafe.forest.driver import Rollout, Runtime, drive
from leafe.forest.effects import Play
from leafe.forest.explore import Explorer
from leafe.forest.first_wave import WAVE, FirstWave
from leafe.forest.play import once
from leafe.jsonl import Appender
from leafe.records import BROKEN, Shortening, Task, Tree, encode

NATS_DIGITS = 3


@dataclass(frozen=True, slots=True)
class Watch:
    """What becomes of the first `samples` of each task: `setbacks` are looked for, and `transcripts` is the file in which they are kept."""

    samples: int = 0
    setbacks: bool = True
    transcripts: Path | None = None


@dataclass(frozen=True, slots=True)
class _Ended:
    """An attempt that has ended, with its transcript if that is kept."""

    tree: Tree
    outcome: Outcome
    transcript: Transcript | None


def attempt(task: Task, sample: int, rules: Rules, player: Explorer = once) -> Play[Tree]:
    """One attempt at a task, with the seed of its sample."""
    return player(_builder(task, sample, rules))


def _builder(task: Task, sample: int, rules: Rules) -> TreeBuilder:
    return TreeBuilder(task, replace(rules, seed=seed_for(rules.seed, "evaluate", sample)))


def _graded(task: Task, sample: int, builder: TreeBuilder, player: Explorer, *, watch: Watch) -> Play[_Ended]:
    """An attempt with its outcome, and what its being watched gives."""
    tree = yield from player(builder)
    watched = sample < watch.samples and tree.attempts[-1].stop not in BROKEN
    setback = (yield from first_setback(task, tree.turns)) if watched and watch.setbacks else None
    kept = Transcript(sample, tree, builder.notes) if watched and watch.transcripts and tree.turns else None
    return _Ended(tree, outcome_of(tree, sample, setback), kept)


def outcome_of(tree: Tree, sample: int, setback: int | None = None) -> Outcome:
    """The outcome of an attempt, or of its last branch if it was rolled back."""
    played = tree.attempts[-1]
    logprobs = [turn.completion.logprobs for turn in tree.turns]
    return Outcome(
        task=tree.task.id,
        sample=sample,
        stop=played.stop,
        success=played.success,
        reward=played.reward,
        turns=tree.spend.turns,
        prompt_tokens=tree.spend.prompt_tokens,
        sampled_tokens=tree.spend.sampled_tokens,
        error=played.error,
        no_action=sum(not turn.parsed for turn in tree.turns),
        cut=sum(turn.completion.finish == "length" for turn in tree.turns),
        closed=sum(turn.completion.finish == "closed" for turn in tree.turns),
        shortened=sum(turn.shortening != Shortening() for turn in tree.turns),
        rollbacks=tree.spend.rollbacks,
        replayed_steps=tree.spend.replayed_steps,
        reflection_tokens=tree.spend.reflection_tokens,
        question_tokens=tree.spend.question_tokens,
        setback=setback,
        nats=round(max(0.0, -sum(map(sum, logprobs))), NATS_DIGITS) if all(logprobs) else None,
    )


async def evaluate(
    tasks: Sequence[Task],
    rules: Rules,
    runtime: Runtime,
    path: Path,
    *,
    samples: int,
    mend: str = "leafe check-env NAME",
    told: Callable[[Outcome], None] = lambda outcome: None,
    player: Explorer = once,
    watch: Watch = Watch(),
) -> list[Outcome]:
    """`samples` attempts a task by `player`, appended to `path` as they end; those already there are kept and not repeated.

    The first samples of each task are watched as `watch` says. A transcript is written before its attempt's outcome, so that the same
    attempts have one after a kill.

    Outcomes are returned in the order of tasks and samples; further samples in the file stay in it. Raises `RunConflict` for a
    file with attempts at other tasks, and `UserError` when all of the first attempts broke: `mend` is the command that it suggests.
    """
    done = {(one.task, one.sample): one for one in read_outcomes(path)} if path.exists() else {}
    foreign = {task for task, _ in done} - {task.id for task in tasks}
    if foreign:
        raise RunConflict(f"{path} holds attempts at {min(foreign)!r}, which is not among the {len(tasks)} tasks; delete the file")

    def missing() -> Iterator[Rollout[_Ended]]:
        for sample in range(samples):
            for task in tasks:
                if (task.id, sample) not in done:
                    play = _graded(task, sample, _builder(task, sample, rules), player, watch=watch)
                    yield Rollout(f"{task.id}/{sample}", task, play)

    wave: FirstWave[_Ended] = FirstWave(() if done else (rollout.key for rollout in islice(missing(), WAVE)), mend)
    kept = TranscriptWriter(watch.transcripts, done) if watch.transcripts else None
    with kept or nullcontext(), Appender(path, SCHEMA) as lines:
        async with aclosing(drive(missing(), runtime, concurrency=runtime.engine.concurrency)) as finished:
            async for rollout, ended in finished:
                told(ended.outcome)
                for one in wave.through(rollout.key, ended.tree.attempts, ended):
                    if kept and one.transcript:
                        kept.add(one.transcript)
                    lines.append(encode(one.outcome))
                    done[one.outcome.task, one.outcome.sample] = one.outcome
    return [done[task.id, sample] for task in tasks for sample in range(samples)]
