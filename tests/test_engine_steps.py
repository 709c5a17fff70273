"""The steps of a GPU, by plain calls on a processor: the same completions as by tiles, whoever comes and goes."""

from __future__ import annotations

import asyncio
from functools import cache, partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_transformers import asks, capped, endless, engine, run, together, tokenizer
from tiny import tiny_model
from transformers import Qwen2ForCausalLM

from leafe.engines import paged, steps
from leafe.engines.batching import Batcher, Request, blocks_for
from leafe.engines.pipeline import PipelinedBatcher
from leafe.engines.sampling import draw, draw_there, uniform
from leafe.engines.tokens import ChatTokenizer
from leafe.engines.transformers import TransformersEngine
from leafe.engines.trial import take_over
from leafe.errors import EngineError
from leafe.records import Ask, Completion, Sampling

CLOSE = 1e-4


def same(found: list[list[Completion]], wanted: list[list[Completion]]) -> bool:
    pairs = [pair for mine, theirs in zip(found, wanted, strict=True) for pair in zip(mine, theirs, strict=True)]
    return all(
        mine.token_ids == theirs.token_ids
        and mine.finish == theirs.finish
        and mine.prompt_tokens == theirs.prompt_tokens
        and torch.allclose(torch.tensor(mine.logprobs), torch.tensor(theirs.logprobs), atol=CLOSE)
        for mine, theirs in pairs
    )


@pytest.mark.parametrize(
    ("kind", "sampling", "tokens_per_pass"),
    [("qwen2", Sampling(0.0, 1.0, 9), 100), ("llama", Sampling(1.0, 1.0, 7), 0), ("capped", Sampling(0.9, 0.9, 7), 48)],
)
def test_steps_draw_what_tiles_draw_with_prompts_of_any_length(kind: str, sampling: Sampling, tokens_per_pass: int) -> None:
    plays = asks(sampling, tasks=3)
    make = capped if kind == "capped" else lambda: tiny_model(kind)
    tiles = engine(model=make(), steps=False)
    served = engine(model=make(), steps=True, tokens_per_pass=tokens_per_pass)
    assert served.obstacle == ""
    found = run(lambda served: together(served, plays), served)
    assert same(found, run(lambda served: together(served, plays), tiles))
    assert served.stats.sampled_tokens == sum(len(completion.token_ids) for episode in found for completion in episode)
    assert served.stats.reused_tokens > 0.5 * served.stats.prompt_tokens


def test_prompts_ahead_of_a_step_keys_gathered_in_parts_and_shapes_let_go_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plays = asks(Sampling(1.0, 1.0, 5), tasks=3)
    wanted = run(lambda served: together(served, plays), engine(steps=True))
    monkeypatch.setattr(steps, "MOST_ROWS", 9)
    monkeypatch.setattr(steps, "MOST_SHAPES", 1)
    monkeypatch.setattr(steps, "MOST_GATHERED", 1 << 18)
    assert same(run(lambda served: together(served, plays), engine(steps=True)), wanted)


def test_a_conversation_outgrows_its_shape_and_goes_on() -> None:
    [[ask]] = asks(Sampling(1.0, 1.0, 180), tasks=1, samples=1, turns=1)
    depth = steps.LEAST_DEPTH * 64
    found, wanted = (
        run(lambda served: together(served, [[ask]]), engine(model=endless(), steps=by, max_context=1024)) for by in (True, False)
    )
    assert found[0][0].prompt_tokens < depth < found[0][0].prompt_tokens + 180
    assert same(found, wanted)


POOL = [*asks(Sampling(1.0, 0.9, 6), tasks=2, samples=2, turns=3), *asks(Sampling(0.0, 1.0, 11), tasks=1, samples=1, turns=5)]
ASKS = [ask for episode in POOL for ask in episode]


@cache
def model() -> Any:
    taken = tiny_model()
    take_over(taken)
    return taken


@cache
def prompts() -> list[list[int]]:
    tokens = ChatTokenizer(tokenizer())
    return [tokens.prompt_ids(ask.messages) for ask in ASKS]


def request(number: int) -> Request:
    ids = list(prompts()[number])
    return Request(ASKS[number], ids, len(ids))


@cache
@torch.inference_mode()
def alone(number: int) -> list[int]:
    """What one request draws by itself, by tiles."""
    one = request(number)
    batcher: Batcher[Request] = Batcher(model(), [4], slots=1, blocks=blocks_for(512) + 1, tokens_per_pass=512)
    batcher.waiting.append(one)
    while not batcher.idle:
        batcher.step()
    return one.ids[one.prompt :]


arrivals = st.lists(
    st.tuples(st.integers(0, len(ASKS) - 1), st.integers(0, 12), st.one_of(st.none(), st.integers(0, 10))), min_size=1, max_size=9
)


