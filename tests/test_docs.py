"""Examples in the documentation run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_model
from transformers import TrainingArguments

DOCS = Path(__file__).resolve().parent.parent / "docs"


def code(name: str) -> str:
    """The only Python block of a page."""
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL)
    return str(block)


def test_the_training_example_trains(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(compile(code("training.md"), "training.md", "exec"), names)
    model = tiny_model("llama").train()
    before = [weight.detach().clone() for weight in model.parameters()]
    tasks = [[([1, 2, 3], [4, 5], 1.0), ([1, 2, 3, 4, 5, 6], [7], 0.5)], [([8], [9], 1.0)]]
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=1,
        per_device_train_batch_size=2,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
    )
    result = names["train"](model, tasks, arguments)
    assert result.global_step == 1 and result.training_loss > 0
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
