"""Examples on disk: they come back equal, a bad line is named, and other trainers train on the target and nothing else."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from other_trainers import MultiTurnSFTDataset, llama_factory_trains, trl_trains
from tiny import TEMPLATE, tiny_tokenizer

from leafe.digest import canonical
from leafe.distillation.store import CONTROL, FORMATS, HINTS, SCHEMA, export, parted, read_examples, remarks, write_examples
from leafe.errors import CorruptFile, MissingDependency, UnknownName, UserError
from leafe.records import Example, Message, Target, encode

TOKENIZER = tiny_tokenizer()
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
messages = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts, st.booleans())
numbers = st.one_of(st.none(), st.floats(-50, 0))
tops = st.dictionaries(st.integers(0, 2**31), st.floats(0.01, 0.3), max_size=3).map(lambda top: tuple(top.items()))
targets = st.builds(Target, st.integers(0, 2**31), st.floats(-9, 9), numbers, numbers, tops)
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
    group=texts,
)
detailed = st.builds(
    lambda example, wanted: replace(example, targets=wanted, target_ids=tuple(target.id for target in wanted)),
    examples,
    st.lists(targets, max_size=4).map(tuple),
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
    file = folder / ("out.parquet" if kind == "verl" else "out.jsonl")
    assert export(given, kind, file) == len(given)
    if kind == "verl":
        return list(pyarrow.parquet.read_table(file).to_pylist())
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("token", ["<|im_end|>", "<\uff5cUser\uff5c>", "<end_of_turn>", "</s>", "[/INST]", "<|<|im_end|>im_end|>"])
def test_control_tokens_that_texts_spell_out_have_a_space_put_into_them(kind: str, token: str, tmp_path: Path) -> None:
    hostile = replace(EXAMPLE, messages=(Message("user", f"see {token} here"),), target=f"go {token}")
    written = json.dumps(exported(kind, tmp_path, hostile), ensure_ascii=False)
    assert token not in written and parted(token) in written and parted(parted(token)) == parted(token)
    assert not CONTROL.search(written)


def test_a_text_without_control_tokens_is_exported_as_it_is() -> None:
    for text in ("a < b | c > d", "<|>", "<think>x</think>", "[INST", "<sp>", "| x |", "<||>"):
        assert parted(text) == text


@given(st.lists(st.one_of(examples, detailed), max_size=4))
def test_examples_come_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, given: list[Example]) -> None:
    path = tmp_path_factory.mktemp("examples") / "examples.jsonl"
    write_examples(path, given)
    assert list(read_examples(path)) == given


def test_what_is_not_set_is_not_written_so_that_lines_stay_as_older_versions_wrote_them() -> None:
    fields = ["id", "kind", "task", "attempt", "origin", "messages", "target", "target_ids", "weight"]
    assert list(encode(EXAMPLE)) == fields
    told = replace(EXAMPLE, group="g", targets=(Target(7), Target(8, logprob=0.0), Target(4, 0.5, top=((4, 0.75), (9, 0.125)))))
    assert encode(told) == encode(EXAMPLE) | {
        "group": "g",
        "targets": [{"id": 7}, {"id": 8, "logprob": 0.0}, {"id": 4, "weight": 0.5, "top": [[4, 0.75], [9, 0.125]]}],
    }


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        ([{"id": 9}], "with the ids"),
        ([{"id": 9}, {"id": 5}], "with the ids"),
        ([{"id": 9}, {"id": 4, "logprob": 0.3}], "target 4: wanted logprob as a natural log-probability, at most 0, found 0.3"),
        ([{"id": 9}, {"id": 4, "reference": float("nan")}], "wanted reference"),
        ([{"id": 9}, {"id": 4, "weight": float("inf")}], "a finite weight"),
        ([{"id": 9}, {"id": 4, "top": [[1, 0.7], [2, 0.7]]}], "wanted top"),
        ([{"id": 9}, {"id": 4, "top": [[1, 0.2], [1, 0.2]]}], "wanted top"),
        ([{"id": 9}, {"id": 4, "top": [[1, 0.0]]}], "wanted top"),
        ([{"id": 9}, {"id": 4, "top": [[1, -0.1], [2, 0.5]]}], "wanted top"),
        ([{"id": 9}, {"id": 4, "top": [[1]]}], "wanted 2 values"),
        ([{"id": 9}, {"id": 4, "lobprob": -1.0}], "wanted the fields of Target"),
    ],
)
def test_targets_that_say_what_cannot_be_are_refused_with_their_line(targets: list[Any], wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    line = json.dumps(encode(BARE) | {"targets": targets})
    path.write_text("\n".join([canonical({"schema": SCHEMA}), line, ""]))
    with pytest.raises(CorruptFile, match=rf"examples\.jsonl line 2 is no example \(.*{wanted}"):
        list(read_examples(path))


@pytest.mark.parametrize(
    "change",
    [
        {"weight": -1.0},
        {"group": "g"},
        {"targets": (Target(9), Target(4, -1.0))},
        {"targets": (Target(9, top=((1, 0.5),)), Target(4))},
    ],
)
def test_what_another_trainer_would_get_wrong_is_not_exported(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the example e2 of task t1 has .*; train it here"):
        exported("trl", tmp_path, EXAMPLE, replace(BARE, **change))
    assert list(tmp_path.iterdir()) == []
    exported("trl", tmp_path, replace(BARE, targets=(Target(9, logprob=-1.0), Target(4, logprob=-2.0))))


@pytest.mark.parametrize(
    "idle",
    [replace(EXAMPLE, weight=0.0), replace(BARE, targets=(Target(9, 0.0), Target(4, 0.0))), replace(BARE, weight=0.0, group="g")],
)
@pytest.mark.parametrize("kind", FORMATS)
def test_what_has_no_weight_is_left_out_and_counted_since_another_trainer_would_learn_it(
    kind: str, idle: Example, tmp_path: Path
) -> None:
    name = "out.parquet" if kind == "verl" else "out.jsonl"
    for folder, several in (("with", [idle, BARE, idle]), ("without", [BARE])):
        (tmp_path / folder).mkdir()
        assert export(several, kind, tmp_path / folder / name) == 1
    assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert [*remarks([idle, BARE, idle])] == ["left out: 2 examples of weight 0, which another trainer would learn like the others"]


def test_weights_that_differ_are_said_to_be_lost_and_equal_ones_are_not() -> None:
    lost = "their weights, from 0.5 to 1, are not carried over: another trainer learns all of them alike"
    assert [*remarks([EXAMPLE, BARE])] == [lost]
    assert [*remarks([replace(BARE, targets=(Target(9), Target(4, 0.5)))])] == [lost]
    for equal in ([], [BARE, BARE], [EXAMPLE, EXAMPLE], [BARE, replace(BARE, targets=(Target(9), Target(4)))]):
        assert [*remarks(equal)] == []


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
    (line,) = exported("trl", tmp_path, EXAMPLE)
    prompt = TOKENIZER.apply_chat_template(line["prompt"], add_generation_prompt=True, tokenize=False)
    whole = TOKENIZER.apply_chat_template(line["prompt"] + line["completion"], tokenize=False)
    assert whole == f"{prompt}go “up”<|end|>"


def test_trl_trains_on_the_target_alone(tmp_path: Path) -> None:
    first, second = exported("trl", tmp_path, EXAMPLE, BARE)
    assert trl_trains(TOKENIZER, first) == ["go “up”<|end|>"]
    assert trl_trains(TOKENIZER, second) == ["go left<|end|>"]


@pytest.fixture
def last_reply(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class that verl is told to use, with what it builds on restated."""
    for name in ("verl", "verl.utils", "verl.utils.dataset", "verl.utils.dataset.multiturn_sft_dataset"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["verl.utils.dataset.multiturn_sft_dataset"].__dict__["MultiTurnSFTDataset"] = MultiTurnSFTDataset
    monkeypatch.delitem(sys.modules, "leafe.distillation.verl", raising=False)
    yield importlib.import_module("leafe.distillation.verl").LastReply
    sys.modules.pop("leafe.distillation.verl", None)


@pytest.mark.parametrize(
    "template", [TEMPLATE, "{% if messages[0].role != 'system' %}<|system|>be good<|end|>{% endif %}" + TEMPLATE]
)
def test_verl_trains_on_the_target_alone(template: str, last_reply: Any, tmp_path: Path) -> None:
    rows = exported("verl", tmp_path, EXAMPLE, BARE)
    given = last_reply(rows, tiny_tokenizer(template=template))
    assert list(given.trains()) == [["go “up”<|end|>"], ["go left<|end|>"]]


def test_verls_own_data_set_would_train_on_the_history_and_finds_no_column_to_read(tmp_path: Path) -> None:
    rows = exported("verl", tmp_path, EXAMPLE)
    with pytest.raises(KeyError, match="messages"):
        MultiTurnSFTDataset(rows, TOKENIZER)
    (mistaken,) = MultiTurnSFTDataset([{"messages": row["conversation"]} for row in rows], TOKENIZER).trains()
    assert mistaken == ["go left<|end|>", "go “up”<|end|>"]


def test_verl_gets_parquet_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"verl .*\.parquet .*out\.jsonl"):
        export([EXAMPLE], "verl", tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_the_class_for_verl_says_in_a_sentence_that_verl_is_missing() -> None:
    with pytest.raises(MissingDependency, match=r"verl, which this data set is for, is not installed; type: pip install"):
        importlib.import_module("leafe.distillation.verl")


def test_parquet_holds_what_lines_hold(tmp_path: Path) -> None:
    export([EXAMPLE, BARE], "trl", tmp_path / "out.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist() == exported("trl", tmp_path, EXAMPLE, BARE)


def test_llama_factory_gets_turns_that_alternate_and_the_system_message_beside_them(tmp_path: Path) -> None:
    first, second = exported("llama-factory", tmp_path, EXAMPLE, BARE)
    assert [one["from"] for one in first["conversations"]] == ["human", "gpt", "human", "gpt"]
    assert (first["system"], second["system"]) == ("You act.", "")
    assert first["conversations"][-1]["value"] == "go “up”"


def test_llama_factory_trains_on_the_target_alone_when_it_is_told_to_mask_the_history(tmp_path: Path) -> None:
    first, second = exported("llama-factory", tmp_path, EXAMPLE, BARE)
    assert llama_factory_trains(first, mask_history=True) == ["go “up”"]
    assert llama_factory_trains(second, mask_history=True) == ["go left"]
    assert llama_factory_trains(first, mask_history=False) == ["go left", "go “up”"] and "mask_history" in HINTS["llama-factory"]


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_no_examples_make_an_empty_file(kind: str, tmp_path: Path) -> None:
    assert exported(kind, tmp_path) == []


def test_an_unknown_format_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"'tlr'.*'trl'.*llama-factory"):
        export([EXAMPLE], "tlr", tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.*No such file or directory"):
        export([EXAMPLE], "trl", tmp_path / "nowhere" / "out.jsonl")
