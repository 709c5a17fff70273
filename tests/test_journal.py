"""The journal and the forest file: what they give back, and what they refuse to mix or to read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from players import PLACES, TERSE, Hand, erratic, grown, key_in

from leafe.errors import CorruptFile, EnvironmentFailure, EpisodeError, ReplayDiverged, RunConflict
from leafe.forest.effects import Effect, Expert, Plan, Reset, Restored, Rollback, Step
from leafe.forest.explore import explore
from leafe.forest.journal import SCHEMA, Journal
from leafe.forest.store import ForestWriter, read_forest
from leafe.records import Ask, Completion, Message, Observation, Sampling, Tree, Turn
from leafe.worlds.fakes import Lookup

ASK = Ask((Message("user", "Where to?"),), Sampling(0.5, 0.9, 8), 7)
TURN = Turn("t1", None, 1, 0, "up", True, Completion("up"), Observation("There."))
PAST: list[tuple[Effect, Any]] = [
    (Reset(key_in(1)), Observation("Here.", info={"n": [1, {"é": None}]})),
    (ASK, Completion("up\n", (5, 6), (-0.25, -1e-9), "length", 12)),
    (Step("up"), Observation("There.", True, True, -0.5)),
    (replace(ASK, purpose="reflect", seed=8), Completion("", finish="context")),
    (Rollback(key_in(1), (TURN,)), Restored(Observation("There."), 1)),
    (Step("down"), EnvironmentFailure("it rained: ☔")),
    (Rollback(key_in(1), ()), ReplayDiverged("elsewhere")),
    (Expert(), Plan(("up", "open é"))),
    (Expert(), Plan()),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def written(path: Path, key: str = "a") -> None:
    journal = Journal(path)
    for number, (effect, result) in enumerate(PAST):
        journal.record(key, number, effect, result)
    journal.close()


def test_every_result_is_given_back_as_it_was(path: Path) -> None:
    written(path)
    journal = Journal(path)
    assert journal.length("a") == len(PAST) and journal.length("b") == 0
    for number, (effect, result) in enumerate(PAST):
        recalled = journal.recall("a", number, effect)
        if isinstance(result, EpisodeError):
            assert type(recalled) is type(result) and str(recalled) == str(result)
        else:
            assert recalled == result
    assert journal.recall("a", len(PAST), ASK) is None and journal.recall("b", 0, ASK) is None


def test_a_journal_that_is_opened_again_goes_on_below_its_last_line(path: Path) -> None:
    written(path)
    written(path, "b")
    journal = Journal(path)
    assert journal.length("a") == journal.length("b") == len(PAST)


@given(
    seed=st.integers(0, 2**63 - 1),
    text=st.text(st.characters(exclude_categories=["Cs"])),
    reward=st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_text_and_any_number_is_given_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, text: str, reward: float
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    ask, step = replace(ASK, seed=seed), Step(text)
    journal = Journal(path)
    journal.record(text, 0, ask, Completion(text, (1,), (reward,)))
    journal.record(text, 1, step, Observation(text, reward=reward))
    journal.close()
    again = Journal(path)
    assert again.recall(text, 0, ask) == Completion(text, (1,), (reward,))
    assert again.recall(text, 1, step) == Observation(text, reward=reward)
    again.close()


@pytest.mark.parametrize(
    ("number", "asked"),
    [
        (1, replace(ASK, seed=8)),
        (1, replace(ASK, purpose="reflect")),
        (1, replace(ASK, messages=(Message("user", "Where to now?"),))),
        (1, replace(ASK, sampling=Sampling(0.5, 0.9, 9))),
        (1, Step("up")),
        (2, Step("down")),
        (4, Rollback(key_in(1), (replace(TURN, id="t2"),))),
        (0, Rollback(key_in(1), ())),
    ],
)
def test_a_journal_of_other_rules_is_refused(path: Path, number: int, asked: Effect) -> None:
    written(path)
    with pytest.raises(RunConflict, match=r"journal\.jsonl answers .* belongs to other rules: delete it"):
        Journal(path).recall("a", number, asked)


def test_a_torn_last_line_is_dropped_and_written_anew(path: Path) -> None:
    written(path)
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        journal = Journal(path)
        assert journal.length("a") == len(PAST) - 1
        journal.record("a", len(PAST) - 1, *PAST[-1])
        journal.close()
        assert path.read_bytes() == whole


def test_a_journal_that_was_cut_in_its_first_line_starts_anew(path: Path) -> None:
    for content in (b"", b'{"sche'):
        path.write_bytes(content)
        journal = Journal(path)
        assert journal.length("a") == 0
        journal.close()
        assert json.loads(path.read_bytes()) == {"schema": SCHEMA}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: [*lines[:3], "{oops", *lines[3:]], "line 4 is not a JSON object"),
        (lambda lines: [*lines[:3], "[]", *lines[3:]], "line 4 is not a JSON object"),
        (lambda lines: lines[1:], "should start with the schema 'leafe.journal/1'"),
        (lambda lines: ['{"schema":"leafe.forest/1"}', *lines[1:]], "and starts with 'leafe.forest/1'"),
        (lambda lines: [*lines[:3], *lines[4:]], "holds step 3 of 'a' where step 2 should come; delete it"),
        (lambda lines: [*lines, lines[-1]], "holds step 8 of 'a' where step 9 should come"),
    ],
)
def test_a_spoiled_journal_is_refused_with_its_name_and_a_way_out(
    path: Path, spoil: Callable[[list[str]], list[str]], message: str
) -> None:
    written(path)
    path.write_text("\n".join(spoil(path.read_text().split("\n")[:-1])) + "\n")
    with pytest.raises(CorruptFile, match=message):
        Journal(path)


@pytest.mark.parametrize("result", [{"text": 5}, {"text": "x", "done": "no"}, {}, [], None])
def test_a_result_of_another_shape_is_refused(path: Path, result: object) -> None:
    written(path)
    lines = path.read_text().split("\n")[:-1]
    line = json.loads(lines[3]) | {"result": result}
    path.write_text("\n".join([*lines[:3], json.dumps(line), *lines[4:]]) + "\n")
    with pytest.raises(CorruptFile, match="cannot be read"):
        Journal(path).recall("a", 2, Step("up"))


# The forest


@pytest.fixture
def trees(tmp_path: Path) -> list[Tree]:
    return [grown(explore, Hand(Lookup(), erratic(PLACES)), key_in(5, number=number)) for number in range(3)]


def planted(path: Path, trees: list[Tree]) -> None:
    with ForestWriter(path) as forest:
        for tree in trees:
            forest.add(tree)


def test_a_forest_is_read_as_it_was_grown(tmp_path: Path, trees: list[Tree]) -> None:
    path = tmp_path / "forest.jsonl"
    planted(path, trees[:1])
    planted(path, trees[1:])
    assert list(read_forest(path)) == trees
    assert TERSE.first not in path.read_text()


def test_a_torn_last_tree_is_dropped(tmp_path: Path, trees: list[Tree]) -> None:
    path = tmp_path / "forest.jsonl"
    planted(path, trees)
    path.write_bytes(path.read_bytes()[:-20])
    assert list(read_forest(path)) == trees[:2]
    planted(path, trees[2:])
    assert list(read_forest(path)) == trees


@pytest.mark.parametrize("spoil", ['{"task":{}}', '{"oops":1}', '"turns"', '{"task": '])
def test_a_spoiled_tree_is_refused_with_the_number_of_its_line(tmp_path: Path, trees: list[Tree], spoil: str) -> None:
    path = tmp_path / "forest.jsonl"
    planted(path, trees)
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:2], spoil, *lines[3:]]))
    with pytest.raises(CorruptFile, match=r"forest\.jsonl line 3 is no.* remove that line"):
        list(read_forest(path))


def test_a_tree_with_a_field_of_another_kind_is_refused(tmp_path: Path, trees: list[Tree]) -> None:
    path = tmp_path / "forest.jsonl"
    planted(path, trees)
    path.write_text(path.read_text().replace('"stop":"turn_limit"', '"stop":"bored"', 1))
    with pytest.raises(CorruptFile, match=r"line \d is no tree \('bored' is not a valid StopReason\)"):
        list(read_forest(path))
