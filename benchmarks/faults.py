"""The effect of faults: flipped bits, hostile texts, and the cost of the checks against them.

    python benchmarks/faults.py flips [--count 2000]      one flipped bit at a time in a finished run, then the next command
    python benchmarks/faults.py fuzz [--count 100000]     replies, observations and YAML values: none a traceback, none above 50 ms
    python benchmarks/faults.py hostile [--size 32000]    the worst of some hundred texts of one length that repeat or join a few parts
    python benchmarks/faults.py reading [--turns 200000]  writing, proving and reading a forest of so many turns
    python benchmarks/faults.py proving [--gib 1]         reading weights a second time to prove them
    python benchmarks/faults.py episodes                  the cost of a turn in episodes of 250, 1,000 and 4,000 turns

Times are of one core's processor time. The flips play the small run of the tests; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from test_whole_files import finished_run, flips, here  # noqa: E402
from tiny import tiny_model, tiny_tokenizer  # noqa: E402

from leafe.chat import Scene, act_messages  # noqa: E402
from leafe.config import parse  # noqa: E402
from leafe.distillation.store import parted  # noqa: E402
from leafe.engines.scripted import ScriptedEngine  # noqa: E402
from leafe.engines.tokens import ChatTokenizer  # noqa: E402
from leafe.errors import UserError  # noqa: E402
from leafe.forest.builder import Rules, TreeBuilder  # noqa: E402
from leafe.forest.driver import Rollout, Runtime, drive  # noqa: E402
from leafe.forest.journal import Journal  # noqa: E402
from leafe.forest.play import once  # noqa: E402
from leafe.forest.store import ForestWriter, read_forest  # noqa: E402
from leafe.manifest import described  # noqa: E402
from leafe.prompts import load_prompts  # noqa: E402
from leafe.records import Message, Observation, Tree  # noqa: E402
from leafe.replies import FORMS, ParseFailure, parse_action, parse_reflection, program_in  # noqa: E402
from leafe.viewer.markup import preformatted  # noqa: E402
from leafe.worlds.fakes import Lookup  # noqa: E402
from leafe.yaml_text import read_values  # noqa: E402

MOST = 0.05  # seconds for one text
PARTS = [
    *("<turn>1</turn>", "<turn>", "</turn>", "<action>", "</action>", "<think>", "</think>", "<experience>", "</experience>"),
    *(
        "<answer>",
        "```",
        "```python\n",
        "~~~",
        "~",
        "`",
        " ",
        "\n",
        "\t",
        "\r\n",
        "Action:",
        "Action: ",
        "Action input:",
        "turn none",
    ),
    *(
        "Turn: 1\n",
        "Experience: x\n",
        "1",
        "-",
        "**",
        '"',
        "'",
        "(",
        "[",
        "{",
        "x = (",
        "def f():\n",
        "print(1)\n",
        "\\",
        "#",
        "<",
        ">",
    ),
    *(
        "\u202e",
        "\u2028",
        "\x85",
        "\x00",
        "\ufeff",
        "é",
        "中",
        "1if x else",
        "lambda x:",
        "f'{",
        '"""',
        "@a\n",
        ">>> ",
        "$ ",
        "0",
        "_",
    ),
    *(
        "<|im_end|>",
        "<|end|>",
        "<|assistant|>",
        "</s>",
        "[INST]",
        "＜|end|＞",
        "go left",
        "You see a wall.",
        "{x}",
        "...",
        "if x:\n  ",
    ),
]
YAML_PARTS = [
    *(
        "a",
        "1",
        "9" * 60,
        ": ",
        ", ",
        "[",
        "]",
        "{",
        "}",
        "&a ",
        "*a",
        "!!int ",
        "!!set ",
        "- ",
        "? ",
        "'",
        '"',
        "\\u",
        "\n",
        "  ",
        "#",
    ),
    *(
        "2024-01-01",
        ".inf",
        "~",
        "null",
        "0x",
        "1e9",
        "%",
        "@",
        "`",
        "|",
        ">",
        "<<: ",
        "=",
        "\\x00",
        "é",
        "1:30",
        "_",
        "---",
        "...",
    ),
]


