"""The in-process engine on a GPU: the cost of a decode pass beside the byte limit, a load of conversations, a small model, correctness.

    python benchmarks/gpu_engine.py [--minutes 3.5] [--only copy,decode-0.5b,...] [--json]

Models have the shapes of Qwen2.5 and random weights, made on the device; nothing is downloaded. There are four ways to decode: `tiles`, as
on a processor; `steps`, a plain call of the step that `graph` captures; `graph`, with a pass in flight; and `generate` of transformers
over a cache of equal length. The byte limit of a pass is one reading of weights, keys and values at the speed of a copy on the device,
measured in the same run. Each part is warmed up; a part that fails prints the reason and the others continue; none begins without time
left.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as recorded
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny import tiny_tokenizer  # noqa: E402

from leafe.engines import paged  # noqa: E402
from leafe.engines.batching import BLOCK  # noqa: E402
from leafe.engines.sampling import draw, uniform  # noqa: E402
from leafe.engines.slots import BlockCache, Piece, forward, plan  # noqa: E402
from leafe.engines.steps import Rows, Steps, step_of  # noqa: E402
from leafe.engines.transformers import TransformersEngine  # noqa: E402
from leafe.engines.trial import give_back, take_over  # noqa: E402
from leafe.records import Ask, Message, Sampling  # noqa: E402

# hidden, layers, heads, shared heads, inner, vocabulary, tied
SHAPES = {
    "tiny": (128, 2, 4, 2, 256, 1000, True),
    "0.5b": (896, 24, 14, 2, 4864, 151936, True),
    "7b": (3584, 28, 28, 4, 18944, 152064, False),
}
POINTS = {"tiny": ((4, 128), (8, 256)), "0.5b": ((32, 512), (64, 1024), (256, 1024)), "7b": ((64, 1024), (128, 2048))}
WORDS = [
    "wall",
    "box",
    "goal",
    "floor",
    "door",
    "key",
    "left",
    "right",
    "up",
    "down",
    "open",
    "take",
    "nothing",
    "happens",
    "you",
    "see",
]
COPIED = 2 << 30  # bytes
KINDS = (("steps", False), ("steps without kernels", True))
Found = dict[str, Any]


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def left(deadline: float) -> float:
    """Seconds until a deadline, which is given in the time of `time.monotonic` or of `time.time`."""
    return deadline - (time.time() if deadline > 1e9 else time.monotonic())


def model_of(shape: str, dtype: torch.dtype = torch.bfloat16, **more: Any) -> Any:
    hidden, layers, heads, shared, inner, vocabulary, tied = SHAPES[shape]
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": shared}
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    config = Qwen2Config(
        **sizes,
        **ends,
        intermediate_size=inner,
        vocab_size=vocabulary,
        max_position_embeddings=32768,
        tie_word_embeddings=tied,
        **more,
    )
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device()):
            model = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(usual)
    return model.eval()


def copy_speed() -> float:
    """Bytes a second that a copy on the device reads and writes: twice the copied bytes."""
    count = COPIED if device() == "cuda" else 1 << 26
    source = torch.zeros(count, dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(6):
        wait()
        start = time.perf_counter()
        target.copy_(source)
        wait()
        best = max(best, 2 * count / (time.perf_counter() - start))
    return best


@contextmanager
def served(model: Any) -> Iterator[Any]:
    """The model with the engine's attention."""
    taken = take_over(model)
    try:
        yield model
    finally:
        give_back(model, taken.attention)


def timed(work: Callable[[], object], warm: int, passes: int) -> float:
    """Milliseconds of one pass."""
    for _ in range(warm):
        work()
    wait()
    start = time.perf_counter()
    for _ in range(passes):
        work()
    wait()
    return 1000 * (time.perf_counter() - start) / passes


