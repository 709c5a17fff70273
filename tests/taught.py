"""A small model that plays `lookup` well enough to have something to learn from."""

from __future__ import annotations

import random
from pathlib import Path

from players import Hand, key_in, rules, turns_in
from tiny import tiny_model, tiny_tokenizer

from leafe.forest.builder import TreeBuilder
from leafe.forest.explore import explore
from leafe.records import Ask, Example
from leafe.settings import TrainSettings
from leafe.training.sft import fine_tune
from leafe.worlds.fakes import Lookup


def teach(folder: Path) -> None:
    """A Llama that opens places at random, does what it is advised and advises another place, on `lookup` with three places."""
    heard: list[tuple[Ask, str]] = []

    def policy(ask: Ask) -> str:
        draw = random.Random(ask.seed)
        place = f"open place{draw.randint(1, 3)}"
        told = ask.messages[-1].content.partition("Advice: ")[2]
        reply = told or place if ask.purpose == "act" else f"turn {draw.randint(1, turns_in(ask))}: {place}"
        heard.append((ask, reply))
        return reply

    for number in range(12):
        task = key_in(number % 3 + 1, horizon=2, number=number)
        Hand(Lookup(places=3), policy).finish(explore(TreeBuilder(task, rules(seed=number, max_attempts=4))))
    words = [text for ask, reply in heard for text in (*(message.content for message in ask.messages), reply)]
    tokenizer = tiny_tokenizer(vocabulary=360, corpus=words)
    tiny_model("llama", vocabulary=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    examples = [
        Example(str(n), "rehearsal", str(n % 8), 0, "", ask.messages, reply, (*tokenizer.encode(reply), tokenizer.eos_token_id))
        for n, (ask, reply) in enumerate(heard)
    ]
    fine_tune(folder, examples, folder, TrainSettings(epochs=12, learning_rate=3e-3, batch_size=16), seed=1)