@settings(max_examples=12)
@given(arrivals, st.integers(1, 4), st.sampled_from([20, 300]), st.integers(0, 2))
@torch.inference_mode()
def test_requests_that_join_leave_and_give_up_at_any_time_draw_what_they_draw_alone(
    arriving: list[tuple[int, int, int | None]], slots: int, tokens_per_pass: int, spare: int
) -> None:
    blocks = (1 + spare) * blocks_for(320) + 1
    batcher: PipelinedBatcher[Request] = PipelinedBatcher(
        model(), [4], slots=slots, blocks=blocks, tokens_per_pass=tokens_per_pass, longest=320
    )
    given_up: list[Request] = []
    left = [(start, request(number), number, patience) for number, start, patience in arriving]
    finished: dict[Request, int] = {}
    for turn in range(600):
        for start, one, _, patience in left:
            if start == turn:
                batcher.waiting.append(one)
            if patience is not None and turn == start + patience and one not in finished:
                one.cancelled = True
                given_up.append(one)
        for one in batcher.step():
            finished[one] = turn
        if turn > 30 and batcher.idle:
            break
    assert batcher.idle
    for _, one, number, _ in left:
        assert one in given_up or one.ids[one.prompt :] == alone(number)
    whole = request(0)  # every seat and block came back
    batcher.waiting.extend([whole, *(request(0) for _ in range(slots))])
    while not batcher.idle:
        batcher.step()
    assert whole.ids[whole.prompt :] == alone(0)


def made(ids: list[int], seed: int, most: int) -> Request:
    return Request(Ask((), Sampling(1.0, 1.0, most), seed), list(ids), len(ids))


@torch.inference_mode()
def test_a_block_that_two_requests_computed_at_once_is_not_read_after_it_went_to_a_third() -> None:
    text = [5 + (7 * place) % 250 for place in range(130)]
    other = [5 + (11 * place) % 250 for place in range(200)]

    def drawn(kind: type[Batcher[Request]], waves: list[list[Request]], **options: int) -> list[list[int]]:
        batcher = kind(model(), [], slots=4, blocks=40, tokens_per_pass=300, **options)
        for wave in waves:
            batcher.waiting.extend(wave)
            for _ in range(3):
                batcher.step()
        while not batcher.idle:
            batcher.step()
        return [one.ids[one.prompt :] for wave in waves for one in wave]

    begun = made(text[:122], 0, 1)  # so that both compute the same last eight tokens, across the border of a block
    found = drawn(PipelinedBatcher, [[begun], [made(text, 1, 30), made(text, 2, 30)], [made(other, 3, 20)]], longest=320)
    assert found[1:] == [drawn(Batcher, [[one]])[0] for one in (made(text, 1, 30), made(text, 2, 30), made(other, 3, 20))]


def test_a_pass_that_fails_fails_every_request_and_the_next_ones_are_served() -> None:
    broken = endless()
    plays = asks(Sampling(1.0, 1.0, 4), tasks=2)

    async def use(served: TransformersEngine) -> list[Any]:
        broken.lm_head.broken = True
        failed = await asyncio.gather(*(served.generate(episode[0]) for episode in plays), return_exceptions=True)
        broken.lm_head.broken = False
        return [failed, await together(served, plays)]

    failed, found = run(use, engine(model=broken, steps=True))
    assert all(isinstance(error, EngineError) and "out of memory" in str(error) for error in failed)
    assert same(found, run(lambda served: together(served, plays), engine(model=endless())))


def test_given_up_requests_make_room_and_closing_cancels_the_rest() -> None:
    plays = asks(Sampling(1.0, 1.0, 1500), tasks=4, samples=1, turns=1)
    short = Ask(plays[-1][0].messages, Sampling(1.0, 1.0, 9), 1)

    async def use(served: TransformersEngine) -> Completion:
        tasks = [asyncio.create_task(served.generate(episode[0])) for episode in plays]
        await asyncio.sleep(0.05)
        for task in tasks[:2]:
            task.cancel()
        found = await served.generate(short)
        await served.close()
        assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True))
        return found

    found = run(use, engine(model=endless(), steps=True, slots=4, max_context=2048))
    assert same([[found]], [[run(lambda served: served.generate(short), engine(model=endless()))]])


class Suspicious(Qwen2ForCausalLM):
    """A model that computes something else where it is given the rows of a step."""

    def forward(self, *args: Any, **options: Any) -> Any:
        output = super().forward(*args, **options)
        if isinstance(options.get("batch"), steps.Step):
            output.logits = output.logits.roll(1, -1)
        return output


