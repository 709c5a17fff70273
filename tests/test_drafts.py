"""Guesses of the next tokens: made after the same thing was seen to follow, and given up when they are wrong."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leafe.engines.drafts import BEFORE, MOST, Drafts

CYCLE = [1, 2, 3, 4, 5, 6, 7] * 4


def taught(*texts: list[int]) -> Drafts:
    drafts = Drafts()
    for text in texts:
        for end in range(BEFORE + 1, len(text) + 1):
            drafts.learn(text[:end])
    return drafts


def test_what_was_seen_to_follow_is_guessed_token_by_token() -> None:
    assert taught(CYCLE).after(CYCLE[:9], 10) == [3, 4, 5][:MOST]
    assert taught(CYCLE).after(CYCLE[:9], 1) == [3]
    assert taught(CYCLE).after([9, 9, 9, 9], 10) == taught(CYCLE).after([1], 10) == []


def test_a_guess_needs_more_than_one_sight_and_is_given_up_when_others_follow() -> None:
    text, other = [1, 2, 3, 4, 5], [1, 2, 3, 4, 6]
    assert taught(text).after(text[:-1], 1) == []
    assert taught(text, text).after(text[:-1], 1) == [5]
    assert taught(text, text, other).after(text[:-1], 1) == []
    assert taught(text, text, other, other).after(text[:-1], 1) == [6]


@given(st.lists(st.lists(st.integers(0, 3), max_size=30), max_size=5), st.lists(st.integers(0, 3), max_size=8), st.integers(-1, 5))
def test_guesses_are_never_more_than_wanted(texts: list[list[int]], ids: list[int], most: int) -> None:
    assert len(taught(*texts).after(ids, most)) <= max(0, min(most, MOST))