class Point:
    """`batch` requests whose last tokens are at the end of `context`, over one cache that all ways use."""

    def __init__(self, model: Any, batch: int, context: int) -> None:
        self.model, self.batch, self.context = model, batch, context
        depth = context // BLOCK
        self.cache = BlockCache(1 + batch * depth, BLOCK)
        self.blocks = [list(range(1 + depth * one, 1 + depth * (one + 1))) for one in range(batch)]
        self.sampling = Sampling(1.0, 1.0, 16)
        self.steps = Steps(model, self.cache, batch)
        self.landings: list[Any] = []
        self.tables = np.zeros((batch + 1, depth), dtype=np.int64)
        self.tables[:batch] = self.blocks

    def tiles(self) -> None:
        pieces = [Piece([5], self.context - 1, blocks) for blocks in self.blocks]
        logits = forward(self.model, plan(pieces, self.cache, self.model.device))[: self.batch]
        draw(logits, [self.sampling] * self.batch, [uniform(one, 1) for one in range(self.batch)])

    def step(self) -> None:
        """Starts a pass and reads the one before it, as the engine does."""
        rows, at = Rows(), self.context - 1
        for one in range(self.batch):
            rows.given.append(-1)
            rows.tables.append(one)
            rows.positions.append(at)
            rows.places.append(self.blocks[one][at // BLOCK] * BLOCK + at % BLOCK)
            rows.last.append(one)
            rows.sessions.append(one)
            rows.temperatures.append(1.0)
            rows.masses.append(1.0)
            rows.numbers.append(uniform(one, 1))
        self.landings.append(self.steps.launch(rows, self.tables))
        if len(self.landings) > 1:
            self.landings.pop(0).read()

    def limit_bytes(self) -> int:
        """Bytes of weights, keys and values that a pass reads."""
        table = 0 if self.model.config.tie_word_embeddings else self.model.get_input_embeddings().weight.nbytes
        weights = sum(weight.nbytes for weight in self.model.parameters()) - table
        config = self.model.config
        width = config.hidden_size // config.num_attention_heads
        each = 2 * config.num_hidden_layers * config.num_key_value_heads * width * self.model.dtype.itemsize
        return int(weights + self.batch * self.context * each)


@torch.inference_mode()
def generated(model: Any, batch: int, context: int, new: int) -> float:
    """Milliseconds of a pass of transformers' `generate`, which samples over a full cache."""
    config = model.config
    width = config.hidden_size // config.num_attention_heads

    def once() -> float:
        cache = DynamicCache(config=config)
        shape = (batch, config.num_key_value_heads, context - new - 1, width)
        for layer in range(config.num_hidden_layers):
            cache.update(
                torch.zeros(shape, dtype=model.dtype, device=device()),
                torch.zeros(shape, dtype=model.dtype, device=device()),
                layer,
            )
        ids = torch.full((batch, context - new), 5, device=device())
        wait()
        start = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            do_sample=True,
            top_k=0,
            max_new_tokens=new,
            min_new_tokens=new,
        )
        wait()
        return 1000 * (time.perf_counter() - start) / new

    once()
    return once()


@torch.inference_mode()
def decode(shape: str, speed: float, deadline: float) -> Found:
    """Milliseconds of a decode pass by each way, tokens a second and the byte limit, at each batch x context."""
    model, found = model_of(shape), {}
    for batch, context in POINTS[shape]:
        name = f"{batch}x{context}"
        if left(deadline) < (12 if shape == "7b" else 6):
            found[name] = {"left out": "no time"}
            continue
        peak_from_here()
        row = found[name] = tried("generate_ms", partial(generated, model, batch, context, 16))
        row |= tried("steps", partial(stepped, model, speed, batch, context))
        row["peak_gib"] = peak()
        show(f"decode {shape} {name}", row)
        release()
    del model
    release()
    return found


def tried(name: str, work: Callable[[], Any]) -> Found:
    """The result of a measurement, or the reason of its failure; the others continue."""
    try:
        found = work()
        return found if isinstance(found, dict) else {name: found}
    except Exception as error:  # any failure is printed and kept, and the other measurements continue
        traceback.print_exc()
        return {name: f"{type(error).__name__}: {error}"[:200]}


def stepped(model: Any, speed: float, batch: int, context: int) -> Found:
    """A pass in tiles, as a plain step and as a graph."""
    row: Found = {}
    with served(model):
        point = Point(model, batch, context)
        limit = 1000 * point.limit_bytes() / speed
        row["tiles_ms"] = timed(point.tiles, 2, 4)
        point.steps.obstacle = "not yet"
        row["steps_ms"] = timed(point.step, 2, 6)
        point.steps.obstacle = ""
        start = time.perf_counter()
        point.step()
        wait()
        row["capture_s"] = time.perf_counter() - start
        row["graph_ms"] = timed(point.step, 3, 40)
        row |= {"graphs": point.steps.captured, "graph_gib": point.steps.graph_bytes / 2**30, "obstacle": point.steps.obstacle}
        row |= {
            "limit_ms": limit,
            "graph_over_limit": row["graph_ms"] / limit,
            "graph_tokens_a_second": 1000 * batch / row["graph_ms"],
        }
    return row


@torch.inference_mode()
def profile(shape: str) -> Found:
    """The kernels that take the longest in a pass of a graph, in microseconds and calls a pass."""
    batch, context = POINTS[shape][1]
    with served(model_of(shape)) as model:
        point = Point(model, batch, context)
        timed(point.step, 4, 4)
        with recorded(activities=[ProfilerActivity.CUDA]) as record:
            for _ in range(4):
                point.step()
            wait()
    times = sorted(((event.device_time_total / 4, event.key, event.count / 4) for event in record.key_averages()), reverse=True)
    found = {name[:80]: f"{us:.0f} us in {count:.0f}" for us, name, count in times[:14]}
    show(f"profile {shape} {batch}x{context}", found)
    return found


def peak_from_here() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def release() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def talk(source: random.Random, count: int) -> str:
    return " ".join(source.choices(WORDS, k=count))


async def conversations(engine: Any, count: int, turns: int, new: int, *, words: int = 200, repeat: int = 0) -> None:
    """`count` conversations at once of `turns` turns of `new` tokens; each has a separate task and short observations."""

    async def one(number: int) -> None:
        source = random.Random(f"{repeat} {number}")
        history = [Message("system", "You play a game. " * (words // 10)), Message("user", talk(source, words))]
        for _ in range(turns):
            reply = await engine.generate(Ask(tuple(history), Sampling(1.0, 1.0, new), source.getrandbits(62)))
            history += [Message("assistant", reply.text or "up", True), Message("user", talk(source, words // 10))]

    await asyncio.gather(*(one(number) for number in range(count)))


def load(shape: str, deadline: float) -> Found:
    """A load like that of exploration, through the public engine: tokens a second and the share that was reused."""
    count, turns, new = (64, 8, 48) if shape != "tiny" else (8, 3, 8)
    engine = TransformersEngine(model_of(shape), tiny_tokenizer(vocabulary=600, corpus=WORDS), slots=count, max_context=4096)
    found: Found = {"obstacle": engine.obstacle}
    for name in ("first", "warm"):
        if left(deadline) < 10 and name == "warm":
            break
        before = (engine.stats.sampled_tokens, engine.stats.prompt_tokens, engine.stats.reused_tokens)
        start, worked = time.perf_counter(), time.process_time()
        asyncio.run(conversations(engine, count, turns, new, repeat=len(found)))
        seconds = time.perf_counter() - start
        sampled, prompts, reused = (
            after - was
            for after, was in zip(
                (engine.stats.sampled_tokens, engine.stats.prompt_tokens, engine.stats.reused_tokens), before, strict=True
            )
        )
        found[name] = {
            "tokens": sampled, "seconds": seconds, "tokens_a_second": sampled / seconds,
            "reused": reused / prompts, "processor_s": time.process_time() - worked,
        }  # fmt: skip
    steps = getattr(engine._batcher, "steps", None)
    if steps is not None:
        found |= {"graphs": steps.captured, "graph_gib": steps.graph_bytes / 2**30, "graph_obstacle": steps.obstacle}
    asyncio.run(engine.close())
    del engine, steps
    release()
    show(f"load {shape}", found)
    return found


def small(deadline: float) -> Found:
    """The bundled model on this GPU and on a processor: conversations of short turns as in the quickstart."""
    folder, found = ROOT / "leafe" / "nano" / "checkpoint", {}
    for place, dtype in (("cpu", torch.float32), ("cuda", torch.float32), ("cuda", torch.bfloat16)):
        if place == "cuda" and device() != "cuda":
            continue
        engine = TransformersEngine.from_folder(folder, device=place, dtype=dtype, slots=128, threads=None)
        name = f"{place} {str(dtype).removeprefix('torch.')}"
        runs: list[float | str] = []
        try:
            for repeat in range(3):  # the first one touches memory and captures graphs
                before, start = engine.stats.sampled_tokens, time.perf_counter()
                work = conversations(engine, 64, 5, 4, words=30, repeat=repeat)
                asyncio.run(asyncio.wait_for(work, max(5.0, min(15.0, left(deadline)))))
                runs.append((engine.stats.sampled_tokens - before) / (time.perf_counter() - start))
        except TimeoutError:
            runs.append("more than 15 s")
        finally:
            asyncio.run(engine.close())
        found[name] = {"tokens_a_second": runs, "obstacle": engine.obstacle}
    show("bundled model", found)
    return found


def correctness(deadline: float) -> Found:
    """Greedy ids against `generate` in float32, and the largest difference of logits in bfloat16 at the shape 0.5B."""
    found: Found = {}
    for name, off in KINDS[: 2 if device() == "cuda" else 1]:
        try:
            with kernels(off):
                found |= {f"{name}: {key}": value for key, value in greedy().items()}
        except Exception as error:  # as above
            traceback.print_exc()
            found[name] = f"{type(error).__name__}: {error}"[:300]
    found |= logit_difference("0.5b" if device() == "cuda" else "tiny") if left(deadline) > 8 else {}
    found["kernel_failures"] = list(paged.failures)
    show("correctness", found)
    return found


@contextmanager
def kernels(off: bool) -> Iterator[None]:
    """Gathers keys instead of using the kernels, if these are off."""
    said = "switched off"
    paged.failures += [said] * off
    try:
        yield
    finally:
        paged.failures[:] = [failure for failure in paged.failures if failure != said]


@torch.inference_mode()
def greedy() -> Found:
    """Counts greedy replies of a small float32 model that equal those of `generate`, twice each, the second time over reused prefixes."""
    model = model_of("tiny", torch.float32, initializer_range=0.3)
    tokenizer = tiny_tokenizer(vocabulary=600, corpus=WORDS)
    chats = [[Message("user", talk(random.Random(number), 5 + 9 * number))] for number in range(24)]
    ends = [1, tokenizer.eos_token_id]
    wanted = []
    for chat in chats:
        said = [{"role": message.role, "content": message.content} for message in chat]
        ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=True).to(device())
        whole = model.generate(**ids, do_sample=False, max_new_tokens=24, eos_token_id=ends)[0]
        wanted.append(tuple(whole[ids["input_ids"].shape[1] :].tolist()))
    model.generation_config.eos_token_id = ends
    engine = TransformersEngine(model, tokenizer, slots=16, max_context=1024, steps=True)

    async def answers() -> Sequence[Any]:
        try:
            asks = [Ask(tuple(chat), Sampling(0.0, 1.0, 24), 0) for chat in chats]
            return [reply for _ in range(2) for reply in await asyncio.gather(*map(engine.generate, asks))]
        finally:
            steps = getattr(engine._batcher, "steps", None)
            told.update(obstacle=engine.obstacle, graphs=steps and steps.captured, graph_obstacle=steps and steps.obstacle)
            await engine.close()

    told: Found = {}
    got = [reply.token_ids for reply in asyncio.run(answers())]
    equal = sum(mine == theirs for mine, theirs in zip(got, wanted * 2, strict=True))
    return {"greedy_equal": f"{equal} of {len(got)}", **told}


@torch.inference_mode()
def logit_difference(shape: str) -> Found:
    """The largest difference between logits of the step and of the plain forward pass in bfloat16, and the range of the latter."""
    model = model_of(shape)
    texts = [torch.randint(2, 900, (length,)).tolist() for length in (100, 300, 517)]
    plain = [model(input_ids=torch.tensor([text], device=device()), use_cache=False).logits[0, -1].float() for text in texts]
    found: Found = {}
    with served(model):
        cache = BlockCache(1 + 9 * len(texts), BLOCK)
        pieces = [Piece(text[:-1], 0, list(range(1 + 9 * one, 10 + 9 * one))) for one, text in enumerate(texts)]
        forward(model, plan(pieces, cache, model.device))
        last = [Piece(text[-1:], len(text) - 1, piece.blocks) for text, piece in zip(texts, pieces, strict=True)]
        for name, off in KINDS[: 2 if device() == "cuda" else 1]:
            with kernels(off):
                rows = forward(model, step_of(last, cache, model.device)).float()
            found[f"{name}: largest difference of logits"] = max(
                float((row - want).abs().max()) for row, want in zip(rows, plain, strict=False)
            )
    found["range of logits"] = max(float(want.max() - want.min()) for want in plain)
    return found


def show(name: str, found: Found) -> None:
    """Prints one part when it is done, so that a run that is cut short shows earlier parts."""
    print(f"[{name}]", flush=True)
    for key, value in found.items():
        value = {k: round(v, 4) if isinstance(v, float) else v for k, v in value.items()} if isinstance(value, dict) else value
        print(f"    {key:40} {round(value, 4) if isinstance(value, float) else value}", flush=True)


def measure(deadline: float, only: Sequence[str] = ()) -> Found:
    """All parts for which there is time until `deadline`, in the time of `time.monotonic`; failures are reported by part."""
    there = device() == "cuda"
    found: Found = {"device": torch.cuda.get_device_name() if there else "cpu", "torch": torch.__version__}
    found["copy_bytes_a_second"] = speed = copy_speed()
    shapes = ("0.5b", "7b") if there else ("tiny",)
    parts: dict[str, Callable[[], Found]] = {
        "correctness": lambda: correctness(deadline),
        **{f"decode {shape}": lambda shape=shape: decode(shape, speed, deadline) for shape in shapes},  # type: ignore[misc]
        "load": lambda: load(shapes[0], deadline),
        "bundled": lambda: small(deadline),
    }
    if there:
        parts["profile"] = lambda: profile("0.5b")
    show("machine", found)
    for name, part in parts.items():
        if only and name not in only:
            continue
        start = time.perf_counter()
        try:
            found[name] = part() if left(deadline) > 5 else {"left out": "no time"}
        except Exception as error:  # as above
            traceback.print_exc()
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
            print(f"{name} FAILED: {found[name]['failed']}", flush=True)
        release()
        print(f"({name} took {time.perf_counter() - start:.1f} s)", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.5)
    parser.add_argument("--only", default="", help="parts by name, parted by commas")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    found = measure(time.monotonic() + 60 * options.minutes, only)
    if options.json:
        print(json.dumps(found, default=str))


if __name__ == "__main__":
    main()
