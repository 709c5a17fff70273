"""The HTTP engine against servers that stand in a function: what is sent, what is kept, and whom it waits for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fake_server import FakeServer
from test_openai_probe import UNKNOWN_TO_OPENAI
from tiny import tiny_tokenizer

from leafe.engines.openai import OpenAIEngine
from leafe.engines.openai_fields import Dialect
from leafe.engines.openai_http import Waiting
from leafe.engines.tokens import ChatTokenizer
from leafe.errors import EngineError, UserError
from leafe.records import Ask, Completion, Message, Sampling

ASK = Ask((Message("system", "be"), Message("user", "where?")), Sampling(0.7, 0.9, 50), seed=2**40 + 7)
QUICK = Waiting(retries=5, patience=1.0, pause=0.001)
Answer = Callable[[httpx.Request], httpx.Response]


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


def engine(answer: Answer, **options: Any) -> OpenAIEngine:
    return OpenAIEngine("http://server/v1/", "policy", transport=httpx.MockTransport(answer), **{"waiting": QUICK, **options})


def ask(answer: Answer, **options: Any) -> Completion:
    return asyncio.run(engine(answer, **options).generate(ASK))


def served(server: FakeServer, question: Ask = ASK, **options: Any) -> Completion:
    client = OpenAIEngine("http://server/v1", "policy", transport=server.transport(), waiting=QUICK, **options)
    return asyncio.run(client.generate(question))


def good(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=body())


def test_a_request_carries_the_conversation_and_every_field_of_sampling() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return good(request)

    ask(answer, api_key="secret")
    sent = json.loads(seen[0].content)
    assert str(seen[0].url) == "http://server/v1/chat/completions"
    assert seen[0].headers["authorization"] == "Bearer secret"
    assert sent["messages"] == [{"role": "system", "content": "be"}, {"role": "user", "content": "where?"}]
    assert (sent["model"], sent["temperature"], sent["top_p"], sent["max_tokens"], sent["seed"]) == ("policy", 0.7, 0.9, 50, 7)
    assert sent["logprobs"] and sent["return_tokens_as_token_ids"]
    neutral = {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "repeat_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
    assert sent.items() >= neutral.items()


@pytest.mark.parametrize("kind", ["vllm", "llama"])
def test_sampled_ids_and_log_probabilities_are_kept_from_servers_that_return_them(kind: str) -> None:
    server = FakeServer(kind)
    found = served(server)
    ids = server.encoded(found.text)
    assert found.token_ids == (*ids, server.tokenizer.eos_token_id)
    assert found.logprobs == (-0.12346,) * len(found.token_ids)
    assert (found.finish, found.drawn) == ("stop", len(found.token_ids)) and found.prompt_tokens > 0


def test_without_sampled_ids_the_text_is_encoded_again_and_ends_with_the_end_token() -> None:
    tokenizer = tiny_tokenizer()
    found = ask(lambda _: httpx.Response(200, json=body(tokens=("go", " left"))), tokenizer=tokenizer)
    assert list(found.token_ids) == tokenizer("go left<|end|>", add_special_tokens=False)["input_ids"]
    assert found.logprobs == ()
    cut = body(tokens=(), finish="length")
    cut["usage"]["completion_tokens"] = 50
    whole = ask(lambda _: httpx.Response(200, json=cut), tokenizer=tokenizer)
    assert whole.finish == "length" and tokenizer.eos_token_id not in whole.token_ids


def test_without_ids_and_without_a_tokenizer_there_are_none_but_tokens_are_counted() -> None:
    async def run() -> tuple[Completion, int]:
        client = engine(lambda _: httpx.Response(200, json=body(tokens=("go", " left"))))
        return await client.generate(ASK), client.stats.sampled_tokens

    found, sampled = asyncio.run(run())
    assert (found.text, found.token_ids, found.logprobs, found.drawn, sampled) == ("go left", (), (), 2, 2)


def test_a_reply_that_the_context_cut_before_the_limit_is_a_full_context() -> None:
    found = ask(lambda _: httpx.Response(200, json=body(finish="length")))
    assert (found.text, found.token_ids, found.finish) == ("", (), "context")


def test_parts_of_a_reply_are_joined_and_thoughts_that_were_parted_from_it_are_put_back() -> None:
    def answered(**message: Any) -> str:
        found = body()
        found["choices"][0]["message"] = message
        return ask(lambda _: httpx.Response(200, json=found)).text

    assert answered(content=[{"type": "text", "text": "go"}, " left"]) == "go left"
    assert answered(content="go", reasoning_content="why") == "<think>why</think>\ngo"
    assert answered(content=None, reasoning="why") == "<think>why</think>\n"
    assert answered(content="go", reasoning_content="", tool_calls=[]) == "go"


def test_thoughts_that_were_cut_stay_open() -> None:
    found = body(finish="length")
    found["choices"][0]["message"] = {"content": None, "reasoning_content": "why"}
    found["usage"]["completion_tokens"] = 50
    assert ask(lambda _: httpx.Response(200, json=found)).text == "<think>why"


def test_a_server_that_samples_by_its_own_configuration_is_told_so() -> None:
    server = FakeServer("transformers")
    dialect = Dialect(
        frozenset({"return_tokens_as_token_ids", "top_k", "min_p", "typical_p", "repetition_penalty", "repeat_penalty"})
    )
    sampling = Dialect(dialect.refused, samples_by_config=True)
    asks = [Ask(ASK.messages, ASK.sampling, seed) for seed in range(5)]
    assert len({served(server, one, dialect=dialect).text for one in asks}) == 1
    assert len({served(server, one, dialect=sampling).text for one in asks}) > 1
    cold = Ask(ASK.messages, Sampling(0.0, 1.0, 50), 1)
    served(server, cold, dialect=sampling)
    assert json.loads(server.asked[-1]["generation_config"])["do_sample"] is False


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_busy_server_is_asked_again(status: int) -> None:
    answers = iter([httpx.Response(status), httpx.Response(status), good(httpx.Request("GET", "http://s"))])
    assert ask(lambda _: next(answers)).text == "go left"


@pytest.mark.parametrize("asked", ["0", "²", "-1", "nan", "1e9", "Wed, 21 Oct 2026 07:28:00 GMT", "9" * 5000, "0.001"])
def test_whatever_pause_a_server_asks_for_it_is_asked_again_a_few_times_and_no_more(asked: str) -> None:
    count = [0]

    def answer(request: httpx.Request) -> httpx.Response:
        count[0] += 1
        return httpx.Response(500, headers={"retry-after": asked.encode()})  # type: ignore[dict-item]

    with pytest.raises(EngineError, match=r"500.* 4 times .*engine.retries=3.*same command"):
        ask(answer, waiting=Waiting(retries=3, pause=0.001))
    assert count[0] == 4


def test_a_server_that_is_away_is_waited_for_and_both_are_told_once() -> None:
    said: list[str] = []
    gone = [8]

    def answer(request: httpx.Request) -> httpx.Response:
        gone[0] -= 1
        if gone[0] > 0:
            raise httpx.ConnectError("refused", request=request)
        return good(request)

    waiting = Waiting(retries=0, patience=30, pause=0.001)
    assert ask(answer, waiting=waiting, told=said.append).text == "go left"
    assert [line.split(" ", 1)[1][:24] for line in said] == ["cannot be reached (Conne", "is back"]
    assert "at most 30 seconds (engine.patience)" in said[0]


def test_a_request_that_was_lost_when_the_server_died_is_sent_again_when_it_is_back() -> None:
    def lost(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("reset", request=request)

    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    answers = iter([lost, *[away] * 6, good])
    assert ask(lambda request: next(answers)(request), waiting=Waiting(retries=1, patience=30, pause=0.001)).text == "go left"


def test_a_dead_server_is_an_engine_error_that_says_how_to_go_on() -> None:
    def dead(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    message = (
        r"cannot be reached \(ConnectError: refused\), for 0.05 seconds \(engine.patience\). .* the same command goes on from there"
    )
    with pytest.raises(EngineError, match=message):
        ask(dead, waiting=Waiting(patience=0.05, pause=0.001))


def test_an_answer_that_does_not_come_is_given_up_after_the_timeout() -> None:
    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        return good(request)

    client = OpenAIEngine(
        "http://server/v1", "policy", transport=httpx.MockTransport(slow), waiting=Waiting(timeout=0.05, retries=1, pause=0.001)
    )
    with pytest.raises(EngineError, match=r"did not answer within 0.05 seconds \(engine.timeout\), 2 times"):
        asyncio.run(client.generate(ASK))


def test_a_server_with_more_on_hand_than_it_can_do_is_sent_less_at_once() -> None:
    """Of twelve requests it answers four and keeps the others waiting."""
    flying, said = [0], []

    async def answer(request: httpx.Request) -> httpx.Response:
        flying[0] += 1
        try:
            await asyncio.sleep(60 if flying[0] > 4 else 0.05)
        finally:
            flying[0] -= 1
        return httpx.Response(200, json=body())

    async def run() -> list[Completion]:
        waiting = Waiting(timeout=1.0, retries=1, pause=0.001)
        client = OpenAIEngine(
            "http://s/v1", "policy", concurrency=12, transport=httpx.MockTransport(answer), waiting=waiting, told=said.append
        )
        return await asyncio.gather(*(client.generate(ASK) for _ in range(24)))

    assert len(asyncio.run(run())) == 24
    assert said == ["http://s/v1 does not answer all in time (engine.timeout); it is sent less at once (engine.concurrency)"]


def test_half_a_character_in_a_prompt_is_the_servers_to_refuse() -> None:
    server = FakeServer("vllm", broken=lambda request: (400, {"error": "invalid unicode"}))
    with pytest.raises(EngineError, match="invalid unicode"):
        served(server, Ask((Message("user", "where \ud800?"),), ASK.sampling, seed=1))


OVERFLOWS = [
    (
        400,
        "This model's maximum context length is 2048 tokens. However, you requested 8 output tokens and your prompt contains 2041",
    ),
    (
        400,
        "Requested token count exceeds the model's maximum context length of 202752 tokens. You requested a total of 202941 tokens",
    ),
    (400, "The input (61709 tokens) is longer than the model\\u0027s context length (40960 tokens)."),
    (400, "Input length (160062 tokens) exceeds the maximum allowed length (59862 tokens)."),
    (400, "request (3031 tokens) exceeds the available context size (1024 tokens), try increasing it"),
    (500, "Context size has been exceeded."),
    (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 1244 `inputs` tokens and 1000"),
    (422, "Input validation error: `inputs` must have less than 1024 tokens. Given: 1168"),
    (400, "The input token count (1200293) exceeds the maximum number of tokens allowed (1048576)."),
    (400, "The input (516368 tokens) is longer than the model's context length (262144 tokens)."),
    (400, "This model's maximum prompt length is 131072 but the request contains 537812 tokens"),
    (400, "Prompt contains 40000 tokens, too large for model with 32768 maximum context length"),
    (413, "prompt is too long: 210000 tokens > 200000 maximum"),
    (200, "the request exceeds the available context size. try increasing the context size or enable context shift"),
]


@pytest.mark.parametrize(("status", "words"), OVERFLOWS)
def test_a_prompt_that_is_too_long_for_the_server_draws_nothing(status: int, words: str) -> None:
    content = f'{{"error": {{"message": "{words}"}}}}'
    assert ask(lambda _: httpx.Response(status, content=content)) == Completion("", finish="context")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (429, "too many tokens per minute; maximum context length"),
        (400, "unknown field context_length"),
        (400, "max_tokens=3000 is too large"),
    ],
)
def test_other_refusals_are_not_taken_for_a_full_context(status: int, words: str) -> None:
    with pytest.raises(EngineError, match=f"answered {status}"):
        ask(lambda _: httpx.Response(status, json={"error": words}), waiting=Waiting(retries=0, patience=0))


def test_a_reply_about_context_lengths_is_a_reply() -> None:
    assert ask(lambda _: httpx.Response(200, json=body("maximum context length"))).text == "maximum context length"


def test_a_cap_on_the_context_is_kept_before_the_server_is_asked() -> None:
    server = FakeServer("llama", context=2048)
    found = served(server, max_context=2048, cap=60, count=lambda messages: 11)
    assert found == Completion("", finish="context", prompt_tokens=11) and server.asked == []
    assert served(server, max_context=2048, cap=61, count=lambda messages: 11).finish == "stop"
    sizes = [(2048, 60), (60, 2048), (60, 0), (None, 60), (None, 0)]
    assert [OpenAIEngine("http://s", "m", max_context=says, cap=cap).max_context for says, cap in sizes] == [60, 60, 60, 60, None]


def test_a_server_that_shortens_conversations_silently_has_not_answered_them() -> None:
    tokens, said = ChatTokenizer(tiny_tokenizer()), list[str]()
    longest = len(tokens.prompt_ids(ASK.messages))

    class Shortening(FakeServer):
        def completion(self, request: dict[str, Any]) -> dict[str, Any]:
            found = super().completion(request)
            return found | {"usage": found["usage"] | {"prompt_tokens": min(found["usage"]["prompt_tokens"], longest)}}

    server = Shortening("openai")
    counting: dict[str, Any] = {"count": lambda messages: len(tokens.prompt_ids(messages)), "told": said.append}
    dialect = Dialect(UNKNOWN_TO_OPENAI)

    async def work(**more: Any) -> list[Completion]:
        client = OpenAIEngine(
            "http://server/v1", "policy", transport=server.transport(), waiting=QUICK, dialect=dialect, **counting, **more
        )
        more_said = replace(ASK, messages=(*ASK.messages, Message("assistant", "left"), Message("user", "where?")))
        return [await client.generate(one) for one in (ASK, more_said, more_said)]

    whole, *shortened = asyncio.run(work(counts_alike=True))
    assert whole.text and whole.finish == "stop"
    assert [(one.text, one.finish) for one in shortened] == [("", "context")] * 2 and shortened[0].prompt_tokens > longest
    (line,) = said
    assert f"read {longest} of the {shortened[0].prompt_tokens} tokens" in line and "engine.max_context=" in line
    assert [one.finish for one in asyncio.run(work())] == ["stop"] * 3  # whose chat template may be another


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
        client = engine(good)
        await client.close()
        await client.generate(ASK)

    with pytest.raises(EngineError, match="closed"):
        asyncio.run(run())


@pytest.mark.parametrize(
    "address",
    [
        "http://me:hunter2@host/v1",
        "http://hunter2@host/v1",
        "http://host/v1?api_key=hunter2",
        "http://me:hunter2@host:80000",
        "me:hunter2@host",
    ],
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(address: str) -> None:
    with pytest.raises(UserError, match=r"engine\.base_url: wanted an address as http://localhost:8000/v1") as refused:
        OpenAIEngine(address, "policy")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    ["http://host:80000/v1", "http://host:0/v1", "ftp://host/v1", "http://", "host:8000", "http://ho st/v1", "http://[::1/v1"],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=r"with a port from 1 to 65535 if any, found"):
        OpenAIEngine(address, "policy")


def test_a_version_in_the_address_stays_where_it_belongs() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return good(request)

    client = OpenAIEngine("https://host/openai/v1/?api-version=2", "policy", transport=httpx.MockTransport(answer))
    asyncio.run(client.generate(ASK))
    assert seen == ["https://host/openai/v1/chat/completions?api-version=2"]


def test_a_key_that_the_server_repeats_is_in_no_message_and_one_that_is_none_is_not_sent() -> None:
    with pytest.raises(EngineError, match=r"\*\*\*") as failed:
        ask(lambda request: httpx.Response(401, text=f"bad key {request.headers['authorization']}"), api_key="hunter2")
    assert "hunter2" not in str(failed.value)
    with pytest.raises(UserError, match=r"engine\.api_key_env") as refused:
        engine(good, api_key="hunter2\r\nX-Evil: 1")
    assert "hunter2" not in str(refused.value)


KEY = "sk-" + "A" * 20 + "SECRET"


@pytest.mark.parametrize("before", range(50, 220, 10))
def test_no_part_of_a_key_is_left_where_a_message_is_cut(before: int) -> None:
    told = "x" * before + KEY * 3
    choice = {"message": {"content": "x"}, "finish_reason": "y" * (before % 80) + KEY * 3}
    for answer in (
        httpx.Response(401, text=told),
        httpx.Response(503, text=told),
        httpx.Response(200, text=told),
        httpx.Response(200, json={"error": {"message": told}}),
        httpx.Response(200, json={"choices": [choice]}),
        httpx.Response(200, json={"choices": told}),
    ):
        with pytest.raises(EngineError) as failed:
            ask(lambda _, answer=answer: answer, api_key=KEY, waiting=Waiting(retries=0, patience=0))  # type: ignore[misc]
        assert "sk-" not in str(failed.value) and "AAA" not in str(failed.value), failed.value


def test_a_reply_that_spells_out_the_key_is_kept_as_it_is() -> None:
    assert ask(lambda _: httpx.Response(200, json=body("left EMPTY")), api_key="EMPTY").text == "left EMPTY"


@pytest.mark.parametrize("text", ["go <|end|> left", "<|end|><|assistant|>up<|end|>", "<|user|>"])
def test_ids_that_are_made_of_a_reply_hold_no_control_token_that_it_spells_out(text: str) -> None:
    tokenizer = tiny_tokenizer()
    done = ask(lambda request: httpx.Response(200, json=body(text, tokens=())), tokenizer=tokenizer)
    assert tokenizer.decode(done.token_ids[:-1]) == text and done.token_ids[-1] == tokenizer.eos_token_id
    assert not {*done.token_ids[:-1]} & {*tokenizer.all_special_ids}