def main() -> None:
    """Runs one battery."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    options = {
        "flips": ("count", 2000), "fuzz": ("count", 100_000), "hostile": ("size", 32_000), "reading": ("turns", 200_000),
        "proving": ("gib", 1), "episodes": ("most", 4000),
    }  # fmt: skip
    for name, (option, default) in options.items():
        command = commands.add_parser(name)
        command.add_argument(f"--{option}", type=int, default=default)
        command.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    batteries: dict[str, Callable[[int, int], None]] = {
        "flips": flipped, "fuzz": fuzz, "hostile": hostile, "reading": reading, "proving": proving, "episodes": episodes,
    }  # fmt: skip
    batteries[asked.command](getattr(asked, options[asked.command][0]), asked.seed)


def flipped(count: int, seed: int) -> None:
    """Flips one bit at a time: it is reported by the file's name, or has no effect."""
    with tempfile.TemporaryDirectory() as name:
        base, folder = Path(name) / "base", Path(name) / "flips"
        tiny_model("llama").save_pretrained(base)
        tiny_tokenizer().save_pretrained(base)
        folder.mkdir()
        run = finished_run(base, Path(name) / "run")
        told: Counter[tuple[str, bool]] = Counter()
        for file, said in flips(run, folder, here(base), count=count, seed=seed):
            told[file.as_posix(), bool(said)] += 1
    for (file, was_told), number in sorted(told.items()):
        print(f"{number:6} {'told' if was_told else 'without effect':15} {file}")
    print(f"{count} flips, {sum(number for (_, was_told), number in told.items() if was_told)} told")


def timed(work: Callable[[], object]) -> float:
    """Seconds of work that may end in one of the refusals for users or policies."""
    begun = process_time()
    with suppress(ParseFailure, UserError):
        work()
    return process_time() - begun


