"""LEAFE, from a recipe to a trained and measured model (arXiv 2603.16843).

    measure base -> [explore -> distil -> train] x rounds -> measure

Controls explore the same tasks with the same seeds and the same budget of turns: independent samples, refinement, verbal retry. Arms
beside `leafe` are trained from the same base with the same settings:

    rehearsal, independent                   the rehearsal examples of the first round; those of independent samples
    rehearsal-matched, independent-matched   the same two, cut to equal numbers of explored turns and of examples
    average                                  nothing is trained: the weights between the base and the arm `averaged`

Where this differs from the paper:
1. The start is whatever `model` names; the paper's main tables start from a GRPO checkpoint.
2. The budget is counted in turns of the policy.
3. Counterfactual and rehearsal terms are averaged together, with `beta` as the weight of a rehearsal term.
4. Which branches qualify is a setting.
5. Without rollback an experience goes into the prompts of a fresh attempt, each turn of which is then learned from.
6. Rehearsal may be uniform over tasks (`distill.rehearse`), and solved tasks may leave their turns to others
   (`explore.stop_when_solved`); both are off by default.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from leafe.distillation.causes import NOTHING, refuse_weightless, why_no_example
from leafe.distillation.examples import distill, matched, rehearsal
from leafe.distillation.store import write_examples
from leafe.errors import UserError
from leafe.methods.base import Made, Method, Policy, Settings, Stage
from leafe.records import Example
from leafe.run import RunDirectory
from leafe.settings import RunConfig

if TYPE_CHECKING:
    from leafe.lab import Lab


Trained = Literal["leafe", "rehearsal", "independent", "rehearsal-matched", "independent-matched"]
Arm = Literal[Trained, "average"]
MATCHED = ("rehearsal-matched", "independent-matched")


class LeafeSettings(Settings):
    """`controls` explore at the same budget, for comparison; `arms` are trained and measured beside the base.

    `rounds` is how many times to explore and distil, each time from the model of the round before. The arm `average` lies `average` of the
    way from the base (0) to the arm `averaged` (1).
    """

    rounds: int = Field(1, ge=1)
    controls: tuple[Literal["independent", "refine", "retry"], ...] = Field((), strict=False)
    arms: tuple[Arm, ...] = Field(("leafe",), strict=False)
    average: float = Field(0.5, ge=0, le=1)
    averaged: Trained = "leafe"

    @model_validator(mode="after")
    def _lists_agree(self) -> Self:
        for key, names in {"controls": self.controls, "arms": self.arms}.items():
            if len(set(names)) < len(names):
                raise ValueError(f"{key} wants each name once, found {list(names)}")
        for arm in self.arms:
            if arm in ("independent", *MATCHED) and "independent" not in self.controls:
                raise ValueError(f"arms with {arm!r} wants controls with 'independent', whose successes it is trained on")
        if "average" in self.arms and self.averaged not in ("leafe", *self.arms):
            raise ValueError(f"averaged: wanted one of the arms, found {self.averaged!r}; add it to arms")
        return self


class Leafe(Method):
    """The method of the paper, with its controls."""

    name = "leafe"
    summary = "explore with reflection and verified rollback, learn the revised actions and rehearse successes (the paper's method)"
    Settings = LeafeSettings

    def stages(self, lab: Lab, run: RunDirectory, settings: LeafeSettings) -> Iterator[Stage]:
        """As in the drawing above. Without arms nothing is distilled or trained unless a command asks for it.

        Raises `UserError` for a run that is not begun and would have nothing to learn from.
        """
        if settings.arms and not run.stages:
            on_successes = (arm for arm in settings.arms if arm not in ("leafe", "average"))
            refuse_weightless(lab.config, on_successes=next(on_successes, ""))
        here = _Here(lab, run, settings)
        yield lab.measure(run, "base", Policy(lab.base))
        yield lab.explore(run, 1, Policy(lab.base))
        for control in settings.controls:
            yield lab.explore(run, control, Policy(lab.base), explorer=control)
        for number in range(1, settings.rounds + 1):
            if number > 1:
                yield lab.explore(run, number, here.start(number), needs=(f"train {here.arm(number - 1)}",))
            yield here.distil(number)
            yield here.train(number)
        for arm in settings.arms:
            if arm not in ("leafe", "average"):
                yield here.train_control(arm)
        if "average" in settings.arms:
            yield lab.average(run, "average", settings.averaged, share=settings.average)
        for arm in settings.arms:
            yield lab.measure(run, arm, lab.trained(run, arm))

    def trains(self, settings: LeafeSettings) -> bool:
        """Whether there are arms."""
        return bool(settings.arms)

    def check(self, config: RunConfig, settings: LeafeSettings) -> None:
        """Raises `UserError` if a later round would explore through a server, which does not serve the trained model."""
        if config.engine.kind == "openai" and settings.rounds > 1:
            raise UserError(
                f"rounds: wanted 1 where engine.kind is openai, whose server serves the base only, found {settings.rounds}"
            )


@dataclass(frozen=True)
class _Here:
    """The common state of the stages of one run."""

    lab: Lab
    run: RunDirectory
    settings: LeafeSettings

    def arm(self, number: int) -> str:
        """The arm that a round trains."""
        return "leafe" if number == self.settings.rounds else f"leafe-round-{number}"

    def start(self, number: int) -> Policy:
        """The model that a round explores with and trains from: that of the round before."""
        return Policy(self.lab.base) if number == 1 else self.lab.trained(self.run, self.arm(number - 1))

    def distil(self, number: int) -> Stage:
        """Stage 2, first half: a round's forest to its examples."""

        def work() -> Made:
            trees = self.lab.trees(self.run, number)
            examples = distill(trees, self.lab.prompts, self.lab.selection())
            write_examples(self.run.examples(number), examples)
            kinds = {kind: sum(example.kind == kind for example in examples) for kind in ("counterfactual", "rehearsal")}
            why = {} if examples else {"note": f"{NOTHING}: {why_no_example(trees, self.lab.config)}"}
            said = f"distilled {kinds['counterfactual']} counterfactual and {kinds['rehearsal']} rehearsal examples"
            self.lab.progress.say(said)
            return Made(kinds | why, [self.run.examples(number)])

        return Stage(f"distil round {number}", work, (f"explore round {number}",), "distill", asked_only=not self.settings.arms)

    def train(self, number: int) -> Stage:
        """Stage 2, second half: a round's arm, from the model that it explored with."""

        def examples() -> Sequence[Example]:
            found = self.lab.examples(self.run, number)
            if not found and number == 1:
                # The end of the run; a later round without examples keeps the model of the rounds before it.
                raise UserError(self.run.stages["distil round 1"].get("note", NOTHING))
            return found

        stage = self.lab.train(self.run, self.arm(number), examples, start=self.start(number), needs=(f"distil round {number}",))
        return replace(stage, asked_only=not self.settings.arms)

    def train_control(self, arm: str) -> Stage:
        """An arm that is trained on successes alone. Without examples it stays the base."""
        if arm == "rehearsal":
            return self.lab.train(self.run, arm, self._rehearsed, needs=("distil round 1",))
        file = self.run.examples(arm)

        def examples() -> Sequence[Example]:
            found = self._matched(arm) if arm in MATCHED else self._independent()
            write_examples(file, found)
            return found

        needs = ("explore round 1", "explore independent") if arm in MATCHED else ("explore independent",)
        return self.lab.train(self.run, arm, examples, needs=needs, files=[file])

    def _rehearsed(self) -> list[Example]:
        """The first round's examples without the counterfactual ones."""
        return [example for example in self.lab.examples(self.run, 1) if example.kind == "rehearsal"]

    def _independent(self) -> list[Example]:
        """The successes of independent samples."""
        return list(rehearsal(self.lab.trees(self.run, "independent"), self.lab.prompts, self.lab.selection()))

    def _matched(self, arm: str) -> list[Example]:
        """One side of the successes of tree and independent samples, matched in turns and in number."""
        trees, others = self.lab.trees(self.run, 1), self.lab.trees(self.run, "independent")
        by_task = not self.lab.config.explore.stop_when_solved
        return matched(trees, others, self.lab.prompts, self.lab.selection(), by_task=by_task)[MATCHED.index(arm)]
