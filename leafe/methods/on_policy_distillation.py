"""On-policy distillation: on its own attempts the policy learns from itself with its own advice in the prompt, gated by outcome.

    measure base -> [play -> reflect -> go back, play on with the advice -> score -> one optimiser step or several] x steps -> measure

If the advised continuation of a failed attempt was better than the attempt, each token `y` that the policy sampled without advice, from
the turn of the reflection on, has the advantage `log T(y) - log S(y)`: `S` is the policy that sampled, `T` the same weights with the
advice in the prompt of that turn. Their expectation is minus the gradient of the divergence `KL(S || T)`. The loss is
`leafe.training.loss.ClippedRatio`, the budget that of `leafe.on_policy.training`. With `start` training begins with any checkpoint.

Where this differs from OPCD and from SDPO and its relatives:
1. The teacher is advised by a reflection, at one turn, and not by a demonstration or by a whole episode's feedback.
2. Only attempts count whose advised continuation, from the same verified state, did better: otherwise the teacher is often wrong.
3. An advantage is clipped to `limit`, since the teacher may give a token almost no probability.
4. Attempts that succeed teach nothing, and turns whose prompt has no room for the advice are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field

from leafe.chat import Notes, Prompts, Scene, act_messages
from leafe.digest import seed_for
from leafe.engines.scoring import score_fitting
from leafe.forest.builder import Rules, Start, TreeBuilder
from leafe.forest.effects import Play
from leafe.forest.explore import UNREFLECTED
from leafe.forest.play import play
from leafe.forest.reflect import reflect
from leafe.methods.base import Method, Stage, require_rollback
from leafe.on_policy.groups import OnPolicySettings, check_on_policy, reward_of, sampled_examples
from leafe.on_policy.training import on_policy_stages
from leafe.records import BROKEN, Example, Message, Task, Tree, Turn
from leafe.run import RunDirectory
from leafe.settings import RunConfig

if TYPE_CHECKING:
    from leafe.engines.base import Engine
    from leafe.lab import Lab


class OnPolicyDistillationSettings(OnPolicySettings):
    """`groups` attempts a step that teach something; an advantage is at most `limit` nats. The rest is as in GRPO: `leafe methods grpo`."""

    limit: float = Field(5.0, gt=0)


class OnPolicyDistillation(Method):
    """Self-distillation from the advised policy, on what the policy does without advice."""

    name = "opd"
    summary = "the policy's own tokens weighed by itself with the advice in the prompt, where the advice verifiably helped"
    samples_here = True
    Settings = OnPolicyDistillationSettings

    def stages(self, lab: Lab, run: RunDirectory, settings: OnPolicyDistillationSettings) -> Iterable[Stage]:
        """As in the drawing above. Raises `UserError` if the budget holds no step, or the environment has no rollback."""
        require_rollback(lab, self.name, otherwise="grpo")
        return on_policy_stages(lab, run, settings, Advised(lab.prompts, settings))

    def check(self, config: RunConfig, settings: OnPolicyDistillationSettings) -> None:
        """Raises `UserError` if the engine gives no log-probabilities, takes no weights, or samples otherwise than texts are scored."""
        check_on_policy(self.name, config, settings, scored="method opd", whole=True)


def advised_once(builder: TreeBuilder) -> Play[Tree]:
    """One attempt from the root; if it failed, one more from the turn that its reflection names, with the advice."""
    first = yield from play(builder, Start())
    if first.attempt.stop not in UNREFLECTED and first.trajectory:
        experience = yield from reflect(builder, 0, first.trajectory, ended=True)
        if experience:
            yield from play(builder, Start(first.trajectory[: experience.turn - 1], 1, 0, advice=experience.text))
    return builder.tree("advised_once")


def advised_prompts(prompts: Prompts, tree: Tree) -> list[tuple[Turn, tuple[Message, ...]]]:
    """The first attempt's turns from that of its reflection on, each with its prompt and the advice at that turn.

    The tree's second attempt has the turn and the advice.
    """
    first, second = tree.attempts
    assert second.turn is not None
    bare, advice = list(tree.trajectory(first.leaf)), second.experience
    told = [replace(turn, experience=advice) if turn.index == second.turn else turn for turn in bare]
    return [
        (
            turn,
            act_messages(
                Scene(prompts, tree.task, tree.root),
                told[: turn.index - 1],
                Notes(advice if turn.index == second.turn else None),
                turn.shortening,
            ),
        )
        for turn in bare[second.turn - 1 :]
    ]


@dataclass(frozen=True)
class Advised:
    """A group is one attempt whose advised continuation shows whether the advice is worth learning."""

    prompts: Prompts
    settings: OnPolicyDistillationSettings
    arm: str = OnPolicyDistillation.name
    rounds: int = 4  # few attempts fail and then succeed with advice

    def most_turns(self, horizon: int) -> int:
        """The most turns of the attempt and of the advised one, from the first turn."""
        return 2 * horizon

    def plays(self, number: int, task: Task, rules: Rules) -> Sequence[Play[Tree]]:
        """Both attempts in one world."""
        own = replace(rules, seed=seed_for(rules.seed, number), turns=self.most_turns(task.horizon), tokens=0)
        return [advised_once(TreeBuilder(task, own))]

    async def learn(self, place: str, trees: Sequence[Tree], engine: Engine) -> Sequence[Example]:
        """The turns of the attempt from that of the reflection on, if the advice helped."""
        (tree,) = trees
        if len(tree.attempts) < 2 or tree.attempts[1].stop in BROKEN:
            return []
        if reward_of(tree, 1, self.settings) <= reward_of(tree, 0, self.settings):
            return []
        prompts = {turn.id: (turn, messages) for turn, messages in advised_prompts(self.prompts, tree)}
        turns = [turn for turn, _ in prompts.values()]
        found = list(sampled_examples(self.prompts, tree, turns, kind=self.arm, group=place, attempt=0, weight=1.0))
        scores = await score_fitting(engine, [(prompts[one.origin][1], one.target_ids) for one in found])
        return [weighted(one, told.logprobs, self.settings.limit) for one, told in zip(found, scores, strict=True) if told]


def weighted(example: Example, teacher: Sequence[float], limit: float) -> Example:
    """The example with the log-ratio of teacher to student at each target as its weight, clipped to `limit` on both sides."""
    pairs = zip(example.targets, teacher, strict=True)
    return replace(
        example,
        targets=tuple(replace(one, weight=max(-limit, min(limit, value - (one.logprob or 0.0)))) for one, value in pairs),
    )
