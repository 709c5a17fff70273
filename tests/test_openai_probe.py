"""What a few requests find out about a server, and what a recipe is refused for."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest
from fake_server import Body, FakeServer
from tiny import tiny_tokenizer

from leafe.engines.openai_fields import Dialect
from leafe.engines.openai_findings import Findings, differing, refuse_lacking
from leafe.engines.openai_http import Client, Waiting
from leafe.engines.openai_probe import Question, probe
from leafe.engines.tokens import ChatTokenizer
from leafe.errors import EngineError, UserError
from leafe.records import Message

LOCAL = ChatTokenizer(tiny_tokenizer())
UNKNOWN_TO_OPENAI = frozenset(
    {
        "top_k",
        "min_p",
        "typical_p",
        "repetition_penalty",
        "repeat_penalty",
        "return_tokens_as_token_ids",
        "repetition_detection",
    }
)


def found(server: FakeServer, *, served: str = "", fallback: bool = False, samples: bool = True, **more: Any) -> Findings:
    async def ask() -> Findings:
        waiting = Waiting(retries=1, patience=0.05, pause=0.001)
        client = Client("http://server/v1", transport=server.transport(), waiting=waiting, **more)
        try:
            return await probe(client, Question(served, ("folder", "owner/name"), samples, LOCAL, fallback))
        finally:
            await client.close()

    return asyncio.run(ask())


def test_a_server_like_vllm_has_everything() -> None:
    server = FakeServer("vllm")
    here = found(server)
    assert (here.model, here.ids, here.logprobs, here.max_context, here.dialect) == ("policy", "sampled", True, 2048, Dialect())
    assert (here.seeds_differ, here.seed_repeats, here.prompt, here.decoded) == (True, True, "equal", True)
    assert here.flags == [] and len(server.asked) <= 8
    refuse_lacking(here, trains=True)


def test_a_server_like_llama_cpp_counts_prompts_alike_and_answers_to_any_name() -> None:
    here = found(FakeServer("llama", model="model.gguf", context=512), served="policy")
    assert (here.model, here.ids, here.max_context, here.prompt) == ("policy", "sampled", 512, "counted")
    assert "it lists model.gguf and answers to policy all the same" in here.lines
    refuse_lacking(here, trains=True)


def test_a_server_like_transformers_serve_is_made_to_sample_and_returns_no_ids() -> None:
    here = found(FakeServer("transformers", model="folder"))
    assert here.dialect == Dialect(frozenset(UNKNOWN_TO_OPENAI), samples_by_config=True)
    assert (here.model, here.seeds_differ, here.ids, here.logprobs, here.max_context) == ("folder", True, "none", False, None)
    refuse_lacking(here, trains=False)
    with pytest.raises(UserError, match=r"ids .*engine\.tokenizer=model"):
        refuse_lacking(here, trains=True)


def test_ids_that_a_local_tokenizer_makes_are_flagged() -> None:
    here = found(FakeServer("openai"), fallback=True)
    refuse_lacking(here, trains=True)
    assert here.ids == "encoded"
    assert here.flags == [
        "token ids were made from the text of replies by a local tokenizer; they may not be those that were sampled"
    ]


@pytest.mark.parametrize("kind", ["openai", "mute"])
def test_fields_that_a_server_refuses_are_found_out_whether_it_names_them_or_not(kind: str) -> None:
    server = FakeServer(kind)
    here = found(server)
    assert here.dialect.refused >= UNKNOWN_TO_OPENAI
    assert "seed" not in here.dialect.refused or kind == "mute"
    assert found(FakeServer("openai")).logprobs


def test_seeds_that_draw_the_same_are_refused() -> None:
    here = found(FakeServer("vllm", ignores_seeds=True))
    assert here.seeds_differ is False
    with pytest.raises(UserError, match=r"three seeds.*policy"):
        refuse_lacking(here, trains=False)


def test_a_model_that_is_sure_of_itself_is_not_taken_for_a_server_without_seeds() -> None:
    class Sure(FakeServer):
        def draw(self, request: Body) -> random.Random:
            return random.Random(0) if request["temperature"] <= 1 else super().draw(request)

    here = found(Sure("vllm"))
    assert (here.seeds_differ, here.dialect) == (True, Dialect())


def test_at_temperature_zero_seeds_are_not_asked_about() -> None:
    here = found(FakeServer("vllm"), samples=False)
    assert here.seeds_differ is None
    refuse_lacking(here, trains=True)


def test_another_chat_template_than_the_local_one_cannot_be_trained_on() -> None:
    here = found(FakeServer("llama", template_ids=3))
    assert here.prompt == "differs" and here.prompt_tokens[0] == here.prompt_tokens[1] + 3
    assert here.flags == ["the server's chat template is not that of the local tokenizer"]
    refuse_lacking(here, trains=False)
    with pytest.raises(UserError, match=r" \d+ ids .* \d+.*`model`"):
        refuse_lacking(here, trains=True)


def test_other_ids_than_those_of_the_local_tokenizer_cannot_be_trained_on() -> None:
    class Other(FakeServer):
        def text(self, ids: list[int]) -> str:
            return f"other words than {ids}"

    here = found(Other("llama"))
    assert here.decoded is False
    with pytest.raises(UserError, match="its ids are not those of the local tokenizer"):
        refuse_lacking(here, trains=True)


def test_a_model_that_is_not_served_is_refused_with_the_closest_that_is() -> None:
    with pytest.raises(UserError, match=r"'policy'.*engine\.served_model"):
        found(FakeServer("vllm"), served="polcy")
    with pytest.raises(UserError, match=r"does not exist.*engine\.served_model"):
        found(FakeServer("transformers"), served="polcy")


def test_the_models_own_name_is_looked_for_where_several_are_served() -> None:
    class Several(FakeServer):
        def models(self) -> tuple[int, Any]:
            return 200, {"data": [{"id": name} for name in ("owner/name", "b")]}

    assert found(Several(model="owner/name")).model == "owner/name"

    class Others(FakeServer):
        def models(self) -> tuple[int, Any]:
            return 200, {"data": [{"id": name} for name in ("a", "b")]}

    with pytest.raises(UserError, match=r" a, b.*engine\.served_model"):
        found(Others())


@pytest.mark.parametrize(
    "models",
    [
        b"<html>",
        b'{"data": 7}',
        b'{"data": [7, {"id": 7}, {"id": "\\u001b[2J"}]}',
        b"[" * 100_000,
        b'{"data": [{"id": "policy", "n_ctx": "many"}]}',
    ],
)
def test_a_list_of_models_that_cannot_be_read_is_no_list(models: bytes) -> None:
    class Odd(FakeServer):
        def models(self) -> tuple[int, Any]:
            return 200, models

    here = found(Odd(), served="policy")
    assert (here.model, here.max_context) == ("policy", None) and set(here.listed) <= {"policy"}


def test_a_wrong_path_a_missing_key_and_a_dead_server_are_said_to_be_that() -> None:
    class Elsewhere(FakeServer):
        def answer(self, method: str, path: str, body: bytes, authorization: str = "") -> tuple[int, Any]:
            return 404, {"detail": "Not Found"}

    with pytest.raises(UserError, match=r"refuses a first request \(404: .*often in /v1\?"):
        found(Elsewhere())
    with pytest.raises(UserError, match=r"401.*engine\.api_key_env"):
        found(FakeServer(key="hunter2"))
    assert found(FakeServer(key="hunter2"), api_key="hunter2").model == "policy"
    with pytest.raises(EngineError, match=r"answered 503: .*for 0.05 seconds \(engine\.patience\)"):
        found(FakeServer(broken=lambda body: (503, {"error": {"message": "Loading model"}})))


def test_findings_are_kept_as_json_and_another_server_is_told_from_the_first() -> None:
    here = found(FakeServer("vllm"))
    assert differing(here.as_json(), here) == []
    longer = found(FakeServer("vllm", context=4096))
    assert differing(here.as_json(), longer) == ["max_context: 2048 -> 4096"]
    assert differing(here.as_json(), replace(longer, cap=2048)) == []  # of which engine.max_context leaves as much
    assert differing(here.as_json(), replace(longer, cap=3000)) == ["max_context: 2048 -> 4096"]
    assert differing({name: value for name, value in here.as_json().items() if name != "max_context"}, longer) == []
    assert differing(here.as_json(), replace(longer, max_context=None)) == []
    changes = differing(here.as_json(), found(FakeServer("openai")))
    assert "ids: sampled -> none" in changes and changes[0].startswith("dialect: ")


class Careful(FakeServer):
    """A server that takes control tokens in texts as text, as one does that tokenises contents apart from its template."""

    def completion(self, request: Body) -> Body:
        found = super().completion(request)
        messages = [Message(message["role"], message["content"]) for message in request["messages"]]
        begun = [messages.pop().content] if messages[-1].role == "assistant" else []
        ids = [*LOCAL.prompt_ids(messages), *LOCAL.text_ids("".join(begun))]
        more = {"prompt_token_ids": ids} if "prompt_token_ids" in found else {}
        return found | {"usage": found["usage"] | {"prompt_tokens": len(ids)}} | more


def test_what_a_server_makes_of_control_tokens_in_a_text_is_found_out_and_told() -> None:
    careless, careful = found(FakeServer("vllm")), found(Careful("vllm"))
    assert (careless.controls, careful.controls) == ("tokens", "text")
    assert "it takes control tokens that a text spells out for the tokens, so a space is put into them" in " ".join(careless.lines)
    assert "control tokens that a text spells out are text to it" in careful.lines
    assert careless.as_json()["controls"] == "tokens"
    assert "controls: text -> tokens" in differing(careful.as_json(), careless)
    before = {name: value for name, value in careful.as_json().items() if name != "controls"}
    assert differing(before, careless) == []  # a run that was begun before this was asked for


def test_a_server_that_counts_no_prompt_or_refuses_the_question_leaves_it_open() -> None:
    def refusing(body: Body) -> tuple[int, Any] | None:
        return (400, {"error": {"message": "special tokens"}}) if "<|" in body["messages"][-1]["content"] else None

    assert found(FakeServer("vllm", broken=refusing)).controls == "unknown"
