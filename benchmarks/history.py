"""The cost of shortening histories: the share of each prompt that was computed before, and the savings of packing.

    python benchmarks/history.py [--context 4096] [--reply 300] [--tasks 8]

A script plays instead of a model, with replies of `--reply` tokens of four bytes, so the figures are exact and the same everywhere. Reuse
is the share of prompt tokens that are a prefix of an earlier prompt and reply of the same task; packing is how many times fewer
tokens the task's tree has than its turns as separate samples.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Iterable, Sequence

from leafe.chat import Scene, bare_messages
from leafe.distillation.pack import Trie
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.registry import make
from leafe.forest.builder import Rules, TreeBuilder
from leafe.forest.driver import Rollout, Runtime, drive
from leafe.forest.explore import explore
from leafe.history import History
from leafe.prompts import load_prompts
from leafe.records import Ask, Message, Sampling, StopReason, Tree

WORLDS = {
    "sokoban": ({"min_length": 8, "horizon": 16}, ["up", "down", "left", "right"]),
    "webshop": ({}, ["search[red shoes]", "click[next >]", "click[back to search]", "search[a lamp for the desk]"]),
}
HISTORIES = [History("all"), History("last", 4), History("fit")]
Ids = list[tuple[str, bytes]]


def main() -> None:
    """Plays every world with every history and prints a table."""
    parser = argparse.ArgumentParser()
    for name, default in (("context", 4096), ("reply", 300), ("tasks", 8), ("turns", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    print("| world | history | turns | attempts out of room | prompts shortened | reuse | packing |\n|---|---|---|---|---|---|---|")
    for world in WORLDS:
        for history in HISTORIES:
            trees = asyncio.run(forest(world, history, options))
            attempts = [attempt for tree in trees for attempt in tree.attempts]
            turns = [turn for tree in trees for turn in tree.turns]
            room = sum(attempt.stop is StopReason.TOKEN_LIMIT for attempt in attempts) / len(attempts)
            short = sum(turn.shortening.thoughts > 0 for turn in turns) / len(turns)
            reuse, packing = figures(trees, world)
            name = f"last {history.turns}" if history.keep == "last" else history.keep
            print(f"| {world} | {name} | {len(turns)} | {room:.0%} | {short:.0%} | {reuse:.0%} | {packing:.1f}x |", flush=True)


async def forest(world: str, history: History, options: argparse.Namespace) -> list[Tree]:
    """The trees of a world's first tasks."""
    arguments, actions = WORLDS[world]
    prompts, room = load_prompts("full", world), Sampling(max_tokens=512)
    thought = "<think>" + "I wonder what to do. " * (4 * options.reply // 21) + "</think>"

    def answer(ask: Ask) -> str:
        draw = random.Random(ask.seed)
        turn = draw.randint(1, max(1, sum(message.sampled for message in ask.messages)))
        if ask.purpose == "reflect":
            return f"<turn>{turn}</turn><experience>Try {draw.choice(actions)} there.</experience>"
        return f"{ask.seed % 997} {thought}<action>{draw.choice(actions)}</action>"

    tasks = make(world, arguments).tasks("train", options.tasks)
    rules = Rules(prompts, 1, turns=options.turns, act=room, reflect=room, max_attempts=8, history=history)
    rollouts = [Rollout(task.id, task, explore(TreeBuilder(task, rules))) for task in tasks]
    runtime = Runtime(ScriptedEngine(answer, token_bytes=4, max_context=options.context), lambda: make(world, arguments))
    return [tree async for _, tree in drive(rollouts, runtime, concurrency=8)]


def figures(trees: Sequence[Tree], world: str) -> tuple[float, float]:
    """The share of prompt tokens computed before, and how many times packing shortens the samples of all turns."""
    prompts, numbers = load_prompts("full", world), dict[tuple[str, bytes], int]()
    asked = known = padded = packed = 0
    for tree in trees:
        trie = Trie()
        for turn in tree.turns:
            messages = bare_messages(Scene(prompts, tree.task, tree.root_of(turn)), tree.trajectory(turn.parent), turn.shortening)
            ids = [numbers.setdefault(one, len(numbers)) for one in tokens(messages)]
            reply = [numbers.setdefault(one, len(numbers)) for one in tokens([Message("assistant", turn.completion.text)])]
            before = len(trie)
            end = trie.extend(0, ids)
            asked, known = asked + len(ids), known + len(ids) - (len(trie) - before)
            trie.extend(end, reply)
            padded += len(ids) + len(reply)
        packed += len(trie)
    return known / asked, padded / packed


def tokens(messages: Iterable[Message]) -> Ids:
    """Four bytes a token; no token crosses a role."""
    return [
        (message.role, data[at : at + 4])
        for message in messages
        for data in [message.content.encode()]
        for at in range(0, len(data), 4)
    ]


if __name__ == "__main__":
    main()
