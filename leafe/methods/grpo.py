"""GRPO and its relatives: groups of attempts, compared by outcome and learned from step by step (arXiv 2402.03300).

    measure base -> [sample groups -> one optimiser step or several -> take the new weights] x steps -> measure

The loop and its budget are those of `leafe.on_policy.training`. The loss is on every token that the policy sampled and on no other,
`leafe.training.loss.ClippedRatio`; `advantage` chooses among `leafe.training.advantages`.

Where this differs from the paper:
1. An attempt of many turns is one sequence, whose tokens share one advantage.
2. The reward is success, or the environment's reward of the last step (`reward`); there is no reward model.
3. Groups that are all right or all wrong are left out, and with `dynamic` others are sampled in their place (DAPO, arXiv 2503.14476).
4. Attempts that leafe or the environment broke are left out of their group.
5. The divergence from the reference is off unless `kl` is set, as in most later work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leafe.chat import Prompts
from leafe.evaluation.evaluate import attempt
from leafe.forest.builder import Rules
from leafe.forest.effects import Play
from leafe.methods.base import Method, Stage
from leafe.on_policy.groups import ComparedSettings, check_on_policy, compared, reward_of, sampled_examples
from leafe.on_policy.training import on_policy_stages
from leafe.records import BROKEN, Example, Task, Tree
from leafe.run import RunDirectory
from leafe.settings import RunConfig

if TYPE_CHECKING:
    from leafe.engines.base import Engine
    from leafe.lab import Lab


class GrpoSettings(ComparedSettings):
    """`groups` tasks a step, `size` attempts a group, `passes` optimiser steps on each batch, from the model `start` or else the base.

    `k` is that of the advantage `pkpo`. `steps` is the planned number of batches; 0 for as many as the budget is sure to hold. With
    `dynamic` others replace groups that teach nothing. `low` and `high` are how far the ratio may go before it is clipped, `kl` the weight
    of the divergence from the model that training starts from, `entropy` that of a bonus for entropy. `normalise` is the unit over which
    the loss is a mean (`targets`, `sequence`, or a number of tokens).
    """


class Grpo(Method):
    """Outcome-driven reinforcement learning, with the budget that LEAFE explores with."""

    name = "grpo"
    summary = "groups of attempts compared by outcome, learned from step by step (GRPO, Dr. GRPO, RLOO, MaxRL, PKPO)"
    samples_here = True
    Settings = GrpoSettings

    def stages(self, lab: Lab, run: RunDirectory, settings: GrpoSettings) -> Iterable[Stage]:
        """As in the drawing above. Raises `UserError` if the budget holds no step."""
        return on_policy_stages(lab, run, settings, Attempts(lab.prompts, settings))

    def check(self, config: RunConfig, settings: GrpoSettings) -> None:
        """Raises `UserError` if the engine gives no log-probabilities or takes no weights, or all attempts at a task would be the same."""
        check_on_policy(self.name, config, settings)


@dataclass(frozen=True)
class Attempts:
    """A group is `size` attempts at one task, each from the root."""

    prompts: Prompts
    settings: GrpoSettings
    arm: str = Grpo.name
    rounds: int = 1

    def most_turns(self, horizon: int) -> int:
        """The most turns of all attempts together."""
        return self.settings.size * horizon

    def plays(self, number: int, task: Task, rules: Rules) -> Sequence[Play[Tree]]:
        """Attempts as in measurement, each with its own seed."""
        return [attempt(task, number * self.settings.size + sample, rules) for sample in range(self.settings.size)]

    async def learn(self, place: str, trees: Sequence[Tree], engine: Engine) -> Sequence[Example]:
        """Every turn of every attempt, with the attempt's advantage, if rewards differ."""
        whole = [(sample, tree) for sample, tree in enumerate(trees) if tree.attempts[0].stop not in BROKEN]
        rewarded = [(one, reward_of(one[1], 0, self.settings)) for one in whole]
        return [
            example
            for (sample, tree), weight in compared(rewarded, self.settings)
            for example in sampled_examples(
                self.prompts, tree, tree.turns, kind=self.arm, group=place, attempt=sample, weight=weight
            )
        ]
