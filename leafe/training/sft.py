"""Fine-tuning on distilled examples: packed rows in, an ordinary Hugging Face checkpoint out.

The loss is the sum over target tokens of weight times minus log-probability, divided by the number of target tokens of the whole
optimiser step, unless another one is given (`leafe.training.loss`).
What a step holds follows from the examples and the seed alone, so it depends neither on how it is cut into passes nor
on how many processes share it. The way of attending is chosen by a trial on the model itself. Schedule, clipping, optimiser and processes
are `transformers.Trainer`'s: under `torchrun` each process takes its share of every step. Weights are trained and saved in float32, because
steps as small as 1e-6 are lost in bfloat16.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import ceil, inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from leafe.distillation.attention import tree_attention
from leafe.distillation.pack import collate
from leafe.distillation.rows import Bundle, pack_examples, shares
from leafe.distillation.trial import Packing, choose_packing
from leafe.engines.loading import load_checkpoint, load_tokenizer
from leafe.engines.tokens import ChatTokenizer
from leafe.errors import UserError
from leafe.jsonl import told_if_unwritable
from leafe.records import Example, Message
from leafe.settings import TrainSettings
from leafe.training.checkpoint import device_of
from leafe.training.launch import Told, by_hand, in_processes, launched
from leafe.training.loss import CrossEntropy, Loss, check_examples, check_picklable, packing_of, pass_loss
from leafe.training.terms import Step
from leafe.training.weights import save, with_adapter

DENSE_SHARE = 4  # a mask of row by row costs the square of a pass, so a pass holds that much less


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training was: how many examples in how many rows of how many tokens, and the mean loss over its steps.

    `by_kind` is the part of the loss that came from examples of each kind; the parts add up to the loss. `attention` is the way of
    attending that was used, the fastest that passed its trial where the settings leave it open. `longest` is how many tokens an example
    may have by that trial, None for any number.
    """

    examples: int
    rows: int
    tokens: int
    steps: int
    loss: float
    by_kind: Mapping[str, float]
    attention: str = "tree"
    longest: int | None = None


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


class _Bundles(Dataset[Bundle]):
    def __init__(self, bundles: Sequence[Bundle]) -> None:
        self._bundles = bundles

    def __len__(self) -> int:
        return len(self._bundles)

    def __getitem__(self, index: int) -> Bundle:
        return self._bundles[index]


class _PackedTrainer(Trainer):
    """A `Trainer` whose batch is one optimiser step, which all processes see and share out among themselves."""

    def __init__(self, *, pass_tokens: int, loss: Loss, **options: Any) -> None:
        super().__init__(data_collator=lambda bundles: {"bundles": bundles}, **options)
        self._pass_tokens = pass_tokens
        self._loss = loss
        self.by_kind: dict[str, Tensor] = {}  # summed over steps and processes

    def get_train_dataloader(self) -> DataLoader[Bundle]:
        """The same steps in the same order in every process."""
        order = torch.Generator().manual_seed(self.args.data_seed or 0)
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            shuffle=True,
            generator=order,
            collate_fn=self.data_collator,
        )

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward through this process's passes of a step; the loss of the whole step."""
        model.train()
        processes = self.accelerator.num_processes
        rows = [row for bundle in inputs["bundles"] for row in bundle.rows]
        step = Step.of(inputs["bundles"])
        passes = shares(rows, processes, self._pass_tokens)[self.accelerator.process_index]
        kinds = sorted({kind for row in rows for kind in row.term_kind})
        losses = torch.zeros(len(kinds), device=self.args.device)
        # A process that has nothing to do computes something all the same, since the others wait for its gradients.
        for number, one in enumerate(passes or [[min(rows, key=lambda row: len(row.ids))]], start=1):
            packed = collate(one).to(self.args.device)
            # Gradients are averaged over processes, once, with the last pass.
            with nullcontext() if number >= len(passes) else self.accelerator.no_sync(model):
                terms = pass_loss(model, packed, self._loss, step).losses
                terms = terms if passes else terms * 0
                self.accelerator.backward(terms.sum() * processes)
            places = torch.tensor([kinds.index(kind) for kind in packed.term_kind], device=self.args.device)
            losses.index_add_(0, places, terms.detach())
        whole: Tensor = self.accelerator.reduce(losses, "sum")
        for kind, loss in zip(kinds, whole, strict=True):
            self.by_kind[kind] = self.by_kind.get(kind, torch.zeros_like(loss)) + loss
        return whole.sum()


