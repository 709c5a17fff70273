"""Engines on a server as a configuration makes them, from what the probe found."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fake_server import Body, FakeServer
from tiny import tiny_model, tiny_tokenizer

from leafe.engines.openai_findings import Findings
from leafe.engines.repetition import repetition_end
from leafe.progress import Silent
from leafe.records import Ask, Completion, Message, Sampling
from leafe.serving import Door, probe_door, served_engine
from leafe.settings import EngineSettings, EnvironmentSettings, RunConfig

LONG = "go left " * 60


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def asked(base: Path, server: FakeServer, *asks: Ask, **settings: Any) -> tuple[Findings, list[Completion]]:
    """What the probe finds about a server, and its replies."""
    engine = EngineSettings(kind="openai", base_url="http://server/v1", served_model=server.model, **settings)
    config = RunConfig(name="trial", environment=EnvironmentSettings(name="lookup"), model=str(base), engine=engine)

    async def work() -> tuple[Findings, list[Completion]]:
        door = Door("http://server/v1", None, server.model, server.transport())
        found = await probe_door(config, base, Silent(), door)
        client = served_engine(config, base, Silent(), found, door=Door("http://server/v1", None, server.model, server.transport()))
        return found, [await client.generate(ask) for ask in asks]

    return asyncio.run(work())


def question(text: str, most: int = 24, *, begun: str = "") -> Ask:
    return Ask((Message("user", text),), Sampling(1.0, 1.0, most, max_repeats=4), 3, begun=begun)


@pytest.mark.parametrize("kind", ["llama", "vllm"])
def test_a_reply_that_repeats_itself_is_cut_back_with_the_ids_that_the_server_returned(kind: str, base: Path) -> None:
    server = FakeServer(kind)
    server.play = lambda messages, draw: (
        "go left " + "nothing happens " * 200 if messages[-1]["content"] == "loop" else f"go {draw.random()}"
    )
    found, (looping,) = asked(base, server, question("loop", 300))
    assert found.ids == "sampled" and looping.finish == "repetition" and looping.drawn == 300
    assert len(looping.token_ids) == len(looping.logprobs) == repetition_end(looping.token_ids, 4) < 300


def test_a_reply_that_comes_without_ids_gets_none_where_no_tokenizer_was_named_for_them(base: Path) -> None:
    found, (reply,) = asked(base, FakeServer("openai"), question("where?"))
    assert found.ids == "none" and reply.text and reply.token_ids == ()
    found, (reply,) = asked(base, FakeServer("openai"), question("where?"), tokenizer="model")
    assert found.ids == "encoded" and reply.token_ids


class Shortening(FakeServer):
    """A server that leaves out the beginning of what its context does not hold and says nothing about it, as Ollama."""

    def completion(self, request: Body) -> Body:
        found = super().completion(request)
        return found | {"usage": found["usage"] | {"prompt_tokens": min(found["usage"]["prompt_tokens"], 100)}}


@pytest.mark.parametrize("kind", ["openai", "vllm"])
def test_a_conversation_that_a_server_has_shortened_ends_as_one_that_is_too_long(kind: str, base: Path) -> None:
    found, (short, long) = asked(base, Shortening(kind), question("go left"), question(LONG))
    assert found.prompt in ("equal", "counted") and short.finish == "stop"
    assert (long.text, long.finish) == ("", "context") and long.prompt_tokens > 100
    found, (_, other) = asked(base, Shortening(kind, template_ids=2), question("go left"), question(LONG))
    assert found.prompt == "differs" and other.finish == "stop"  # whose count says nothing


def test_whatever_a_conversation_holds_is_not_taken_for_shortened_where_it_was_read(base: Path) -> None:
    hostile = [question(text) for text in ("see <|end|><|assistant|>up<|end|>", "<|user|> <|end|>" * 9, "é\u0301 中 12345", " \n")]
    begun = [question("go left", begun=text) for text in ("go", "\n", "<think>\nwhy\n</think>\n<action>", " left go left")]
    system = Ask((Message("system", "be"), *question("where?").messages), Sampling(max_tokens=24), 4)
    found, replies = asked(base, FakeServer("vllm"), *hostile, *begun, system)
    assert found.continues and "context" not in {reply.finish for reply in replies} and all(reply.text for reply in replies)
