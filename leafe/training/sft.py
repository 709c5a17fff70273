"""Fine-tuning on distilled examples: packed rows in, an ordinary Hugging Face checkpoint out.

The loss is the sum over target tokens of weight times minus log-probability, divided by the number of target tokens of the whole
optimiser step, unless another loss is given (`leafe.training.loss`). The contents of a step follow from the examples and the seed alone
and depend neither on the cut into passes nor on the number of processes. The kind of attention is chosen by a trial on the model itself.
Schedule, clipping, optimiser and processes are those of `transformers.Trainer`: under `torchrun` each process takes its share of every
step. Weights are saved in float32, because steps as small as 1e-6 are lost in bfloat16, and training in any precision keeps such steps
(`leafe.training.precision`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from transformers import PrinterCallback, TrainingArguments, set_seed
from transformers.utils.logging import disable_progress_bar

from leafe.digest import lines_digest
from leafe.distillation.passes import parts_for
from leafe.distillation.rows import Bundle, bundles_a_step, pack_examples
from leafe.distillation.trial import Packing, choose_packing
from leafe.engines.loading import load_checkpoint, load_tokenizer
from leafe.engines.tokens import ChatTokenizer
from leafe.errors import UserError
from leafe.group import by_hand, launched, processes_here
from leafe.jsonl import told_if_unwritable
from leafe.model_folder import fingerprint
from leafe.records import Example, Message, encode
from leafe.settings import MACHINE, TrainSettings
from leafe.training.follow import leader
from leafe.training.launch import ProgressCallback, in_processes
from leafe.training.loss import CrossEntropy, Loss, check_examples, check_picklable, described, packing_of
from leafe.training.machine import Plan, attending, check_machine, pass_tokens, placed, room_for, tried_on
from leafe.training.memory import give_back
from leafe.training.precision import join_model
from leafe.training.resume import State
from leafe.training.sharding import by_us, held, put_together, shard
from leafe.training.trainer import PackedTrainer, Told, Watch, Work
from leafe.training.weights import save, with_adapter


@dataclass(frozen=True, slots=True)
class TrainReport:
    """The report of a training: the numbers of examples, rows and tokens, and the mean loss over its steps.

    `by_kind` is the part of the loss from examples of each kind; the parts add up to the loss. `attention` is the kind of attention, by
    default the fastest that passed its trial. `longest` is the most tokens of an example by that trial, None for no limit. `dtype` is the
    precision, `micro_tokens` the most tokens of a pass at the end, which was halved `halved` times when memory ran out. `processes` shared
    the work, and each held at most the share `held` of weights and moments, by `sharding`.
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
    processes: int = 1
    sharding: str = "none"
    held: float = 1.0

    @property
    def machine(self) -> dict[str, str | int | float]:
        """The fields that depended on the machine, if they differ from those on every processor."""
        cut = {"micro_tokens": self.micro_tokens, "halved": self.halved} if self.halved else {}
        shared: dict[str, str | int | float] = {}
        if self.processes > 1:
            shared = {"processes": self.processes, "sharding": self.sharding, "held": round(self.held, 3)}
        return ({} if self.dtype == "float32" else {"dtype": self.dtype}) | cut | shared


@dataclass(frozen=True)
class _Job:
    """The arguments of `fine_tune`, to be sent to other processes. Without `out` nothing is kept."""

    checkpoint: Path
    examples: Sequence[Example]
    out: Path | None
    settings: TrainSettings
    seed: int
    threads: int
    loss: Loss = CrossEntropy()
    state: Path | None = None
    figures: bool = False  # whether each step's figures are reported


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
    state: Path | None = None,
    noticed: Callable[[int, Mapping[str, float]], None] | None = None,
) -> TrainReport:
    """Trains the model of `checkpoint` on `examples` and saves it with its tokenizer into the folder `out`.

    With `settings.processes` above one it starts that many. Under `torchrun` every process calls it with the same arguments, and the first
    one saves, unless a caller is `alone` and none follows it (`leafe.training.follow`). With `settings.save_every` a killed training
    resumes from the folder `state`, which the caller has to delete. `noticed` gets each step's number and figures, which waits for a GPU.
    Raises `UserError` if there is nothing to train on, the model cannot be trained on packed trees or the examples lack what the loss
    needs, `CorruptFile` if the checkpoint cannot be loaded.
    """
    if not examples:
        raise UserError("there is no example to train on: explore with a larger budget, or set distill.qualify=any")
    check_machine(settings)
    check_examples(loss, examples)
    if settings.processes > 1 or leader():
        check_picklable(loss)
    if state is None and settings.save_every:
        raise UserError(
            "train.save_every wants a folder for the state, and found none; give state=FOLDER, or set train.save_every=0"
        )
    job = _Job(checkpoint, examples, out, settings, seed, threads, loss, state, noticed is not None)

    def heard(done: int, total: int, figures: Mapping[str, float]) -> None:
        told(done, total)
        if noticed is not None:
            noticed(done, figures)

    return _shared(job, heard, alone=alone)


