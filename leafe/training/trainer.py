"""`transformers.Trainer` on packed rows: its batch is one optimiser step, which all processes see and divide among themselves.

Schedule, clipping, optimiser and data parallelism are the library's. If weights are sharded (`leafe.training.sharding`) all processes
compute every pass together, so all take the same number of passes. A training that resumes from a state (`leafe.training.resume`) takes
the remaining steps, in the same order.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from leafe.distillation.passes import ready, sent
from leafe.distillation.rows import Bundle, shares
from leafe.distillation.trial import Packing
from leafe.errors import UserError
from leafe.training.loss import Loss, pass_loss
from leafe.training.machine import FEWEST, no_room
from leafe.training.precision import in_float32
from leafe.training.resume import State, Trained
from leafe.training.terms import Step

Told = Callable[[int, int, Mapping[str, float]], None]
"""A function of the number of steps done, the total, and the figures of the last step if they are wanted."""


class Numbers(Dataset[int]):
    """The numbers of bundles, which may be cut into other rows during training."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index


@dataclass
class Work:
    """The work of a training: `low` has the lower halves of split weights, `cut` makes bundles with rows of at most so many tokens."""

    cut: Callable[[int], list[Bundle]]
    pass_tokens: int
    packing: Packing
    low: Mapping[Tensor, Tensor] = field(default_factory=dict)
    halved: int = 0
    parts: int = 1  # of `padded_length`
    sharded: bool = False

    def __post_init__(self) -> None:
        self.bundles = self.cut(self.pass_tokens)


