"""Answers that are no completions: each is an error that names what is wrong with it, and none is taken for a reply."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from leafe.engines.openai import OpenAIEngine
from leafe.engines.openai_http import Waiting
from leafe.errors import EngineError
from leafe.records import Ask, Message, Sampling

ASK = Ask((Message("user", "where?"),), Sampling(1.0, 1.0, 5), seed=1)
MANY = 5000


def answer(**changes: Any) -> dict[str, Any]:
    """A sound completion, with the parts that `changes` names put in place of its own."""
    entries = [{"token": f"token_id:{number}", "logprob": -0.5} for number in (5, 4)]
    choice = {
        "message": {"role": "assistant", "content": "go left"} | changes.pop("message", {}),
        "finish_reason": changes.pop("finish_reason", "stop"),
        "logprobs": changes.pop("logprobs", {"content": entries}),
    }
    return {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 2}} | changes


def tokens(*entries: Any) -> dict[str, Any]:
    return answer(logprobs={"content": list(entries)})


def token(text: Any = "token_id:5", logprob: Any = -0.5, **more: Any) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, **more}


def raw(text: str) -> bytes:
    return text.encode()


def with_number(text: str) -> bytes:
    """A sound answer with a number in its log-probabilities that JSON's own writer would not make."""
    return raw(json.dumps(tokens(token(logprob=0.125))).replace("0.125", text))


# What is answered, and the words of the error that name it.
MALFORMED: dict[str, tuple[Any, str]] = {
    "a web page": (raw("<html>busy</html>"), "no JSON"),
    "nothing": (b"", "no JSON"),
    "half an answer": (raw(json.dumps(answer()))[:60], "no JSON"),
    "bytes that are no text": (b'{"choices": "\xff\xfe"}', "no JSON"),
    "nested JSON": (raw("[" * 100_000), "nested too deeply"),
    "a number of 5,000 digits": (with_number("1" * MANY), "no JSON"),
    "a list": ([answer()], "the answer is"),
    "a text": (raw('"done"'), "the answer is 'done'"),
    "an error with status 200": ({"error": {"message": "out of memory"}}, "an error instead of a completion: .*out of memory"),
    "no choices": ({"usage": {}}, "holds None as its choices"),
    "empty choices": (answer(choices=[]), "0 choices where one was asked for"),
    "two choices": (answer(choices=answer()["choices"] * 2), "2 choices where one was asked for"),
    "a choice that is a text": (answer(choices=["go left"]), r"choices\[0\] is 'go left'"),
    "a message that is a text": (answer(choices=[{"message": "go left", "finish_reason": "stop"}]), "message is 'go left'"),
    "no message": (answer(choices=[{"finish_reason": "stop"}]), "message is None"),
    "a number as content": (answer(message={"content": 7}), "content is 7 and no text"),
    "a picture as content": (answer(message={"content": [{"type": "image_url"}]}), "holds a part that is no text: .*image_url"),
    "no content where tokens were drawn": (answer(message={"content": None}), "content is null though 2 tokens were drawn"),
    "a tool call": (answer(message={"content": None, "tool_calls": [{"id": "1"}]}), "a tool call where text was asked for"),
    "thoughts that are no text": (answer(message={"reasoning_content": ["why"]}), r"message.reasoning_content is \['why'\]"),
    "a lone surrogate": (raw(json.dumps(answer(message={"content": "go \ud800 left"}))), r"lone surrogate.*\\ud800"),
    "no reason for the end": (answer(finish_reason=None), "ended for the reason None"),
    "an unknown reason for the end": (answer(finish_reason="abort"), "ended for the reason 'abort'"),
    "a filtered reply": (answer(finish_reason="content_filter"), "ended for the reason 'content_filter'"),
    "usage that is a text": (answer(usage="many"), "usage is 'many' and no group"),
    "usage that is an empty text": (answer(usage=""), "usage is '' and no group"),
    "usage that is a list": (answer(usage=[9, 2]), r"usage is \[9, 2\] and no group"),
    "a count that is a text": (answer(usage={"prompt_tokens": "9"}), "'9' for prompt_tokens"),
    "a count below zero": (answer(usage={"completion_tokens": -2}), "-2 for completion_tokens"),
    "a count that is true": (answer(usage={"prompt_tokens": True}), "True for prompt_tokens"),
    "a count of 4,000 digits": (answer(usage={"prompt_tokens": 10**4000}), "for prompt_tokens"),
    "details that are a number": (answer(usage={"prompt_tokens_details": 3}), "prompt_tokens_details is 3"),
    "more tokens counted than asked for": (answer(usage={"completion_tokens": 6}), "is 6 where at most 5 were asked for"),
    "more ids than asked for": (tokens(*[token()] * 6), "6 tokens in logprobs.content where at most 5 were asked for"),
    "more ids than tokens counted": (tokens(*[token()] * 5), "5 ids of tokens where 2 were counted"),
    "log-probabilities that are a list": (answer(logprobs=[-0.5]), r"logprobs is \[-0.5\]"),
    "log-probabilities in a text": (answer(logprobs={"content": "-0.5"}), "logprobs.content is '-0.5' and no list"),
    "an entry that is a number": (tokens(-0.5), "an entry of logprobs.content is -0.5"),
    "an id that is no number": (tokens(token("token_id:five")), "'five' as the id"),
    "an id below zero": (tokens(token("token_id:-5")), "'-5' as the id"),
    "an id in other digits": (tokens(token("token_id:²")), "'²' as the id"),
    "an id of 5,000 digits": (tokens(token("token_id:" + "9" * MANY)), "as the id of a token"),
    "an id too large": (tokens(token("go", id=2**40)), "as the id of a token"),
    "an id that is a text": (tokens(token("go", id="5")), "'5' as the id"),
    "an id that is half a number": (tokens(token("go", id=5.5)), "5.5 as the id"),
    "ids for some tokens only": (tokens(token("go", id=5), token(" left")), "1 of 2 tokens with an id"),
    "no log-probability": (tokens({"token": "token_id:5"}), "None as the log-probability"),
    "a log-probability that is a text": (tokens(token(logprob="-0.5")), "'-0.5' as the log-probability"),
    "a log-probability that is NaN": (with_number("NaN"), "nan as the log-probability"),
    "an infinite log-probability": (with_number("-Infinity"), "-inf as the log-probability"),
    "a log-probability beyond all numbers": (with_number("-1e999"), "-inf as the log-probability"),
    "a log-probability of a hundred digits": (with_number("-" + "1" * 100), "as the log-probability"),
    "a probability above one": (tokens(token(logprob=0.5)), "0.5 as the log-probability"),
}


