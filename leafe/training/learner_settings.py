"""The settings of `train` that a learner cannot keep, refused before anything is begun; known without torch."""

from __future__ import annotations

from leafe.errors import UserError
from leafe.settings import ADAMW, TrainSettings


def check_learner(settings: TrainSettings) -> None:
    """Raises `UserError` for an optimiser that a learner has not."""
    if settings.optimizer not in ADAMW:
        raise UserError(
            f"a learner's optimiser is AdamW with a float32 state, found train.optimizer={settings.optimizer}; type train.optimizer=auto"
        )
