"""Packed training on a GPU against padded samples and against the matmul ceiling of the same run; `benchmarks/gpu.py` calls it.

Four chains of 30 turns make a step: 300 tokens of history, and at each turn 96 that are read and 32 that are learned, 16.6 thousand tokens
packed and 279 thousand one by one. Models have random weights of a Qwen2.5 shape in bfloat16. A step is forward and backward with its
preparation, without an optimiser, unless its name says otherwise. `share` is 6 floating-point operations a weight and own token, divided
by the ceiling; padding and the second computation of checkpointing do not count.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import packing  # noqa: E402
from tiny import tiny_tokenizer  # noqa: E402

from leafe.distillation.attention import compiled_layers, tree_attention  # noqa: E402
from leafe.distillation.pack import Sample, pack, term_losses  # noqa: E402
from leafe.distillation.passes import ready  # noqa: E402
from leafe.distillation.trial import try_packing  # noqa: E402
from leafe.records import Example, Message  # noqa: E402
from leafe.settings import LoraSettings, TrainSettings  # noqa: E402
from leafe.training.precision import SplitOptimizer  # noqa: E402
from leafe.training.sft import fine_tune  # noqa: E402
from leafe.training.weights import with_adapter  # noqa: E402

Say = Callable[..., None]
"""A function of the name of a measurement and its figures, called when they are known."""
WORDS = ["go left", "go right", "open the door", "you see a box and a wall", "nothing happens", "take the key from the table"]


class Load(NamedTuple):
    """The size of one step: chains, their turns, tokens of history, read and learned at each turn, and tokens of a padded pass."""

    chains: int = 4
    turns: int = 30
    history: int = 300
    seen: int = 96
    learned: int = 32
    tokens: int = 16_384


SMALL = Load(2, 6, 40, 12, 4, 1024)


class Experiment:
    """The common state of all measurements."""

    def __init__(self, say: Say, device: str, deadline: float, ceiling: float, load: Load) -> None:
        self.say, self.device, self.deadline, self.ceiling, self.load = say, device, deadline, ceiling, load
        self.padded: tuple[float, int] | None = None  # seconds and tokens of a step of padded samples

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def now(self) -> float:
        """The clock, after everything sent to the device is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    def model(self, shape: str, *, checkpointing: bool = False) -> Any:
        """A model of random weights, ready to be trained."""
        options = argparse.Namespace(shape=shape, device=self.device, checkpointing=checkpointing)
        return packing.new_model(options).train()

    def timed(self, name: str, work: Callable[[], tuple[Tensor, int]], weights: int, *, most: int = 4) -> tuple[float, int]:
        """Median seconds and own tokens of a step, measured after a first one and reported.

        Short steps follow each other without waiting for the device, as in training, so that the next one is prepared meanwhile.
        """
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = self.now()
        loss, tokens = work()
        first, spent = self.now() - start, list[float]()
        while len(spent) < 2 or (len(spent) < most and sum(spent) < 6 and self.left() > 2 * spent[-1]):
            together = 3 if spent and spent[0] < 1 else 1
            start = self.now()
            for _ in range(together):
                loss, tokens = work()
            spent.append((self.now() - start) / together)
        spent = spent[1:]  # the second step may still compile
        seconds = statistics.median(spent)
        figures = {
            "first_seconds": first,
            "seconds": seconds,
            "spread": [min(spent), max(spent)],
            "steps": len(spent),
            "tokens": tokens,
        }
        figures |= {
            "tokens_a_second": tokens / seconds,
            "share": 6 * weights * tokens / seconds / self.ceiling,
            "loss": float(loss),
        }
        if self.padded:
            figures |= {"faster": self.padded[0] / seconds, "token_ratio": self.padded[1] / tokens}
            figures["of_the_token_ratio"] = figures["faster"] / figures["token_ratio"]
        if self.device == "cuda":
            figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.say(name, **figures)
        return seconds, tokens


