"""A real model with leafe's prompts: the share of its replies that is read, and whether it does as well as when it is asked plainly.

    python benchmarks/real_model.py MODEL mbpp environment.args.path=mbpp.jsonl [--tasks 8] [--replies FILE] [--json FILE]
    python benchmarks/real_model.py MODEL sokoban household [--turns 8]
    python benchmarks/real_model.py MODEL mbpp environment.args.path=mbpp.jsonl --plainly --tasks 100

The first two explore a few training tasks of each world with the prompts of the profile `full` and count what was read; every setting can
be changed as on the command line of `leafe`. `--without` leaves an ingredient of the prompts out: `example` (the worked replies in
prompts), `unread` (our answer to a reply without an action: the world is given the text), `again` (the second question about a
reflection names the fault), `form` (programs in a fence: they are asked for in tags). Every reply goes into the file of `--replies`,
one JSON object a line, for manual reading.

The last measures a world of programs twice on the same test tasks, one turn and one sample each: asked by our prompts, and asked plainly,
by the model's own chat template and one sentence of a user, where the last fence of the reply is the program. The same hidden tests judge
both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leafe.compose import bench_of
from leafe.config import parse
from leafe.digest import seed_for
from leafe.engines.base import Engine
from leafe.evaluation.evaluate import attempt
from leafe.experiment import Experiment, ForestSpec, explore_tasks
from leafe.forest.driver import Rollout, drive
from leafe.progress import Silent
from leafe.prompts import PROFILES
from leafe.records import Ask, Completion, Message, Task, Tree
from leafe.replies import ParseFailure, parse_action

FULL = Path(sys.modules["leafe.prompts"].__file__ or "").parent / "full"
INGREDIENTS = ("example", "unread", "again", "form")
EXAMPLE = re.compile(r"\n\nFor example.*?(?=\n\nNow look|\Z)", re.DOTALL)  # a worked reply in a prompt
PLAINLY = "{instruction}\n\nAnswer with the function in a ```python code block."
SHARES = {  # each count, and the count that it is a share of
    "read": "replies",
    "cut": "replies",
    "replies_without_room": "replies",
    "reflections_read": "reflections",
    "read_at_once": "reflections",
    "reflections_without_room": "reflections",
    "context_stops": "attempts",
    "parse_stops": "attempts",
    "solved": "tasks",
}


def without(ingredients: Iterable[str], folder: Path) -> Path:
    """A copy of the profile `full` that lacks some ingredients."""
    copy = Path(shutil.copytree(FULL, folder / "full"))
    if "example" in ingredients:
        for path in copy.rglob("*.txt"):
            path.write_text(EXAMPLE.sub("", path.read_text(encoding="utf-8")), encoding="utf-8")
    files = {"example": "example*.txt", "unread": "unread.txt", "again": "reflect_[!e]*.txt", "form": "form.txt"}
    for path in [path for name in ingredients for path in copy.rglob(files[name])]:
        path.unlink()
    if "form" in ingredients:
        for path in (copy / "mbpp" / "system.txt", copy / "codecontests" / "system.txt"):
            path.write_text(path.read_text(encoding="utf-8") + "\nWrite the code between <action> and </action>.", encoding="utf-8")
    return copy


def bench_for(args: argparse.Namespace, world: str, prompts: Path | str) -> Experiment:
    """An experiment in a world with the settings of the prompts and the given ones."""
    own = (
        f"name: real-model\nmodel: {json.dumps(args.model)}\nprompts: {json.dumps(str(prompts))}\nenvironment: {{name: {world}}}\n"
    )
    counts = [f"tasks.train={args.tasks}", f"tasks.test={args.tasks}", f"explore.turns={args.turns}"]
    experiment = bench_of(parse(own, "real_model", [*counts, *args.settings]), Silent())
    if args.replies is None:
        return experiment
    return replace(experiment, load_engine=lambda folder: Listening(experiment.load_engine(folder), world, args.replies))


@dataclass
class Listening:
    """An engine whose replies are written to a file at once, so that a measurement that is stopped early has results."""

    engine: Engine
    world: str
    path: Path

    def __post_init__(self) -> None:
        self.concurrency, self.stats = self.engine.concurrency, self.engine.stats

    async def generate(self, ask: Ask) -> Completion:
        """The engine's own completion."""
        reply = await self.engine.generate(ask)
        sizes = {"tokens": len(reply.token_ids), "prompt_tokens": reply.prompt_tokens, "finish": reply.finish}
        line = {"world": self.world, "purpose": ask.purpose, **sizes, "asked": ask.messages[-1].content, "text": reply.text}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return reply

    async def close(self) -> None:
        """Closes the engine."""
        await self.engine.close()