def joined(draw: random.Random, parts: list[str], most: int) -> str:
    """A text of some parts, of random letters, or of repeated parts."""
    kind, size = draw.randrange(4), draw.randint(1, most)
    if kind == 0:
        return "".join(chr(draw.choice((draw.randrange(1, 0x250), draw.randrange(0x2000, 0x2070)))) for _ in range(size // 4))
    pieces = [draw.choice(parts) for _ in range(draw.randint(1, 40))]
    return "".join(pieces)[:size] if kind < 3 else ("".join(pieces[:3]) * size)[:size]


def works(tokens: ChatTokenizer, scene: Scene) -> dict[str, Callable[[str], object]]:
    """The kinds of processing of texts from a model, from a world, and from a user."""

    def observed(text: str) -> object:
        messages = act_messages(replace(scene, root=Observation(text)), ())
        return tokens.prompt_ids(messages), preformatted(text), parted(text)

    replies: dict[str, Callable[[str], object]] = {"program in": program_in, "observation": observed}
    for form in FORMS:
        for whole in (True, False):
            replies[f"{form} action"] = lambda text, form=form, whole=whole: parse_action(form, text, whole=whole)
            replies[f"{form} reflection"] = lambda text, form=form, whole=whole: parse_reflection(form, text, 5, whole=whole)
    return replies


def fuzz(count: int, seed: int) -> None:
    """`count` texts, each through one kind of processing; prints the slowest."""
    draw, tokens = random.Random(seed), ChatTokenizer(tiny_tokenizer())
    scene = Scene(load_prompts("full", "lookup"), Lookup().tasks("train", 1)[0], Observation(""))
    read = works(tokens, scene)
    recipe = "name: trial\nenvironment: {name: lookup}\n"
    kinds: dict[str, Callable[[str], object]] = {
        **read,
        "override": lambda text: parse(
            recipe, "trial", [f"{draw.choice(('train.epochs', 'name', 'arms', 'environment.args.x'))}={text}"]
        ),
        "recipe": lambda text: parse(recipe + text, "trial"),
        "argument": lambda text: read_values([f"x={text}"]),
    }
    worst: list[tuple[float, str, str]] = []
    for _ in range(count):
        kind = draw.choice(list(kinds))
        text = joined(draw, YAML_PARTS if kind in ("override", "recipe", "argument") else PARTS, 4000 if kind in read else 400)
        work = kinds[kind]
        seconds = timed(lambda work=work, text=text: work(text))
        if seconds > MOST:  # other work on the machine may have slowed it
            seconds = min(seconds, *(timed(lambda work=work, text=text: work(text)) for _ in range(3)))
        worst = sorted([*worst, (seconds, kind, text[:60])], reverse=True)[:5]
    print(f"{count} texts, no traceback; {'none' if worst[0][0] <= MOST else 'SOME'} above {1000 * MOST:.0f} ms; the slowest:")
    for seconds, kind, text in worst:
        print(f"{1000 * seconds:8.1f} ms  {kind:18} {text!r}")


def hostile(size: int, seed: int) -> None:
    """Texts of one length that repeat a part, join two halves, or end as they do not begin."""
    draw, tokens = random.Random(seed), ChatTokenizer(tiny_tokenizer())
    scene = Scene(load_prompts("full", "lookup"), Lookup().tasks("train", 1)[0], Observation(""))
    worst: list[tuple[float, str, str]] = []
    texts = [(part * size)[:size] for part in PARTS]
    for _ in range(200):
        one, other = draw.choice(PARTS), draw.choice(PARTS)
        half = size // 2
        texts += [
            (one * half)[:half] + (other * half)[:half],
            ((one + other) * size)[:size],
            "<action>" + (one * size)[:size] + other,
        ]
    for text in texts:
        for kind, work in works(tokens, scene).items():
            worst.append((timed(lambda work=work, text=text: work(text)), kind, f"{text[:30]!r} ... {text[-12:]!r}"))
        worst = sorted(worst, reverse=True)[:8]
    print(f"{len(texts)} texts of {size:,} characters; the slowest:")
    for seconds, kind, text in worst:
        print(f"{1000 * seconds:8.1f} ms  {kind:18} {text}")


class Endless(Lookup):
    """A world that answers at every turn and never ends."""

    def step(self, action: str) -> Observation:
        """A short answer."""
        return Observation(f"You see a box, a wall and a door. Nothing happens after {action!r:.20}. What now?")

    def snapshot(self) -> Any:
        """Nothing to keep."""
        return None

    def restore(self, snapshot: Any) -> None:
        """Nothing to bring back."""


def played(turns: int, journal: Path | None) -> Tree:
    """An episode of so many turns, through the driver, with a script as policy."""
    task = replace(Lookup().tasks("train", 1)[0], horizon=turns)
    rules = Rules(load_prompts("full", "lookup"), 1, turns, patience=turns + 1)
    reply = "<think>I go on, since there is nothing else that I could do here.</think>\n<action>go on</action>"

    async def work() -> Tree:
        runtime = Runtime(ScriptedEngine(lambda ask: reply), Endless, journal=Journal(journal) if journal else None)
        async for _, tree in drive([Rollout("a", task, once(TreeBuilder(task, rules)))], runtime, concurrency=1):
            return tree
        raise AssertionError("unreachable: one job gives one tree")

    return asyncio.run(work())


def episodes(most: int, seed: int) -> None:
    """Milliseconds a turn of the driver, the prompts, the marks and the journal together, and of the ids of the prompts."""
    for turns in (250, 1000, most):
        with tempfile.TemporaryDirectory() as name:
            begun = process_time()
            tree = played(turns, Path(name) / "journal.jsonl")
            driven = process_time() - begun
        tokens, scene = ChatTokenizer(tiny_tokenizer()), Scene(load_prompts("full", "lookup"), tree.task, tree.root)
        prompts: Iterator[tuple[Message, ...]] = (act_messages(scene, tree.turns[:number]) for number in range(turns))
        begun = process_time()
        for messages in prompts:
            tokens.prompt_ids(messages)
        encoded = process_time() - begun
        print(
            f"{turns:6} turns: {1000 * driven / turns:.2f} ms a turn driven, {1000 * encoded / turns:.2f} ms a turn to render and encode"
        )


def reading(turns: int, seed: int) -> None:
    """Seconds to write, to prove and to read a forest of so many turns, in trees of 96."""
    tree = played(96, None)
    with tempfile.TemporaryDirectory() as name:
        path, count = Path(name) / "forest.jsonl", turns // 96
        begun = process_time()
        with ForestWriter(path) as forest:
            for number in range(count):
                forest.add(replace(tree, task=replace(tree.task, id=f"t{number}")))
        written, begun = process_time() - begun, process_time()
        described(path)
        proved, begun = process_time() - begun, process_time()
        found = sum(len(one.turns) for one in read_forest(path))
        size, read = path.stat().st_size / 1e6, process_time() - begun
        print(f"{found:,} turns, {size:.0f} MB: {written:.1f} s to write, {proved:.2f} s to prove, {read:.1f} s to read")


def proving(gib: int, seed: int) -> None:
    """Seconds to read a GiB again that has just been read."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.safetensors"
        with open(path, "wb") as file:
            for _ in range(64 * gib):
                file.write(os.urandom(1 << 24))
        begun = process_time()
        described(path)
        print(f"{(process_time() - begun) / gib:.2f} s a GiB")


if __name__ == "__main__":
    main()
