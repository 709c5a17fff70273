"""Fine-tuning on distilled examples: packed rows in, an ordinary Hugging Face checkpoint out.

The loss is the sum over target tokens of weight times minus log-probability, divided by the number of target tokens of the whole
optimiser step, unless another one is given (`leafe.training.loss`).
What a step holds follows from the examples and the seed alone, so it depends neither on how it is cut into passes nor
on how many processes share it. The way of attending is chosen by a trial on the model itself. Schedule, clipping, optimiser and processes
are `transformers.Trainer`'s: under `torchrun` each process takes its share of every step. Weights are saved in float32, because steps as
small as 1e-6 are lost in bfloat16, and no precision that they are trained in loses them (`leafe.training.precision`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from leafe.distillation.passes import parts_for, ready, sent
from leafe.distillation.rows import Bundle, bundles_a_step, pack_examples, shares
from leafe.distillation.trial import Packing, choose_packing
from leafe.engines.loading import load_checkpoint, load_tokenizer
from leafe.engines.tokens import ChatTokenizer
from leafe.errors import UserError
from leafe.jsonl import told_if_unwritable
from leafe.records import Example, Message
from leafe.settings import TrainSettings
from leafe.training.launch import ProgressCallback, by_hand, in_processes, launched
from leafe.training.loss import CrossEntropy, Loss, check_examples, check_picklable, packing_of, pass_loss
from leafe.training.machine import FEWEST, NO_ROOM, Plan, attending, check_machine, pass_tokens, placed
from leafe.training.precision import in_float32, join_model
from leafe.training.terms import Step
from leafe.training.weights import save, with_adapter


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training was: how many examples in how many rows of how many tokens, and the mean loss over its steps.

    `by_kind` is the part of the loss that came from examples of each kind; the parts add up to the loss. `attention` is the way of
    attending that was used, the fastest that passed its trial where the settings leave it open. `longest` is how many tokens an example
    may have by that trial, None for any number. `dtype` is what it was computed in, `micro_tokens` what a pass could hold at the end, which
    was halved as often as `halved` says, since memory had run out.
    """

    examples: int
    rows: int
    tokens: int
    steps: int
    loss: float
    by_kind: Mapping[str, float]
    attention: str = "tree"
    longest: int | None = None
    dtype: str = "float32"
    micro_tokens: int = 0
    halved: int = 0

    @property
    def machine(self) -> dict[str, str | int]:
        """What the machine had a say in, where it is not as on every processor."""
        cut = {"micro_tokens": self.micro_tokens, "halved": self.halved} if self.halved else {}
        return ({} if self.dtype == "float32" else {"dtype": self.dtype}) | cut


@dataclass(frozen=True)
class _Job:
    """What `fine_tune` was asked for, to be sent to other processes. Without `out` nothing is kept."""

    checkpoint: Path
    examples: Sequence[Example]
    out: Path | None
    settings: TrainSettings
    seed: int
    threads: int
    loss: Loss = CrossEntropy()


