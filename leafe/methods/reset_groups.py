"""Reset groups: from the turn at which an attempt went wrong, continuations without advice are compared and learned from.

    measure base -> [play -> reflect -> go back -> `size` bare continuations -> one optimiser step or several] x steps -> measure

The group begins in one verified state, so that its advantages depend on the decisions from that state on, and not on earlier ones. The
loss is `leafe.training.loss.ClippedRatio` on the tokens of the continuations alone. Every turn counts in the budget of
`leafe.on_policy.training`; reflections are counted in tokens. With `start` training begins with a checkpoint of LEAFE or of any method.

With `revision` above 0 the advised action `a'` is sampled at the turn as well and played to its end, and the loss has a further term,
`-revision (R(a') - mean R(bare)) log S(a' | h)` with the prompt `h` without advice (RLTF-SD, arXiv 2602.02482). It counts as a group of
its own in the mean over groups.

Where this differs from SRPO (arXiv 2605.25507), BPO (arXiv 2607.14171) and the anchors of GiGPO:
1. The state is reached by rollback and verified turn by turn; continuations whose replay diverged are left out of their group.
2. The turn is the one that the policy's reflection names, or drawn if it names none or `turn` is `drawn`.
3. Only failed attempts are rolled back. The attempt itself is in no group: it is known to have failed.
4. `log S(a' | h)` goes through the clipped ratio, at whose first pass its gradient is the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from leafe.chat import Prompts
from leafe.digest import seed_for
from leafe.distillation.examples import Selection, counterfactual
from leafe.forest.builder import Rules, Start, TreeBuilder
from leafe.forest.effects import Play
from leafe.forest.explore import UNREFLECTED
from leafe.forest.play import play
from leafe.forest.reflect import reflect
from leafe.methods.base import Method, Stage, require_rollback
from leafe.on_policy.groups import ComparedSettings, check_on_policy, compared, reward_of, sampled_examples
from leafe.on_policy.training import on_policy_stages
from leafe.records import BROKEN, Example, Target, Task, Tree
from leafe.run import RunDirectory
from leafe.settings import RunConfig
from leafe.training.advantages import Advantage

if TYPE_CHECKING:
    from leafe.engines.base import Engine
    from leafe.lab import Lab

REVISION = "revision"  # the kind of the further term's examples


class ResetGroupsSettings(ComparedSettings):
    """`groups` tasks a step, `size` continuations a group, at the turn that the reflection has `named` or that is `drawn`.

    `revision` is the weight of the advised action's term, `k` that of the advantage `pkpo`; the rest is as in GRPO: `leafe methods grpo`.
    """

    advantage: Advantage = "max_rl"
    turn: Literal["named", "drawn"] = "named"
    revision: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _advice_is_asked_for(self) -> Self:
        if self.revision and self.turn == "drawn":
            raise ValueError("turn: wanted 'named' where revision is above 0, whose advice comes of a reflection, found 'drawn'")
        return self


class ResetGroups(Method):
    """Outcome-driven reinforcement learning from verified states in the middle of failed attempts."""

    name = "reset_groups"
    summary = "bare continuations compared at the turn where an attempt went wrong, reached by verified rollback"
    samples_here = True
    Settings = ResetGroupsSettings

    def stages(self, lab: Lab, run: RunDirectory, settings: ResetGroupsSettings) -> Iterable[Stage]:
        """As in the drawing above. Raises `UserError` if the budget holds no step, or the environment has no rollback."""
        require_rollback(lab, self.name, otherwise="grpo")
        return on_policy_stages(lab, run, settings, Continuations(lab.prompts, settings))

    def check(self, config: RunConfig, settings: ResetGroupsSettings) -> None:
        """Raises `UserError` if the engine gives no log-probabilities or takes no weights, or all continuations would be the same."""
        check_on_policy(self.name, config, settings, scored="reset_groups.revision" if settings.revision else "")


def reset_group(builder: TreeBuilder, settings: ResetGroupsSettings) -> Play[Tree]:
    """One attempt; if it failed, `size` bare continuations from one of its turns, and then the advised one if required."""
    first = yield from play(builder, Start())
    trajectory = first.trajectory
    if first.attempt.stop in UNREFLECTED or not trajectory:
        return builder.tree("reset_group")
    experience = None
    if settings.turn == "named":
        experience = yield from reflect(builder, 0, trajectory, ended=True)
    draw = random.Random(seed_for(builder.rules.seed, builder.task.id, "turn"))
    before = trajectory[: (experience.turn if experience else draw.randint(1, len(trajectory))) - 1]
    for _ in range(settings.size):
        yield from play(builder, Start(before, 1, 0))
    if settings.revision and experience:
        yield from play(builder, Start(before, 1, 0, advice=experience.text))
    return builder.tree("reset_group")


@dataclass(frozen=True)
class Continuations:
    """A group is the continuations of one failed attempt from one of its turns."""

    prompts: Prompts
    settings: ResetGroupsSettings
    arm: str = ResetGroups.name
    rounds: int = 4  # tasks that succeed at once teach nothing

    def most_turns(self, horizon: int) -> int:
        """The most turns of the attempt and of all continuations from its first turn."""
        return (1 + self.settings.size + (self.settings.revision > 0)) * horizon

    def plays(self, number: int, task: Task, rules: Rules) -> Sequence[Play[Tree]]:
        """One attempt after another in one world, which is rolled back in between."""
        own = replace(rules, seed=seed_for(rules.seed, number), turns=self.most_turns(task.horizon), tokens=0)
        return [reset_group(TreeBuilder(task, own), self.settings)]

    async def learn(self, place: str, trees: Sequence[Tree], engine: Engine) -> Sequence[Example]:
        """The turns of the continuations with their advantages, and the advised action."""
        (tree,) = trees
        bare = [one.index for one in tree.attempts if one.turn is not None and one.experience is None and one.stop not in BROKEN]
        rewarded = [(index, reward_of(tree, index, self.settings)) for index in bare]
        examples = list(self._compared(place, tree, rewarded))
        if not rewarded:
            return examples
        return [*examples, *await self._revised(place, tree, fmean(reward for _, reward in rewarded), engine)]

    def _compared(self, place: str, tree: Tree, rewarded: Sequence[tuple[int, float]]) -> Iterator[Example]:
        """The continuations, if their rewards differ."""
        for index, weight in compared(rewarded, self.settings):
            own = [turn for turn in tree.turns if turn.attempt == index]
            yield from sampled_examples(self.prompts, tree, own, kind=self.arm, group=place, attempt=index, weight=weight)

    async def _revised(self, place: str, tree: Tree, expected: float, engine: Engine) -> list[Example]:
        """The advised action under its bare prompt, weighted by its reward above the `expected` one without advice."""
        revised = []
        for example in counterfactual([tree], self.prompts, Selection("any", branches_per_task=1)):
            worth = reward_of(tree, example.attempt, self.settings) - expected
            if worth and example.target_ids:
                scores = await engine.score(example.messages, example.target_ids)
                pairs = zip(example.target_ids, scores.logprobs, strict=True)
                targets = tuple(Target(one, logprob=min(0.0, value)) for one, value in pairs)
                weight = self.settings.revision * worth
                revised.append(replace(example, kind=REVISION, group=f"{place}-{REVISION}", weight=weight, targets=targets))
        return revised
