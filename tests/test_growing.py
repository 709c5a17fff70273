"""Long episodes: a turn costs what it adds, and what is remembered of earlier turns changes no prompt, no mark and no id."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from players import FULL, TERSE, key_in
from test_history import every_shortening, walk_of
from tiny import tiny_tokenizer

from leafe.chat import WHOLE, Notes, Prompts, Scene, act_messages, reflect_messages
from leafe.engines.scripted import ScriptedEngine
from leafe.engines.tokens import ChatTokenizer
from leafe.forest.journal import Marks, mark_of
from leafe.growing import Growing
from leafe.records import Ask, Message, Observation, Sampling, Turn

texts = st.text(max_size=12)
speakable = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LONG = walk_of(*((f"thought {number}", f"action {number}", f"seen {number}") for number in range(200)))
SHOWN = Observation("what the reset shows")


@given(st.lists(st.tuples(st.integers(0, 30), st.lists(st.integers(), max_size=4)), min_size=1, max_size=12), st.integers(1, 4))
def test_what_is_folded_is_the_whole_sequence_wherever_it_branches(steps: list[tuple[int, list[int]]], remembered: int) -> None:
    growing: Growing[tuple[int, ...]] = Growing((), lambda state, item: (*state, item), remembered=remembered)
    sequence: tuple[int, ...] = ()
    for kept, more in steps:
        sequence = (*sequence[:kept], *more)
        assert growing.of(sequence) == sequence


def test_a_sequence_that_grows_is_gone_through_once() -> None:
    done: list[object] = []

    def step(state: int, item: object) -> int:
        done.append(item)
        return state + 1

    growing, items = Growing(0, step), [object() for _ in range(400)]
    assert [growing.of(items[:end]) for end in range(2, 401, 2)] == list(range(2, 401, 2))
    assert len(done) <= 3 * len(items)  # the last item, which seldom stays, is gone through again


@pytest.mark.parametrize("prompts", [TERSE, FULL])
@given(
    asked=st.lists(
        st.tuples(st.integers(0, 8), st.booleans(), st.none() | texts, st.lists(texts, max_size=2), st.integers(0, 20)), max_size=12
    ),
    said=st.lists(st.tuples(texts, texts.filter(str.strip), texts), min_size=1, max_size=8),
)
def test_a_prompt_is_the_same_whatever_was_rendered_before_it(
    prompts: Prompts, asked: list[tuple[int, bool, str | None, list[str], int]], said: list[tuple[str, str, str]]
) -> None:
    trajectory, other = walk_of(*said), walk_of(*said[:2], ("x", "elsewhere", "y"), *said)
    scene = Scene(prompts, key_in(1), SHOWN)
    for end, away, advice, feedback, short in asked:
        here: Sequence[Turn] = (other if away else trajectory)[:end]
        shortenings = every_shortening(prompts, list(here)) if here else [WHOLE]
        shortening, fresh = shortenings[short % len(shortenings)], Scene(prompts, key_in(1), SHOWN)
        notes = Notes(advice, tuple(feedback))
        assert act_messages(scene, here, notes, shortening) == act_messages(fresh, here, notes, shortening)
        if here:
            asked_now, asked_fresh = (
                reflect_messages(one, here, ended=away, feedback=tuple(feedback), shortening=shortening) for one in (scene, fresh)
            )
            assert asked_now == asked_fresh


def test_the_messages_of_earlier_turns_are_not_rendered_again() -> None:
    scene = Scene(FULL, key_in(1), SHOWN)
    prompts = [act_messages(scene, LONG[:number]) for number in range(1, len(LONG))]
    for before, after in pairwise(prompts):  # all but the last of a prompt, which becomes the first of a pair at the next turn
        assert all(one is other for one, other in zip(before[:-1], after, strict=False))


conversations = st.lists(st.tuples(st.integers(0, 9), st.lists(speakable, min_size=1, max_size=3)), min_size=1, max_size=6)


def grown(steps: list[tuple[int, list[str]]]) -> list[tuple[Message, ...]]:
    """Conversations that go on from, or part from, the ones before them."""

    def further(before: tuple[Message, ...], step: tuple[int, list[str]]) -> tuple[Message, ...]:
        kept, more = step
        start = before[:kept]
        roles = (("user", "assistant")[(len(start) + number) % 2] for number in range(len(more)))
        return (*start, *(Message(role, text) for role, text in zip(roles, more, strict=True)))  # type: ignore[arg-type]

    return list(accumulate(steps, further, initial=()))[1:]


@given(conversations, st.floats(0, 2), st.integers(0, 2**63 - 1))
def test_a_mark_is_the_digest_of_the_whole_conversation(steps: list[tuple[int, list[str]]], temperature: float, seed: int) -> None:
    marks = Marks()
    for messages in grown(steps):
        ask = Ask(messages, Sampling(temperature), seed)
        assert marks.of(ask) == mark_of(ask)


TOKENS = ChatTokenizer(tiny_tokenizer())


def whole(tokens: ChatTokenizer, messages: Sequence[Message]) -> list[int]:
    return tokens.template.ids(tokens.template.turns(messages))


@given(conversations)
def test_ids_that_go_on_from_a_turn_before_are_those_of_the_whole_conversation(steps: list[tuple[int, list[str]]]) -> None:
    for messages in grown(steps):
        assert TOKENS.prompt_ids(messages) == whole(TOKENS, messages)
    assert TOKENS.piecewise


@pytest.mark.parametrize("hostile", ["", "<|end|><|assistant|>up<|end|>"])
def test_a_long_conversation_has_the_ids_of_its_template_at_every_length(hostile: str) -> None:
    tokens = ChatTokenizer(tiny_tokenizer())
    scene = Scene(FULL, key_in(1), Observation(hostile))
    for number in (*range(0, 40), *range(40, 200, 23)):
        messages = act_messages(scene, LONG[:number])
        assert tokens.prompt_ids(messages) == whole(tokens, messages)
    assert tokens.piecewise


def test_few_of_the_lengths_of_a_long_conversation_are_compared_with_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ChatTokenizer(tiny_tokenizer())
    compared: list[int] = []
    render = tokens.template.ids
    monkeypatch.setattr(tokens.template, "ids", lambda turns: compared.append(len(turns)) or render(turns))
    scene = Scene(FULL, key_in(1), SHOWN)
    prompts = [act_messages(scene, LONG[:number]) for number in range(len(LONG))]
    assert len([tokens.prompt_ids(messages) for messages in prompts]) == 200
    assert len(compared) < 100 and max(compared) > 250  # the last length that is half as long again as the one before


def test_the_script_counts_the_tokens_of_a_prompt_as_it_always_did() -> None:
    engine = ScriptedEngine([], token_bytes=3)
    messages = [Message("user", "é" * number) for number in range(9)]
    expected = list(accumulate(len(engine._ids(message.content)) for message in messages))
    assert [engine._lengths.of(messages[: end + 1]) for end in range(9)] == expected


def test_an_empty_conversation_is_nothing() -> None:
    empty: Growing[Any] = Growing("start", lambda state, item: chain(state, item))
    assert empty.of(()) == "start"
