"""A sketch of distillation with another loss: each sampled token is learned as the distribution of a teacher over its likeliest tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from leafe.distillation.examples import rehearsal
from leafe.methods.base import Method, Policy, Stage
from leafe.records import Example, Target


class SketchDistribution(Method):
    """The base's own successes, with the base's own distribution as the target: a teacher that is the student."""

    name, summary = "sketch_distribution", "a teacher's distribution as the target"
    top = 4

    def stages(self, lab: Any, run: Any, settings: Any) -> Iterator[Stage]:
        def scored() -> Sequence[Example]:
            found = list(rehearsal(lab.trees(run, 1), lab.prompts, lab.selection()))
            return list(lab.experiment.with_engine(lab.base, lambda engine: self.taught(engine, found)))

        yield lab.measure(run, "base", Policy(lab.base))
        yield lab.explore(run, 1, Policy(lab.base), explorer="independent")
        yield lab.distill(run, 1, scored, needs=("explore round 1",))
        yield lab.train(
            run, self.name, lambda: lab.examples(run, 1), needs=("distil round 1",), loss=lambda: lab.losses.Distribution("drop")
        )
        yield lab.measure(run, self.name, lab.trained(run, self.name))

    async def taught(self, engine: Any, examples: Sequence[Example]) -> list[Example]:
        taught = []
        for one in examples:
            scores = await engine.score(one.messages, one.target_ids, top=self.top)
            targets = tuple(Target(token, top=likely) for token, likely in zip(one.target_ids, scores.top, strict=True))
            taught.append(replace(one, targets=targets))
        return taught
