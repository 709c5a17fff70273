"""Examples on disk, and in the shapes that other trainers read.

`write_examples` and `read_examples` are our own lines, whole; `export` writes prompt and completion for TRL, verl or LLaMA-Factory,
whose loss falls on the completion alone. The ids that were sampled travel along where the format has room for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from leafe.digest import canonical
from leafe.errors import CorruptFile, UnknownName, UserError
from leafe.jsonl import read_lines, write_text_atomically
from leafe.records import Example, decode, encode

SCHEMA = "leafe.examples/1"


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
    return {"messages": [*_messages(example), {"role": "assistant", "content": example.target}], "weight": example.weight}


def _llama_factory(example: Example) -> dict[str, Any]:
    """ShareGPT form; LLaMA-Factory trains on the last answer alone when `mask_history` is on."""
    system = next((message.content for message in example.messages if message.role == "system"), "")
    turns = [message for message in example.messages if message.role != "system"]
    sides = {"user": "human", "assistant": "gpt"}
    conversation = [{"from": sides[message.role], "value": message.content} for message in turns]
    return {"conversations": [*conversation, {"from": "gpt", "value": example.target}], "system": system}


FORMATS: dict[str, Callable[[Example], dict[str, Any]]] = {"trl": _trl, "verl": _verl, "llama-factory": _llama_factory}


def export(examples: Iterable[Example], kind: str, path: Path) -> int:
    """Writes examples for another trainer (`trl`, `verl`, `llama-factory`), a JSON line each; returns how many.

    LLaMA-Factory reads a JSON array as well as lines, and all three read lines through `datasets`.
    """
    if kind not in FORMATS:
        raise UnknownName("export format", kind, FORMATS)
    lines = [json.dumps(FORMATS[kind](example), ensure_ascii=False) for example in examples]
    try:
        write_text_atomically(path, "".join(line + "\n" for line in lines))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give a file in a folder that is there") from None
    return len(lines)