def test_a_model_that_steps_compute_otherwise_is_sampled_by_tiles_and_says_why() -> None:
    torch.manual_seed(0)
    odd = Suspicious(tiny_model().config).eval()
    odd.load_state_dict(tiny_model().state_dict())
    served = engine(model=odd, steps=True)
    assert "off by" in served.obstacle
    plays = asks(Sampling(1.0, 1.0, 5), tasks=1)
    assert same(run(lambda served: together(served, plays), served), run(lambda served: together(served, plays), engine()))


def test_drawing_by_tensors_alone_gives_the_ids_of_drawing_on_a_processor() -> None:
    torch.manual_seed(0)
    for vocabulary in (5, 1024, 2500):
        logits = torch.randn(60, vocabulary) * 3
        logits[:20] = logits[:20].round()  # many ids of the same chance
        logits[5, 1:] = -torch.inf
        samplings = [
            Sampling(temperature, top_p) for top_p in (1.0, 0.95, 0.5, 1e-6) for temperature in (0.0, 0.3, 1.0, 2.0, 1.0)
        ] * 3
        numbers = [uniform(row, 0) if row % 9 else (0.0, 1 - 2.0**-53)[row % 2] for row in range(60)]
        wanted, logprobs = draw(logits, samplings, numbers)
        temperatures, masses, drawn = (
            torch.tensor(values, dtype=torch.float64)
            for values in ([one.temperature for one in samplings], [one.top_p for one in samplings], numbers)
        )
        ids, found = draw_there(logits, temperatures, masses, drawn)
        assert ids.long().tolist() == wanted
        assert torch.allclose(found, torch.tensor(logprobs, dtype=torch.float64), atol=1e-5)


def test_logits_that_are_not_numbers_have_no_log_probability() -> None:
    one = torch.ones(2, dtype=torch.float64)
    _, logprobs = draw_there(torch.tensor([[0.0, torch.nan], [0.0, 1.0]]), one, one[:0], one / 2)
    assert torch.isnan(logprobs).tolist() == [True, False]


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_kernels_attend_as_gathered_keys_do(dtype: torch.dtype, close: float) -> None:
    torch.manual_seed(0)
    for heads, shared, width, size, depth, window in ((14, 2, 64, 64, 16, None), (28, 4, 128, 64, 40, None), (4, 1, 64, 16, 8, 50)):
        data = torch.randn(90, size, shared, 2 * width, device="cuda", dtype=dtype)
        queries = torch.randn(9, heads, width, device="cuda", dtype=dtype)
        tables, positions = torch.randint(90, (9, depth), device="cuda"), torch.randint(depth * size, (9,), device="cuda")
        positions[0] = 0
        both = data[tables].view(9, -1, shared, 2 * width).transpose(1, 2).float()
        key = torch.arange(depth * size, device="cuda")
        seen = (key <= positions[:, None]) & (key > positions[:, None] - (window or depth * size))
        wanted = torch.nn.functional.scaled_dot_product_attention(
            queries[:, :, None].float(), both[..., :width], both[..., width:], attn_mask=seen[:, None, None], enable_gqa=True
        )[:, :, 0]
        found = paged.attend(queries, data, tables, positions, window=window)
        assert (found.float() - wanted).abs().max() < close


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [2, 4])
def test_graphs_draw_greedily_what_tiles_draw(
    heads: int,
) -> None:  # with four heads keys are gathered, since no kernel is so narrow
    plays = asks(Sampling(0.0, 1.0, 9))
    model = partial(tiny_model, heads=heads, shared_heads=1)
    served = engine(model=model().cuda(), steps=True)
    found = run(lambda served: together(served, plays), served)
    assert same(found, run(lambda served: together(served, plays), engine(model=model().cuda(), steps=False)))


class ProgressCallback(steps.Steps):
    """Steps that take down when a pass is started and when it is read."""

    def __init__(self, model: Any, cache: Any, sessions: int) -> None:
        super().__init__(model, cache, sessions)
        self.events: list[str] = []

    def launch(self, rows: steps.Rows, tables: Any) -> steps.Landing:
        landing = super().launch(rows, tables)
        self.events.append("started")
        events = self.events

        class Read(steps.Landing):
            def read(self) -> list[list[float]]:
                events.append("read")
                return super().read()

        return Read(landing.found)


@torch.inference_mode()
def test_the_next_pass_is_started_before_the_last_one_is_read() -> None:
    batcher: PipelinedBatcher[Request] = PipelinedBatcher(model(), [4], slots=2, blocks=20, tokens_per_pass=300, longest=320)
    told = batcher.steps = ProgressCallback(model(), batcher._cache, 2)
    one = Request(Ask(ASKS[0].messages, Sampling(0.0, 1.0, 5), 0), list(prompts()[0]), len(prompts()[0]))
    batcher.waiting.append(one)
    while not batcher.idle:
        batcher.step()
    drawn = len(one.logprobs)
    assert told.events[:3] == ["started", "started", "read"]
    assert told.events.count("read") == told.events.count("started") <= drawn + 1
