"""Packed trees against other ways to feed the same examples to the same model, in one run.

    python benchmarks/packing.py [--run RUN_DIRECTORY ...] [--shape tiny|nano|0.5b|7b] [--device cuda] [--json]

Every way takes the same optimiser steps (AdamW, same order, same sum of losses over the same number of targets) from the same random
weights, on passes of at most `--tokens` tokens with their padding, and computes logits at targets only. With `--one-model`, which `7b`
implies, all ways share one model, one way after another, and compute gradients without a step:

    tree           one trie a task, attention in blocks (what `leafe train` does)
    dense          the same rows with a row-by-row mask, passes a quarter as long
    flex           the same rows with FlexAttention (on a CPU with --forward-only, since it has no backward pass there)
    padded         one sample a turn, sorted by length, padded
    trl            TRL's `pack_dataset` (best fit) and padding-free collator; wants `pip install trl`
    conversations  one sequence for each longest history, sorted by length, padded; a turn that several share is trained in one

Ways alternate; passes are prepared beforehand, the step time is the median over steps and repeats and the ratio is taken step by step.
The first step of each way is reported separately, since it includes compiling. Peak memory is measured in a separate process for each
way, above the memory of the model, its gradients and its optimiser (Linux); with one model it is that of the device, above its level
before. `--run` adds the examples of a run as `leafe run` distilled them, with the episodes of its recipe.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from leafe.distillation.attention import tree_attention  # noqa: E402
from leafe.distillation.pack import PackedRow, Sample, term_losses  # noqa: E402
from leafe.distillation.passes import MOST_PARTS, ready  # noqa: E402
from leafe.distillation.rows import shares, split  # noqa: E402
from leafe.distillation.store import read_examples  # noqa: E402
from leafe.engines.tokens import ChatTokenizer  # noqa: E402

Step = list[list[Sample]]  # tasks of one optimiser step
SHAPES = {  # hidden, layers, heads, key heads, inner, vocabulary; the larger ones are those of Qwen2.5
    "tiny": (64, 2, 4, 2, 96, 512),
    "nano": (128, 6, 4, 4, 384, 512),
    "0.5b": (896, 24, 14, 2, 4864, 151936),
    "7b": (3584, 28, 28, 4, 18944, 152064),
}


class Pass(NamedTuple):
    """The tokens of one forward pass, and the sum of its losses."""

    tokens: int
    loss: Callable[[Any], Tensor]


def packed_rows(step: Step, tokens: int) -> list[list[PackedRow]]:
    """The rows of each pass, which a training makes once and uses in every epoch."""
    rows = [row for task in step for row in split(sorted(task, key=lambda one: [*one[0], *one[1]]), tokens)]
    return shares(rows, 1, tokens)[0]


def packed(step: Step, tokens: int, device: str, kind: str = "tree") -> Iterator[Pass]:
    yield from ready_passes(packed_rows(step, tokens), device, kind)


def ready_passes(passes: list[list[PackedRow]], device: str, kind: str) -> Iterator[Pass]:
    for one in passes:
        batch, own = ready(one, kind, device, parts=MOST_PARTS), sum(len(row.ids) for row in one)
        yield Pass(own, lambda model, batch=batch: (term_losses(model, batch) * batch.term_weight).sum())


def flex(step: Step, tokens: int, device: str) -> Iterator[Pass]:
    yield from packed(step, tokens, device, "flex")


def dense(step: Step, tokens: int, device: str) -> Iterator[Pass]:
    yield from packed(step, tokens // 4, device, "dense")


def padded(step: Step, tokens: int, device: str) -> Iterator[Pass]:
    yield from sequences(
        [([*prompt, *target], [(len(prompt), len(prompt) + len(target))]) for prompt, target, *_ in flat(step)], tokens, device
    )


def conversations(step: Step, tokens: int, device: str) -> Iterator[Pass]:
    yield from sequences(list(histories(step)), tokens, device)


History = tuple[list[int], list[tuple[int, int]]]  # ids, and the spans of them that are targets


def flat(step: Step) -> list[Sample]:
    return [sample for task in step for sample in task]


def histories(step: Step) -> Iterator[History]:
    """The longest histories, each turn as a target in the first one that holds it."""
    for task in step:
        found: list[History] = []
        for prompt, target, *_ in sorted(task, key=lambda one: -len(one[0]) - len(one[1])):
            ids, span = [*prompt, *target], (len(prompt), len(prompt) + len(target))
            for known, spans in found:
                if known[: len(ids)] == ids and span not in spans:
                    spans.append(span)
                    break
            else:
                found.append((ids, [span]))
        yield from found


def sequences(given: Sequence[History], tokens: int, device: str) -> Iterator[Pass]:
    left = sorted(given, key=lambda one: len(one[0]), reverse=True)
    while left:
        count = max(1, tokens // len(left[0][0]))
        yield padded_pass(left[:count], device)
        left = left[count:]


def padded_pass(group: Sequence[History], device: str) -> Pass:
    length = max(len(ids) for ids, _ in group)
    ids = torch.tensor([[*one, *[0] * (length - len(one))] for one, _ in group], device=device)
    seen = torch.tensor([[1] * len(one) + [0] * (length - len(one)) for one, _ in group], device=device)
    places = [(row, place) for row, (_, spans) in enumerate(group) for first, last in spans for place in range(first, last)]
    rows, columns = torch.tensor(places, device=device).T

    def loss(model: Any) -> Tensor:
        mask = None if bool(seen.all()) else seen
        hidden = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return cross_entropy(model, hidden[rows, columns - 1], ids[rows, columns])

    return Pass(ids.numel(), loss)


def trl(step: Step, tokens: int, device: str) -> Iterator[Pass]:
    from datasets import Dataset, disable_progress_bars
    from trl.data_utils import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    disable_progress_bars()
    ids = [[*prompt, *target] for prompt, target, *_ in flat(step)]
    labels = [[*[-100] * len(prompt), *target] for prompt, target, *_ in flat(step)]
    rows = pack_dataset(Dataset.from_dict({"input_ids": ids, "labels": labels}), tokens, "bfd")
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    for row in rows:
        batch = {name: value.to(device) for name, value in collator([row]).items() if isinstance(value, Tensor)}
        yield Pass(batch["input_ids"].numel(), lambda model, batch=batch: flat_loss(model, batch))


def flat_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    hidden = model.get_decoder()(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).last_hidden_state[0, :-1]
    wanted = batch["labels"][0, 1:]
    return cross_entropy(model, hidden[wanted != -100], wanted[wanted != -100])


def cross_entropy(model: Any, hidden: Tensor, wanted: Tensor) -> Tensor:
    logits = model.get_output_embeddings()(hidden).float()
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")


WAYS: dict[str, Callable[[Step, int, str], Iterator[Pass]]] = {
    "tree": packed,
    "dense": dense,
    "flex": flex,
    "padded": padded,
    "trl": trl,
    "conversations": conversations,
}


class Learner:
    """A model that learns in one way, or one that all ways share and for which only gradients are computed."""

    def __init__(self, way: str, model: Any, options: argparse.Namespace) -> None:
        self.way, self.model, self.options = way, model, options
        self.optimizer = None if options.one_model else torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(self, step: Step) -> tuple[float, int, float]:
        """Seconds, tokens computed and the mean loss of one optimiser step."""
        targets = sum(len(target) for _, target, *_ in flat(step))
        passes = list(WAYS[self.way](step, self.options.tokens, self.options.device))
        start, total, tokens = now(self.options.device), torch.zeros((), device=self.options.device), 0
        learns = not self.options.forward_only
        with self.attention(), torch.inference_mode(not learns):
            for one in passes:
                loss = one.loss(self.model) / targets
                if learns:
                    loss.backward()
                total, tokens = total + loss.detach(), tokens + one.tokens
        if learns and self.optimizer:
            self.optimizer.step()
        seconds = now(self.options.device) - start
        self.model.zero_grad(set_to_none=True)
        return seconds, tokens, float(total)

    def attention(self) -> Any:
        return tree_attention(self.model, self.way) if self.way in ("tree", "flex") else nullcontext()  # type: ignore[arg-type]


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def new_model(options: argparse.Namespace) -> Any:
    """Random weights of a shape, in bfloat16 on a GPU, where they are made."""
    hidden, layers, heads, shared, inner, vocabulary = SHAPES[options.shape]
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        max_position_embeddings=32768,
        tie_word_embeddings=options.shape != "7b",
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if options.device == "cuda" else torch.float32)
    try:
        with torch.device(options.device):
            model = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(usual)
    if options.checkpointing:
        model.train()
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return model


def made_up(name: str, steps: int) -> list[Step]:
    """Chains of the given number of turns, or stars: 8 branches of 32 tokens on a history of 512."""
    source = random.Random(name)
    return [[made_up_task(name, source) for _ in range(4)] for _ in range(steps)]


def made_up_task(name: str, source: random.Random) -> list[Sample]:
    def words(count: int) -> list[int]:
        return [source.randrange(1, 500) for _ in range(count)]

    if name == "star":
        history = words(512)
        return [Sample(history, words(32)) for _ in range(8)]
    history, found = words(20), []
    for _ in range(int(name.removeprefix("chain-"))):
        history = [*history, *words(32)]
        found.append(Sample(history, words(4)))
        history = [*history, *found[-1].target]
    return found


def of_run(folder: Path, steps: int, batch: int) -> list[Step]:
    """The first examples of a run in steps of about `batch`, tasks kept whole; weights are one, since not every way supports them."""
    tokenizer = ChatTokenizer(AutoTokenizer.from_pretrained(next((folder / "checkpoints").iterdir())))
    tasks: dict[str, list[Sample]] = {}
    for example in read_examples(next(iter(sorted(folder.glob("round-*/examples.jsonl"))))):
        tasks.setdefault(example.task, []).append(Sample(tokenizer.prompt_ids(example.messages), example.target_ids))
    found: list[Step] = [[]]
    for task in tasks.values():
        if len(flat(found[-1])) >= batch:
            found.append([])
        found[-1].append(task)
    return found[:steps]


def peak(way: str, steps: list[Step], options: argparse.Namespace, answer: Any) -> None:
    """Peak bytes above the level before the first forward pass."""
    torch.set_num_threads(options.threads)
    learner = Learner(way, new_model(options), options)
    for weight in learner.model.parameters():
        weight.grad = torch.zeros_like(weight)
    if learner.optimizer:
        learner.optimizer.step()
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        learner.step(steps[0])
        answer.send(torch.cuda.max_memory_allocated() - before)
        return
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak; getrusage would return the parent's
    before = resident_peak()
    learner.step(steps[0])
    answer.send(resident_peak() - before)


def resident_peak() -> int:
    """The most bytes that this process has held (Linux)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def peak_memory(learner: Learner, steps: list[Step]) -> int:
    way, options = learner.way, learner.options
    if options.one_model and options.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        learner.step(steps[0])
        return torch.cuda.max_memory_allocated() - before
    context = get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=peak, args=(way, steps, options, writer))
    process.start()
    writer.close()  # so that the wait ends when the child dies
    try:
        found: int = reader.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"measuring the memory of {way!r} ended with status {process.exitcode}; -9: out of memory") from None
    process.join()
    return found