class PackedTrainer(Trainer):
    """A `Trainer` whose batch is one optimiser step, which all processes see and divide among themselves."""

    def __init__(self, work: Work, loss: Loss, state: State | None = None, **options: Any) -> None:
        super().__init__(data_collator=lambda numbers: {"numbers": numbers}, train_dataset=Numbers(len(work.bundles)), **options)
        self._work, self._loss, self._kept = work, loss, state
        self._begun = state.read() if state else None
        self.by_kind: dict[str, Tensor] = {}  # summed over steps and processes

    @property
    def total(self) -> float:
        """The sum of all steps' losses, once it has trained."""
        return float(self._total_loss_scalar)

    def go(self, out: Path) -> int:
        """Trains, from the beginning or from the state; returns the number of steps. `out` is a temporary folder."""
        if self._begun is None:
            return int(self.train().global_step)
        same = {name: getattr(self.args, name) for name in ("logging_steps", "eval_steps", "save_steps")}  # or it warns
        batch = self.args.per_device_train_batch_size
        before = TrainerState(global_step=self._begun.step, train_batch_size=batch, **same)
        before.save_to_json(str(out / TRAINER_STATE_NAME))
        return int(self.train(resume_from_checkpoint=str(out)).global_step)

    def get_train_dataloader(self) -> DataLoader[int]:
        """The same steps in the same order in every process."""
        order = torch.Generator().manual_seed(self.args.data_seed or 0)
        loader: DataLoader[int] = DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            shuffle=True,
            generator=order,
            collate_fn=self.data_collator,
        )
        for _ in range(self._begun.step // len(loader) if self._begun else 0):
            list(islice(loader, len(loader)))  # skips finished epochs, for their random draws
        return loader

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser of the settings, in float32 on weights that are split."""
        self.optimizer: Any = in_float32(super().create_optimizer(model), self._work.low)
        self.bare: torch.optim.Optimizer = self.optimizer  # kept, since others are wrapped around it
        return self.bare

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Does nothing: weights are loaded with the optimiser's state."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._begun is None or self._kept is None:
            return
        self._kept.take(self._begun, self.trained())
        schedule, rates = self.lr_scheduler, []
        for group, rate, of_step in zip(self.bare.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = rate * of_step(self._begun.step)
            rates.append(group["lr"])
        schedule.load_state_dict(schedule.state_dict() | {"last_epoch": self._begun.step, "_last_lr": rates})

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._begun is not None and self._kept is not None:
            self._kept.draw_on(self._begun)

    def begin(self) -> None:
        """Restores the losses of earlier steps."""
        if self._begun is not None:
            self._tr_loss += self._begun.loss
            self.by_kind = {kind: torch.tensor(loss, device=self.args.device) for kind, loss in self._begun.by_kind.items()}

    def keep(self) -> None:
        """Writes the state after a step; each process does."""
        if self._kept is not None:
            losses = {kind: float(loss) for kind, loss in self.by_kind.items()}
            self._kept.write(self.state.global_step, self.trained(), loss=float(self._tr_loss), by_kind=losses)

    def trained(self) -> Trained:
        """The model, its optimiser, and the lower halves of its weights."""
        return Trained(self.accelerator.unwrap_model(self.model), self.bare, self._work.low)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The loss of a step, whose gradients are left with the weights; computed again in smaller passes if memory runs out."""
        while True:
            try:
                return self._step(model, {"bundles": [self._work.bundles[number] for number in inputs["numbers"]]})
            except torch.OutOfMemoryError:
                pass  # not handled here, since the error keeps all activations alive
            self._halve(model)

    def _halve(self, model: Any) -> None:
        work = self._work
        if self.accelerator.num_processes > 1 or work.pass_tokens <= FEWEST:  # the others would wait for gradients
            raise UserError(no_room(sharded=work.sharded))
        model.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()
        work.pass_tokens, work.halved = work.pass_tokens // 2, work.halved + 1
        work.bundles = work.cut(work.pass_tokens)

    def _step(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Forward and backward through this process's passes of a step; the loss of the whole step."""
        model.train()
        work, processes = self._work, self.accelerator.num_processes
        rows = [row for bundle in inputs["bundles"] for row in bundle.rows]
        step = Step.of(inputs["bundles"])
        by_process = shares(rows, processes, work.pass_tokens)
        passes = by_process[self.accelerator.process_index]
        # A process without rows computes a pass nevertheless, since the others wait for its gradients, or for its shards.
        wanted = max(map(len, by_process)) if self._work.sharded else 1
        idle = [[min(rows, key=lambda row: len(row.ids))]] * (wanted - len(passes))
        kinds = sorted({kind for row in rows for kind in row.term_kind})
        losses = torch.zeros(len(kinds), device=self.args.device)
        for number, one in enumerate([*passes, *idle], start=1):
            packed = ready(one, work.packing.kind, self.args.device, parts=work.parts, most=work.pass_tokens)
            # Gradients are averaged over processes once, with the last pass; those of shards with each pass, or they would not be shards.
            with nullcontext() if self._work.sharded or number >= len(passes) else self.accelerator.no_sync(model):
                terms = pass_loss(model, packed, self._loss, step).losses
                terms = terms if number <= len(passes) else terms * 0
                self.accelerator.backward(terms.sum() * processes)
            places = sent(torch.tensor([kinds.index(kind) for kind in packed.term_kind]), self.args.device)
            losses.index_add_(0, places, terms.detach())
        whole: Tensor = self.accelerator.reduce(losses, "sum")
        for kind, loss in zip(kinds, whole, strict=True):
            self.by_kind[kind] = self.by_kind.get(kind, torch.zeros_like(loss)) + loss
        self.last = whole.sum()
        return self.last


class Watch(TrainerCallback):
    """Reports the steps done and the total, with the step's figures if they are wanted, and keeps the state at intervals."""

    def __init__(self, told: Told, save_every: int, *, figures: bool) -> None:
        self._told, self._save_every, self._figures = told, save_every, figures
        self._rate = 0.0
        self.trainer: PackedTrainer | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Restores the losses of earlier steps."""
        if self.trainer is not None:
            self.trainer.begin()

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keeps the rate of the step, which changes afterwards."""
        if self.trainer is not None:
            self._rate = float(self.trainer.bare.param_groups[0]["lr"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Reports the step, and keeps the state if it is due."""
        if self.trainer is not None and self._save_every and state.global_step % self._save_every == 0:
            self.trainer.keep()
        figures = {"loss": float(self.trainer.last), "learning_rate": self._rate} if self.trainer and self._figures else {}
        self._told(state.global_step, state.max_steps, figures)
