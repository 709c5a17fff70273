"""Fine-tuning on distilled examples: packed rows in, an ordinary Hugging Face checkpoint out.

The loss is the sum over target tokens of weight times minus log-probability, divided by the number of target tokens of the whole
optimiser step, so it does not depend on how a step is cut into passes or spread over processes. Everything around it (schedules,
accumulation, several processes, precision) is `transformers.Trainer`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from leafe.config import TrainSettings
from leafe.distill.pack import PackedBatch, PackedRow, collate, term_losses
from leafe.distill.rows import pack_examples
from leafe.engines.tokens import ChatTokenizer
from leafe.errors import UserError
from leafe.records import Example


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training was: how many examples in how many rows of how many tokens, and the loss at its end."""

    examples: int
    rows: int
    tokens: int
    steps: int
    loss: float


class _Rows(Dataset[PackedRow]):
    def __init__(self, rows: Sequence[PackedRow]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PackedRow:
        return self._rows[index]


class _PackedTrainer(Trainer):
    """A `Trainer` whose batches are packed rows and whose loss is a sum of weighted terms."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The weighted loss of one pass, as its share of the optimiser step."""
        packed = PackedBatch(*(inputs[name] for name in FIELDS))
        losses = term_losses(model, packed)
        count = num_items_in_batch if num_items_in_batch is not None else losses.numel()
        return (losses * packed.term_weight).sum() / count


FIELDS = ("ids", "depth", "mask", "term_at", "term_target", "term_weight")


def _batch(rows: Sequence[PackedRow]) -> dict[str, Tensor]:
    packed = collate(rows)
    # `labels` is what Trainer counts to know the size of an optimiser step.
    return {name: getattr(packed, name) for name in FIELDS} | {"labels": packed.term_target}


class _Progress(TrainerCallback):
    def __init__(self, told: Callable[[int, int], None]) -> None:
        self._told = told

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tells how many of how many steps are done."""
        self._told(state.global_step, state.max_steps)


def fine_tune(
    checkpoint: Path,
    examples: Sequence[Example],
    out: Path,
    settings: TrainSettings,
    *,
    seed: int,
    threads: int = 1,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> TrainReport:
    """Trains the model of `checkpoint` on `examples` and saves it with its tokenizer into the folder `out`.

    Raises `UserError` when there is nothing to train on.
    """
    if not examples:
        raise UserError("there is no example to train on: explore with a larger budget, or set distill.qualify=any")
    torch.set_num_threads(max(1, threads))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    if settings.lora is not None:
        targets = list(settings.lora.targets) or "all-linear"
        model = get_peft_model(
            model, LoraConfig(r=settings.lora.rank, lora_alpha=settings.lora.alpha, target_modules=targets, task_type="CAUSAL_LM")
        )
    rows = pack_examples(examples, ChatTokenizer(tokenizer), row_tokens=settings.micro_tokens // 4)
    arguments = _arguments(rows, len(examples), settings, out=out, seed=seed)
    trainer = _PackedTrainer(
        model=model, args=arguments, train_dataset=_Rows(rows), data_collator=_batch, callbacks=[_Progress(told)]
    )
    with redirect_stdout(StringIO()):  # Trainer prints its last log line
        result = trainer.train()
    _save(trainer, model, out)
    tokenizer.save_pretrained(out)
    tokens = sum(len(row.ids) for row in rows)
    return TrainReport(len(examples), len(rows), tokens, result.global_step, float(result.training_loss))


def _arguments(rows: Sequence[PackedRow], examples: int, settings: TrainSettings, *, out: Path, seed: int) -> TrainingArguments:
    """One optimiser step holds about `batch_size` examples, in passes of about `micro_tokens` tokens."""
    mean_length = sum(len(row.ids) for row in rows) / len(rows)
    rows_a_step = max(1, round(settings.batch_size * len(rows) / examples))
    rows_a_pass = max(1, min(rows_a_step, int(settings.micro_tokens / mean_length)))
    return TrainingArguments(
        output_dir=str(out),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_share,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=rows_a_pass,
        gradient_accumulation_steps=max(1, round(rows_a_step / rows_a_pass)),
        seed=seed % 2**32,
        data_seed=seed % 2**32,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _save(trainer: Trainer, model: Any, out: Path) -> None:
    """Saves the whole model; an adapter is merged into it, so that every tool loads the result."""
    trained = trainer.accelerator.unwrap_model(model)
    if hasattr(trained, "merge_and_unload"):
        trained = trained.merge_and_unload()
    trained.save_pretrained(out)
