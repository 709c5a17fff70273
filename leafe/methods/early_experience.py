"""Early Experience: learning from the outcomes of the policy's own actions around an expert's trajectory (arXiv 2510.08558).

    measure base -> explore around the expert -> distil -> [train world_model ->] train early_experience -> measure
                                                      \\-> train imitation                           -> measure

In each state of an expert's trajectory the policy samples other actions, and each is taken after a verified rollback. Implicit world
modelling (`iwm`) trains on the outcome of every action and then on the expert's actions; self-reflection (`sr`) trains on a comparison of
the expert's action with the others, placed before the action, mixed with the expert's actions. The arm `imitation` has the expert's actions
alone. Every arm takes as many optimiser steps as imitation does under the section `train`. The budget is that of `explore`, turns a
training task times tasks, spent on alternatives and on attempts in search of a success; the expert's steps are counted apart.

Where this differs from the paper:
1. The expert is the environment's, or the policy's shortest success; tasks without either give no examples.
2. World modelling is a question below the history and the action, whose answer is the next observation; in states with alternatives
   the expert's transition is asked for like theirs.
3. World modelling takes one epoch, but not more than `world_model_share` of all steps, so that imitation has some left.
4. One comparison of a state names all its alternatives.
5. A comparison is left out if it decides for another action, could be read as one, is cut, or repeats the question.
6. If replies are bare and have no room for thoughts, as those of the bundled models, the comparison is made from the outcomes by a
   template and is a separate reply to a question; no model has written it. It weighs as much as the expert's action does.
7. `kind: both` does one after the other; the paper measures them separately.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from leafe.comparing import lacking, makes_comparisons
from leafe.distillation.early_experience import EXPERT, SELF_REFLECTION, WORLD_MODEL, early_experience
from leafe.distillation.store import write_examples
from leafe.errors import UserError
from leafe.forest.expert import Around, ExpertSource, forks
from leafe.forest.store import read_forest
from leafe.methods.base import Made, Method, Policy, Settings, Stage
from leafe.records import Example, Tree
from leafe.run import RunDirectory
from leafe.settings import RunConfig

if TYPE_CHECKING:
    from leafe.lab import Lab

ARM, CONTROL = "early_experience", "imitation"
PLACE = "experience"
NO_COMPARISON = "there was no comparison to learn from, so self-reflection is imitation here"
ONE_STEP = "imitation takes one optimiser step, which leaves none for world modelling; type train.epochs=2 or more"


class EarlyExperienceSettings(Settings):
    """`kind` is implicit world modelling (`iwm`), self-reflection (`sr`) or `both`; `alternatives` is their number in each state.

    `expert` is the `environment`, the policy's `successes`, or `auto`: the successes if the environment has no expert. `arms` are trained
    and measured beside the base. `world_model_share` of all optimiser steps may go into world modelling.
    """

    kind: Literal["iwm", "sr", "both"] = "both"
    expert: ExpertSource = "auto"
    alternatives: int = Field(3, ge=1)
    arms: tuple[Literal["early_experience", "imitation"], ...] = Field(("early_experience",), strict=False)
    world_model_share: float = Field(0.5, gt=0, lt=1)

    @model_validator(mode="after")
    def _arms_once(self) -> Self:
        if len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms wants each name once, found {list(self.arms)}")
        return self

    @property
    def predicts(self) -> bool:
        """Whether there is world modelling."""
        return ARM in self.arms and self.kind != "sr"

    @property
    def compares(self) -> bool:
        """Whether there is self-reflection."""
        return ARM in self.arms and self.kind != "iwm"

    @property
    def kinds(self) -> set[str]:
        """The kinds of examples that are needed."""
        return {EXPERT, *([WORLD_MODEL] if self.predicts else []), *([SELF_REFLECTION] if self.compares else [])}


class EarlyExperience(Method):
    """Supervision without reward, from the outcomes of the policy's actions."""

    name = "early_experience"
    summary = (
        "learn from the outcomes of the policy's own actions around an expert's trajectory: world modelling and self-reflection"
    )
    Settings = EarlyExperienceSettings

    def stages(self, lab: Lab, run: RunDirectory, settings: EarlyExperienceSettings) -> Iterator[Stage]:
        """As in the drawing above. Raises `UserError` if the world or the prompts lack what the method needs."""
        here = _Here(lab, run, settings)
        here.check()
        distilled = (f"distil {PLACE}",)
        yield lab.measure(run, "base", Policy(lab.base))
        yield here.explore()
        yield here.distil()
        if CONTROL in settings.arms:
            yield lab.train(run, CONTROL, lambda: here.examples(EXPERT), needs=distilled)
        if settings.predicts:
            yield here.train_world_model(needs=distilled)
        if ARM in settings.arms:
            yield here.train(needs=(f"train {WORLD_MODEL}",) if settings.predicts else distilled)
        for arm in settings.arms:
            yield lab.measure(run, arm, lab.trained(run, arm), needs=(f"train {arm}",))

    def trains(self, settings: EarlyExperienceSettings) -> bool:
        """Whether there are arms."""
        return bool(settings.arms)

    def check(self, config: RunConfig, settings: EarlyExperienceSettings) -> None:
        """Raises `UserError` if all samples of the policy in a state would be the same, or turns would move between tasks."""
        if ARM in settings.arms and config.sampling.act.temperature == 0:
            raise UserError("method early_experience samples different actions in a state, and at temperature 0 they are all the same;"
                            " type sampling.act.temperature=1")  # fmt: skip
        if found := config.explore.stop_when_solved:
            raise UserError(
                "method early_experience spreads a task's budget over the states of an expert once, and turns that other tasks leave would"
                f" spread it anew; explore.stop_when_solved: wanted 0, found {found}; type explore.stop_when_solved=0"
            )


