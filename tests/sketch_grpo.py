"""A sketch of GRPO as somebody else would write it: a method outside the package that samples and learns in turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from pydantic import Field

from leafe.evaluation.evaluate import attempt
from leafe.forest.driver import Rollout, drive
from leafe.methods.base import Made, Method, Policy, Settings, Stage
from leafe.on_policy.groups import sampled_examples
from leafe.records import Example, Tree
from leafe.training.advantages import advantages


class SketchSettings(Settings):
    """`size` attempts at each task, in each of `steps` steps."""

    steps: int = Field(2, ge=1)
    size: int = Field(4, ge=2)


class SketchGrpo(Method):
    """Groups of attempts at every training task, one optimiser step on all of them, and again with the new weights."""

    name, summary = "sketch_grpo", "GRPO in one file"
    Settings = SketchSettings

    def stages(self, lab: Any, run: Any, settings: SketchSettings) -> Iterator[Stage]:
        def work() -> Made:
            learner = lab.clipping_learner(
                run.path / "learner",
                self.name,
                lab.base,
                steps=settings.steps,
                low=0.2,
                high=0.2,
                kl=0,
                entropy=0,
                normalise="targets",
            )
            turns = lab.experiment.with_engine(
                lab.base, lambda engine: self.learn(lab, settings, engine, learner, run.path / "new")
            )
            learner.save(run.checkpoint(self.name))
            return Made({"steps": settings.steps, "turns": turns}, [run.checkpoint(self.name)])

        yield lab.measure(run, "base", Policy(lab.base))
        yield Stage(f"train {self.name}", work, verb="train")
        yield lab.measure(run, self.name, lab.trained(run, self.name), needs=(f"train {self.name}",))

    async def learn(self, lab: Any, settings: SketchSettings, engine: Any, learner: Any, weights: Path) -> int:
        turns = 0
        for step in range(settings.steps):
            rules = lab.experiment.rules(lab.seed("sketch", step))
            rollouts = [
                Rollout(f"{task.id} {n}", task, attempt(task, n, rules))
                for task in lab.experiment.tasks("train")
                for n in range(settings.size)
            ]
            groups: dict[str, list[Tree]] = {}
            async with aclosing(drive(rollouts, lab.experiment.runtime(engine), concurrency=engine.concurrency)) as finished:
                async for rollout, tree in finished:
                    groups.setdefault(rollout.task.id, []).append(tree)
            turns += sum(tree.spend.turns for trees in groups.values() for tree in trees)
            examples = [one for task in sorted(groups) for one in self.compared(lab, f"{step}", groups[task])]
            if examples:
                learner.step(examples)
            learner.save(weights / str(step))
            await engine.load(weights / str(step))
        return turns

    def compared(self, lab: Any, place: str, trees: list[Tree]) -> Iterator[Example]:
        weights = advantages([float(tree.attempts[0].success) for tree in trees], "grpo", k=1)
        for number, (tree, weight) in enumerate(zip(trees, weights, strict=True)):
            if weight:
                yield from sampled_examples(
                    lab.prompts, tree, tree.turns, kind=self.name, group=f"{place} {tree.task.id}", attempt=number, weight=weight
                )
