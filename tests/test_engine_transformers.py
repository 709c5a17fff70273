"""The in-process engine: what it draws, that company and reuse change nothing, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from transformers import Gemma2Config, Gemma2ForCausalLM, GPTJConfig, GPTJForCausalLM

from leafe.engines import batching
from leafe.engines.memory import free_bytes
from leafe.engines.transformers import TransformersEngine
from leafe.errors import CorruptFile, EngineError, UserError
from leafe.records import Ask, Completion, Message, Sampling

Result = TypeVar("Result")
WORDS = ["you", "see", "a box", "and", "wall", "the door", "is closed", "nothing happens", "go", "left", "right", "up", "down"]


@cache
def tokenizer() -> Any:
    return tiny_tokenizer()


def engine(kind: str = "qwen2", *, model: Any = None, **options: Any) -> TransformersEngine:
    return TransformersEngine(
        tiny_model(kind) if model is None else model, tokenizer(), **{"slots": 8, "max_context": 512, **options}
    )


def run(use: Callable[[TransformersEngine], Awaitable[Result]], served: TransformersEngine) -> Result:
    async def main() -> Result:
        try:
            return await use(served)
        finally:
            await served.close()

    return asyncio.run(asyncio.wait_for(main(), 60))


def text(source: random.Random, words: int) -> str:
    return " ".join(source.choices(WORDS, k=words))


def episodes(tasks: int, samples: int, turns: int) -> list[list[tuple[Message, ...]]]:
    """Per episode, its prompts turn by turn; the samples of a task share the first one."""
    found: list[list[tuple[Message, ...]]] = []
    for task in range(tasks):
        first = text(random.Random(task), 20 + task)
        for sample in range(samples):
            source = random.Random(100 * task + sample)
            history = [Message("system", "you are a robot in a house"), Message("user", first)]
            prompts = []
            for _ in range(turns):
                prompts.append(tuple(history))
                history += [Message("assistant", text(source, 2), True), Message("user", text(source, source.randint(1, 12)))]
            found.append(prompts)
    return found


def asks(sampling: Sampling, *, tasks: int = 4, samples: int = 3, turns: int = 5) -> list[list[Ask]]:
    plays = episodes(tasks, samples, turns)
    return [[Ask(prompt, sampling, 1000 * i + t) for t, prompt in enumerate(play)] for i, play in enumerate(plays)]


async def play(served: TransformersEngine, episode: Sequence[Ask]) -> list[Completion]:
    return [await served.generate(ask) for ask in episode]


async def together(served: TransformersEngine, plays: Sequence[Sequence[Ask]]) -> list[list[Completion]]:
    return list(await asyncio.gather(*(play(served, episode) for episode in plays)))


@pytest.mark.parametrize("kind", ["qwen2", pytest.param("llama", marks=pytest.mark.slow)])
def test_greedy_completions_equal_those_of_generate_token_for_token(kind: str) -> None:
    plays = asks(Sampling(0.0, 1.0, 9))
    found = run(lambda served: together(served, plays), engine(kind))
    model = tiny_model(kind)
    for episode, completions in zip(plays, found, strict=True):
        for ask, completion in zip(episode, completions, strict=True):
            chat = [{"role": message.role, "content": message.content} for message in ask.messages]
            prompt = tokenizer().apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            whole = model.generate(**prompt, do_sample=False, max_new_tokens=9)[0]
            start = prompt["input_ids"].shape[1]
            assert completion.token_ids == tuple(whole[start:].tolist())
            assert completion.prompt_tokens == start
            logprobs = torch.log_softmax(model(whole[None]).logits[0, start - 1 : -1], -1).gather(1, whole[start:, None])[:, 0]
            assert logprobs.tolist() == pytest.approx(completion.logprobs, abs=2e-5)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (torch.float32, "llama"),
        (torch.bfloat16, "qwen2"),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((torch.float32, "qwen2"), (torch.bfloat16, "llama"))),
    ],
)
def test_a_completion_depends_on_neither_its_neighbours_nor_what_was_reused(kind: str, dtype: torch.dtype) -> None:
    plays = asks(Sampling(0.9, 0.95, 7))
    mixed = engine(kind, dtype=dtype, tokens_per_pass=100)
    crowd = run(lambda served: together(served, plays), mixed)
    assert mixed.stats.reused_tokens > 0.5 * mixed.stats.prompt_tokens
    for index in (0, 4, 7, 11):
        for ask, completion in list(zip(plays[index], crowd[index], strict=True))[::2]:
            fresh = engine(kind, dtype=dtype, slots=1)
            assert run(lambda served, ask=ask: served.generate(ask), fresh) == completion  # type: ignore[misc]
            assert fresh.stats.reused_tokens == 0


def test_the_seed_alone_decides_the_draw() -> None:
    [[ask]] = asks(Sampling(1.0, 1.0, 8), tasks=1, samples=1, turns=1)
    seeds = [3, 4, 3, 5, 3]
    draws = [[Ask(ask.messages, ask.sampling, seed)] for seed in seeds]
    found = [completions[0] for completions in run(lambda served: together(served, draws), engine())]
    assert found[0] == found[2] == found[4]
    assert len({completion.token_ids for completion in found}) == 3


def test_turns_branches_and_samples_of_a_task_reuse_their_common_prefix() -> None:
    plays = asks(Sampling(1.0, 1.0, 2), tasks=1, samples=1, turns=8)
    served = engine()

    async def use(served: TransformersEngine) -> list[float]:
        shares = []
        for replayed in (plays[0], plays[0][3:5] * 2, [Ask((*plays[0][5].messages[:-1], Message("user", "no")), Sampling(), 1)]):
            prompts, reused = served.stats.prompt_tokens, served.stats.reused_tokens
            await play(served, replayed)
            shares.append((served.stats.reused_tokens - reused) / (served.stats.prompt_tokens - prompts))
        return shares

    growing, rolled_back, branched = run(use, served)
    assert growing > 0.6
    assert rolled_back > 0.95
    assert branched > 0.9


def test_a_prefix_that_arrives_many_times_at_once_is_computed_once() -> None:
    [[ask]] = asks(Sampling(1.0, 1.0, 2), tasks=1, samples=1, turns=1)
    served = engine()
    run(lambda served: together(served, [[Ask(ask.messages, ask.sampling, seed)] for seed in range(8)]), served)
    prompt = served.stats.prompt_tokens // 8
    assert served.stats.prompt_tokens - served.stats.reused_tokens == prompt + 7  # each still computes the last token of its prompt


@pytest.mark.parametrize(
    "wanted", [Sampling(max_tokens=9), Sampling(max_tokens=9, temperature=0), Sampling(max_tokens=9, top_p=0.7)]
)
def test_replies_that_repeat_others_are_guessed_and_right_or_wrong_change_nothing(wanted: Sampling) -> None:
    plays = asks(wanted, turns=3)
    others = [[replace(ask, seed=ask.seed + 7) for ask in episode] for episode in plays]

    async def again(served: TransformersEngine) -> list[list[list[Completion]]]:
        return [await together(served, some) for some in (plays, plays, others, plays, plays)]

    served = engine()
    first, *repeats, last = run(again, served)
    assert served.stats.guessed_tokens > 0.2 * served.stats.sampled_tokens
    assert first == repeats[0] == repeats[2] == last and repeats[1] == run(lambda fresh: together(fresh, others), engine())


@pytest.mark.parametrize("rows", [0, 3])
def test_guesses_of_a_pass_are_bounded_whatever_the_vocabulary(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    plays, wide = asks(Sampling(max_tokens=9), turns=3), engine()

    async def again(served: TransformersEngine) -> list[list[list[Completion]]]:
        return [await together(served, plays) for _ in range(5)]

    wanted = run(again, wide)
    monkeypatch.setattr(batching, "GUESSED", rows * tiny_model("qwen2").config.vocab_size)
    narrow = engine()
    assert run(again, narrow) == wanted
    assert bool(narrow.stats.guessed_tokens) == bool(rows) and narrow.stats.guessed_tokens < wide.stats.guessed_tokens


def test_more_requests_than_slots_and_blocks_are_all_answered_alike() -> None:
    plays = asks(Sampling(1.0, 1.0, 5), tasks=9, samples=2, turns=4)
    narrow = run(lambda served: together(served, plays), engine(slots=2, max_context=300, tokens_per_pass=48))
    assert narrow == run(lambda served: together(served, plays), engine(slots=64, max_context=300))


def token_bytes(model: Any) -> int:
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * width * 4)


def test_a_cache_for_two_conversations_answers_many_as_a_large_one_does() -> None:
    plays = asks(Sampling(1.0, 1.0, 5), tasks=9, samples=2, turns=4)
    room = 2 * (300 + 128) * token_bytes(tiny_model())
    small = run(lambda served: together(served, plays), engine(slots=64, max_context=300, cache_bytes=room))
    assert small == run(lambda served: together(served, plays), engine(slots=64, max_context=300))


def test_a_cache_too_small_for_one_conversation_is_refused_with_the_length_that_fits() -> None:
    model = tiny_model()
    usual = model.config._attn_implementation
    with pytest.raises(UserError, match=r"512 tokens .*engine.max_context=[0-9]+") as caught:
        engine(model=model, cache_bytes=256 * token_bytes(model))
    assert model.config._attn_implementation == usual
    fits = int(str(caught.value).partition("engine.max_context=")[2].partition(",")[0])
    run(
        lambda served: served.generate(Ask((Message("user", "go left"),), Sampling(), 0)),
        engine(max_context=fits, cache_bytes=256 * token_bytes(model)),
    )


def test_the_longest_conversation_is_the_models_own_unless_it_is_capped() -> None:
    own = tiny_model().config.max_position_embeddings
    assert [engine(max_context=cap, slots=1).max_context for cap in (0, 64, 10 * own)] == [own, 64, own]


def test_free_memory_is_what_the_control_group_leaves(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    free = partial(free_bytes, tmp_path / "meminfo", tmp_path)
    assert free() == 4000 << 10
    for limit, used, left in (("max", "5", 4000 << 10), ("900", "500", 400), ("900", "1000", 0)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text(used + "\n")
        assert free() == left


def test_sampling_ends_at_an_end_token_of_the_generation_config_too() -> None:
    [[ask]] = asks(Sampling(0.0, 1.0, 6), tasks=1, samples=1, turns=1)
    whole = run(lambda served: served.generate(ask), engine())
    assert whole.finish == "length" and len(whole.token_ids) == 6
    model = tiny_model()
    model.generation_config.eos_token_id = [4, whole.token_ids[2]]
    ended = run(lambda served: served.generate(ask), engine(model=model))
    assert (ended.finish, ended.token_ids) == ("stop", whole.token_ids[:3])


def test_a_conversation_without_room_for_the_answer_draws_nothing() -> None:
    long = Ask((Message("user", "go left " * 40),), Sampling(1.0, 1.0, 30), 0)
    served = engine(max_context=64)
    found = run(lambda served: served.generate(long), served)
    assert (found.finish, found.text, found.token_ids) == ("context", "", ()) and found.prompt_tokens > 34


class Last(torch.nn.Module):
    """An output layer that never ends a message, and that fails when it is told to."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer, self.broken = layer, False

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.broken:
            raise RuntimeError("out of memory")
        return self.layer(hidden).index_fill(-1, torch.tensor([tokenizer().eos_token_id]), -100.0)


