"""The records of a measurement: one graded attempt a line in `eval/ARM.jsonl`, and the success counts of a whole arm.

An attempt that broke counts as a failure and is counted by class beside it, so that a crash can never raise a score. A file that
contradicts itself is refused, and so is an unfinished one: a number from half an evaluation would look like any other.
Nothing is played or graded here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from leafe.encoding import OMITTED
from leafe.errors import CorruptFile, UserError
from leafe.evaluation.passk import Counts
from leafe.forest.faults import Faults, by_class, class_of, commonest_error, share
from leafe.jsonl import read_lines
from leafe.records import BROKEN, StopReason, decode

SCHEMA = "leafe.eval/1"
COSTS = ("prompt_tokens", "sampled_tokens", "rollbacks", "replayed_steps", "reflection_tokens", "question_tokens")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attempt of an evaluation. `sample` counts a task's attempts from 0; `error` is `CLASS` or `CLASS: message`.

    `no_action`, `cut`, `shortened` and `closed` count turns: replies without an action, cut ones, prompts that left out some of the
    history. They are None in files of a version that did not count them. `turns`, `reflection_tokens` and `question_tokens` (of the
    prompts that ask for reflections) include those of abandoned branches. `setback` is the first turn that set a watched attempt back,
    0 if none did, None if it is not known. `nats` is how improbable its replies were, minus the sum of the log-probabilities of all
    sampled tokens; None without them.
    """

    task: str
    sample: int
    stop: StopReason
    success: bool
    reward: float
    turns: int
    prompt_tokens: int
    sampled_tokens: int
    error: str | None = None
    no_action: int | None = None
    cut: int | None = None
    shortened: int | None = None
    closed: int = field(default=0, metadata=OMITTED)
    rollbacks: int = field(default=0, metadata=OMITTED)
    replayed_steps: int = field(default=0, metadata=OMITTED)
    reflection_tokens: int = field(default=0, metadata=OMITTED)
    question_tokens: int = field(default=0, metadata=OMITTED)
    setback: int | None = field(default=None, metadata=OMITTED)
    nats: float | None = field(default=None, metadata=OMITTED)

    def __post_init__(self) -> None:
        for name in ("sample", "turns", *COSTS):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}")
        for name in ("no_action", "cut", "shortened", "closed", "setback"):
            if not 0 <= (getattr(self, name) or 0) <= self.turns:
                raise ValueError(f"{name} is {getattr(self, name)} of {self.turns} turns")
        if self.nats is not None and not 0 <= self.nats < math.inf:
            raise ValueError(f"nats is {self.nats}")
        if not math.isfinite(self.reward):
            raise ValueError(f"reward is {self.reward}")
        if self.success != (self.stop is StopReason.SUCCESS):
            raise ValueError(f"success is {self.success} and stop is {self.stop.value!r}")
        if self.success and self.error is not None:
            raise ValueError(f"a success carries the error {self.error!r}")

    @property
    def error_class(self) -> str | None:
        """The class of error that broke the attempt, None if it ended by itself or by a limit."""
        return class_of(self.stop, self.error)


def read_outcomes(path: Path) -> tuple[Outcome, ...]:
    """The attempts in an evaluation file, in its order. Raises `CorruptFile` for an invalid or repeated record."""
    seen: dict[tuple[str, int], Outcome] = {}
    for number, line in enumerate(read_lines(path, SCHEMA), start=2):
        try:
            outcome: Outcome = decode(Outcome, line)
        except ValueError as error:
            raise CorruptFile(
                f"{path} line {number} is no outcome: {error}; remove that line and evaluate again to fill it in"
            ) from None
        key = (outcome.task, outcome.sample)
        if key in seen:
            raise CorruptFile(
                f"{path} line {number} is sample {outcome.sample} of task {outcome.task!r} again; remove one of the two"
            )
        seen[key] = outcome
    return tuple(seen.values())


@dataclass(frozen=True, slots=True)
class ArmOutcomes:
    """All attempts of one arm. `directory` is its run, for messages.

    `tasks` and `samples` are how many tasks, and attempts at each, were requested; 0 if unknown, and then a file that was cut
    between two samples of every task cannot be told from a smaller evaluation. Samples beyond those requested, left by a larger
    evaluation, are in `outcomes` and are not counted.
    """

    name: str
    outcomes: tuple[Outcome, ...]
    directory: str = "DIR"
    tasks: int = 0
    samples: int = 0

    @property
    def counted(self) -> tuple[Outcome, ...]:
        """The attempts that were requested."""
        return tuple(outcome for outcome in self.outcomes if not self.samples or outcome.sample < self.samples)

    def counts(self) -> Counts:
        """The successes of every task. Raises `UserError` when the evaluation is not finished."""
        attempts = Counter(outcome.task for outcome in self.counted)
        wanted_samples = self.samples or max(attempts.values(), default=1)
        wanted_tasks = self.tasks or max(len(attempts), 1)
        complete = sum(count == wanted_samples for count in attempts.values())
        if complete != wanted_tasks or complete != len(attempts):
            raise UserError(
                f"the evaluation of {self.name} is not finished: {complete} of {max(wanted_tasks, len(attempts))} tasks have "
                f"{wanted_samples} samples; type: leafe evaluate {self.directory}"
            )
        successes = Counter(outcome.task for outcome in self.counted if outcome.success)
        return Counts(self.name, wanted_samples, {task: successes[task] for task in sorted(attempts)})

    @property
    def errors(self) -> dict[str, int]:
        """The number of broken attempts, by class."""
        return by_class((outcome.stop, outcome.error) for outcome in self.counted)

    @property
    def turns(self) -> int:
        """Turns that the policy took, over all attempts."""
        return sum(outcome.turns for outcome in self.counted)

    @property
    def tokens(self) -> int:
        """Prompt and sampled tokens, those of reflections included, over all attempts."""
        return sum(one.prompt_tokens + one.sampled_tokens + one.reflection_tokens + one.question_tokens for one in self.counted)

    @property
    def rollbacks(self) -> int:
        """The number of rollbacks within attempts; plain attempts have none."""
        return sum(outcome.rollbacks for outcome in self.counted)

    @property
    def faults(self) -> Faults:
        """The faults. A share that was not counted for some attempt is None."""
        counted = self.counted
        broken = [outcome.error or outcome.stop.value for outcome in counted if outcome.stop in BROKEN]
        return Faults(
            replies=self.turns,
            no_action=share(_total(outcome.no_action for outcome in counted), self.turns),
            cut=share(_total(outcome.cut for outcome in counted), self.turns),
            closed=share(sum(outcome.closed for outcome in counted), self.turns) if any(one.closed for one in counted) else None,
            shortened=share(_total(outcome.shortened for outcome in counted), self.turns),
            attempts=len(counted),
            out_of_room=share(sum(outcome.stop is StopReason.TOKEN_LIMIT for outcome in counted), len(counted)),
            broken=share(len(broken), len(counted)),
            error=commonest_error(broken),
            errors=self.errors,
        )


def _total(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)


def costs_of(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """The cost of some attempts, in turns, tokens, rollbacks and replayed steps."""
    counted = list(outcomes)
    return {name: sum(getattr(outcome, name) for outcome in counted) for name in ("turns", *COSTS)}


def of_run(run: str, arms: Iterable[ArmOutcomes]) -> tuple[ArmOutcomes, ...]:
    """The same arms under the names `RUN:arm`, so that those of several runs can be compared."""
    return tuple(ArmOutcomes(f"{run}:{arm.name}", arm.outcomes, arm.directory, arm.tasks, arm.samples) for arm in arms)