def asked(respond: Callable[[httpx.Request], httpx.Response]) -> str:
    """The error that an answer ends in."""
    client = OpenAIEngine("http://server/v1", "policy", transport=httpx.MockTransport(respond), waiting=Waiting(retries=0))
    with pytest.raises(EngineError, match=r"^http://server/v1/chat/completions answered with") as failed:
        asyncio.run(client.generate(ASK))
    return str(failed.value)


def test_the_answer_that_the_others_spoil_is_sound() -> None:
    client = OpenAIEngine("http://s/v1", "policy", transport=httpx.MockTransport(lambda _: httpx.Response(200, json=answer())))
    assert asyncio.run(client.generate(ASK)).token_ids == (5, 4)


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_answer_is_an_error_that_names_it(name: str) -> None:
    content, words = MALFORMED[name]
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    message = asked(lambda _: httpx.Response(200, content=content))
    assert re.search(words, message), message
    assert message.isprintable() and len(message) < 700


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"no gzip at all", "cannot be decompressed"), (gzip.compress(json.dumps(answer()).encode(), mtime=0)[:40], "no JSON")],
)
def test_a_broken_compressed_body_is_an_error(body: bytes, words: str) -> None:
    message = asked(lambda _: httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(body)))
    assert words in message


@pytest.mark.parametrize("packed", [False, True])
def test_a_reply_of_megabytes_is_not_read_to_its_end(packed: bool) -> None:
    read = [0]

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            piece = b" " * (1 << 16)
            packer = zlib.compressobj(wbits=31)
            for _ in range(1 << 12):
                read[0] += 1
                yield packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH) if packed else piece

    headers = {"content-encoding": "gzip"} if packed else {}
    assert "more than 1069056 bytes" in asked(lambda _: httpx.Response(200, headers=headers, stream=Endless()))
    assert read[0] < 20
