"""The contract of a method: one class that names the stages from a recipe to trained and measured models.

    class Mine(Method):
        name, summary = "mine", "fine-tuning on successes"

        def stages(self, lab, run, settings):
            yield lab.measure(run, "base", Policy(lab.base))
            ...

Another package offers its class through the entry point group `leafe.methods`; docs/methods.md has a working one. The imports of a method
are loaded by every command that reads its runs, so a method takes whatever needs a model from its `lab`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from leafe.errors import UserError
from leafe.run import RunDirectory
from leafe.settings import RunConfig, Settings
from leafe.stages import Made, Policy, Scored, Stage

if TYPE_CHECKING:
    from leafe.lab import Lab

__all__ = ["Made", "Method", "Policy", "Scored", "Settings", "Stage", "require_rollback"]


class Method(ABC):
    """A method. `name` chooses it in a recipe (`method: NAME`) and is the section of its `Settings`; `summary` is a line about it."""

    name: ClassVar[str]
    summary: ClassVar[str]
    samples_here: ClassVar[bool] = False  # whether it samples in this process while it trains, whatever the engine
    Settings: ClassVar[type[BaseModel]] = Settings

    @abstractmethod
    def stages(self, lab: Lab, run: RunDirectory, settings: Any) -> Iterable[Stage]:
        """The stages in the order in which `leafe run` does them. Only describes them and does none of the work.

        The model that training starts from is measured as the arm `base`, with which the others are compared.
        """

    def trains(self, settings: Any) -> bool:
        """Whether anything is trained: a step of training is then tried first, and all arms are measured in this process."""
        return True

    def scores(self, settings: Any) -> Scored | None:
        """What it has scored by the engine that explores, which a server is then asked for before anything is begun; None for nothing."""
        return None

    def check(self, config: RunConfig, settings: Any) -> None:  # noqa: B027  # there is nothing that it has to do
        """Raises `UserError` for settings that contradict each other; called whenever a configuration is read."""


def require_rollback(lab: Lab, name: str, *, otherwise: str) -> None:
    """Raises `UserError` if a method needs rollback and the environment has none; `otherwise` is a method that works with it."""
    if not lab.experiment.can_roll_back:
        raise UserError(
            f"method {name} goes back to turns, and {lab.config.environment.name} cannot be rolled back (fidelity 'none'); choose"
            f" method={otherwise}, or another environment"
        )