def endless() -> Any:
    model = tiny_model()
    model.lm_head = Last(model.lm_head)
    return model


def test_a_failed_forward_pass_fails_every_request_and_the_next_ones_are_served() -> None:
    model = endless()
    plays = asks(Sampling(1.0, 1.0, 4))

    async def use(served: TransformersEngine) -> list[Any]:
        model.lm_head.broken = True
        failed = await asyncio.gather(*(served.generate(episode[0]) for episode in plays), return_exceptions=True)
        model.lm_head.broken = False
        return [failed, await together(served, plays)]

    failed, found = run(use, engine(model=model))
    assert all(isinstance(error, EngineError) and "out of memory" in str(error) for error in failed)
    assert found == run(lambda served: together(served, plays), engine(model=endless()))


def test_cancelled_requests_make_room_for_others() -> None:
    plays = asks(Sampling(1.0, 1.0, 1900), tasks=8, samples=1, turns=1)
    last = Ask(plays[-1][0].messages, Sampling(1.0, 1.0, 9), 1)

    async def use(served: TransformersEngine) -> Completion:
        tasks = [asyncio.create_task(served.generate(ask)) for ask in [*(episode[0] for episode in plays), last]]
        await asyncio.sleep(0.01)
        for task in tasks[:-1]:
            task.cancel()
        ends = await asyncio.gather(*tasks[:-1], return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        return await tasks[-1]

    found = run(use, engine(model=endless(), slots=2, max_context=2048))
    assert found == run(lambda served: served.generate(last), engine(model=endless()))


def test_closing_cancels_what_is_in_flight_and_refuses_what_comes_later() -> None:
    plays = asks(Sampling(1.0, 1.0, 1900), tasks=4, samples=1, turns=1)

    async def use(served: TransformersEngine) -> list[Any]:
        tasks = [asyncio.create_task(served.generate(episode[0])) for episode in plays]
        await asyncio.sleep(0.02)
        await served.close()
        with pytest.raises(EngineError, match="closed"):
            await served.generate(plays[0][0])
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(end, asyncio.CancelledError) for end in run(use, engine(model=endless(), slots=2, max_context=2048)))


