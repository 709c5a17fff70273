"""The HTTP engine against a server that stands in a function."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from tiny import tiny_tokenizer

from leafe.engines.openai import OpenAIEngine
from leafe.errors import EngineError
from leafe.records import Ask, Completion, Message, Sampling

ASK = Ask((Message("system", "be"), Message("user", "where?")), Sampling(0.7, 0.9, 5), seed=2**40 + 7)


def body(text: str = "go left", tokens: tuple[str, ...] = ("token_id:5", "token_id:4"), finish: str = "stop") -> dict[str, Any]:
    return {
        "choices": [
            {
                "message": {"role": "assistant", "content": text},
                "finish_reason": finish,
                "logprobs": {"content": [{"token": token, "logprob": -0.1234567} for token in tokens]},
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}},
    }


def engine(answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> OpenAIEngine:
    return OpenAIEngine("http://server/v1/", "policy", pause=0.0, transport=httpx.MockTransport(answer), **options)


def ask(answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> Completion:
    return asyncio.run(engine(answer, **options).generate(ASK))


def test_a_request_carries_the_conversation_the_sampling_and_the_seed() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=body())

    ask(answer, api_key="secret")
    sent = json.loads(seen[0].content)
    assert str(seen[0].url) == "http://server/v1/chat/completions"
    assert seen[0].headers["authorization"] == "Bearer secret"
    assert sent["messages"] == [{"role": "system", "content": "be"}, {"role": "user", "content": "where?"}]
    assert (sent["model"], sent["temperature"], sent["top_p"], sent["max_tokens"], sent["seed"]) == ("policy", 0.7, 0.9, 5, 7)
    assert sent["logprobs"] and sent["return_tokens_as_token_ids"]


def test_sampled_ids_are_taken_from_a_server_that_returns_them() -> None:
    assert ask(lambda _: httpx.Response(200, json=body())) == Completion("go left", (5, 4), (-0.12346, -0.12346), "stop", 9)


def test_without_sampled_ids_the_text_is_encoded_again_and_ends_with_the_end_token() -> None:
    tokenizer = tiny_tokenizer()
    found = ask(lambda _: httpx.Response(200, json=body(tokens=("go", " left", "<|end|>"))), tokenizer=tokenizer, token_ids=False)
    assert list(found.token_ids) == tokenizer("go left<|end|>", add_special_tokens=False)["input_ids"]
    cut = ask(lambda _: httpx.Response(200, json=body(tokens=(), finish="length")), tokenizer=tokenizer)
    assert cut.finish == "length" and cut.logprobs == () and tokenizer.eos_token_id not in cut.token_ids


def test_without_ids_and_without_a_tokenizer_there_are_no_ids() -> None:
    found = ask(lambda _: httpx.Response(200, json=body(tokens=("go", " left"))))
    assert (found.text, found.token_ids, found.logprobs) == ("go left", (), ())


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status: int) -> None:
    answers = iter([httpx.Response(status), httpx.Response(status, headers={"retry-after": "0"}), httpx.Response(200, json=body())])
    assert ask(lambda _: next(answers)).text == "go left"


def test_a_dead_server_is_an_engine_error_that_says_how_often_it_was_asked() -> None:
    def dead(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(EngineError, match="gave up after 3 attempts"):
        ask(dead, retries=2)


@pytest.mark.parametrize(
    "response", [httpx.Response(401, text="bad key"), httpx.Response(200, text="<html>"), httpx.Response(200, json={})]
)
def test_an_answer_that_is_no_completion_is_an_engine_error(response: httpx.Response) -> None:
    with pytest.raises(EngineError, match="http://server/v1/chat/completions answered"):
        ask(lambda _: response)


def test_a_prompt_that_is_too_long_for_the_server_draws_nothing() -> None:
    found = ask(lambda _: httpx.Response(400, text="This model's maximum context length is 512 tokens."))
    assert found == Completion("", finish="context")


def test_no_more_requests_than_allowed_are_in_flight() -> None:
    flying: list[int] = [0, 0]

    async def answer(request: httpx.Request) -> httpx.Response:
        flying[0] += 1
        flying[1] = max(flying)
        await asyncio.sleep(0)
        flying[0] -= 1
        return httpx.Response(200, json=body())

    async def run() -> OpenAIEngine:
        client = OpenAIEngine("http://server/v1", "policy", concurrency=3, transport=httpx.MockTransport(answer))
        await asyncio.gather(*(client.generate(ASK) for _ in range(20)))
        await client.close()
        return client

    stats = asyncio.run(run()).stats
    assert flying[1] == 3
    assert (stats.requests, stats.prompt_tokens, stats.reused_tokens, stats.sampled_tokens) == (20, 180, 60, 40)


def test_a_closed_engine_refuses() -> None:
    async def run() -> None:
        client = engine(lambda _: httpx.Response(200, json=body()))
        await client.close()
        await client.generate(ASK)

    with pytest.raises(EngineError, match="closed"):
        asyncio.run(run())
