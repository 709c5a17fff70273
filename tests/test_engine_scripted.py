"""The shipped fake."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

import pytest

from leafe.engines.scripted import ScriptedEngine
from leafe.errors import EngineError
from leafe.records import Ask, Message, Sampling

ASK = Ask((Message("user", "where to?"),), Sampling(max_tokens=16), seed=3)


def test_a_script_is_a_list_of_answers_or_a_function_of_the_ask() -> None:
    listed, made = ScriptedEngine(["up", "dé"]), ScriptedEngine(lambda ask: ask.messages[-1].content + str(ask.seed))
    assert [asyncio.run(listed.generate(ASK)).text for _ in range(2)] == ["up", "dé"]
    assert asyncio.run(made.generate(ASK)).text == "where to?3"
    assert made.asks == [ASK]


def test_token_ids_are_the_bytes_of_the_answer_with_one_log_probability_each() -> None:
    engine = ScriptedEngine(["dé"])
    found = asyncio.run(engine.generate(ASK))
    assert bytes(found.token_ids).decode() == "dé" and len(found.logprobs) == len(found.token_ids) == 3
    assert (engine.stats.requests, engine.stats.prompt_tokens, engine.stats.sampled_tokens) == (1, 9, 3)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_an_answer_is_cut_where_a_real_engine_would_cut_it(size: int) -> None:
    text = "go\0 left, thén right"
    engine = ScriptedEngine([text, text], token_bytes=size)
    whole = asyncio.run(engine.generate(replace(ASK, sampling=Sampling(max_tokens=30))))
    assert (whole.text, whole.finish, len(whole.token_ids)) == (text, "stop", -(-len(text.encode()) // size))
    cut = asyncio.run(engine.generate(replace(ASK, sampling=Sampling(max_tokens=3))))
    assert (cut.finish, cut.token_ids) == ("length", whole.token_ids[:3])
    assert cut.text == text.encode()[: 3 * size].decode(errors="ignore")


def test_a_prompt_that_leaves_no_room_for_a_reply_is_refused_as_a_full_context() -> None:
    engine = ScriptedEngine(["up"], max_context=9 + 16)
    assert asyncio.run(engine.generate(ASK)).finish == "stop"
    full = asyncio.run(engine.generate(replace(ASK, sampling=Sampling(max_tokens=17))))
    assert (full.text, full.finish, full.prompt_tokens) == ("", "context", 9)


@pytest.mark.parametrize("engine", [ScriptedEngine(["a", "b"]), ScriptedEngine(lambda _: "a", fail_after=2)])
def test_an_engine_can_be_told_to_fail_after_some_requests(engine: ScriptedEngine) -> None:
    for _ in range(2):
        asyncio.run(engine.generate(ASK))
    with pytest.raises(EngineError):
        asyncio.run(engine.generate(ASK))


def test_a_closed_script_refuses() -> None:
    engine = ScriptedEngine(["a"])
    asyncio.run(engine.close())
    with pytest.raises(EngineError, match="closed"):
        asyncio.run(engine.generate(ASK))


def test_a_script_needs_no_torch() -> None:
    code = "import sys, leafe.engines.scripted, leafe.engines.openai; sys.exit('torch' in sys.modules)"

    async def run() -> int:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
        return await process.wait()

    assert asyncio.run(run()) == 0