class _Numbers(Dataset[int]):
    """The numbers of bundles, which may be cut into other rows while training goes on."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index


@dataclass
class _Work:
    """What is trained on and how: `low` has the lower halves of split weights, `cut` makes bundles with rows of at most so many tokens."""

    cut: Callable[[int], list[Bundle]]
    pass_tokens: int
    packing: Packing
    low: Mapping[Tensor, Tensor] = field(default_factory=dict)
    halved: int = 0
    parts: int = 1  # of `padded_length`

    def __post_init__(self) -> None:
        self.bundles = self.cut(self.pass_tokens)


class _PackedTrainer(Trainer):
    """A `Trainer` whose batch is one optimiser step, which all processes see and share out among themselves."""

    def __init__(self, work: _Work, loss: Loss, **options: Any) -> None:
        super().__init__(data_collator=lambda numbers: {"numbers": numbers}, train_dataset=_Numbers(len(work.bundles)), **options)
        self._work, self._loss = work, loss
        self.by_kind: dict[str, Tensor] = {}  # summed over steps and processes

    def get_train_dataloader(self) -> DataLoader[int]:
        """The same steps in the same order in every process."""
        order = torch.Generator().manual_seed(self.args.data_seed or 0)
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            shuffle=True,
            generator=order,
            collate_fn=self.data_collator,
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser of the settings, in float32 on weights that are split."""
        self.optimizer: Any = in_float32(super().create_optimizer(model), self._work.low)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The loss of a step, whose gradients are left with the weights; taken anew in smaller passes where memory runs out."""
        while True:
            try:
                return self._step(model, {"bundles": [self._work.bundles[number] for number in inputs["numbers"]]})
            except torch.OutOfMemoryError:
                pass  # and not here, since the error holds on to all activations
            self._halve(model)

    def _halve(self, model: Any) -> None:
        work = self._work
        if self.accelerator.num_processes > 1 or work.pass_tokens <= FEWEST:  # the others would wait for gradients
            raise UserError(NO_ROOM)
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
        passes = shares(rows, processes, work.pass_tokens)[self.accelerator.process_index]
        kinds = sorted({kind for row in rows for kind in row.term_kind})
        losses = torch.zeros(len(kinds), device=self.args.device)
        # A process that has nothing to do computes something all the same, since the others wait for its gradients.
        for number, one in enumerate(passes or [[min(rows, key=lambda row: len(row.ids))]], start=1):
            packed = ready(one, work.packing.kind, self.args.device, parts=work.parts, most=work.pass_tokens)
            # Gradients are averaged over processes, once, with the last pass.
            with nullcontext() if number >= len(passes) else self.accelerator.no_sync(model):
                terms = pass_loss(model, packed, self._loss, step).losses
                terms = terms if passes else terms * 0
                self.accelerator.backward(terms.sum() * processes)
            places = sent(torch.tensor([kinds.index(kind) for kind in packed.term_kind]), self.args.device)
            losses.index_add_(0, places, terms.detach())
        whole: Tensor = self.accelerator.reduce(losses, "sum")
        for kind, loss in zip(kinds, whole, strict=True):
            self.by_kind[kind] = self.by_kind.get(kind, torch.zeros_like(loss)) + loss
        return whole.sum()


class _Progress(TrainerCallback):
    def __init__(self, told: ProgressCallback) -> None:
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
    told: ProgressCallback = lambda done, total: None,
    alone: bool = False,
    loss: Loss = CrossEntropy(),
) -> TrainReport:
    """Trains the model of `checkpoint` on `examples` and saves it with its tokenizer into the folder `out`.

    With `settings.processes` above one it starts that many. Under `torchrun` every process calls it with the same arguments, and the first
    one saves, unless a caller is `alone` all the same. Raises `UserError` when there is nothing to train on, the model cannot be trained
    on packed trees or the examples lack what the loss needs, `CorruptFile` when the checkpoint cannot be loaded.
    """
    if not examples:
        raise UserError("there is no example to train on: explore with a larger budget, or set distill.qualify=any")
    check_machine(settings)
    check_examples(loss, examples)
    if settings.processes > 1:
        check_picklable(loss)
    work = partial(_fine_tune, _Job(checkpoint, examples, out, settings, seed, threads, loss))
    if launched() and not alone:
        return work(told)
    with by_hand():
        return in_processes(settings.processes, work, told) if settings.processes > 1 else work(told)


def try_training(checkpoint: Path, settings: TrainSettings, *, threads: int = 1, context: int = 0) -> TrainReport:
    """One optimiser step on one made-up example with these settings, of which nothing is kept: what a training would refuse is refused now.

    `context` is how long a conversation may become, 0 for as long as the model allows. Raises as `fine_tune` does, and where conversations
    may become longer than what can be trained on.
    """
    check_machine(settings)
    ids = load_tokenizer(checkpoint)("a", add_special_tokens=False)["input_ids"]
    example = Example("trial", "rehearsal", "trial", 0, "trial", (Message("user", "a"),), "a", tuple(ids[:1]))
    once = settings.model_copy(update={"epochs": 1.0, "batch_size": 1, "processes": 1, "warmup_share": 0.0})
    with by_hand():
        report = _fine_tune(_Job(checkpoint, [example], None, once, 0, threads), lambda done, total: None)
    if report.longest and not 0 < context <= report.longest:
        raise UserError(
            f"this model can be trained on up to {report.longest} tokens, beyond which packed trees change what it computes, and"
            f" conversations may become longer; type engine.max_context={report.longest}"
        )
    return report


def _fine_tune(rollout: _Job, told: ProgressCallback) -> TrainReport:
    torch.set_num_threads(max(1, rollout.threads))
    try:
        return _trained(rollout, told)
    except torch.OutOfMemoryError as error:
        raise UserError(NO_ROOM) from error


def _trained(rollout: _Job, told: ProgressCallback) -> TrainReport:
    settings, seed = rollout.settings, rollout.seed % 2**32
    model, tokenizer = load_checkpoint(rollout.checkpoint, dtype=torch.float32)
    use_cache = getattr(model.config, "use_cache", None)  # which the trainer turns off
    plan, low = placed(model, settings)
    work = _work(rollout, ChatTokenizer(tokenizer), plan, choose_packing(model, settings.attention))
    work.low = low
    set_seed(seed)  # an adapter starts from random weights
    if settings.lora is not None:
        model = with_adapter(model, settings.lora)
    with TemporaryDirectory() as nowhere:
        arguments = _arguments(work.bundles, settings, plan, out=rollout.out or Path(nowhere), seed=seed)
        trainer = _PackedTrainer(work, rollout.loss, model=model, args=arguments, callbacks=[_Progress(told)])
        trainer.remove_callback(PrinterCallback)
        with attending(model, settings, plan, work.packing.kind):
            result = trainer.train()
    if trainer.is_world_process_zero() and rollout.out is not None:
        with told_if_unwritable(rollout.out):
            model = trainer.accelerator.unwrap_model(model)
            if plan.precision == "bfloat16":
                join_model(model, low)
            save(model, rollout.out, use_cache=use_cache)
            tokenizer.save_pretrained(rollout.out)
    steps = result.global_step
    by_kind = {kind: float(loss) / steps for kind, loss in sorted(trainer.by_kind.items())}
    return _report(rollout, work, plan, steps=steps, loss=float(result.training_loss), by_kind=by_kind)


def _work(rollout: _Job, tokenizer: ChatTokenizer, plan: Plan, packing: Packing) -> _Work:
    def cut(tokens: int) -> list[Bundle]:
        return pack_examples(
            rollout.examples, tokenizer, row_tokens=tokens, most=rollout.settings.batch_size, **packing_of(rollout.loss)
        )

    work = _Work(cut, pass_tokens(plan, packing), packing)
    check_lengths(work.bundles, packing)
    tokens = sum(len(row.ids) for bundle in work.bundles for row in bundle.rows)
    passes = max(len(rollout.examples) / rollout.settings.batch_size, tokens / work.pass_tokens)
    work.parts = parts_for(rollout.settings.epochs * passes)
    return work


def _report(rollout: _Job, work: _Work, plan: Plan, *, steps: int, loss: float, by_kind: Mapping[str, float]) -> TrainReport:
    lengths = [len(row.ids) for bundle in work.bundles for row in bundle.rows]
    return TrainReport(
        examples=len(rollout.examples),
        rows=len(lengths),
        tokens=sum(lengths),
        steps=steps,
        loss=loss,
        by_kind=by_kind,
        attention=work.packing.kind,
        longest=work.packing.cap.longest,
        dtype=plan.precision,
        micro_tokens=work.pass_tokens,
        halved=work.halved,
    )


def check_lengths(bundles: Sequence[Bundle], packing: Packing) -> None:
    """Refuses examples beyond what the trial allows."""
    longest, most = max(max(row.depth) + 1 for bundle in bundles for row in bundle.rows), packing.cap.longest
    if most and longest > most:
        raise UserError(
            f"this model computes the same on packed trees up to {most} tokens, which its configuration names, and the longest example has"
            f" {longest}; choose another model, or explore with engine.max_context={most}"
        )


def _arguments(bundles: Sequence[Bundle], settings: TrainSettings, plan: Plan, *, out: Path, seed: int) -> TrainingArguments:
    """One optimiser step holds about `batch_size` examples, by the mean size of a bundle."""
    count = bundles_a_step([bundle.examples for bundle in bundles], settings.batch_size)
    steps = ceil(settings.epochs * ceil(len(bundles) / count))
    gpu = torch.cuda.is_available()
    chosen = {} if settings.optimizer == "auto" else {"optim": settings.optimizer}
    arguments = TrainingArguments(
        output_dir=str(out),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        # Given a share, Trainer rounds up, and its first step of a warm-up has a rate of zero: a run of one step would learn nothing.
        warmup_steps=int(settings.warmup_share * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=count,
        activation_checkpointing=plan.checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        seed=seed,
        data_seed=seed,
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=not gpu,  # it waits for the device at every step
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not gpu,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
        **chosen,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # Trainer would spread a batch over the devices, which a list of rows is not made for
    return arguments