def chains(load: Load) -> packing.Step:
    """One optimiser step: a task is a chain of turns, each learned after all earlier ones."""
    source = random.Random("chains")

    def words(count: int) -> list[int]:
        return [source.randrange(1, 500) for _ in range(count)]

    tasks = []
    for _ in range(load.chains):
        history, samples = words(load.history), []
        for _ in range(load.turns):
            history = [*history, *words(load.seen)]
            samples.append(Sample(history, words(load.learned)))
            history = [*history, *samples[-1].target]
        tasks.append(samples)
    return tasks


def waits(experiment: Experiment, name: str, work: Callable[[], Any]) -> None:
    """Reports how often a step waits for the device; only its end should."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    said = [one for one in found if "synchroniz" in str(one.message) and "prototype" not in str(one.message)]
    places = [f"{Path(one.filename).name}:{one.lineno}" for one in said]
    experiment.say(f"{name}: waits for the device", count=len(places), places=sorted(set(places)))


def one_step(model: Any, step: packing.Step, passes: Callable[[], Iterator[packing.Pass]]) -> tuple[Tensor, int]:
    """Computes and discards the gradients of a step; returns its mean loss and the number of tokens. Nothing in it waits for the device."""
    targets = sum(len(sample.target) for sample in packing.flat(step))
    total, tokens = torch.zeros((), device=model.device), 0
    for one in passes():
        loss = one.loss(model) / targets
        loss.backward()
        total, tokens = total + loss.detach(), tokens + one.tokens
    model.zero_grad(set_to_none=True)
    return total, tokens


def ways(experiment: Experiment, shape: str, *, checkpointing: bool = False, only_flex: bool = False) -> Any:
    """Every way of feeding the same step to one model, which is returned."""
    model, step, load = experiment.model(shape, checkpointing=checkpointing), chains(experiment.load), experiment.load
    weights, whole = sum(weight.numel() for weight in model.parameters()), 2 * load.tokens
    gpu = experiment.device == "cuda"
    experiment.say(f"{shape} model", weights=weights, checkpointing=checkpointing)
    experiment.padded = None

    def padded() -> tuple[Tensor, int]:
        return one_step(model, step, lambda: packing.padded(step, load.tokens, experiment.device))

    def packed(kind: str, tokens: int = whole) -> Callable[[], tuple[Tensor, int]]:
        passes = packing.packed_rows(step, tokens)
        return lambda: one_step(model, step, lambda: packing.ready_passes(passes, experiment.device, kind))

    if not only_flex and guarded(
        experiment, f"{shape} padded", lambda: setattr(experiment, "padded", experiment.timed(f"{shape} padded", padded, weights))
    ):
        with tree_attention(model, "tree"):
            in_blocks = packed("tree", whole // load.chains)  # all of it at once would not fit
            guarded(experiment, f"{shape} tree", lambda: experiment.timed(f"{shape} tree", in_blocks, weights))
    kind: Any = "flex" if gpu else "dense"  # FlexAttention cannot train on a processor
    with tree_attention(model, kind):
        guarded(experiment, f"{shape} {kind}", lambda: experiment.timed(f"{shape} {kind}", packed(kind), weights))
        if gpu:
            guarded(experiment, f"{shape} waits", lambda: waits(experiment, f"{shape} {kind}", packed(kind)))
        if gpu and experiment.left() > (120 if only_flex else 40):  # compiling takes long
            with compiled_layers(model):
                name = f"{shape} {kind}, compiled layers"
                guarded(experiment, name, lambda: experiment.timed(name, packed(kind), weights))
    return model


def split_step(experiment: Experiment, model: Any, shape: str) -> None:
    """One whole optimiser step with weights in bfloat16 and their lower halves beside them, if there is memory."""
    count = sum(weight.numel() for weight in model.parameters())
    if experiment.device == "cuda" and torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() < 15 * count + (20 << 30):
        experiment.say(f"{shape} split optimiser", skipped="wants 14 bytes a weight")
        return
    low = {weight: torch.zeros_like(weight, dtype=torch.int16) for weight in model.parameters() if weight.dtype == torch.bfloat16}
    optimizer = SplitOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True), low)
    whole_step(experiment, model, optimizer, f"{shape} whole step, split optimiser")


def lora_step(experiment: Experiment, model: Any, shape: str) -> None:
    """One whole optimiser step of a float32 adapter on a frozen model in bfloat16."""
    model = with_adapter(model, LoraSettings())
    adapter = [weight for weight in model.parameters() if weight.requires_grad]
    whole_step(experiment, model, torch.optim.AdamW(adapter, lr=1e-4, fused=True), f"{shape} whole step, adapter")


def whole_step(experiment: Experiment, model: Any, optimizer: torch.optim.Optimizer, name: str) -> None:
    """Forward, backward, clipping and a step of the optimiser."""
    step, kind = chains(experiment.load), "flex" if experiment.device == "cuda" else "dense"
    counts, stepping = [(weight.numel(), weight.requires_grad) for weight in model.parameters()], [0.0]
    weights = round(sum(count if trained else count * 2 / 3 for count, trained in counts))  # a frozen one has no gradient
    targets, passes = (
        sum(len(sample.target) for sample in packing.flat(step)),
        packing.packed_rows(step, 2 * experiment.load.tokens),
    )

    def work() -> tuple[Tensor, int]:
        total, tokens = torch.zeros((), device=experiment.device), 0
        for one in packing.ready_passes(passes, experiment.device, kind):
            loss = one.loss(model) / targets
            loss.backward()
            total, tokens = total + loss.detach(), tokens + one.tokens
        start = experiment.now()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        stepping[0] = experiment.now() - start
        model.zero_grad(set_to_none=True)
        return total, tokens

    experiment.padded = None
    with tree_attention(model, kind):  # type: ignore[arg-type]
        experiment.timed(name, work, weights, most=3)
    experiment.say(f"{name}: the optimiser alone", seconds=stepping[0])


def tuned(experiment: Experiment, shape: str, settings: dict[str, Any]) -> None:
    """Whole optimiser steps by the public function, from a checkpoint on the disk to one."""
    with TemporaryDirectory() as folder:
        base, out, tokenizer = Path(folder, "base"), Path(folder, "out"), tiny_tokenizer(vocabulary=400, corpus=WORDS)
        experiment.model(shape).eval().save_pretrained(base)
        tokenizer.save_pretrained(base)
        examples, times = lessons(experiment.load, tokenizer), [experiment.now()]
        if experiment.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        plan = TrainSettings(epochs=5, batch_size=len(examples), **settings)
        report = fine_tune(base, examples, out, plan, seed=1, told=lambda done, total: times.append(experiment.now()))
        end = experiment.now()
    steps = [after - before for before, after in pairwise(times)]  # the first with loading and the trial
    tokens = report.tokens
    figures = {
        "settings": settings,
        "seconds": statistics.median(steps[2:]),
        "first_seconds": steps[0],
        "whole_seconds": end - times[0],
    }
    figures |= {
        "tokens": tokens,
        "tokens_a_second": tokens / figures["seconds"],
        "attention": report.attention,
        "loss": report.loss,
    }
    figures |= {"dtype": report.dtype, "micro_tokens": report.micro_tokens, "halved": report.halved, "rows": report.rows}
    if experiment.device == "cuda":
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    experiment.say(f"{shape} fine_tune", **figures)


def lessons(load: Load, tokenizer: Any) -> list[Example]:
    """Conversations of about the lengths of the load, a turn each."""
    source, found = random.Random("lessons"), []

    def text(tokens: int) -> str:
        said = ""
        while len(tokenizer.encode(said, add_special_tokens=False)) < tokens:
            said += f"{source.choice(WORDS)} {source.randrange(100)} "
        return said

    for task in range(load.chains):
        messages = [Message("system", text(load.history))]
        for turn in range(load.turns):
            messages.append(Message("user", text(load.seen)))
            reply = text(load.learned)
            ids = (*tokenizer.encode(reply, add_special_tokens=False), tokenizer.eos_token_id)
            found.append(Example(f"{task}-{turn}", "rehearsal", f"task{task}", 0, f"turn{turn}", tuple(messages), reply, ids))
            messages.append(Message("assistant", reply, True))
    return found


def correct(say: Say, device: str) -> None:
    """Whether packed trees give the logits, losses and gradients of single samples, in float32 on this device."""
    options = argparse.Namespace(shape="tiny", device="cpu", checkpointing=False)
    model = packing.new_model(options).to(device)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:  # large enough that attention matters
                weight.normal_(std=0.3)
    source = random.Random("branches")
    history = [source.randrange(1, 500) for _ in range(150)]
    samples = [
        Sample([*history[: 30 * cut], *[source.randrange(1, 500) for _ in range(20)]], [7, 8, number])
        for number, cut in enumerate((5, 5, 3, 2, 1))
    ]
    losses, wanted = gradients(model, "dense", [[one] for one in samples], device)
    for kind in ("tree", "flex") if device == "cuda" else ("tree", "dense"):
        try:
            difference = try_packing(model, kind).difference  # type: ignore[arg-type]
            packed, found = gradients(model, kind, [samples], device)
            worst = max(float((one - other).abs().max()) for one, other in zip(found, wanted, strict=True))
            largest = max(float(one.abs().max()) for one in wanted)
            say(f"correct {kind}", trial=difference, loss=packed, loss_alone=losses, gradient_off=worst, gradient_largest=largest)
        except Exception:  # a failure is reported, and the other ways are tried
            say(f"correct {kind}", failed=traceback.format_exc())


def gradients(model: Any, kind: Any, rows: list[list[Sample]], device: str) -> tuple[float, list[Tensor]]:
    """The sum of losses of some rows, each in a separate pass, and its gradients."""
    model.zero_grad(set_to_none=True)
    total = 0.0
    with tree_attention(model, kind):
        for row in rows:
            batch = ready([pack(row)], kind, device)
            loss = (term_losses(model, batch) * batch.term_weight).sum()
            loss.backward()
            total += float(loss.detach())
    return total, [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


def guarded(experiment: Experiment, name: str, work: Callable[[], Any]) -> bool:
    """Does some work, or reports its failure with a traceback; returns whether it was done."""
    if experiment.left() < 5:
        experiment.say(name, skipped="no time is left")
        return False
    try:
        work()
        return True
    except Exception:  # as above
        experiment.say(name, failed=traceback.format_exc())
        return False
    finally:
        gc.collect()
        if experiment.device == "cuda":
            torch.cuda.empty_cache()


def measure(say: Say, device: str, deadline: float, ceiling: float, shapes: tuple[str, ...] = ("0.5b", "7b")) -> None:
    """Everything, the small shape first. `deadline` is of `time.monotonic`, `ceiling` in floating-point operations a second."""
    experiment = Experiment(say, device, deadline, ceiling, Load() if device == "cuda" else SMALL)
    small, *large = shapes
    guarded(experiment, small, lambda: ways(experiment, small))

    def seven(shape: str) -> None:
        model = ways(experiment, shape, checkpointing=True, only_flex=True)
        guarded(experiment, f"{shape} split optimiser", lambda: split_step(experiment, model, shape))
        guarded(experiment, f"{shape} adapter", lambda: lora_step(experiment, model, shape))

    for shape in large:
        guarded(experiment, shape, lambda shape=shape: seven(shape))
    for settings in ({}, {"dtype": "bfloat16", "compile": "layers" if device == "cuda" else "none"}):
        if experiment.left() > (30 if device == "cuda" else 0):
            guarded(experiment, f"{small} fine_tune {settings}", lambda settings=settings: tuned(experiment, small, settings))
    if not math.isfinite(ceiling):
        say("training", note="no ceiling was measured, so shares are 0")
