"""LEAFE with soft targets: at a revised turn the whole distribution of the advised model is learned, not only the drawn action.

    measure base -> explore -> distil, revised turns scored with their advice -> train -> measure

The loss at each token of a revised action is `-sum_v T(v | h, e) log S(v | h)` over the `top` most probable tokens of `T`, the model that
explored with the experience `e` in the prompt; `S` reads the history `h` without it (`leafe.training.loss.Distribution`). Rehearsal terms
are LEAFE's, and so are exploring, the choice of branches, `beta` and all of the sections `explore` and `distill`.

Where this differs from LEAFE (arXiv 2603.16843):
1. `L_cf` has the teacher's distribution as its target, which includes other actions that the teacher might have taken.
2. `rest` decides on the teacher's tail beyond `top` tokens; by default it is left out of the sum.
3. Only branches from a verified rollback have soft targets; fresh attempts with an experience in the prompt keep the drawn action.
4. One round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from leafe.chat import Notes, Prompts, Scene, act_messages
from leafe.distillation.causes import refuse_weightless
from leafe.distillation.examples import distill
from leafe.engines.scoring import score_all
from leafe.methods.base import Method, Policy, Scored, Settings, Stage
from leafe.records import Example, Message, Target, Tree
from leafe.run import RunDirectory

if TYPE_CHECKING:
    from leafe.engines.base import Engine, Scores
    from leafe.lab import Lab


class SoftTargetsSettings(Settings):
    """`top` is the number of the teacher's tokens at each position; `rest` treats the others: `drop`, `renormalise` or one `bucket`."""

    top: int = Field(20, ge=1)
    rest: Literal["drop", "renormalise", "bucket"] = "drop"


class SoftTargets(Method):
    """LEAFE whose counterfactual terms are the advised model's distribution."""

    name = "soft_targets"
    summary = "LEAFE, learning the advised model's distribution at revised turns instead of the action that it drew"
    Settings = SoftTargetsSettings

    def stages(self, lab: Lab, run: RunDirectory, settings: SoftTargetsSettings) -> Iterable[Stage]:
        """As in the drawing above. Raises `UserError` for a run that is not begun and would have nothing to learn from."""
        if not run.stages:
            refuse_weightless(lab.config)

        def examples() -> Sequence[Example]:
            trees = lab.trees(run, 1)
            return _softened(lab, settings, trees, distill(trees, lab.prompts, lab.selection()))

        yield lab.measure(run, "base", Policy(lab.base))
        yield lab.explore(run, 1, Policy(lab.base))
        yield lab.distill(run, 1, examples, needs=("explore round 1",))
        yield lab.train(
            run,
            self.name,
            lambda: lab.examples(run, 1),
            needs=("distil round 1",),
            loss=lambda: lab.losses.Distribution(settings.rest, mixed=True),
        )
        yield lab.measure(run, self.name, lab.trained(run, self.name))

    def scores(self, settings: SoftTargetsSettings) -> Scored:
        """The teacher's tokens at each position of a revised turn."""
        return Scored(settings.top, "soft_targets.top")


def _softened(lab: Lab, settings: SoftTargetsSettings, trees: Sequence[Tree], examples: Sequence[Example]) -> Sequence[Example]:
    """The examples, those of revised turns with the teacher's tokens."""
    prompts = advised_prompts(trees, lab.prompts)
    asked = [
        example for example in examples if example.kind == "counterfactual" and example.origin in prompts and example.target_ids
    ]
    if not asked:
        return examples

    async def work(engine: Engine) -> list[Scores]:
        return await score_all(engine, [(prompts[one.origin], one.target_ids) for one in asked], top=settings.top)

    scores = lab.experiment.with_engine(lab.base, work)
    soft = {example.id: softened(example, one.top) for example, one in zip(asked, scores, strict=True)}
    return [soft.get(example.id, example) for example in examples]


def softened(example: Example, top: Sequence[tuple[tuple[int, float], ...]]) -> Example:
    """The example with the teacher's tokens at each target."""
    targets = example.targets or tuple(map(Target, example.target_ids))
    return replace(example, targets=tuple(replace(one, top=likely) for one, likely in zip(targets, top, strict=True)))


def advised_prompts(trees: Sequence[Tree], prompts: Prompts) -> Mapping[str, tuple[Message, ...]]:
    """The prompt that each revised turn was sampled from, its advice included, by the turn's id."""
    return {
        turn.id: act_messages(
            Scene(prompts, tree.task, tree.root), tree.trajectory(turn.parent), Notes(turn.experience), turn.shortening
        )
        for tree in trees
        for _, turn in tree.branch_turns()
        if turn.experience is not None
    }
