"""Trains a bundled checkpoint from nothing: tokenizer, curriculum, model.

Episodes grow with the stages, so that the model first learns a world and its moves on short rows, which cost little, and then to look
back over whole episodes. Several processes share a step: each has its own lessons, and their gradients are averaged. A killed build
resumes from its last save when it is started again. The result is an ordinary checkpoint folder: config, tokenizer with
chat template, safetensors.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate, islice
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed
from torch.multiprocessing.spawn import spawn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM
from transformers.utils.logging import disable_progress_bar

from leafe import lifeline
from leafe.digest import seed_for
from leafe.distillation.attention import tree_attention
from leafe.distillation.pack import PackedRow, collate, term_losses
from leafe.hardware import multiplies_bfloat16
from leafe.nano.curriculum import Curriculum, Weights, Writer, batches
from leafe.nano.tokenizer import build_tokenizer
from leafe.prompts import load_prompts

UNFINISHED = "unfinished.pt"  # in the checkpoint's folder, as long as the build is not done


@dataclass(frozen=True)
class Shape:
    """The size of the model. `context` is in tokens."""

    hidden: int = 128
    layers: int = 6
    heads: int = 4
    inner: int = 384
    vocabulary: int = 512
    context: int = 2048


# By the names that `--size` takes: about 0.3, 1.3 and 4 million parameters.
SIZES = {
    "small": Shape(hidden=64, layers=4, heads=2, inner=192),
    "medium": Shape(),
    "large": Shape(hidden=192, layers=8, heads=6, inner=576),
}


@dataclass(frozen=True)
class Plan:
    """The parameters of a build.

    `tokens` is the padded size of a batch of one process; `start` is a checkpoint to begin with, empty for fresh weights; every
    `saved_every` steps the build is saved, to resume from there after a kill.
    """

    steps: int
    tokens: int = 8192
    learning_rate: float = 1.5e-3
    seed: int = 0
    processes: int = 1
    weights: Weights = Weights()
    shape: Shape = Shape()
    start: str = ""
    saved_every: int = 250


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """A Qwen2 of the given shape with fresh weights."""
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    return model


def build(curriculum: Curriculum, out: Path, plan: Plan, log: Callable[[str], None] = lambda _: None) -> None:
    """Trains a checkpoint into `out`, in `plan.processes` processes. `log` is called with the loss now and then.

    Where there are several processes, curriculum and log are pickled. An interrupted build of the same curriculum and plan is resumed.
    """
    if plan.processes == 1:
        _build(curriculum, out, plan, log)
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        work = partial(_build, curriculum, out, plan, log)
        with lifeline.connection() as life:
            spawn(_work, args=(life, (meeting, plan.processes), work), nprocs=plan.processes)


def _build(curriculum: Curriculum, out: Path, plan: Plan, log: Callable[[str], None]) -> None:
    disable_progress_bar()  # transformers' own, at every save
    torch.manual_seed(plan.seed)
    torch.set_num_threads(1)  # small matrices: a second process is worth more than a second thread
    prompts = load_prompts("terse", curriculum.prompts)
    if plan.start:
        tokenizer = AutoTokenizer.from_pretrained(plan.start)
        model = Qwen2ForCausalLM.from_pretrained(plan.start, dtype=torch.float32)
    else:
        lessons = islice(curriculum.teacher(curriculum.stages[-1]).lessons(plan.seed), 400)
        tokenizer = build_tokenizer(Writer.corpus(prompts, lessons), plan.shape.vocabulary)
        model = new_model(plan.shape, tokenizer)
    writer = Writer(tokenizer, prompts, plan.weights)
    about = {"curriculum": curriculum.about(), "plan": asdict(plan)}
    training = Training(model, plan, json.dumps(about, sort_keys=True), out / UNFINISHED)
    groups = islice(_groups(curriculum, writer, plan), training.done, None)
    with tree_attention(model):
        for done in training.steps(groups, log):
            if done == plan.steps:  # only then: an abandoned build must not take the place of a finished checkpoint
                _save(model, tokenizer, out, {**about, "steps_done": done})
                training.forget()
            elif done % plan.saved_every == 0:
                training.save()


class Training:
    """A model with its optimizer, the number of steps done, and the file that stores them.

    `about` identifies the build: the state that another build left behind is not resumed.
    """

    def __init__(self, model: Qwen2ForCausalLM, plan: Plan, about: str, file: Path) -> None:
        self._model, self._plan, self._about, self._file = model, plan, about, file
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.done = 0
        kept = torch.load(file, weights_only=True) if file.is_file() else {}
        if kept.get("about") == about:
            self.done = kept["done"]
            model.load_state_dict(kept["model"])
            self._optimizer.load_state_dict(kept["optimizer"])

    def save(self) -> None:
        """Saves the state of the training, in the first process only; a kill in the middle leaves the last save."""
        if _rank():
            return
        state = {
            "about": self._about,
            "done": self.done,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        beside = self._file.with_suffix(".part")
        torch.save(state, beside)
        beside.replace(self._file)

    def forget(self) -> None:
        """Deletes the saved state, once the training is over."""
        if not _rank():
            self._file.unlink(missing_ok=True)

    def steps(self, groups: Iterable[list[PackedRow]], log: Callable[[str], None]) -> Iterator[int]:
        """Takes a step for each group and yields how many are done."""
        began, smooth, lessons = time.monotonic(), 0.0, 0
        for group in groups:
            for parameters in self._optimizer.param_groups:
                parameters["lr"] = self._rate()
            loss = _step(self._model, self._optimizer, group)
            self.done += 1
            lessons += len(group)
            smooth = loss if not smooth else 0.98 * smooth + 0.02 * loss
            if not _rank() and self.done % 100 == 1:
                log(
                    f"step {self.done}/{self._plan.steps} loss {smooth:.4f} lessons {lessons} seconds {time.monotonic() - began:.0f}"
                )
            yield self.done

    def _rate(self) -> float:
        """The learning rate: a hundred steps up, then half a cosine down to 3 %."""
        left = 0.5 * (1 + math.cos(math.pi * self.done / self._plan.steps))
        return self._plan.learning_rate * min(1.0, (self.done + 1) / 100) * (0.03 + 0.97 * left)


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _groups(curriculum: Curriculum, writer: Writer, plan: Plan) -> Iterator[list[PackedRow]]:
    """`plan.steps` batches of rows of about the same length."""
    ends = [round(plan.steps * share) for share in accumulate(stage.share for stage in curriculum.stages)]
    for number, (stage, start, end) in enumerate(zip(curriculum.stages, [0, *ends], ends, strict=False)):
        if start == end:
            continue
        rows = (writer.row(lesson) for lesson in curriculum.teacher(stage).lessons(seed_for("nano", plan.seed, number, _rank())))
        yield from islice(_by_length(rows, plan.tokens), end - start)


def _by_length(rows: Iterator[PackedRow], tokens: int) -> Iterator[list[PackedRow]]:
    """Batches out of a window of rows sorted by length, so that little is padding, in an order that mixes lengths again."""
    while True:
        window = sorted(islice(rows, 256), key=lambda row: len(row.ids))
        groups = [list(group) for group in batches(iter(window), tokens)]
        stride = 7
        yield from (groups[index] for start in range(stride) for index in range(start, len(groups), stride))


def _step(model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer, group: list[PackedRow]) -> float:
    batch = collate(group)
    with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16()):
        losses = term_losses(model, batch)
    loss = (losses * batch.term_weight).sum() / batch.term_weight.sum()
    loss.backward()
    if torch.distributed.is_initialized():
        _average_gradients(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def _average_gradients(model: Qwen2ForCausalLM) -> None:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for gradient, averaged in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(averaged.view_as(gradient))


def _save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path, about: dict[str, object]) -> None:
    if _rank():
        return
    out.mkdir(parents=True, exist_ok=True)
    copy = Qwen2ForCausalLM(model.config).bfloat16()
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    copy.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "build.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _work(rank: int, life: Connection, meeting: tuple[str, int], work: Callable[[], None]) -> None:
    lifeline.hold(life)
    torch.distributed.init_process_group("gloo", init_method=meeting[0], rank=rank, world_size=meeting[1])
    work()
    torch.distributed.destroy_process_group()
