"""Replies that repeat themselves without end: when they are ended, in every engine at the same token, and what is made of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from fake_server import FakeServer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_transformers import asks, engine, run
from tiny import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from leafe.engines.openai import OpenAIEngine
from leafe.engines.openai_fields import Dialect
from leafe.engines.repetition import LONGEST, SHORTEST, repeats, repetition_end, repetition_field
from leafe.engines.scripted import ScriptedEngine
from leafe.engines.transformers import TransformersEngine
from leafe.records import Ask, Completion, Message, Sampling

ASK = Ask((Message("user", "Where to?"),), Sampling(max_tokens=512, max_repeats=4), seed=1)
SEED = 3  # of a tiny model that goes round within 200 tokens
WORDS = " ".join(f"w{number}" for number in range(30))


def plainly(ids: Sequence[int], times: int) -> bool:
    """The rule, word for word."""
    return any(
        len(ids) >= length * times
        and len({tuple(ids[len(ids) - length * (n + 1) : len(ids) - length * n]) for n in range(times)}) == 1
        for length in range(SHORTEST, LONGEST + 1)
    )


@given(
    head=st.lists(st.integers(0, 3), max_size=20),
    pattern=st.lists(st.integers(0, 3), min_size=1, max_size=70),
    length=st.integers(0, 300),
    tail=st.lists(st.integers(0, 3), max_size=2),
    times=st.integers(2, 5),
)
@settings(max_examples=150, deadline=None)
def test_a_reply_is_ended_exactly_where_the_rule_says(
    head: list[int], pattern: list[int], length: int, tail: list[int], times: int
) -> None:
    said = head + [pattern[at % len(pattern)] for at in range(length)] + tail
    assert repeats(said, times) == plainly(said, times)
    first = next((end for end in range(1, len(said) + 1) if plainly(said[:end], times)), len(said))
    assert repetition_end(said, times) == first


def test_a_prompt_is_no_part_of_what_a_reply_repeats() -> None:
    line = list(range(SHORTEST))
    assert repeats(line * 4, 4) and not repeats(line * 4, 4, start=1) and repeats([7, *line * 4], 4, start=1)


def test_short_repetition_is_no_endless_one() -> None:
    rows, zeros = [1, 2, 3, 4] * 10, [5, 6] * 40
    draw = random.Random(1)
    text = [draw.randrange(1000) for _ in range(2000)]
    assert not any(repetition_end(said, 4) < len(said) for said in (rows, zeros, text))


def test_nothing_is_ended_where_no_limit_is_set() -> None:
    assert repetition_field(0) == {} and repetition_end([1] * 500, 0) == 500
    assert "max_repeats" not in Dialect().payload(replace(ASK, sampling=Sampling()), "m")


def test_a_looping_reply_is_ended_with_a_name_of_its_own() -> None:
    engine = ScriptedEngine([f"<action>up</action> {'round and ' * 300}", WORDS])
    looping, whole = (asyncio.run(engine.generate(ASK)) for _ in range(2))
    assert looping.finish == "repetition" and looping.drawn < 200 and looping.text.startswith("<action>up</action>")
    assert whole.finish == "stop"


def test_vllm_is_asked_for_the_same_rule() -> None:
    fields = Dialect().payload(ASK, "m")["repetition_detection"]
    assert fields == {"min_pattern_size": SHORTEST, "max_pattern_size": LONGEST, "min_count": 4}
    assert "repetition_detection" not in Dialect(frozenset({"repetition_detection"})).payload(ASK, "m")


def served(play: str, **options: object) -> Completion:
    """A reply of a server of vLLM's kind that lets it go on to its limit."""
    server = FakeServer(play=lambda messages, draw: play)
    client = OpenAIEngine("http://server/v1", "policy", transport=server.transport(), **options)  # type: ignore[arg-type]
    return asyncio.run(client.generate(replace(ASK, sampling=replace(ASK.sampling, max_tokens=300))))


def test_what_a_server_lets_go_on_is_cut_back_to_where_it_only_repeats() -> None:
    loop = "go left " + "nothing happens " * 200
    bare, known = served(loop), served(loop, tokenizer=tiny_tokenizer())
    assert (bare.finish, bare.drawn) == ("length", 300)
    assert known.finish == "repetition" and known.drawn == 300  # all of it was paid for
    assert len(known.token_ids) == len(known.logprobs) == repetition_end(bare.token_ids, 4) < 300
    assert bare.text.startswith(known.text) and known.text.startswith("go left")


def forgetful() -> PreTrainedModel:
    """A model that hardly attends to anything, so that the next token is decided by the last one, and a greedy reply goes round."""
    model = tiny_model(seed=SEED)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.mul_(0.001)
    return model


@pytest.mark.parametrize("steps", [False, True])
def test_the_engine_in_process_ends_at_the_same_token(steps: bool) -> None:
    [[greedy]] = asks(Sampling(0.0, 1.0, 200), tasks=1, samples=1, turns=1)
    limited = replace(greedy, sampling=replace(greedy.sampling, max_repeats=4))
    engine_ = engine(model=forgetful(), steps=steps)

    async def both(served_: TransformersEngine) -> list[Completion]:
        return [await served_.generate(greedy), await served_.generate(limited)]

    whole, ended = run(both, engine_)
    end = repetition_end(whole.token_ids, 4)
    assert whole.finish == "length" and end < 200
    assert ended.finish == "repetition" and ended.token_ids == whole.token_ids[:end] and ended.logprobs == whole.logprobs[:end]