def test_an_event_loop_that_ends_with_requests_in_flight_does_not_stop_the_engine() -> None:
    served = engine(model=endless(), slots=2, max_context=2048)
    [[long]] = asks(Sampling(1.0, 1.0, 1900), tasks=1, samples=1, turns=1)
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(served.generate(long), 0.02))
    loop = asyncio.new_event_loop()
    forgotten = loop.create_task(served.generate(long))
    loop.run_until_complete(asyncio.sleep(0.02))
    forgotten._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    short = Ask(long.messages, Sampling(1.0, 1.0, 3), 7)
    assert run(lambda served: served.generate(short), served) == run(lambda served: served.generate(short), engine(model=endless()))


def test_a_closed_engine_leaves_the_model_as_it_was() -> None:
    model = tiny_model()
    ids = torch.arange(20)[None]
    before, attention = model(ids).logits, model.config._attn_implementation
    run(lambda served: together(served, asks(Sampling())), engine(model=model))
    assert model.config._attn_implementation == attention
    assert torch.equal(model(ids).logits, before)


def test_a_saved_checkpoint_is_loaded_and_answers_alike(tmp_path: Path) -> None:
    [[ask]] = asks(Sampling(1.0, 1.0, 6), tasks=1, samples=1, turns=1)
    tiny_model().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    loaded = TransformersEngine.from_folder(tmp_path, slots=4, max_context=512)
    assert run(lambda served: served.generate(ask), loaded) == run(lambda served: served.generate(ask), engine())


