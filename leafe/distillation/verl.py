"""The data set for training with verl on the output of `leafe export ... verl`: the loss falls on the last reply alone.

verl's own `MultiTurnSFTDataset` (0.9) trains every assistant message of a conversation, those of earlier turns included, which may be
the very mistakes that an example corrects. Name this one instead:

    data.custom_cls.path=pkg://leafe.distillation.verl data.custom_cls.name=LastReply
"""

from __future__ import annotations

from typing import Any

from leafe.distillation.store import VERL_COLUMN
from leafe.errors import MissingDependency

try:
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
except ImportError as error:
    raise MissingDependency("verl, which this data set is for,", "pip install 'verl>=0.9,<0.10'") from error


class LastReply(MultiTurnSFTDataset):
    """Conversations of which only the last message is trained on. It reads the column of `leafe export`, which verl's data set does not."""

    def _read_files_and_process(self) -> None:
        self.messages_key = VERL_COLUMN
        super()._read_files_and_process()

    def _process_single_message(self, index: int, message: Any, full_message: Any, **options: Any) -> Any:
        ids, loss_mask, *rest = super()._process_single_message(index, message, full_message, **options)
        return ids, loss_mask * int(index == len(full_message) - 1), *rest
