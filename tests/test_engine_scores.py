"""`score` and `load` in every engine: what was drawn is scored as it was drawn, and new weights answer as an engine of their own."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from test_engine_transformers import asks, engine, run, together, tokenizer
from tiny import tiny_model, tiny_tokenizer

from leafe.engines.base import Engine, Scores
from leafe.engines.openai import OpenAIEngine
from leafe.engines.replicas import ReplicatedEngine
from leafe.engines.scripted import ScriptedEngine
from leafe.engines.tokens import ChatTokenizer
from leafe.engines.transformers import TransformersEngine
from leafe.errors import EngineError, UserError
from leafe.records import Ask, Completion, Message, Sampling

CLOSE = 1e-4
SAID = (Message("user", "go left"),)


def saved(folder: Path, model: Any, words: Any = None) -> Path:
    model.save_pretrained(folder)
    (words or tokenizer()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("steps", "tokens_per_pass"), [(False, 0), (False, 7), (True, 7)])
def test_a_score_is_the_log_probability_that_was_recorded_when_the_ids_were_drawn(steps: bool, tokens_per_pass: int) -> None:
    plays = asks(Sampling(1.0, 1.0, 12), tasks=2, samples=1, turns=3)
    served = engine(steps=steps, tokens_per_pass=tokens_per_pass)

    async def use(served: TransformersEngine) -> tuple[list[list[Completion]], list[Scores]]:
        found = await together(served, plays)
        pairs = [pair for episode, replies in zip(plays, found, strict=True) for pair in zip(episode, replies, strict=True)]
        other = asyncio.gather(*(served.generate(ask) for episode in plays for ask in episode))  # goes on beside
        scores = await asyncio.gather(*(served.score(ask.messages, reply.token_ids, 3) for ask, reply in pairs))
        await other
        return found, scores

    found, scores = run(use, served)
    replies = [reply for episode in found for reply in episode]
    for reply, score in zip(replies, scores, strict=True):
        assert score.logprobs == pytest.approx(reply.logprobs, abs=CLOSE)
        assert len(score.top) == len(reply.token_ids) and all(len(place) == 3 for place in score.top)


def test_the_most_probable_ids_come_with_their_probabilities() -> None:
    scores = run(lambda served: served.score(SAID, [5, 6, 7], 300), engine())
    ids = [*ChatTokenizer(tokenizer()).prompt_ids(SAID), 5, 6]
    wanted = torch.softmax(tiny_model()(torch.tensor([ids])).logits[0, -3:], -1)
    for place, row in zip(scores.top, wanted, strict=True):
        assert [one for one, _ in place][:5] == row.topk(5).indices.tolist()
        assert [chance for _, chance in place] == sorted((chance for _, chance in place), reverse=True)
        assert dict(place) == pytest.approx(dict(enumerate(row.tolist())), abs=1e-5)


def test_what_cannot_be_scored_is_one_sentence_and_nothing_scores_to_nothing() -> None:
    async def use(served: TransformersEngine) -> None:
        assert await served.score(SAID, []) == Scores(())
        assert (await served.score(SAID, [5])).top == ()
        for ids, said in (([300], "found 300"), ([-1], "found -1"), ([5] * 600, "engine.max_context")):
            with pytest.raises(UserError, match=said) as caught:
                await served.score(SAID, ids)
            assert "\n" not in str(caught.value)

    run(use, engine())


@pytest.mark.parametrize("steps", [False, True])
def test_after_load_replies_are_those_of_the_new_checkpoint_and_requests_before_it_of_the_old(tmp_path: Path, steps: bool) -> None:
    plays = asks(Sampling(0.0, 1.0, 9), tasks=2, samples=1, turns=3)
    other = saved(tmp_path / "other", tiny_model(seed=7))

    async def use(served: TransformersEngine) -> list[Any]:
        before = asyncio.ensure_future(together(served, [[ask] for episode in plays for ask in episode]))
        await asyncio.sleep(0)
        await served.load(other)
        return [await before, await together(served, plays)]

    before, after = run(use, engine(steps=steps))
    old = run(lambda served: together(served, plays), engine())
    new = run(lambda served: together(served, plays), TransformersEngine.from_folder(other, slots=8, max_context=512))
    assert [reply.token_ids for [reply] in before] == [reply.token_ids for episode in old for reply in episode]
    assert [[reply.token_ids for reply in episode] for episode in after] == [
        [reply.token_ids for reply in episode] for episode in new
    ]
    assert old != new


@pytest.mark.parametrize("steps", [False, True])
def test_weights_that_are_handed_over_give_the_replies_of_their_checkpoint(tmp_path: Path, steps: bool) -> None:
    plays = asks(Sampling(0.0, 1.0, 9), tasks=2, samples=1, turns=3)
    other = tiny_model(seed=7)

    async def use(served: TransformersEngine) -> list[Any]:
        old = await together(served, plays)
        with pytest.raises(UserError, match="what the engine was given lacks the weights"):
            await served.take({})
        with pytest.raises(UserError, match=r"of shape .*, wanted"):
            await served.take(tiny_model(vocabulary=320).state_dict())
        assert await together(served, plays) == old
        await served.take(other.state_dict())
        return [old, await together(served, plays)]

    old, new = run(use, engine(steps=steps))
    loaded = TransformersEngine.from_folder(saved(tmp_path / "other", other), slots=8, max_context=512)
    wanted = run(lambda served: together(served, plays), loaded)
    ids = [[[reply.token_ids for reply in episode] for episode in found] for found in (old, new, wanted)]
    assert ids[0] != ids[1] == ids[2]


def test_two_weights_for_one_that_is_shared_are_refused() -> None:
    model = tiny_model()
    model.lm_head.weight = model.model.embed_tokens.weight
    own = model.state_dict()
    first, second = "model.embed_tokens.weight", "lm_head.weight"
    assert own[first].data_ptr() == own[second].data_ptr()

    async def use(served: TransformersEngine) -> None:
        await served.take({**own, second: own[second].clone()})
        with pytest.raises(UserError, match=f"two weights {first} and {second}, which are one in the engine's model"):
            await served.take({**own, second: own[second] + 1})

    run(use, TransformersEngine(model, tiny_tokenizer(), slots=2, max_context=64))


def test_weights_that_do_not_fit_are_refused_in_one_sentence_and_change_nothing(tmp_path: Path) -> None:
    plays = asks(Sampling(0.0, 1.0, 5), tasks=1, samples=1, turns=2)
    wrong = [
        (saved(tmp_path / "heads", tiny_model(shared_heads=4)), "num_key_value_heads 4"),
        (saved(tmp_path / "kind", tiny_model("llama")), "load it with a separate engine"),
        (saved(tmp_path / "ids", tiny_model(vocabulary=320)), "vocab_size 320"),
        (saved(tmp_path / "words", tiny_model(), tiny_tokenizer(vocabulary=270)), "another tokenizer"),
        (tmp_path / "nowhere", "no checkpoint in"),
    ]

    async def use(served: TransformersEngine) -> list[list[Completion]]:
        for folder, said in wrong:
            with pytest.raises(UserError, match=said) as caught:
                await served.load(folder)
            assert "\n" not in str(caught.value)
        return await together(served, plays)

    assert run(use, engine()) == run(lambda served: together(served, plays), engine())


def test_a_closed_engine_neither_scores_nor_loads_and_one_that_closes_cancels_a_load(tmp_path: Path) -> None:
    model, other = tiny_model(), saved(tmp_path / "other", tiny_model(seed=7))
    usual = model.forward

    def endless(*args: Any, **options: Any) -> Any:
        output = usual(*args, **options)
        output.logits[..., tokenizer().eos_token_id] = -100.0
        return output

    model.forward = endless  # type: ignore[method-assign]
    [[long]] = asks(Sampling(1.0, 1.0, 1900), tasks=1, samples=1, turns=1)

    async def use(served: TransformersEngine) -> None:
        answered = asyncio.ensure_future(served.generate(long))
        loaded = asyncio.ensure_future(served.load(other))
        while not served._queue and not loaded.done():
            await asyncio.sleep(0.01)
        await served.close()
        for ends in (answered, loaded):
            with pytest.raises((asyncio.CancelledError, EngineError)):
                await ends
        for call in (served.score(SAID, [5]), served.load(other)):
            with pytest.raises(EngineError, match="closed"):
                await call

    run(use, engine(model=model, max_context=2048))


def test_processes_score_and_load_as_one_engine_does(tmp_path: Path) -> None:
    first, other = saved(tmp_path / "first", tiny_model()), saved(tmp_path / "other", tiny_model(seed=7))
    wrong = saved(tmp_path / "wrong", tiny_model("llama"))
    chats = [(Message("user", f"task {number}"),) for number in range(3)]
    load = partial(TransformersEngine.from_folder, first, slots=4, max_context=128)

    async def use(served: Engine) -> list[Any]:
        try:
            found: list[Any] = []
            with pytest.raises(UserError, match="separate engine"):
                await served.load(wrong)
            for folder in (first, other):
                await served.load(folder)
                found += await asyncio.gather(*(served.score(chat, [5, 6, 7], 2) for chat in chats))
                found += await asyncio.gather(*(served.generate(Ask(chat, Sampling(0.0, 1.0, 5), 0)) for chat in chats))
            with pytest.raises(UserError, match="found 999"):
                await served.score(chats[0], [999])
            return found
        finally:
            await served.close()

    assert asyncio.run(use(ReplicatedEngine([load, load]))) == asyncio.run(use(load()))


def test_the_script_scores_and_keeps_what_it_was_told_to_load(tmp_path: Path) -> None:
    async def use() -> None:
        scripted = ScriptedEngine(["go left"], max_context=20)
        assert await scripted.score(SAID, [103, 111], 1) == Scores((0.0, 0.0), (((103, 1.0),), ((111, 1.0),)))
        with pytest.raises(UserError, match="20 tokens"):
            await scripted.score(SAID, [103] * 14)
        await scripted.load(tmp_path)
        assert scripted.loaded == [tmp_path]
        with pytest.raises(UserError, match="no checkpoint"):
            await scripted.load(tmp_path / "nowhere")
        await scripted.close()
        with pytest.raises(EngineError, match="closed"):
            await scripted.score(SAID, [103])

    asyncio.run(use())


PROMPT = [3, 1, 4]


def served(answer: Any, **options: Any) -> OpenAIEngine:
    """An engine on a server that gives an answer to each request: a body, or a status and a body."""

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        assert request.url.path == "/v1/completions" and body["prompt"] == [*PROMPT, 5, 6] and body["max_tokens"] == 1
        status, found = answer(body)
        return httpx.Response(status, content=json.dumps(found))

    options = {"prompt_ids": lambda messages: PROMPT, **options}
    return OpenAIEngine("http://server/v1", "policy", transport=httpx.MockTransport(handle), **options)


def vllm(body: dict[str, Any]) -> tuple[int, Any]:
    """What vLLM gives: for each token of the prompt but the first its log-probability and those of the most probable ones."""
    if "prompt_logprobs" not in body:
        return 400, {"error": {"message": "not asked for"}}
    place = {"5": {"logprob": -2.0, "rank": 3}, "9": {"logprob": -0.5, "rank": 1}, "6": {"logprob": -1.0, "rank": 2}}
    return 200, {"choices": [{"text": "x", "prompt_logprobs": [None, *[place] * 4]}]}


def older(body: dict[str, Any]) -> tuple[int, Any]:
    """What a server gives that knows `echo` alone: the tokens of the prompt, then the one that it drew."""
    if not body.get("echo"):
        return 200, {"choices": [{"text": "x"}]}
    tops = [{"token_id:9": -0.5, "token_id:5": -2.0}] * 6
    return 200, {"choices": [{"text": "...", "logprobs": {"token_logprobs": [None, -7, -7, -2.0, -1.0, -7], "top_logprobs": tops}}]}


@pytest.mark.parametrize("answer", [vllm, older])
def test_a_server_scores_by_the_log_probabilities_of_the_prompt(answer: Any) -> None:
    async def use() -> list[Scores]:
        client = served(answer)
        found = [await client.score(SAID, [5, 6]), await client.score(SAID, [5, 6], 1)]
        await client.close()
        return found

    plain, best = asyncio.run(use())
    assert plain == Scores((-2.0, -1.0))
    assert best.logprobs == plain.logprobs
    assert [place[0][0] for place in best.top] == [9, 9] and best.top[0][0][1] == pytest.approx(0.60653, abs=1e-5)


@pytest.mark.parametrize(
    ("answer", "options", "error", "said"),
    [
        (lambda body: (404, {"detail": "Not Found"}), {}, UserError, "no log-probabilities of prompts.*engine.kind=transformers"),
        (lambda body: (200, {"choices": [{"text": "x"}]}), {}, UserError, "no log-probabilities of prompts"),
        (lambda body: (200, {"choices": [{"prompt_logprobs": [None, {}]}]}), {}, EngineError, "2 tokens where 5 were sent"),
        (lambda body: (200, {"choices": [{"prompt_logprobs": [None, *[{"9": {"logprob": 0}}] * 4]}]}), {}, EngineError, "None as"),
        (lambda body: (400, {"error": {"message": "maximum context length is 4"}}), {}, UserError, "5 tokens, more than"),
        (vllm, {"prompt_ids": None}, UserError, "engine.tokenizer"),
    ],
)
def test_a_server_that_cannot_score_is_told_in_one_sentence(answer: Any, options: Any, error: type, said: str) -> None:
    async def use() -> None:
        client = served(answer, **options)
        with pytest.raises(error, match=said) as caught:
            await client.score(SAID, [5, 6])
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="serve that folder"):
            await client.load("checkpoint")
        await client.close()

    asyncio.run(use())