def test_a_missing_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint in") as caught:
        TransformersEngine.from_folder(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut weights", "no weights", "pickled weights", "other shape", "no tokenizer"])
def test_a_broken_checkpoint_is_one_sentence(tmp_path: Path, damage: str) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    if damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "other shape":
        config = copy.deepcopy(model.config)
        config.num_hidden_layers = 3
        config.layer_types = None
        config.save_pretrained(tmp_path)
    elif damage == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name).unlink()
    else:
        weights.unlink()
        if damage == "pickled weights":
            torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CorruptFile, match="the checkpoint in") as caught:
        TransformersEngine.from_folder(tmp_path)
    assert "\n" not in str(caught.value)


def capped() -> Any:
    """A model with a cap on its scores and a window in one of its two layers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Gemma2Config(
        vocab_size=300, head_dim=16, sliding_window=20, attn_logit_softcapping=1.0, initializer_range=0.3, eos_token_id=4, **sizes
    )
    return Gemma2ForCausalLM(config).eval()


def test_attention_with_a_cap_and_a_window_is_sampled_alike_alone_and_in_company() -> None:
    plays = asks(Sampling(0.9, 0.95, 7))
    crowd = run(lambda served: together(served, plays), engine(model=capped(), tokens_per_pass=100))
    for ask, completion in list(zip(plays[4], crowd[4], strict=True))[::2]:
        assert run(lambda served, ask=ask: served.generate(ask), engine(model=capped(), slots=1)) == completion  # type: ignore[misc]


def test_a_model_whose_attention_is_of_another_kind_is_refused_and_left_as_it_was() -> None:
    model = GPTJForCausalLM(GPTJConfig(vocab_size=300, n_embd=32, n_layer=2, n_head=2, rotary_dim=8)).eval()
    usual = model.config._attn_implementation
    with pytest.raises(UserError, match=r"GPTJForCausalLM .*attention.*HTTP"):
        engine(model=model)
    assert model.config._attn_implementation == usual
