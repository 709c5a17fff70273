"""Fine-tuning on distilled examples: packed rows in, an ordinary Hugging Face checkpoint out.

The loss is the sum over target tokens of weight times minus log-probability, divided by the number of target tokens of the whole
optimiser step. What a step holds follows from the examples and the seed alone, so it does not depend on how it is cut into passes.
Shuffling, schedule, clipping and optimiser are `transformers.Trainer`'s. One process, one device; weights are trained and saved in
float32, because steps as small as 1e-6 are lost in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from leafe.config import LoraSettings, TrainSettings
from leafe.distill.pack import PackedBatch, PackedRow, collate, term_losses
from leafe.distill.rows import Bundle, pack_examples
from leafe.engines.tokens import ChatTokenizer
from leafe.engines.transformers import load_checkpoint
from leafe.errors import UserError
from leafe.records import Example

ROWS_A_PASS = 4  # about so many fit into `micro_tokens`; attention costs the square of a row


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training was: how many examples in how many rows of how many tokens, and the mean loss over its steps."""

    examples: int
    rows: int
    tokens: int
    steps: int
    loss: float


class _Bundles(Dataset[Bundle]):
    def __init__(self, bundles: Sequence[Bundle]) -> None:
        self._bundles = bundles

    def __len__(self) -> int:
        return len(self._bundles)

    def __getitem__(self, index: int) -> Bundle:
        return self._bundles[index]


class _PackedTrainer(Trainer):
    """A `Trainer` whose batch is one optimiser step, cut into passes."""

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward through every pass of a step; the step's loss."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        for one in inputs["passes"]:
            packed = one.to(self.args.device)
            loss = (term_losses(model, packed) * packed.term_weight).sum() / inputs["target_tokens"]
            self.accelerator.backward(loss)
            total += loss.detach()
        return total


def _step(bundles: Sequence[Bundle], *, micro_tokens: int) -> dict[str, Any]:
    """One optimiser step."""
    rows = [row for bundle in bundles for row in bundle.rows]
    return {"passes": list(_passes(rows, micro_tokens)), "target_tokens": sum(bundle.target_tokens for bundle in bundles)}


def _passes(rows: Sequence[PackedRow], micro_tokens: int) -> Iterator[PackedBatch]:
    """Rows of about the same length, in batches that hold at most `micro_tokens` with their padding, or a single row."""
    left = sorted(rows, key=lambda row: len(row.ids), reverse=True)
    while left:
        fitting = max(1, micro_tokens // len(left[0].ids))
        yield collate(left[:fitting])
        left = left[fitting:]


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

    Raises `UserError` when there is nothing to train on, `CorruptFile` when the checkpoint cannot be loaded.
    """
    if not examples:
        raise UserError("there is no example to train on: explore with a larger budget, or set distill.qualify=any")
    torch.set_num_threads(max(1, threads))
    model, tokenizer = load_checkpoint(checkpoint, dtype=torch.float32)
    rows = settings.micro_tokens // ROWS_A_PASS
    bundles = pack_examples(examples, ChatTokenizer(tokenizer), row_tokens=rows, most=settings.batch_size)
    set_seed(seed % 2**32)  # an adapter starts from random weights
    if settings.lora is not None:
        model = _with_adapter(model, settings.lora)
    trainer = _PackedTrainer(
        model=model,
        args=_arguments(bundles, settings, out=out, seed=seed % 2**32),
        train_dataset=_Bundles(bundles),
        data_collator=partial(_step, micro_tokens=settings.micro_tokens),
        callbacks=[_Progress(told)],
    )
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    _save(trainer, model, out)
    tokenizer.save_pretrained(out)
    lengths = [len(row.ids) for bundle in bundles for row in bundle.rows]
    return TrainReport(len(examples), len(lengths), sum(lengths), result.global_step, float(result.training_loss))


def _with_adapter(model: Any, settings: LoraSettings) -> Any:
    targets = list(settings.targets) or "all-linear"
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, task_type="CAUSAL_LM")
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"train.lora.targets: wanted names of linear layers of the model, found {targets}: {error}") from None


def _arguments(bundles: Sequence[Bundle], settings: TrainSettings, *, out: Path, seed: int) -> TrainingArguments:
    """One optimiser step holds about `batch_size` examples, by the mean size of a bundle."""
    mean = sum(bundle.examples for bundle in bundles) / len(bundles)
    bundles_a_step = max(1, round(settings.batch_size / mean))
    steps = ceil(settings.epochs * ceil(len(bundles) / bundles_a_step))
    arguments = TrainingArguments(
        output_dir=str(out),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        # Given a share, Trainer rounds up, and its first step of a warm-up has a rate of zero: a run of one step would learn nothing.
        warmup_steps=int(settings.warmup_share * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=bundles_a_step,
        seed=seed,
        data_seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # Trainer would spread a batch over the devices, which a list of passes is not made for
    return arguments


def _save(trainer: Trainer, model: Any, out: Path) -> None:
    """Saves the whole model; an adapter is merged into it, so that every tool loads the result."""
    trained = trainer.accelerator.unwrap_model(model)
    if hasattr(trained, "merge_and_unload"):
        trained = trained.merge_and_unload()
    trained.save_pretrained(out)