def measure(steps: list[Step], ways: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    model = new_model(options)
    learners = {way: Learner(way, model if options.one_model else copy.deepcopy(model), options) for way in ways}
    warm = learners if options.one_model else {way: Learner(way, copy.deepcopy(model), options) for way in ways}
    first = {way: learner.step(steps[0])[0] for way, learner in warm.items()}
    if "flex" in warm:
        for step in steps[1:]:  # other lengths are compiled as well
            warm["flex"].step(step)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    tokens = dict.fromkeys(ways, 0)
    loss: dict[str, float] = {}
    turns = [(step, way) for step in steps * options.repeats for way in ways]
    if options.one_model:
        turns.sort(key=lambda turn: ways.index(turn[1]))
    for step, way in turns:
        if seconds[way] and sum(seconds[way]) > options.seconds:
            continue
        spent, computed, loss[way] = learners[way].step(step)
        seconds[way].append(spent)
        tokens[way] += computed
    report: dict[str, Any] = {"examples": sum(len(flat(step)) for step in steps), "steps": len(steps) * options.repeats}
    for way in ways:
        ratios = [other / mine for other, mine in zip(seconds["padded"], seconds[way], strict=False)]  # some were cut short
        a_step = {name: tokens[name] / len(seconds[name]) for name in ("padded", way)}
        report[way] = {
            "tokens": tokens[way],
            "tokens_saved": round(a_step["padded"] / a_step[way], 2),
            "first_seconds": round(first[way], 3),
            "step_seconds": round(statistics.median(seconds[way]), 3),
            "faster": round(statistics.median(ratios), 2),
            "faster_spread": [round(min(ratios), 2), round(max(ratios), 2)],
            "last_loss": loss[way],
            "peak_megabytes": round(peak_memory(learners[way], steps) / 2**20),
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, action="append", default=[], help="a finished run directory, once or more often")
    parser.add_argument("--made-up", nargs="*", default=["chain-10", "chain-30", "star"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["tree", "dense", "padded", "trl", "conversations"])
    parser.add_argument("--shape", choices=list(SHAPES), default="nano")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8192, help="of a forward pass, padding included")
    parser.add_argument("--batch", type=int, default=64, help="examples of an optimiser step of a run")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=math.inf, help="after so many a way takes no further step")
    parser.add_argument("--one-model", action="store_true", help="all ways share a model and take no optimiser step")
    parser.add_argument("--checkpointing", action="store_true", help="activations are computed twice")
    parser.add_argument("--forward-only", action="store_true", help="computes losses and learns nothing")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if "flex" in options.ways and options.device == "cpu" and not options.forward_only:
        parser.error("FlexAttention has no backward pass on a CPU; add --forward-only or name --device cuda")
    if options.shape == "7b":
        options.one_model = options.checkpointing = True
    if options.device == "cpu":
        # Code for any length does not compile on CPUs with AVX2 (torch 2.13), so each length of a row has its own code.
        torch._dynamo.config.automatic_dynamic_shapes = False
        torch._dynamo.config.recompile_limit = 256
    torch.set_num_threads(options.threads)
    ways = [*dict.fromkeys([*options.ways, "padded"])]
    workloads = {name: made_up(name, options.steps) for name in options.made_up}
    workloads |= {str(folder): of_run(folder, options.steps, options.batch) for folder in options.run}
    report = {}
    for name, steps in workloads.items():
        report[name] = measure(steps, ways, options)
        if not options.json:
            show(name, report[name], ways)
    if options.json:
        print(json.dumps(report))


def show(name: str, found: dict[str, Any], ways: Sequence[str]) -> None:
    print(f"{name}: {found['examples']} examples, {found['steps']} steps")
    print(
        f"  {'':14} {'tokens':>9} {'saved':>6} {'first s':>8} {'s/step':>8} {'faster':>7}  {'spread':13} {'peak MB':>8}  last loss"
    )
    for way in ways:
        one = found[way]
        spread = "-".join(map(str, one["faster_spread"]))
        print(
            f"  {way:14} {one['tokens']:9} {one['tokens_saved']:6} {one['first_seconds']:8} {one['step_seconds']:8}"
            f" {one['faster']:7}  {spread:13} {one['peak_megabytes']:8}  {one['last_loss']:.6f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
