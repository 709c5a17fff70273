"""Examples on disk: they come back equal, a bad line is named, and other trainers get the prompt and the completion apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from leafe.digest import canonical
from leafe.distill.store import FORMATS, SCHEMA, export, read_examples, write_examples
from leafe.errors import CorruptFile, UnknownName, UserError
from leafe.records import Example, Message, encode

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
messages = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts, st.booleans())
examples = st.builds(
    Example,
    id=texts,
    kind=st.sampled_from(["counterfactual", "rehearsal"]),
    task=texts,
    attempt=st.integers(0, 9),
    origin=texts,
    messages=st.lists(messages, max_size=4).map(tuple),
    target=texts,
    target_ids=st.lists(st.integers(0, 2**31), max_size=5).map(tuple),
    weight=st.floats(0, 10),
)
HISTORY = (
    Message("system", "You act."),
    Message("user", "What now? {observation}"),
    Message("assistant", "go left", sampled=True),
    Message("user", "A wall.\nWhat now?"),
)
EXAMPLE = Example("e1", "counterfactual", "t1", 2, "turn7", HISTORY, "go “up”", (7, 8, 4), 0.5)
BARE = Example("e2", "rehearsal", "t1", 0, "turn1", HISTORY[1:2], "go left", (9, 4))


def exported(kind: str, folder: Path, *given: Example) -> list[dict[str, Any]]:
    file = folder / "out.jsonl"
    assert export(given, kind, file) == len(given)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@given(st.lists(examples, max_size=4))
def test_examples_come_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, given: list[Example]) -> None:
    path = tmp_path_factory.mktemp("examples") / "examples.jsonl"
    write_examples(path, given)
    assert list(read_examples(path)) == given


def test_a_line_that_is_no_example_is_named(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    broken = encode(BARE) | {"weight": "heavy"}
    path.write_text("\n".join([canonical({"schema": SCHEMA}), canonical(encode(EXAMPLE)), canonical(broken), ""]))
    found = read_examples(path)
    assert next(found) == EXAMPLE
    with pytest.raises(CorruptFile, match=r"examples\.jsonl line 3 is no example \(.*\); distil again"):
        next(found)


def test_trl_gets_prompt_and_completion_apart_and_the_sampled_ids(tmp_path: Path) -> None:
    first, second = exported("trl", tmp_path, EXAMPLE, BARE)
    assert first["prompt"] == [{"role": one.role, "content": one.content} for one in HISTORY]
    assert first["completion"] == [{"role": "assistant", "content": "go “up”"}]
    assert (first["completion_ids"], first["weight"], second["weight"]) == ([7, 8, 4], 0.5, 1.0)


def test_what_trl_renders_is_what_the_engine_was_asked(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    (line,) = exported("trl", tmp_path, EXAMPLE)
    prompt = tokenizer.apply_chat_template(line["prompt"], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(line["prompt"] + line["completion"], tokenize=False)
    assert whole == f"{prompt}go “up”<|end|>"


def test_verl_gets_one_conversation_that_ends_in_the_target(tmp_path: Path) -> None:
    (line,) = exported("verl", tmp_path, EXAMPLE)
    assert [one["role"] for one in line["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert line["messages"][-1]["content"] == "go “up”"
    assert line["weight"] == 0.5


def test_llama_factory_gets_turns_that_alternate_and_the_system_message_beside_them(tmp_path: Path) -> None:
    first, second = exported("llama-factory", tmp_path, EXAMPLE, BARE)
    assert [one["from"] for one in first["conversations"]] == ["human", "gpt", "human", "gpt"]
    assert (first["system"], second["system"]) == ("You act.", "")
    assert first["conversations"][-1]["value"] == "go “up”"


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_no_examples_make_an_empty_file(kind: str, tmp_path: Path) -> None:
    assert exported(kind, tmp_path) == []


def test_an_unknown_format_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"unknown export format 'tlr'; did you mean 'trl'\? Known: llama-factory, trl, verl"):
        export([EXAMPLE], "tlr", tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*nowhere.*: No such file or directory; give a file in a folder"):
        export([EXAMPLE], "trl", tmp_path / "nowhere" / "out.jsonl")
