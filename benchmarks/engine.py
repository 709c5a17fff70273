"""The in-process engine against `transformers.generate`, on requests like those of exploration.

    python benchmarks/engine.py [--model DIR] [--threads 2] [--json]

Conversations grow by about 30 tokens a turn over 12 turns, several samples per task, and half of them are rolled back to an earlier
turn and continued differently; each turn samples two tokens with their log-probabilities. The replies in the conversations are made up
beforehand, so that both sides do the same work. `generate` goes turn by turn: left-padded batches of 64, sorted by length, float32. Every
repeat has new conversations, of which the engine has computed nothing yet, and the two sides alternate; one uncounted repeat at the start
lets both touch their memory. Besides the speed it prints the share of prompt tokens that were not computed again, and how many of some
requests drew the same tokens and log-probabilities alone as in the batch. On a busy machine the ratio of processor times (meaningful with
one thread only) is the steadier one.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny import tiny_tokenizer  # noqa: E402

from leafe.engines.transformers import TransformersEngine  # noqa: E402
from leafe.records import Ask, Completion, Message, Sampling  # noqa: E402

THINGS = ["wall", "box", "goal", "floor", "player", "door", "key", "lamp", "shelf", "table"]
WORDS = [*THINGS, "left", "right", "up", "down", "open", "take", "push", "nothing", "happens", "you", "see", "a", "the", "and"]
TURNS, NEW_TOKENS, RIVAL_BATCH, CONTEXT = 12, 2, 64, 640
Episode = list[Ask]


@dataclass(frozen=True)
class Result:
    seconds: float
    processor: float
    requests: int
    sampled: int
    reused: float = 0.0

    @property
    def speed(self) -> float:
        return self.sampled / self.seconds


def load(path: str | None) -> tuple[Any, Any]:
    if path is not None:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(vocabulary=600, corpus=WORDS)
    config = Qwen2Config(
        vocab_size=600,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.1,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config).eval(), tokenizer


def episodes(tasks: int, samples: int, repeat: int) -> tuple[list[Episode], list[Episode]]:
    """The first attempts, and the branches that start in the middle of half of them."""
    first: list[Episode] = []
    branches: list[Episode] = []
    for task in range(tasks):
        intro = [Message("system", "You play a game. " * 3), Message("user", words(random.Random(f"{repeat} {task}"), 50))]
        for sample in range(samples):
            source = random.Random(f"{repeat} {task} {sample}")
            first.append(explore_tasks(intro, TURNS, source))
            if sample % 2 == 0:
                turn = source.randint(2, TURNS - 2)
                branches.append(explore_tasks(list(first[-1][turn].messages), TURNS - turn, source))
    return first, branches


def explore_tasks(history: Sequence[Message], turns: int, source: random.Random) -> Episode:
    asks: Episode = []
    for _ in range(turns):
        asks.append(Ask(tuple(history), Sampling(1.0, 1.0, NEW_TOKENS), source.getrandbits(62)))
        history = [*history, Message("assistant", source.choice(WORDS), True), Message("user", words(source, 18))]
    return asks


def words(source: random.Random, count: int) -> str:
    return " ".join(source.choices(WORDS, k=count))


def ours(engine: TransformersEngine, waves: Sequence[Sequence[Episode]]) -> tuple[Result, list[tuple[Ask, Completion]]]:
    found: list[tuple[Ask, Completion]] = []

    async def play(episode: Episode) -> None:
        for ask in episode:
            found.append((ask, await engine.generate(ask)))

    async def run() -> None:
        for wave in waves:
            await asyncio.gather(*map(play, wave))

    before = replace(engine.stats)
    start, worked = time.perf_counter(), time.process_time()
    asyncio.run(run())
    seconds, processor = time.perf_counter() - start, time.process_time() - worked
    reused = (engine.stats.reused_tokens - before.reused_tokens) / (engine.stats.prompt_tokens - before.prompt_tokens)
    return Result(seconds, processor, len(found), engine.stats.sampled_tokens - before.sampled_tokens, reused), found


@torch.inference_mode()
def rival(model: Any, tokenizer: Any, waves: Sequence[Sequence[Episode]]) -> Result:
    tokenizer.padding_side = "left"
    sampled = requests = 0
    start, worked = time.perf_counter(), time.process_time()
    for wave in waves:
        for turn in range(max(map(len, wave))):
            chats = [episode[turn].messages for episode in wave if turn < len(episode)]
            prompts = sorted((prompt(tokenizer, chat) for chat in chats), key=len)
            requests += len(prompts)
            for index in range(0, len(prompts), RIVAL_BATCH):
                batch = tokenizer.pad({"input_ids": prompts[index : index + RIVAL_BATCH]}, return_tensors="pt")
                out = model.generate(
                    **batch, do_sample=True, max_new_tokens=NEW_TOKENS, return_dict_in_generate=True, output_logits=True
                )
                ids = out.sequences[:, batch["input_ids"].shape[1] :]
                torch.log_softmax(torch.stack(out.logits, dim=1), dim=-1).gather(2, ids[..., None]).tolist()
                sampled += int((ids != tokenizer.pad_token_id).sum())
    return Result(time.perf_counter() - start, time.process_time() - worked, requests, sampled)


def prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    chat = [{"role": message.role, "content": message.content} for message in messages]
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))


def agreement(model: Any, tokenizer: Any, found: list[tuple[Ask, Completion]], count: int) -> int:
    """The number of `count` requests that end the same when nothing else is computed with or before them."""

    async def alone(ask: Ask) -> Completion:
        engine = TransformersEngine(model, tokenizer, max_context=CONTEXT, slots=1)
        completion = await engine.generate(ask)
        await engine.close()
        return completion

    some = random.Random(0).sample(found, min(count, len(found)))
    return sum(asyncio.run(alone(ask)) == completion for ask, completion in some)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a checkpoint directory; a random model of the nano's size without it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--agreement", type=int, default=100, help="requests to repeat alone")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load(options.model)
    rival_model = copy.deepcopy(model)
    engine = TransformersEngine(
        model, tokenizer, slots=options.tasks * options.samples, max_context=CONTEXT, threads=options.threads
    )
    pairs: list[tuple[Result, Result]] = []
    found: list[tuple[Ask, Completion]] = []
    for repeat in range(options.repeats + 1):
        waves = episodes(options.tasks, options.samples, repeat)
        generated = rival(rival_model, tokenizer, waves if repeat else [waves[0][: options.samples]])
        result, found = ours(engine, waves)
        pairs.append((generated, result))
    asyncio.run(engine.close())
    pairs = pairs[1:]
    ratios = [mine.speed / other.speed for other, mine in pairs]
    report = {
        "threads": options.threads,
        "requests": pairs[0][1].requests,
        "generate_tokens_per_second": [round(other.speed, 1) for other, _ in pairs],
        "engine_tokens_per_second": [round(mine.speed, 1) for _, mine in pairs],
        "ratio": round(statistics.median(ratios), 2),
        "ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "processor_time_ratio": round(statistics.median(other.processor / mine.processor for other, mine in pairs), 2),
        "reused_share": round(statistics.median(mine.reused for _, mine in pairs), 4),
        "same_alone": agreement(model, tokenizer, found, options.agreement),
        "compared_alone": min(options.agreement, len(found)),
    }
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name.replace('_', ' '):28} {value}")


if __name__ == "__main__":
    main()
