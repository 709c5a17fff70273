"""Recoveries on a run's page: which are chosen, what is shown of them, and that they come from a run's own files."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_page import HOSTILE, turn

from leafe.compose import bench_of
from leafe.config import parse
from leafe.errors import CorruptFile
from leafe.evaluation.outcomes import ArmOutcomes, Outcome
from leafe.evaluation.transcripts import Transcript
from leafe.lab import run_recipe
from leafe.progress import Silent
from leafe.records import Attempt, Observation, StopReason, Task, Tree, Usage
from leafe.results import arms_of, transcripts_of
from leafe.run import RunDirectory
from leafe.shown import WATCHED
from leafe.viewer.page import PageContent, render_page
from leafe.viewer.recoveries import MOST, Recovery, recoveries


def outcome(task: str, sample: int, *, success: bool, setback: int | None) -> Outcome:
    stop = StopReason.SUCCESS if success else StopReason.TURN_LIMIT
    return Outcome(task, sample, stop, success, float(success), 3, 0, 0, setback=setback)


def transcript(task: str, sample: int, *, success: bool, text: str = "#P#") -> Transcript:
    turns = [turn(0, index, f"step {index}", parent=f"0/{index - 1}" if index > 1 else None, text=text) for index in (1, 2)]
    turns.append(turn(0, 3, "last", parent="0/2", text=text, success=success))
    stop = StopReason.SUCCESS if success else StopReason.TURN_LIMIT
    attempt = Attempt(0, 0, stop, success, float(success), "0/3")
    return Transcript(
        sample, Tree(Task(task, "world", "Do it.", 3, {}), "once", Observation(text), tuple(turns), (attempt,), (), Usage())
    )


def arm(name: str, *outcomes: Outcome) -> ArmOutcomes:
    return ArmOutcomes(name, tuple(outcomes))


def kept(*transcripts: Transcript) -> dict[tuple[str, int], Transcript]:
    return {one.key: one for one in transcripts}


def test_one_a_task_is_chosen_and_those_that_the_base_failed_and_early_ones_come_first() -> None:
    own = [
        outcome("a", 0, success=True, setback=1),  # the base solved it
        outcome("b", 0, success=True, setback=3),
        outcome("b", 1, success=True, setback=2),  # earlier
        outcome("c", 0, success=True, setback=0),  # was never set back
        outcome("d", 0, success=False, setback=1),  # never recovered
        outcome("e", 0, success=True, setback=None),  # was not watched
        outcome("f", 0, success=True, setback=1),  # without a transcript
        outcome("g", 0, success=True, setback=1),  # the base has none of it
    ]
    base = [outcome(task, sample, success=task == "a", setback=2) for task in "abcdef" for sample in (0, 1)]
    transcripts = {
        "base": kept(*(transcript(one.task, one.sample, success=one.success) for one in base)),
        "leafe": kept(*(transcript(one.task, one.sample, success=one.success) for one in own if one.task != "f")),
    }
    found = recoveries([arm("base", *base), arm("leafe", *own)], transcripts, "base")
    assert [(one.arm, *one.own.key, one.setback, one.base_setback) for one in found] == [
        ("leafe", "b", 1, 2, 2), ("leafe", "a", 0, 1, 2), ("leafe", "g", 0, 1, 0)
    ]  # fmt: skip
    assert [one.base.tree.attempts[-1].success if one.base else None for one in found] == [False, True, None]


def test_the_first_arm_with_recoveries_is_shown_and_never_the_base_alone() -> None:
    recovered, plain = outcome("a", 0, success=True, setback=1), outcome("a", 0, success=True, setback=0)
    there = kept(transcript("a", 0, success=True))
    all_of_them = {"base": there, "first": there, "second": there}
    found = recoveries([arm("base", recovered), arm("first", plain), arm("second", recovered)], all_of_them, "base")
    assert [one.arm for one in found] == ["second"]
    assert recoveries([arm("base", recovered)], all_of_them, "base") == ()
    many = [outcome(f"t{number}", 0, success=True, setback=1) for number in range(9)]
    shown = recoveries([arm("x", *many)], {"x": kept(*(transcript(one.task, 0, success=True) for one in many))}, "base")
    assert [one.own.tree.task.id for one in shown] == ["t0", "t1", "t2", "t3"] and len(shown) == MOST


def test_a_recovery_is_told_turn_by_turn_with_its_setback_beside_the_bases_attempt() -> None:
    one = Recovery("leafe", transcript("a", 1, success=True), 2, transcript("a", 1, success=False), 3)
    page = render_page(PageContent("trial", {}, recoveries=(one,)))
    section = page[page.index('id="recoveries"') :]
    assert section.index("leafe, sample 1") < section.index("base, sample 1") and "without any advice" in section
    own, base = section[section.index("leafe, sample 1") :].split("base, sample 1")
    for side, set_back in ((own, 2), (base, 3)):
        notes = [text.count("✗ set back here") for text in side.split("<li>")[1:]]
        assert notes == [int(number == set_back) for number in (1, 2, 3)]
    assert own.count("✓ solved") == 1 and "✓ solved" not in base
    assert "recoveries" not in render_page(PageContent("trial", {}))


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_recovery_is_markup(text: str) -> None:
    page = render_page(PageContent("trial", {}, recoveries=(Recovery("leafe", transcript("a", 0, success=True, text=text), 1),)))
    assert "<script" not in page.split("</style>", 1)[1] and "<img" not in page and "<svg onload" not in page


RECIPE = """
name: trial
environment: {name: sokoban, args: {rows: 5, columns: 5, min_length: 1, max_length: 3, horizon: 4}}
tasks: {train: 4, test: 4}
explore: {turns: 12, max_attempts: 3, max_depth: 1}
distill: {qualify: any, success_share: 1.0}
train: {epochs: 1, batch_size: 64}
engine: {cache_gib: 0.2, threads: 1}
evaluate: {samples: 2, resamples: 20}
leafe: {controls: [], arms: [leafe]}
"""


def test_the_transcripts_of_a_run_are_those_of_its_watched_attempts_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    config = parse(RECIPE, "trial")
    with RunDirectory.open(tmp_path / "run", config) as found:
        run_recipe(bench_of(config, Silent()), found)
        for measured in arms_of(found):
            assert set(transcripts_of(found, measured.name)) == {(one.task, one.sample) for one in measured.counted}
        assert transcripts_of(found, "other") == {}
        path = found.evaluation("leafe", WATCHED)
        path.write_text(path.read_text().replace("Push", "Pull", 1))
        with pytest.raises(CorruptFile, match=r"leafe\.watched\.jsonl is not as the stage 'evaluate leafe' left it"):
            transcripts_of(found, "leafe")
