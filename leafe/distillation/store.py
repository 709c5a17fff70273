"""Examples on disk, and in the formats that other trainers read.

`write_examples` and `read_examples` use leafe's complete lines; `export` writes conversations for TRL, verl or LLaMA-Factory. The loss must
fall on an example's target alone, since the replies before it include the policy's mistakes. `HINTS` has the option for that of each
trainer. The sampled ids are included if the format has room for them; none of the three reads weights, so examples without a weight are
left out, and those that are wrong without the details of their targets are not exported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from leafe.digest import canonical
from leafe.errors import CorruptFile, MissingDependency, UnknownName, UserError
from leafe.imports import install_command
from leafe.jsonl import read_lines, write_bytes_atomically, write_text_atomically
from leafe.records import Example, decode, encode

SCHEMA = "leafe.examples/1"
# Control tokens as the families of models write them: `<|im_end|>`, `<｜User｜>`, `<end_of_turn>`, `</s>`, `[/INST]`.
CONTROL = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|<\uff5c[^<>\uff5c\s]{1,40}\uff5c>|</?s>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>|\[/?INST\]|<</?SYS>>"
)
PARTED = "texts spell out control tokens; a space is put into these, since another trainer would take them for the tokens"
TRIES = 8  # an inserted space can make another control token of the rest
VERL_COLUMN = "conversation"


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Writes a whole examples file or nothing."""
    lines = [canonical({"schema": SCHEMA}), *(canonical(encode(example)) for example in examples)]
    write_text_atomically(path, "\n".join(lines) + "\n")


def read_examples(path: Path) -> Iterator[Example]:
    """The examples of a file. Raises `CorruptFile` with the line's number for a line that is no example."""
    for number, line in enumerate(read_lines(path, SCHEMA), start=2):
        try:
            yield decode(Example, line)
        except ValueError as error:
            raise CorruptFile(f"{path} line {number} is no example ({error}); distil again") from None


def parted(text: str) -> str:
    """The text with a space in everything that any tokenizer takes for a control token: the trainer's tokenizer is not known."""
    for _ in range(TRIES):
        if not CONTROL.search(text):
            break
        text = CONTROL.sub(lambda found: f"{found.group()[0]} {found.group()[1:]}", text)
    return text


def with_texts(example: Example, change: Callable[[str], str]) -> Example:
    """The example with every text of its conversation changed; its ids stay."""
    messages = tuple(replace(message, content=change(message.content)) for message in example.messages)
    return replace(example, messages=messages, target=change(example.target))


def _messages(example: Example) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in example.messages]


def _trl(example: Example) -> dict[str, Any]:
    completion = [{"role": "assistant", "content": example.target}]
    return {
        "prompt": _messages(example),
        "completion": completion,
        "weight": example.weight,
        "completion_ids": list(example.target_ids),
    }


def _verl(example: Example) -> dict[str, Any]:
    """A conversation in a column that verl's standard data set does not read, since it would train on every reply there."""
    return {VERL_COLUMN: [*_messages(example), {"role": "assistant", "content": example.target}], "weight": example.weight}


def _llama_factory(example: Example) -> dict[str, Any]:
    """ShareGPT form; LLaMA-Factory trains on the last reply alone when `mask_history` is on."""
    system = next((message.content for message in example.messages if message.role == "system"), "")
    turns = [message for message in example.messages if message.role != "system"]
    sides = {"user": "human", "assistant": "gpt"}
    conversation = [{"from": sides[message.role], "value": message.content} for message in turns]
    return {"conversations": [*conversation, {"from": "gpt", "value": example.target}], "system": system}


FORMATS: dict[str, Callable[[Example], dict[str, Any]]] = {"trl": _trl, "verl": _verl, "llama-factory": _llama_factory}
# The option of the other trainer that puts the loss on the target alone.
HINTS = {
    "trl": "leave completion_only_loss as it is",
    "verl": "train with data.custom_cls.path=pkg://leafe.distillation.verl data.custom_cls.name=LastReply",
    "llama-factory": "train with mask_history: true, or every reply of the history is trained as well",
}


def export(examples: Iterable[Example], kind: str, path: Path) -> int:
    """Writes examples for another trainer (`trl`, `verl`, `llama-factory`); returns how many.

    Examples without a weight are left out, and a space is put into control tokens that texts spell out; `remarks` has both in sentences.
    Raises `UserError` for examples of another loss than cross-entropy. A name that ends in `.parquet` gives a parquet file, which verl
    requires; any other gives a JSON line for each example.
    """
    if kind not in FORMATS:
        raise UnknownName("export format", kind, FORMATS)
    is_parquet = path.suffix == ".parquet"
    if kind == "verl" and not is_parquet:
        raise UserError(f"verl reads parquet files only; give a name that ends in .parquet instead of {path.name}")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: No such file or directory; give a file in an existing folder")
    rows = [FORMATS[kind](with_texts(_plain(example), parted)) for example in examples if example.counts]
    content = _parquet(rows) if is_parquet else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    write_bytes_atomically(path, content)
    return len(rows)


def remarks(examples: Iterable[Example]) -> Iterator[str]:
    """Sentences on what `export` leaves out of examples, does not carry, or changes."""
    given = list(examples)
    kept = [example for example in given if example.counts]
    if idle := len(given) - len(kept):
        yield f"left out: {idle} examples of weight 0, which another trainer would learn like the others"
    weights = sorted({weight for example in kept for weight in _weights(example)})
    if len(weights) > 1:
        yield f"their weights, from {weights[0]:.4g} to {weights[-1]:.4g}, are not carried over: another trainer learns all of them alike"
    if changed := sum(with_texts(example, parted) != example for example in kept):
        yield f"in {changed} of them {PARTED}"


def _weights(example: Example) -> set[float]:
    return {example.weight * target.weight for target in example.targets} or {example.weight}


def _plain(example: Example) -> Example:
    """The example, if it can be trained on by cross-entropy on its target."""
    said = {
        "a negative weight": example.weight < 0 or any(target.weight < 0 for target in example.targets),
        "a group": bool(example.group),
        "targets with a teacher": any(target.top for target in example.targets),
    }
    for found, is_so in said.items():
        if is_so:
            raise UserError(
                f"the example {example.id} of task {example.task} has {found}, which other trainers do not read and would train on its"
                " target all the same; train it here, as leafe.train(model, examples, out, loss=...)"
            )
    return example


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    try:
        from pyarrow import Table  # an optional library, needed for this format only
        from pyarrow.parquet import write_table
    except ImportError:
        raise MissingDependency("pyarrow, which writes parquet files,", install_command("parquet")) from None
    file = BytesIO()
    write_table(Table.from_pylist(rows), file)
    return file.getvalue()
