"""Measuring a model: n independent attempts a task, each a line that survives a kill.

They are plain attempts, without reflection and rollback, unless the given player uses them; its turns count in the same way. The first
samples of each task may be watched: played again when they have ended, beside the environment's expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import islice
from pathlib import Path

from leafe.digest import seed_for
from leafe.errors import RunConflict
from leafe.evaluation.outcomes import SCHEMA, Outcome, read_outcomes
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


def attempt(task: Task, sample: int, rules: Rules, player: Explorer = once) -> Play[Tree]:
    """One attempt at a task, with the seed of its sample."""
    own = replace(rules, seed=seed_for(rules.seed, "evaluate", sample))
    return player(TreeBuilder(task, own))


def _graded(task: Task, sample: int, rules: Rules, player: Explorer, *, watches: bool) -> Play[tuple[Tree, int | None]]:
    """An attempt, and its first setback if it is watched."""
    tree = yield from attempt(task, sample, rules, player)
    setback = (yield from first_setback(task, tree.turns)) if watches and tree.attempts[-1].stop not in BROKEN else None
    return tree, setback


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
    watched: int = 0,
) -> list[Outcome]:
    """`samples` attempts a task by `player`, appended to `path` as they end; those already there are kept and not repeated.

    The first `watched` samples of each task are watched for setbacks.

    Outcomes are returned in the order of tasks and samples; further samples in the file stay in it. Raises `RunConflict` for a
    file with attempts at other tasks, and `UserError` when all of the first attempts broke: `mend` is the command that it suggests.
    """
    done = {(one.task, one.sample): one for one in read_outcomes(path)} if path.exists() else {}
    foreign = {task for task, _ in done} - {task.id for task in tasks}
    if foreign:
        raise RunConflict(f"{path} holds attempts at {min(foreign)!r}, which is not among the {len(tasks)} tasks; delete the file")

    def missing() -> Iterator[Rollout[tuple[Tree, int | None]]]:
        for sample in range(samples):
            for task in tasks:
                if (task.id, sample) not in done:
                    yield Rollout(f"{task.id}/{sample}", task, _graded(task, sample, rules, player, watches=sample < watched))

    wave: FirstWave[Outcome] = FirstWave(() if done else (rollout.key for rollout in islice(missing(), WAVE)), mend)
    with Appender(path, SCHEMA) as lines:
        async with aclosing(drive(missing(), runtime, concurrency=runtime.engine.concurrency)) as finished:
            async for rollout, (tree, setback) in finished:
                ended = outcome_of(tree, int(rollout.key.rpartition("/")[2]), setback)
                told(ended)
                for outcome in wave.through(rollout.key, tree.attempts, ended):
                    lines.append(encode(outcome))
                    done[outcome.task, outcome.sample] = outcome
    return [done[task.id, sample] for task in tasks for sample in range(samples)]
