"""A sketch of a playbook in the prompt, as ACE has one: what reflections taught is told to the model while it is measured; no weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from leafe.methods.base import Method, Policy, Settings, Stage


class SketchSettings(Settings):
    """The playbook has at most `bullets`."""

    bullets: int = Field(3, ge=1)


class SketchAce(Method):
    """Explores with reflection, keeps the experiences whose branch did better, and measures with them as notes."""

    name, summary = "sketch_ace", "a playbook of experiences that helped"
    Settings = SketchSettings

    def stages(self, lab: Any, run: Any, settings: SketchSettings) -> Iterator[Stage]:
        def informed() -> Policy:
            trees = lab.trees(run, "playbook")
            helped = [one.experience for tree in trees for one in tree.attempts if one.experience and one.success]
            others = [one.experience for tree in trees for one in tree.attempts if one.experience]
            return Policy(lab.base, notes=tuple(dict.fromkeys(helped + others))[: settings.bullets])

        yield lab.measure(run, "base", Policy(lab.base))
        yield lab.explore(run, "playbook", Policy(lab.base))
        yield lab.measure(run, self.name, informed, needs=("explore playbook",))

    def trains(self, settings: SketchSettings) -> bool:
        return False
