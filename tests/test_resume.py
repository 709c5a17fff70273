"""Resume is replay: an exploration that was cut anywhere, and one that was killed, end with the forest of one that was left alone."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from killed_exploration import WORLDS, experiment, explored, killed_at_random, spec
from players import erratic

from leafe.engines.scripted import ScriptedEngine
from leafe.errors import CorruptFile, EngineError, RunConflict
from leafe.experiment import explore_tasks
from leafe.forest.store import read_forest
from leafe.records import StopReason
from leafe.settings import DrawSettings, SamplingSettings

FEW = 3


def lines(path: Path) -> list[bytes]:
    return sorted(path.read_bytes().splitlines())


def turns(path: Path) -> int:
    """The turns that a forest counts, which are those that it holds."""
    trees = list(read_forest(path))
    assert all(tree.spend.turns == len(tree.turns) for tree in trees)
    return sum(tree.spend.turns for tree in trees)


class Whole:
    """An exploration that was left alone, as the content of its files."""

    def __init__(self, folder: Path, world: str) -> None:
        folder.mkdir()
        self.trees, _ = explored(folder, world, tasks=FEW)
        self.journal, self.forest = ((folder / name).read_bytes() for name in ("journal.jsonl", "forest.jsonl"))
        self.lines, self.turns = lines(folder / "forest.jsonl"), turns(folder / "forest.jsonl")

    def resumed(self, folder: Path, world: str, *, journal: bytes, forest: bytes) -> None:
        """Goes on from cut files; the result has to be the whole one, and nothing that the journal holds is asked again."""
        (folder / "journal.jsonl").write_bytes(journal)
        (folder / "forest.jsonl").write_bytes(forest)
        trees, engine = explored(folder, world, tasks=FEW)
        assert trees == self.trees
        assert lines(folder / "forest.jsonl") == self.lines and turns(folder / "forest.jsonl") == self.turns
        finished = {json.loads(line).get("task", {}).get("id") for line in whole_lines(forest)[1:]}
        assert len(engine.asks) == requests(self.journal, finished) - requests(journal, finished)


def requests(journal: bytes, finished: set[str]) -> int:
    """How many requests to the policy a journal answers, those for finished tasks left out."""
    past = [json.loads(line) for line in whole_lines(journal)[1:]]
    return sum(line["effect"].startswith(("act", "reflect")) and line["key"] not in finished for line in past)


def whole_lines(content: bytes) -> list[bytes]:
    return content[: content.rfind(b"\n") + 1].splitlines()


@pytest.fixture(scope="module", params=sorted(WORLDS))
def world(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(world: str, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    found = Whole(tmp_path_factory.mktemp("whole") / world, world)
    assert sum(tree.spend.rollbacks for tree in found.trees) > FEW and len({a.stop for t in found.trees for a in t.attempts}) > 1
    return found


def cuts(content: bytes) -> Iterator[int]:
    """After every fifth line and near the ends after each, in turns right there and somewhere inside of the next line."""
    draw, at, rows = random.Random(0), 0, content.splitlines(keepends=True)
    for number, line in enumerate(rows):
        if number % 5 == 0 or not 6 <= number < len(rows) - 3:
            yield at + (draw.randrange(1, len(line)) if number % 2 else 0)
        at += len(line)
    yield at


def test_an_exploration_cut_at_lines_of_its_journal_ends_as_if_it_had_not_been(world: str, whole: Whole, tmp_path: Path) -> None:
    for cut in cuts(whole.journal):
        whole.resumed(tmp_path, world, journal=whole.journal[:cut], forest=b"")


def test_an_exploration_cut_at_lines_of_its_forest_ends_as_if_it_had_not_been(world: str, whole: Whole, tmp_path: Path) -> None:
    for cut in cuts(whole.forest):
        whole.resumed(tmp_path, world, journal=whole.journal, forest=whole.forest[:cut])


@given(journal=st.floats(0, 1), forest=st.floats(0, 1))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_exploration_cut_in_both_files_ends_as_if_it_had_not_been(
    world: str, whole: Whole, tmp_path: Path, journal: float, forest: float
) -> None:
    end = [0, *(index + 1 for index, byte in enumerate(whole.forest) if byte == 10)]
    cut = end[round(forest * (len(end) - 1))]
    whole.resumed(tmp_path, world, journal=whole.journal[: round(journal * len(whole.journal))], forest=whole.forest[:cut])


def test_an_exploration_that_is_cut_again_and_again_ends_as_if_it_had_not_been(world: str, whole: Whole, tmp_path: Path) -> None:
    draw, policy = random.Random(1), erratic(WORLDS[world][1])
    for _ in range(200):
        engine = ScriptedEngine(policy, fail_after=draw.randint(1, 12), concurrency=draw.choice([1, 2, 9]))
        try:
            trees = explore_tasks(experiment(world, engine, FEW), "explore", spec(tmp_path))
            break
        except EngineError:
            journal = tmp_path / "journal.jsonl"
            journal.write_bytes(journal.read_bytes()[: -draw.randrange(1, 200)])
    assert trees == whole.trees and lines(tmp_path / "forest.jsonl") == whole.lines


@pytest.mark.parametrize("concurrency", [1, 50])
def test_a_resume_on_a_larger_or_smaller_machine_changes_nothing(
    world: str, whole: Whole, tmp_path: Path, concurrency: int
) -> None:
    (tmp_path / "journal.jsonl").write_bytes(whole.journal[: len(whole.journal) // 2])
    trees, _ = explored(tmp_path, world, tasks=FEW, concurrency=concurrency)
    assert trees == whole.trees


def test_a_finished_exploration_asks_nothing_and_loads_no_model(world: str, whole: Whole, tmp_path: Path) -> None:
    (tmp_path / "forest.jsonl").write_bytes(whole.forest)
    trees, engine = explored(tmp_path, world, tasks=FEW)
    assert trees == whole.trees and engine.asks == []


def test_a_journal_of_other_rules_is_refused(world: str, whole: Whole, tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(whole.journal)
    other = experiment(world, ScriptedEngine(erratic(WORLDS[world][1])), FEW)
    rarer = other.config.explore.model_copy(update={"reflect_every": 3})
    for change in ({"explore": rarer}, {"prompts": "full"}, {"sampling": SamplingSettings(act=DrawSettings(temperature=0.5))}):
        with pytest.raises(RunConflict, match="belongs to other rules"):
            explore_tasks(replace(other, config=other.config.model_copy(update=change)), "explore", spec(tmp_path))


def test_a_spoiled_line_in_the_forest_is_refused_before_anything_is_explored(world: str, whole: Whole, tmp_path: Path) -> None:
    rows = whole.forest.splitlines(keepends=True)
    (tmp_path / "forest.jsonl").write_bytes(b"".join([rows[0], b"{oops\n", *rows[2:]]))
    with pytest.raises(CorruptFile, match=r"forest\.jsonl line 2"):
        explored(tmp_path, world, tasks=FEW)
    assert not (tmp_path / "journal.jsonl").exists()


def test_a_world_that_cannot_be_brought_back_breaks_its_attempt_alone(whole: Whole, world: str, tmp_path: Path) -> None:
    # The journal tells of another world than the one that is there now: what it holds is kept, what comes next is not believed.
    past = [json.loads(line) for line in whole.journal.splitlines()]
    first = next(
        index
        for index, line in enumerate(past)
        if line.get("effect", "").startswith("step") and line["n"] < 4 and not line.get("result", {"done": True})["done"]
    )
    past[first]["result"]["text"] += " And a cat."
    key = past[first]["key"]
    kept = [line for line in past[: first + 1] if line.get("key", key) == key or "schema" in line]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    trees, _ = explored(tmp_path, world, tasks=FEW)
    for tree, expected in zip(trees, whole.trees, strict=True):
        if tree.task.id == key:
            assert tree.attempts[0].stop is StopReason.REPLAY_DIVERGED and len(tree.attempts) > 1
        else:
            assert tree == expected


@pytest.mark.slow
def test_an_exploration_that_is_really_killed_ends_with_the_same_bytes(tmp_path: Path) -> None:
    landed = killed_at_random(tmp_path, kills=4, seed=11)
    assert min(landed.values()) >= 2, "hardly any kill came before the end"
    for world in WORLDS:
        left_alone, killed = (tmp_path / f"{world}-{how}" / "forest.jsonl" for how in ("whole", "killed"))
        assert lines(killed) == lines(left_alone) and turns(killed) == turns(left_alone) > 0