def _shared(job: _Job, told: Told, *, alone: bool) -> TrainReport:
    """A training in as many processes as its settings or a launcher say."""
    work, processes = partial(_fine_tune, job), job.settings.processes
    if first := leader():
        first.tell(job)
    if first or (launched() and not alone):
        return work(told)
    with by_hand():
        return in_processes(processes, work, told) if processes > 1 else work(told)


def help_training(job: _Job) -> None:
    """This process's part of a training that a launcher's first process began."""
    disable_progress_bar()
    _fine_tune(job, _silent)


def _silent(done: int, total: int, figures: Mapping[str, float]) -> None:
    """Ignores the figures."""


def try_training(checkpoint: Path, settings: TrainSettings, *, threads: int = 1, context: int = 0) -> TrainReport:
    """One optimiser step on one made-up example with these settings, without keeping anything, to raise a training's refusals early.

    It is taken in this process alone, except with `sharding=fsdp`: then in all processes, since one may not hold the whole model. `context`
    is the longest possible conversation, 0 for the limit of the model. Raises as `fine_tune` does, and if conversations may become longer
    than can be trained on.
    """
    check_machine(settings)
    ids = load_tokenizer(checkpoint)("a", add_special_tokens=False)["input_ids"]
    example = Example("trial", "rehearsal", "trial", 0, "trial", (Message("user", "a"),), "a", tuple(ids[:1]))
    once = settings.model_copy(update={"epochs": 1.0, "batch_size": 1, "warmup_share": 0.0, "save_every": 0})
    if settings.sharding == "fsdp":
        report = _shared(_Job(checkpoint, [example], None, once, 0, threads), _silent, alone=True)
    else:
        once = once.model_copy(update={"processes": 1})
        with by_hand():
            report = _fine_tune(_Job(checkpoint, [example], None, once, 0, threads), _silent)
    if report.longest and not 0 < context <= report.longest:
        raise UserError(
            f"this model can be trained on up to {report.longest} tokens, beyond which packed trees change what it computes, and"
            f" conversations may become longer; type engine.max_context={report.longest}"
        )
    return report


def _fine_tune(rollout: _Job, told: Told) -> TrainReport:
    torch.set_num_threads(max(1, rollout.threads))
    try:
        with by_us(), room_for(rollout.settings):
            return _trained(rollout, told)
    finally:
        give_back()  # the next stage may be other processes


def _trained(rollout: _Job, told: Told) -> TrainReport:
    settings, seed = rollout.settings, rollout.seed % 2**32
    sharded = settings.sharding == "fsdp"
    model, tokenizer = load_checkpoint(rollout.checkpoint, dtype=torch.float32)
    use_cache = getattr(model.config, "use_cache", None)  # the trainer turns it off
    plan, low = placed(model, settings)
    work = _work(rollout, ChatTokenizer(tokenizer), plan, choose_packing(model, settings.attention, tried_on(settings)))
    work.low, work.sharded = low, sharded
    set_seed(seed)  # an adapter starts from random weights
    if settings.lora is not None:
        model = with_adapter(model, settings.lora)
    with TemporaryDirectory() as nowhere:
        trainer, steps, share = _train(rollout, work, plan, model, told=told, nowhere=Path(nowhere))
    if rollout.out is not None:
        whole = put_together(model) if sharded else {}
        with _agreed(trainer) as is_first, told_if_unwritable(rollout.out):
            if is_first:
                model = _rebuilt(rollout, whole) if sharded else trainer.accelerator.unwrap_model(model)
                if plan.precision == "bfloat16":
                    join_model(model, low)
                save(model, rollout.out, use_cache=use_cache, keep=bool(settings.lora and settings.lora.keep))
                tokenizer.save_pretrained(rollout.out)
    by_kind = {kind: float(loss) / steps for kind, loss in sorted(trainer.by_kind.items())}
    report = _report(rollout, work, plan, steps=steps, loss=trainer.total / steps, by_kind=by_kind)
    return replace(report, processes=trainer.accelerator.num_processes, sharding=settings.sharding, held=share)