def counts_of(trees: Sequence[Tree]) -> dict[str, float]:
    """The numbers of replies, reflections and attempts, and of their outcomes."""
    counts: Counter[str] = Counter(dict.fromkeys(("replies", "reflections", "attempts", "tasks", *SHARES), 0))
    for tree in trees:
        counts["tasks"] += 1
        counts["solved"] += any(one.success for one in tree.attempts)
        counts["attempts"] += len(tree.attempts)
        counts["context_stops"] += sum(one.stop == "token_limit" for one in tree.attempts)
        counts["parse_stops"] += sum(one.stop == "parse_error" for one in tree.attempts)
        counts["replies"] += len(tree.turns)
        counts["read"] += sum(turn.parsed for turn in tree.turns)
        counts["cut"] += sum(turn.completion.finish == "length" for turn in tree.turns)
        counts["sampled_tokens"] += tree.spend.sampled_tokens
        for one in tree.reflections:
            counts["reflections"] += 1
            counts["reflections_without_room"] += one.replies[-1].finish == "context"
            counts["reflections_read"] += one.error is None
            counts["read_at_once"] += one.error is None and len(one.replies) == 1
    return dict(counts)


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A line of shares a world."""
    heads = ["replies", "read", "cut", "reflections", "reflections_read", "read_at_once", "context_stops", "parse_stops", "solved"]
    lines = ["| | " + " | ".join(head.replace("_", " ") for head in heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, counts in rows.items():
        cells = [_share(counts, head) for head in heads]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(counts: Mapping[str, float], name: str) -> str:
    if name not in SHARES:
        return f"{counts[name]:.0f}"
    whole = counts[SHARES[name]]
    return f"{100 * counts[name] / whole:.0f} %" if whole else "-"


async def asked_plainly(experiment: Experiment, engine: Engine, tasks: Sequence[Task]) -> list[tuple[Completion, bool]]:
    """The reply to each task without leafe's prompts, and whether it passes the hidden tests."""
    sampling = experiment.config.sampling.act.sampling()

    def ask(task: Task) -> Ask:
        content = PLAINLY.format(instruction=task.instruction)
        return Ask((Message("user", content),), sampling, seed_for(experiment.config.seed, "plainly", task.id))

    replies = await asyncio.gather(*(engine.generate(ask(task)) for task in tasks))
    environment, judged = experiment.make_environment(), []
    for task, reply in zip(tasks, replies, strict=True):
        environment.reset(task)
        try:
            judged.append((reply, environment.step(parse_action("program", reply.text)).success))
        except ParseFailure:
            judged.append((reply, False))
    environment.close()
    return judged


async def asked_by_us(experiment: Experiment, engine: Engine, tasks: Sequence[Task]) -> list[Tree]:
    """One attempt of one turn at each task."""
    rules = experiment.rules(seed_for(experiment.config.seed, "evaluate"))
    rollouts = [Rollout(task.id, task, attempt(task, 0, rules)) for task in tasks]
    trees = {
        rollout.key: tree async for rollout, tree in drive(rollouts, experiment.runtime(engine), concurrency=engine.concurrency)
    }
    return [trees[task.id] for task in tasks]


def side_by_side(args: argparse.Namespace, prompts: Path | str) -> dict[str, Any]:
    """Pass@1 by our prompts and asked plainly, with the paired difference."""
    args.settings = ["environment.args.horizon=1", *args.settings]
    experiment = bench_for(args, args.worlds[0], prompts)
    tasks = experiment.tasks("test")

    async def work(engine: Engine) -> tuple[list[Tree], list[tuple[Completion, bool]]]:
        ours = await asked_by_us(experiment, engine, tasks)
        return ours, await asked_plainly(experiment, engine, tasks)

    ours, plainly = experiment.with_engine(experiment.base, work)
    pairs = [(tree.attempts[0].success, success) for tree, (_, success) in zip(ours, plainly, strict=True)]
    return {
        "tasks": len(tasks),
        "pass_at_1_by_our_prompts": 100 * sum(our for our, _ in pairs) / len(pairs),
        "pass_at_1_asked_plainly": 100 * sum(their for _, their in pairs) / len(pairs),
        "both": sum(our and their for our, their in pairs),
        "ours_alone": sum(our and not their for our, their in pairs),
        "plainly_alone": sum(their and not our for our, their in pairs),
        "sampling": experiment.config.sampling.act.model_dump(),
        **{f"ours_{name}": value for name, value in counts_of(ours).items() if name in ("read", "cut")},
        "plainly_cut": sum(reply.finish == "length" for reply, _ in plainly),
    }


def main() -> None:
    """Prints a table; writes JSON into a file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the folder of an instruction-tuned model")
    parser.add_argument("words", nargs="+", metavar="WORLD|key=value")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--turns", type=int, default=8, help="budget of a task")
    parser.add_argument("--without", action="append", default=[], choices=INGREDIENTS)
    parser.add_argument("--prompts", default="full", help=f"{', '.join(PROFILES)} or a folder")
    parser.add_argument("--plainly", action="store_true", help="compare with the model asked plainly")
    parser.add_argument("--replies", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_intermixed_args()
    args.worlds = [word for word in args.words if "=" not in word]
    args.settings = [word for word in args.words if "=" in word]
    started, rows = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        prompts = without(args.without, Path(folder)) if args.without else args.prompts
        if args.plainly:
            rows["side by side"] = side_by_side(args, prompts)
            print(json.dumps(rows["side by side"], indent=1))
        else:
            for world in args.worlds:
                experiment = bench_for(args, world, prompts)
                trees = explore_tasks(experiment, "explore", ForestSpec("tree", experiment.explore_seed(1), experiment.base))
                rows[world] = counts_of(trees)
            print(table(rows))
    print(f"{time.monotonic() - started:.0f} s")
    if args.json:
        args.json.write_text(
            json.dumps({"model": args.model, "without": args.without, "settings": args.settings, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