class _Progress(TrainerCallback):
    def __init__(self, told: Told) -> None:
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
    told: Told = lambda done, total: None,
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
    _check_flex(settings)
    check_examples(loss, examples)
    if settings.processes > 1:
        check_picklable(loss)
    work = partial(_fine_tune, _Job(checkpoint, examples, out, settings, seed, threads, loss))
    if launched() and not alone:
        return work(told)
    with by_hand():
        return in_processes(settings.processes, work, told) if settings.processes > 1 else work(told)


def _check_flex(settings: TrainSettings) -> None:
    if settings.attention == "flex" and not torch.cuda.is_available():
        raise UserError("train.attention=flex wants a GPU, since FlexAttention cannot train on a CPU; set train.attention=auto")


def try_training(checkpoint: Path, settings: TrainSettings, *, threads: int = 1, context: int = 0) -> TrainReport:
    """One optimiser step on one made-up example with these settings, of which nothing is kept: what a training would refuse is refused now.

    `context` is how long a conversation may become, 0 for as long as the model allows. Raises as `fine_tune` does, and where conversations
    may become longer than what can be trained on.
    """
    _check_flex(settings)
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


def _fine_tune(job: _Job, told: Told) -> TrainReport:
    examples, settings, seed = job.examples, job.settings, job.seed % 2**32
    torch.set_num_threads(max(1, job.threads))
    model, tokenizer = load_checkpoint(job.checkpoint, dtype=torch.float32)
    use_cache = getattr(model.config, "use_cache", None)  # which the trainer turns off
    model.to(device_of("auto", int(os.environ.get("LOCAL_RANK", "0"))))  # the trial runs where training does
    packing = choose_packing(model, settings.attention)
    pass_tokens = min(settings.micro_tokens // (DENSE_SHARE if packing.kind == "dense" else 1), packing.cap.tokens or inf)
    packed_as = packing_of(job.loss)
    bundles = pack_examples(examples, ChatTokenizer(tokenizer), row_tokens=int(pass_tokens), most=settings.batch_size, **packed_as)
    check_lengths(bundles, packing)
    set_seed(seed)  # an adapter starts from random weights
    if settings.lora is not None:
        model = with_adapter(model, settings.lora)
    with TemporaryDirectory() as nowhere:
        trainer = _PackedTrainer(
            model=model,
            args=_arguments(bundles, settings, out=job.out or Path(nowhere), seed=seed),
            train_dataset=_Bundles(bundles),
            callbacks=[_Progress(told)],
            pass_tokens=int(pass_tokens),
            loss=job.loss,
        )
        trainer.remove_callback(PrinterCallback)
        with tree_attention(model, packing.kind):
            result = trainer.train()
    if trainer.is_world_process_zero() and job.out is not None:
        with told_if_unwritable(job.out):
            save(trainer.accelerator.unwrap_model(model), job.out, use_cache=use_cache)
            tokenizer.save_pretrained(job.out)
    lengths = [len(row.ids) for bundle in bundles for row in bundle.rows]
    steps = result.global_step
    by_kind = {kind: float(loss) / steps for kind, loss in sorted(trainer.by_kind.items())}
    loss, longest = float(result.training_loss), packing.cap.longest
    return TrainReport(len(examples), len(lengths), sum(lengths), steps, loss, by_kind, packing.kind, longest)


def check_lengths(bundles: Sequence[Bundle], packing: Packing) -> None:
    """Refuses examples beyond what the trial allows."""
    longest, most = max(max(row.depth) + 1 for bundle in bundles for row in bundle.rows), packing.cap.longest
    if most and longest > most:
        raise UserError(
            f"this model computes the same on packed trees up to {most} tokens, which its configuration names, and the longest example has"
            f" {longest}; choose another model, or explore with engine.max_context={most}"
        )


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
        activation_checkpointing=settings.checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        seed=seed,
        data_seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # Trainer would spread a batch over the devices, which a list of rows is not made for
    return arguments