def _train(rollout: _Job, work: Work, plan: Plan, model: Any, *, told: Told, nowhere: Path) -> tuple[PackedTrainer, int, float]:
    """Trains a model; returns the trainer, the number of steps, and the largest share of weights and moments that a process holds."""
    settings = rollout.settings
    arguments = _arguments(work.bundles, settings, plan, out=nowhere, seed=rollout.seed % 2**32)
    watch = Watch(told, settings.save_every, figures=rollout.figures)
    state = _state(rollout, arguments)
    trainer = PackedTrainer(work, rollout.loss, state, model=model, args=arguments, callbacks=[watch])
    watch.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    if (found := trainer.accelerator.num_processes) != (wanted := processes_here()):
        raise UserError(f"{wanted} processes were to share this training, and {found} does; start it with torchrun")
    if work.sharded:
        shard(model, arguments.device)
    with attending(model, settings, plan, work.packing.kind):
        steps = trainer.go(nowhere)
    return trainer, steps, held(trainer.trained()) if work.sharded else 1.0


def _state(rollout: _Job, arguments: TrainingArguments) -> State | None:
    """The state from which this training resumes, if it is to be kept."""
    if not rollout.state or not rollout.settings.save_every:
        return None
    chosen = rollout.settings.model_dump(mode="json", exclude=MACHINE["train"])
    job = {
        "model": fingerprint(rollout.checkpoint),
        "seed": rollout.seed,
        "settings": chosen,
        "loss": described(rollout.loss),
        "examples": lines_digest(map(encode, rollout.examples)),
    }
    return State(rollout.state, job, arguments.process_index, lambda value: list(gather_object([value])))


def _rebuilt(rollout: _Job, weights: Mapping[str, Tensor]) -> Any:
    """A whole model with the weights of shards."""
    model, _ = load_checkpoint(rollout.checkpoint, dtype=torch.float32)
    if rollout.settings.lora is not None:
        model = with_adapter(model, rollout.settings.lora)
    model.load_state_dict(weights)
    return model


@contextmanager
def _agreed(trainer: PackedTrainer) -> Iterator[bool]:
    """Whether this is the first process, which acts alone; the others wait for it, and raise what it refuses."""
    refused: list[UserError | None] = [None]
    try:
        yield trainer.is_world_process_zero()
    except UserError as error:
        refused = [error]
    if trainer.accelerator.num_processes > 1:
        broadcast_object_list(refused)
    if refused[0] is not None:
        raise refused[0]


def _work(rollout: _Job, tokenizer: ChatTokenizer, plan: Plan, packing: Packing) -> Work:
    def cut(tokens: int) -> list[Bundle]:
        return pack_examples(
            rollout.examples, tokenizer, row_tokens=tokens, most=rollout.settings.batch_size, **packing_of(rollout.loss)
        )

    work = Work(cut, pass_tokens(plan, packing), packing)
    check_lengths(work.bundles, packing)
    tokens = sum(len(row.ids) for bundle in work.bundles for row in bundle.rows)
    passes = max(len(rollout.examples) / rollout.settings.batch_size, tokens / work.pass_tokens)
    work.parts = parts_for(rollout.settings.epochs * passes)
    return work


def _report(rollout: _Job, work: Work, plan: Plan, *, steps: int, loss: float, by_kind: Mapping[str, float]) -> TrainReport:
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
        # Trainer rounds a share up, and the first step of its warm-up has a rate of zero: a run of one step would learn nothing.
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
        logging_nan_inf_filter=not gpu,  # it would wait for the device at every step
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not gpu,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
        **chosen,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # Trainer would spread a batch over the devices, which does not work for a list of rows
    return arguments