@dataclass(frozen=True)
class _Here:
    """The common state of the stages of one run."""

    lab: Lab
    run: RunDirectory
    settings: EarlyExperienceSettings

    @property
    def world(self) -> str:
        """The environment's name."""
        return self.lab.config.environment.name

    def check(self) -> None:
        """Raises `UserError` for an environment that cannot be rolled back or has no expert, and for prompts without a question."""
        if ARM in self.settings.arms and not self.lab.experiment.can_roll_back:
            raise UserError(
                f"method early_experience takes other actions in the states of an expert, and {self.world} cannot be rolled back to them"
                " (fidelity 'none'); type early_experience.arms=[imitation], or choose another method"
            )
        if self.settings.expert == "environment" and not self.lab.experiment.has_expert:
            raise UserError(
                f"early_experience.expert=environment wants an environment with expert(), and {self.world} has none;"
                " type early_experience.expert=successes"
            )
        if missing := lacking(self.lab.prompts, predicts=self.settings.predicts, compares=self.settings.compares):
            raise UserError(
                f"early_experience.kind={self.settings.kind} wants the prompts {', '.join(f'{name}.txt' for name in missing)}, which"
                f" prompts={self.lab.config.prompts} lacks; copy them from a profile that ships, or type early_experience.arms=[imitation]"
            )

    def explore(self) -> Stage:
        """Explores the expert's trajectory of each training task, and the alternatives to it."""
        tries = ARM in self.settings.arms
        asks = self.settings.compares and not makes_comparisons(self.lab.prompts)
        around = Around(self.settings.expert, self.settings.alternatives if tries else 0, asks)
        stage = self.lab.explore(self.run, PLACE, Policy(self.lab.base), explorer=around)

        def work() -> Made:
            made = stage.work() or Made()
            trees = list(read_forest(self.run.forest(PLACE)))
            figures = self._figures(trees)
            self.lab.progress.say(
                f"{stage.name}: {figures['experts']} of {len(trees)} tasks have an expert, in whose {figures['states']} states"
                f" {figures['alternatives']} alternatives were taken"
            )
            if not figures["states"]:
                raise UserError(self._no_expert(len(trees)))
            return replace(made, figures={**made.figures, **figures})

        return replace(stage, work=work)

    def _figures(self, trees: list[Tree]) -> dict[str, int]:
        found = {tree.task.id: list(forks(tree)) for tree in trees}
        states = [fork for some in found.values() for fork in some]
        compared = sum(fork.comparison is not None for fork in states)
        return {
            "budget": self.lab.config.explore.turns * len(trees),
            "experts": sum(bool(some) for some in found.values()),
            "states": len(states),
            "alternatives": sum(len(fork.others) for fork in states),
            "comparisons": compared,
            "comparisons_unread": sum(len(tree.reflections) for tree in trees) - compared,
        }

    def _no_expert(self, tasks: int) -> str:
        """The reason why nothing can be learned, and what to type."""
        turns = self.lab.config.explore.turns
        no_plan = f"expert() of {self.world} gave no solution of {tasks} tasks within their horizons that a reply could express"
        none_won = f"the policy solved none of {tasks} tasks in its share of {turns} turns each"
        more, other = f"type explore.turns={4 * turns}, or take easier tasks", "type early_experience.expert=successes"
        said = {
            "environment": f"{no_plan}; {other}",
            "successes": f"{none_won}; {more}",
            "auto": f"{no_plan}, and {none_won}; {more}",
        }
        return f"there is no expert to learn from: {said[self.settings.expert]}"

    def distil(self) -> Stage:
        """Turns the forest into examples of every kind that an arm needs, and counts those that could not be written."""

        def work() -> Made:
            writer = self.lab.writer()
            found = early_experience(self.lab.trees(self.run, PLACE), self.lab.prompts, writer, self.settings.kinds)
            write_examples(self.run.examples(PLACE), found)
            counts = Counter(example.kind for example in found)
            told: dict[str, Any] = {
                kind: counts[kind] for kind in (EXPERT, WORLD_MODEL, SELF_REFLECTION) if kind in self.settings.kinds
            }
            left = dict(sorted(writer.left_out.items()))
            self.lab.progress.say(
                f"distil {PLACE}: {', '.join(f'{count} {kind}' for kind, count in told.items())} examples"
                + (f"; left out: {', '.join(f'{count} {why}' for why, count in left.items())}" if left else "")
            )
            note = {"note": NO_COMPARISON} if told.get(SELF_REFLECTION) == 0 else {}
            return Made({**told, **({"left_out": left} if left else {}), **note}, [self.run.examples(PLACE)])

        return Stage(f"distil {PLACE}", work, (f"explore {PLACE}",), "distill")

    def examples(self, *kinds: str) -> list[Example]:
        """The examples of some kinds. Raises `UserError` if none of the expert's actions could be written."""
        found = self.lab.examples(self.run, PLACE)
        if not any(example.kind == EXPERT for example in found):
            left = self.run.stages[f"distil {PLACE}"].get("left_out", {})
            raise UserError(
                f"there is no expert's action to train on, all were left out ({left}); take a model with a longer context, or easier tasks"
            )
        return [example for example in found if example.kind in kinds]

    def total_steps(self) -> int:
        """The optimiser steps of every arm: those of imitation."""
        return self.lab.steps(self.examples(EXPERT))

    def train_world_model(self, *, needs: tuple[str, ...]) -> Stage:
        """One epoch over the outcomes of actions, within its share of the steps."""

        def steps() -> int:
            total = self.total_steps()
            most = max(1, int(self.settings.world_model_share * total)) if total > 1 else 0
            return min(self.lab.steps(self.examples(WORLD_MODEL), 1.0), most)

        stage = self.lab.train(self.run, WORLD_MODEL, lambda: self.examples(WORLD_MODEL), steps=steps, needs=needs)

        def work() -> Made:
            made = stage.work() or Made()
            if made.figures.get("steps") or not self.examples(WORLD_MODEL):
                return made
            self.lab.progress.say(f"train {WORLD_MODEL}: {ONE_STEP}")
            return replace(made, figures={**made.figures, "note": ONE_STEP})

        return replace(stage, work=work)

    def train(self, *, needs: tuple[str, ...]) -> Stage:
        """Trains on the expert's actions, and on comparisons if required, for the remaining steps."""

        def steps() -> int:
            before = self.run.stages[f"train {WORLD_MODEL}"]["steps"] if self.settings.predicts else 0
            return self.total_steps() - int(before)

        start = self.lab.trained(self.run, WORLD_MODEL) if self.settings.predicts else Policy(self.lab.base)
        return self.lab.train(self.run, ARM, lambda: self.examples(EXPERT, SELF_REFLECTION), start=start, steps=steps, needs=needs)
