"""What lies behind Pass@k: where successes lie beside the base's, and which attempts recover from a setback."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from players import Hand, grown, rules, scripted, steady

from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Environment
from leafe.errors import EnvironmentFailure
from leafe.evaluation.evaluate import Watch, evaluate, outcome_of
from leafe.evaluation.explain import Sums, TaskShare, best_tenth, explained, sums_of, task_shares
from leafe.evaluation.outcomes import ArmOutcomes, Outcome, read_outcomes
from leafe.evaluation.passk import Resampling
from leafe.evaluation.tables import Cost, RowResult, TableResult, explained_rows
from leafe.evaluation.watch import first_setback
from leafe.forest.driver import Runtime
from leafe.forest.play import once
from leafe.records import StopReason, Task
from leafe.viewer.table import render_table
from leafe.worlds.fakes import Lookup
from leafe.worlds.sokoban.environment import Sokoban

BOARD = "######\n#____#\n#____#\n#PX_O#\n#____#\n######"  # two pushes to the right
LEVEL = Task("level", "sokoban", "Push the box.", 6, {"board": BOARD, "length": 2})
FEW = Resampling(200)


def setback_of(*replies: str, task: Task = LEVEL, make: Environment | None = None) -> int | None:
    environment = make or Sokoban()
    tree = grown(once, Hand(environment, scripted(*replies)), task)
    return Hand(environment, steady("", "")).finish(first_setback(task, tree.turns))


@pytest.mark.parametrize(
    ("replies", "setback"),
    [
        (["right", "right"], 0),
        (["up", "down", "right", "right"], 1),  # a detour is made up for
        (["left", "left", "left", "left", "left", "left"], 0),  # walking against a wall costs turns and no way
        (["right", "what\nnow", "right"], 2),  # no action
        (["down", "right", "up", "up", "up", "up"], 1),
    ],
)
def test_the_first_setback_is_the_turn_that_lengthened_the_best_solution_or_held_no_action(
    replies: Sequence[str], setback: int
) -> None:
    assert setback_of(*replies) == setback


def test_a_world_without_an_expert_or_one_that_breaks_tells_no_setback() -> None:
    class Unaided(Sokoban):
        expert = Environment.expert

    assert setback_of("right", "right", make=Unaided()) is None
    tree = grown(once, Hand(Sokoban(), scripted("right", "right")), LEVEL)
    for number in range(4):
        broken = Hand(Sokoban(), steady("", ""), lambda at, _, number=number: EnvironmentFailure("x") if at == number else None)
        assert broken.finish(first_setback(LEVEL, tree.turns)) is None
    other = [replace(turn, observation=replace(turn.observation, text="another world")) for turn in tree.turns]
    assert Hand(Sokoban(), steady("", "")).finish(first_setback(LEVEL, other)) is None


def test_only_the_first_samples_are_watched_and_watching_changes_nothing_else(tmp_path: Path) -> None:
    tasks = [Task(f"level-{number}", "sokoban", "Push the box.", 6, LEVEL.payload) for number in range(3)]

    def measured(name: str, watched: int) -> list[Outcome]:
        engine = ScriptedEngine(lambda ask: ("right", "up", "down")[ask.seed % 3], concurrency=4)
        ended = evaluate(tasks, rules(), Runtime(engine, Sokoban), tmp_path / name, samples=4, watch=Watch(watched))
        return asyncio.run(ended)

    plain, watched = measured("plain", 0), measured("watched", 2)
    assert [one.setback is None for one in watched] == [one.sample >= 2 for one in watched]
    assert [replace(one, setback=None) for one in watched] == plain == sorted(read_outcomes(tmp_path / "plain"), key=_place)


def _place(one: Outcome) -> tuple[str, int]:
    return one.task, one.sample


def test_nats_are_the_improbability_of_all_sampled_tokens() -> None:
    tree = grown(once, Hand(Lookup(), steady("open place1", "")), Lookup().tasks("test", 1)[0])
    turns = [
        replace(turn, completion=replace(turn.completion, logprobs=(-0.5,) * len(turn.completion.token_ids))) for turn in tree.turns
    ]
    outcome = outcome_of(replace(tree, turns=tuple(turns)), 0)
    assert outcome.nats == 0.5 * outcome.sampled_tokens
    closed = [replace(turns[0], completion=replace(turns[0].completion, logprobs=())), *turns[1:]]
    assert outcome_of(replace(tree, turns=tuple(closed)), 0).nats is None


def outcome(task: str, sample: int, won: bool, **more: object) -> Outcome:
    stop = StopReason.SUCCESS if won else StopReason.TURN_LIMIT
    return Outcome(task, sample, stop, won, float(won), **{"turns": 5, "prompt_tokens": 9, "sampled_tokens": 5, **more})  # type: ignore[arg-type]


def arm(wins: dict[str, str], **more: object) -> ArmOutcomes:
    """An arm of attempts that won (1) or lost (0), a text a task."""
    return ArmOutcomes(
        "x", tuple(outcome(task, number, mark == "1", **more) for task, marks in wins.items() for number, mark in enumerate(marks))
    )


def sums(*seeds: dict[str, str]) -> Sums:
    return sums_of({seed: arm(wins) for seed, wins in enumerate(seeds, start=1)})


def test_figures_of_a_small_case_by_hand() -> None:
    base = sums({"a": "1100", "b": "1000", "c": "0000", "d": "0000"})
    own = sums({"a": "1111", "b": "0000", "c": "0100", "d": "0000"})
    found = {name: one.value for name, one in explained(own, base, FEW).items()}
    assert found == {
        "covered": 0.5,
        "lost": 0.5,  # b of a and b
        "won": 0.5,  # c of c and d
        "best_tenth": 0.8,  # a has four of five
        "turns_per_success": 16.0,  # 80 turns, five successes
    }
    assert [(one.task, one.own, one.base, one.kind) for one in task_shares(own, base)] == [
        ("a", 1.0, 0.5, "both"),
        ("b", 0.0, 0.25, "lost"),
        ("c", 0.25, 0.0, "won"),
        ("d", 0.0, 0.0, "neither"),
    ]


def test_setbacks_and_nats_are_counted_where_they_are_known() -> None:
    attempts = (
        outcome("a", 0, True, setback=2, nats=10.0),
        outcome("a", 1, False, setback=1, nats=5.0),
        outcome("a", 2, True, setback=0),
        outcome("a", 3, True),
    )
    found = explained(sums_of({1: ArmOutcomes("x", attempts)}), None, FEW)
    assert {name: found[name].value for name in ("set_back", "recovered", "nats_per_turn")} == {
        "set_back": 2 / 3,
        "recovered": 1 / 2,
        "nats_per_turn": 1.5,
    }
    assert "lost" not in found and "won" not in found


def test_what_nothing_is_known_of_has_no_figure() -> None:
    nothing = sums({"a": "00", "b": "00"})
    assert set(explained(nothing, nothing, FEW)) == {"covered", "won"}
    everything = sums({"a": "11", "b": "11"})
    assert "won" not in explained(everything, everything, FEW) and best_tenth(nothing.tasks, nothing.successes, FEW) is None


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abcdefghijkl"), st.text("01", min_size=3, max_size=3), min_size=1), min_size=1, max_size=3
    )
)
def test_figures_are_shares_and_lie_in_their_intervals(drawn: list[dict[str, str]]) -> None:
    tasks = sorted(set().union(*drawn))
    seeds = [{task: one.get(task, "000") for task in tasks} for one in drawn]
    own, base = sums(*seeds), sums(*reversed(seeds))
    for name, figure in explained(own, base, Resampling(50)).items():
        assert np.isfinite([figure.value, figure.low, figure.high]).all() and figure.low <= figure.high
        assert name == "turns_per_success" or 0 <= figure.low <= figure.high <= 1
    kinds = [one.kind for one in task_shares(own, base)]
    assert kinds.count("both") + kinds.count("won") == sum(any("1" in one[task] for one in seeds) for task in tasks)


def test_the_page_and_the_tables_tell_them_with_names_escaped() -> None:
    own, base = sums({"a": "10", "b": "00"}), sums({"a": "00", "b": "01"})
    figures, shares = explained(own, base, FEW), (*task_shares(own, base), TaskShare("<i>", 0.5, 0.0))
    row = RowResult("<mine>", "", (1,), 2, 2, {}, {"<base>": {}}, Cost(), 1.0, explained=figures, by_task=shares)
    table = TableResult("t", "", "m", "e", "r", "test", (1,), 0, "Pass@", 0.95, (row,), (), (), ())
    page = render_table(table)
    assert explained_rows(table)[0][:4] == ("row", "ever solved, %", "base's lost, %", "others won, %")
    assert "&lt;i&gt;: 50.0 %" in page and "<i>" not in page and "<mine>" not in page and "<base>" not in page
    assert "by &lt;mine&gt; alone <b>2</b>" in page and "by &lt;base&gt; alone <b>1</b>" in page
