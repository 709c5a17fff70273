"""What `benchmarks/four_engines.py` calls equal and what it calls different."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from players import Hand, key_in, rules

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from four_engines import apart, figures, first_difference

from leafe.forest.builder import TreeBuilder
from leafe.forest.explore import explore
from leafe.records import Ask, Tree
from leafe.worlds.fakes import Lookup


def forest(count: int, seed: int = 0) -> list[Tree]:
    """Trees of a player that opens places by turns."""

    def policy(ask: Ask) -> str:
        return "turn 1: open place2" if ask.purpose == "reflect" else f"open place{ask.seed % 3 + 1}"

    tasks = [key_in(number % 3 + 1, horizon=2, number=number) for number in range(count)]
    return [Hand(Lookup(places=3), policy).finish(explore(TreeBuilder(task, rules(seed=seed, max_attempts=3)))) for task in tasks]


def test_equal_forests_have_no_first_difference_and_no_distance() -> None:
    one, other = forest(6), forest(6)
    assert first_difference(one, other) == ""
    assert {name: apart(values, figures(other)[name]) for name, values in figures(one).items()} == dict.fromkeys(figures(one), 0.0)


def test_the_first_turn_that_differs_is_named_with_how_likely_both_tokens_were() -> None:
    one = forest(2)
    turn = one[1].turns[0]
    said = replace(turn.completion, token_ids=(1, 2), logprobs=(-0.1, -0.7), text="a")
    heard = replace(turn.completion, token_ids=(1, 3), logprobs=(-0.1, -0.71), text="b")
    mine, theirs = (
        [one[0], replace(one[1], turns=(replace(turn, completion=completion), *one[1].turns[1:]))] for completion in (said, heard)
    )
    assert first_difference(mine, theirs).endswith("turn 1, token 2: log-probabilities -0.7000 and -0.7100")
    silent = [one[0], replace(one[1], turns=(replace(turn, completion=replace(heard, token_ids=())), *one[1].turns[1:]))]
    assert "turn 1: 'a' and 'b'" in first_difference(mine, silent)


@pytest.mark.parametrize(
    ("one", "other", "beyond"),
    [
        ([1.0, 0.0] * 50, [0.0, 1.0] * 50, False),
        ([1.0, 0.0] * 50, [0.0, 0.0, 1.0, 0.0] * 25, True),
        ([1.0] * 5, [0.0] * 5, True),
    ],
)
def test_only_more_than_chance_counts_as_a_difference(one: list[float], other: list[float], beyond: bool) -> None:
    assert (abs(apart(one, other)) > 3) == beyond
