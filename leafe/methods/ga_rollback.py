"""GA-Rollback: an assistant that watches an attempt and takes wrong turns back, at test time (arXiv 2503.02519), and no weights.

    measure base -> measure the same model, every attempt as  [turn -> assistant: which turn was wrong? -> roll back, go on with the advice]

It rolls back during measurement, which no other arm does: the environment has to take turns back at test time. Turns that were taken
back count against the horizon of their attempt like any others, so an attempt costs no more turns than those of other arms; an attempt
succeeds if its last branch does. The assistant waits for `wait` turns, names the earliest wrong turn, and is asked again if its answer
cannot be read; an attempt is rolled back at most `rollbacks` times, and advice in which the model has less than `confidence` is ignored.
All this is as in the paper and its published code (6 turns, 6 rollbacks, 0.93 on ALFWorld).

Where this differs from the paper:
1. The assistant's question is the run's question for a reflection, and the assistant is the policy itself.
2. Every rollback is verified; one that does not restore the turn's state ends the attempt with an error, which is counted.
3. The attempt goes back to the turn that is named; the paper's code goes back four turns at most.
4. In the paper turns that were taken back are free, and the horizon counts those that remain.
5. Advice is shown at the turn that it is about. Of the advice of abandoned branches the last `kept` are in the first prompt.
6. An episode that the environment has ended is over; the paper's code may take its last turn back.
7. There is no second question for repeated actions, and `confidence` is off by default (0).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from leafe.errors import UserError
from leafe.forest.builder import Start, TreeBuilder
from leafe.forest.effects import Play
from leafe.forest.play import play
from leafe.forest.reflect import reflect
from leafe.memory.adaptation import check_start, measured_start
from leafe.methods.base import Method, Policy, Settings, Stage
from leafe.records import Completion, Experience, StopReason, Tree, Turn
from leafe.run import RunDirectory
from leafe.settings import RunConfig

if TYPE_CHECKING:
    from leafe.lab import Lab

NAME = "ga_rollback"


class GaRollbackSettings(Settings):
    """`start` is the folder of a model, such as another run's checkpoint; empty for the run's model.

    The assistant looks first after `wait` turns and then every `every` turns; an attempt is rolled back at most `rollbacks` times.
    `confidence` is the mean probability that the assistant's tokens need, 0 for none; a reply that was completed (`sampling.closing`) keeps
    no probabilities and counts as not sure. `kept` is the most advice of abandoned branches in the prompt.
    """

    start: str = ""
    wait: int = Field(3, ge=1)
    every: int = Field(1, ge=1)
    rollbacks: int = Field(6, ge=0)
    confidence: float = Field(0.0, ge=0, le=1)
    kept: int = Field(2, ge=0)


class GaRollback(Method):
    """Rollback at test time."""

    name = NAME
    summary = (
        "an assistant takes wrong turns back while the model is measured, at the same number of turns (GA-Rollback); no weights"
    )
    Settings = GaRollbackSettings

    def stages(self, lab: Lab, run: RunDirectory, settings: GaRollbackSettings) -> Iterable[Stage]:
        """As in the drawing above. Raises `UserError` if the environment has no rollback."""
        if not lab.experiment.can_roll_back:
            raise UserError(
                f"method {NAME} takes turns back, and {lab.config.environment.name} cannot be rolled back (fidelity 'none'); choose"
                " another environment or method"
            )
        model = lab.start(settings.start)
        yield from measured_start(lab, run, model)
        yield lab.measure(run, NAME, Policy(model), player=partial(with_assistant, settings=settings))

    def trains(self, settings: GaRollbackSettings) -> bool:
        """Nothing."""
        return False

    def check(self, config: RunConfig, settings: GaRollbackSettings) -> None:
        """Raises `UserError` for a `start` other than the model that a server plays."""
        check_start(config, NAME, settings.start)


def with_assistant(builder: TreeBuilder, settings: GaRollbackSettings) -> Play[Tree]:
    """One attempt, as evaluation takes it, with an assistant that takes turns back; each of its branches is an attempt of the tree."""
    builder.rules = replace(builder.rules, turns=builder.task.horizon, tokens=0)
    assistant = Assistant(builder, settings)
    start: Start | None = Start()
    while start is not None:
        yield from play(builder, start, assistant.look)
        start = assistant.goes_on() if builder.attempts[-1].stop is StopReason.ROLLED_BACK else None
    return builder.tree(NAME)


@dataclass
class Assistant:
    """Looks at an attempt between its turns. `said` is the advice so far, each with the trajectory after which it is shown."""

    builder: TreeBuilder
    settings: GaRollbackSettings
    said: list[tuple[Experience, tuple[Turn, ...]]] = field(default_factory=list)

    def look(self, attempt: int, trajectory: tuple[Turn, ...]) -> Play[bool]:
        """Whether the attempt is abandoned here for an earlier turn."""
        turns, wanted = len(trajectory), self.settings
        due = turns >= wanted.wait and (turns - wanted.wait) % wanted.every == 0
        if not due or len(self.said) >= wanted.rollbacks or self.builder.exhausted():
            return False
        experience = yield from reflect(self.builder, attempt, trajectory, ended=False, feedback=self.feedback(trajectory))
        if experience is None or not self._sure(self.builder.reflections[-1].replies[-1]):
            return False
        self.said.append((experience, trajectory[: experience.turn - 1]))
        return True

    def goes_on(self) -> Start:
        """The start of the next branch: before the turn that was named, with the advice."""
        experience, trajectory = self.said[-1]
        feedback, last = self.feedback(trajectory), self.builder.attempts[-1]
        return Start(trajectory, len(self.said), last.index, advice=experience.text, feedback=feedback)

    def feedback(self, trajectory: tuple[Turn, ...]) -> tuple[str, ...]:
        """The latest advice that is not shown at any turn of a trajectory, nor at its next one."""
        standing = {turn.experience for turn in trajectory} | {one.text for one, past in self.said[-1:] if past == trajectory}
        gone = [one.text for one, _ in self.said if one.text not in standing]
        return tuple(dict.fromkeys(gone))[-self.settings.kept :] if self.settings.kept else ()

    def _sure(self, reply: Completion) -> bool:
        """Whether the model was sure enough of its advice. Raises `UserError` if the engine returns no log-probabilities."""
        if not self.settings.confidence:
            return True
        if reply.finish == "closed":
            return False
        if not reply.logprobs:
            raise UserError(
                f"{NAME}.confidence wants the log-probabilities of sampled tokens, and the engine gave none; type {NAME}.confidence=0"
            )
        return sum(map(math.exp, reply.logprobs)) / len(reply.logprobs) >= self.settings.confidence
