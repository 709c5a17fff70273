"""A model that learns step by step and keeps its optimiser and learning rate between steps, for on-policy methods.

    learner = Learner.open(folder, checkpoint, settings, steps=100, loss=ClippedRatio())
    while learner.done < learner.steps:
        report = learner.step(sample_with(learner.model))
        learner.state(folder)
    learner.save(out)

A step is a function of the weights, the optimiser, the examples and the seed alone: other random draws of the process have no effect. So
a learner that is killed and resumed from its state ends with the same weights, bit for bit on one kind of processor. Of the settings of
`train`, `epochs`, `batch_size` and `save_every` have no effect here, and `processes` has to be 1. Steps are taken in float32 in every
precision (`leafe.training.precision`). What only says how a step is computed, such as `micro_tokens`, may be another when a learner is
resumed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from leafe.digest import seed_for
from leafe.distillation.passes import ready, sent
from leafe.distillation.rows import Bundle, pack_examples, shares
from leafe.distillation.trial import choose_packing
from leafe.engines.loading import load_checkpoint
from leafe.engines.tokens import ChatTokenizer
from leafe.errors import RunConflict, UserError
from leafe.folders import whole_folder
from leafe.group import launched
from leafe.jsonl import told_if_unwritable
from leafe.model_folder import fingerprint
from leafe.records import Example
from leafe.settings import MACHINE, TrainSettings
from leafe.training.learner_settings import check_learner
from leafe.training.loss import CrossEntropy, Loss, check_examples, described, packing_of, pass_loss
from leafe.training.machine import FEWEST, attending, check_machine, no_room, pass_tokens, placed, room_for
from leafe.training.memory import give_back
from leafe.training.precision import Joined, in_float32, join_model
from leafe.training.resume import Trained
from leafe.training.sft import check_lengths
from leafe.training.state import has_state, read_state, take_state, write_state
from leafe.training.terms import Step
from leafe.training.weights import save, with_adapter

SHARE = 0.6  # of a GPU's memory; the rest is for the engine that samples beside the learner


@dataclass(frozen=True, slots=True)
class StepReport:
    """The report of a step, counted from 1. `by_kind` is the part of the loss from examples of each kind; the parts add up to it.

    `gradient_norm` is that before clipping, `tokens` are those computed after packing, `targets` those learned from. `figures` are the
    means of the loss's other figures, such as `clipped` and `kl` of `ClippedRatio`.
    """

    step: int
    loss: float
    by_kind: Mapping[str, float]
    gradient_norm: float
    learning_rate: float
    examples: int
    tokens: int
    targets: int
    figures: Mapping[str, float]


class Learner:
    """Weights, optimiser and schedule of a training whose examples come step by step.

    `checkpoint` is a model's folder. `model` may be sampled from between steps. `steps` is how many there will be: the rate warms up over a
    share of them and falls towards 0 by half a cosine; no step has the rate 0. `threads` is torch's, 0 leaves it as it is. Raises
    `UserError` for a model that cannot be trained.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        settings: TrainSettings = TrainSettings(),
        *,
        steps: int,
        loss: Loss = CrossEntropy(),
        seed: int = 0,
        threads: int = 0,
    ) -> None:
        if steps < 1:
            raise UserError(f"steps: wanted at least 1, found {steps}")
        if settings.processes > 1 or launched():
            raise UserError(
                "a learner trains in one process; set train.processes=1, and start it without a launcher such as torchrun"
            )
        check_learner(settings)
        check_machine(settings)
        check_examples(loss, ())
        if threads:
            torch.set_num_threads(threads)
        self.checkpoint, self.settings, self.steps, self.loss = Path(checkpoint), settings, steps, loss
        self.seed, self.threads, self.done = seed, threads, 0
        model, self.tokenizer = load_checkpoint(self.checkpoint, dtype=torch.float32)
        self._fingerprint = fingerprint(self.checkpoint)
        self._use_cache = getattr(model.config, "use_cache", None)
        with room_for(settings):
            self._plan, self._low = placed(model, settings, share=SHARE)
        self._packing = choose_packing(model, settings.attention)
        self._pass_tokens = pass_tokens(self._plan, self._packing)
        with self._own_randomness(seed % 2**32):  # an adapter starts from random weights, the same as in `fine_tune`
            self.model: Any = model if settings.lora is None else with_adapter(model, settings.lora)
        if self._plan.checkpointing:
            self.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self._weights = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        groups = _by_decay(self._weights, settings.weight_decay)
        # On the processor only a fused one takes the steps of a large model in seconds.
        adamw = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True if self._plan.offload else None)
        self._optimizer = in_float32(adamw, self._low)

    def step(self, examples: Sequence[Example]) -> StepReport:
        """One optimiser step on all of the examples together, as many as there are.

        Raises `UserError`, and leaves the weights unchanged, if the examples lack what the loss needs, if the loss is not a number, if
        no pass fits into memory, and after the last step. If memory runs out in the optimiser some weights may have changed.
        """
        if self.done >= self.steps:
            raise UserError(
                f"all {self.steps} steps of this learner are taken, and its rate has come to 0; make one with more steps"
            )
        if not examples:
            raise UserError(f"step {self.done + 1} has no example to train on; leave the step out")
        check_examples(self.loss, examples)
        packed_as = packing_of(self.loss)
        tokenizer = ChatTokenizer(self.tokenizer)
        while True:
            bundles = pack_examples(examples, tokenizer, row_tokens=self._pass_tokens, most=len(examples), **packed_as)
            check_lengths(bundles, self._packing)
            try:
                by_kind, figures = self._gradients(bundles)
                break
            except torch.OutOfMemoryError:
                pass  # not handled here, since the error keeps all activations alive
            self._halve()
        norm = torch.nn.utils.clip_grad_norm_(self._weights.values(), self.settings.max_grad_norm)
        loss, rate = sum(by_kind.values()), self.rate(self.done)
        if not (isfinite(loss) and isfinite(float(norm))):
            self._optimizer.zero_grad()
            raise UserError(
                f"step {self.done + 1} has a loss of {loss} and gradients of norm {float(norm)}, and the weights are as they were before"
                " it; lower train.learning_rate, or look at the weights and log-probabilities of the examples"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        try:
            with room_for(self.settings):
                self._optimizer.step()
        finally:
            self._optimizer.zero_grad()
        self.done += 1
        tokens = sum(len(row.ids) for bundle in bundles for row in bundle.rows)
        targets = sum(bundle.target_tokens for bundle in bundles)
        return StepReport(self.done, loss, by_kind, float(norm), rate, len(examples), tokens, targets, figures)

    def _halve(self) -> None:
        """Makes passes smaller. Raises `UserError` where they are the smallest already."""
        if self._pass_tokens <= FEWEST:
            raise UserError(no_room())
        self._optimizer.zero_grad()
        give_back()
        self._pass_tokens = max(FEWEST, self._pass_tokens // 2)

    def rate(self, done: int) -> float:
        """The learning rate of the step that follows `done` steps. The first has one above 0, since its batch was paid for."""
        warm = int(self.settings.warmup_share * self.steps)
        if done < warm:
            return self.settings.learning_rate * (done + 1) / (warm + 1)
        return self.settings.learning_rate * 0.5 * (1 + cos(pi * (done - warm) / max(1, self.steps - warm)))

    def _gradients(self, bundles: Sequence[Bundle]) -> tuple[dict[str, float], dict[str, float]]:
        """Adds up the gradients of all passes; returns the loss by kind, and the means of the loss's figures."""
        rows = [row for bundle in bundles for row in bundle.rows]
        kinds = sorted({kind for row in rows for kind in row.term_kind})
        told: dict[str, list[Tensor]] = {}
        step, device = Step.of(bundles), self.model.device
        sums = torch.zeros(len(kinds), device=device)
        (passes,) = shares(rows, 1, self._pass_tokens)
        self._optimizer.zero_grad()  # gradients of a step that failed half-way
        with self._own_randomness(seed_for(self.seed, "learner", self.done)), self._training():
            for one in passes:
                batch = ready(one, self._packing.kind, device)
                losses, figures = pass_loss(self.model, batch, self.loss, step)
                losses.sum().backward()
                places = sent(torch.tensor([kinds.index(kind) for kind in batch.term_kind]), device)
                sums.index_add_(0, places, losses.detach().to(sums.dtype))
                for name, values in figures.items():
                    told.setdefault(name, []).append(values.detach().flatten())
        by_kind = dict(zip(kinds, sums.tolist(), strict=True))
        return by_kind, {name: float(torch.cat(values).mean()) for name, values in sorted(told.items())}

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Sets the model up for training, and afterwards for sampling."""
        self.model.train()
        try:
            with attending(self.model, self.settings, self._plan, self._packing.kind):
                yield
        finally:
            self.model.eval()

    @contextmanager
    def _own_randomness(self, seed: int) -> Iterator[None]:
        """Draws that follow from the seed and do not change those of the rest of the process."""
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            yield

    def save(self, folder: str | Path) -> None:
        """Writes an ordinary checkpoint with its tokenizer, whole or not at all; an adapter is merged into a copy of the model.

        Raises `UserError` if the folder exists.
        """
        folder = Path(folder)
        if folder.exists():
            raise UserError(f"{folder} is there already; give another folder for the trained model")
        with told_if_unwritable(folder), whole_folder(folder) as unfinished:
            lora = self.settings.lora
            save(self._whole(), unfinished, use_cache=self._use_cache, keep=bool(lora and lora.keep))
            self.tokenizer.save_pretrained(unfinished)

    def weights(self) -> Mapping[str, Tensor]:
        """All weights by the names of the model in `checkpoint`, an adapter merged into them; valid until the next step.

        Those that are held in two halves are put together when they are asked for.
        """
        if self.settings.lora is None:
            return Joined(self.model.state_dict(keep_vars=True), self._low)
        merged: Mapping[str, Tensor] = self._whole().merge_and_unload().state_dict()
        return merged

    def _whole(self) -> Any:
        """The model in float32, which `save` may change."""
        if self.settings.lora is None and not self._low:
            return self.model
        twin = copy.deepcopy(self.model)
        if self._low:
            pairs = zip(self.model.parameters(), twin.parameters(), strict=True)
            join_model(twin, {copied: self._low[weight] for weight, copied in pairs if weight in self._low})
        return twin

    def state(self, folder: str | Path) -> None:
        """Writes the learner's state in place of that of an earlier step: one of the two is complete at each moment.

        A folder that holds anything else is refused with `UserError`.
        """
        write_state(Path(folder), {**self._made_with(), "done": self.done}, self._trained())

    def _trained(self) -> Trained:
        return Trained(self.model, self._optimizer, self._low)

    def _made_with(self) -> dict[str, Any]:
        """What determines a step, beside weights, optimiser and examples. `checkpoint` is only where the model was last."""
        return {
            "checkpoint": str(self.checkpoint.resolve()),
            "model": self._fingerprint,
            "settings": self.settings.model_dump(mode="json"),
            "steps": self.steps,
            "seed": self.seed,
            "threads": self.threads,
            "loss": described(self.loss),
        }

    @classmethod
    def open(
        cls,
        folder: str | Path,
        checkpoint: str | Path,
        settings: TrainSettings = TrainSettings(),
        *,
        steps: int,
        loss: Loss = CrossEntropy(),
        seed: int = 0,
        threads: int = 0,
    ) -> Self:
        """The learner whose state is in the folder, or else a new one. The model may have been moved since.

        Raises as `resume` does, and `RunConflict` if the state's learner was made with other settings.
        """
        folder = Path(folder)
        if not has_state(folder):
            return cls(checkpoint, settings, steps=steps, loss=loss, seed=seed, threads=threads)
        told = read_state(folder)
        kept = {name: told[name] for name in ("steps", "seed")} | _flat(_settings_of(told, folder))
        wanted = {"steps": steps, "seed": seed} | _flat(settings)
        if differing := [f"{name}: {kept[name]} -> {value}" for name, value in wanted.items() if kept[name] != value]:
            raise RunConflict(f"{folder} was kept with other settings ({'; '.join(differing)}); give another folder")
        return cls._resumed(folder, {**told, "checkpoint": checkpoint}, settings, loss)

    @classmethod
    def resume(cls, folder: str | Path, *, loss: Loss = CrossEntropy()) -> Self:
        """The learner whose state is in the folder, with the loss that it had.

        Raises `UserError` if there is no state, `CorruptFile` if it was changed since it was written, `RunConflict` if the loss or the
        model is another one.
        """
        folder = Path(folder)
        told = read_state(folder)
        return cls._resumed(folder, told, _settings_of(told, folder), loss)

    @classmethod
    def _resumed(cls, folder: Path, told: Mapping[str, Any], settings: TrainSettings, loss: Loss) -> Self:
        if told["loss"] != described(loss):
            raise RunConflict(f"{folder} was kept with the loss {told['loss']}, found {described(loss)}; resume it with that one")
        checkpoint = Path(told["checkpoint"])
        if told["model"] != fingerprint(checkpoint):
            raise RunConflict(f"{folder} was kept with another model than is in {checkpoint}; put that one back, or start anew")
        learner = cls(checkpoint, settings, steps=told["steps"], loss=loss, seed=told["seed"], threads=told["threads"])
        take_state(folder, learner._trained())
        learner.done = told["done"]
        return learner


def _settings_of(told: Mapping[str, Any], folder: Path) -> TrainSettings:
    try:
        return TrainSettings.model_validate(told["settings"])
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise RunConflict(f"{folder} was kept by a version with other settings ({reason:.160}); give another folder") from None


def _flat(settings: TrainSettings) -> dict[str, Any]:
    """The settings that determine a step."""
    return {f"train.{name}": value for name, value in settings.model_dump(mode="json", exclude=MACHINE["train"]).items()}


def _by_decay(weights: Mapping[str, Tensor], decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases, which have one dimension, do not."""
    matrices = [weight for weight in weights.values() if weight.ndim > 1]
    vectors = [weight for weight in weights.values() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
