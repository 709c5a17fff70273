"""The settings of `train` that a learner cannot keep, refused before anything is begun; known without torch."""

from __future__ import annotations

from leafe.errors import UserError
from leafe.settings import TrainSettings

ADAMW = ("auto", "adamw_torch", "adamw_torch_fused")


def check_learner(settings: TrainSettings) -> None:
    """Raises `UserError` for weights or an optimiser that a learner has not."""
    if settings.dtype == "bfloat16":
        raise UserError("a learner keeps its weights in float32, found train.dtype=bfloat16; type train.dtype=mixed")
    if settings.optimizer not in ADAMW:
        raise UserError(
            f"a learner's optimiser is AdamW with a float32 state, found train.optimizer={settings.optimizer}; type train.optimizer=auto"
        )
