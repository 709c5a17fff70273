"""Fine-tuning: what is learned, what is written, and that a step is the same however it is cut."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from leafe.distillation.pack import collate, term_losses
from leafe.distillation.rows import pack_examples
from leafe.engines.tokens import ChatTokenizer
from leafe.engines.transformers import TransformersEngine
from leafe.errors import CorruptFile, UserError
from leafe.records import Ask, Completion, Example, Message, Sampling
from leafe.settings import LoraSettings, TrainSettings
from leafe.training.sft import TrainReport, fine_tune

TOKENIZER = tiny_tokenizer()
PLAN = TrainSettings(epochs=2, learning_rate=1e-3, batch_size=64, micro_tokens=8192)
ANSWERS = ("go left", "go right", "go up", "go down")


def lesson(
    asked: str, answer: str, *, task: str = "t", number: int = 0, weight: float = 1.0, before: Sequence[str] = ()
) -> Example:
    history = [Message("assistant" if index % 2 else "user", text, bool(index % 2)) for index, text in enumerate(before)]
    ids = (*TOKENIZER.encode(answer, add_special_tokens=False), TOKENIZER.eos_token_id)
    messages = (*history, Message("user", asked))
    return Example(f"e{task}-{number}", "rehearsal", task, 0, f"turn{number}", messages, answer, ids, weight)


@cache
def lessons(count: int = 24) -> tuple[Example, ...]:
    """Conversations of some length in four tasks, with what they share and with one that stands there twice."""
    every = []
    for number in range(count):
        before = [text for turn in range(number % 3) for text in (f"you see {turn}", ANSWERS[turn])]
        asked, answer = f"the door is closed {number % 5}", ANSWERS[number % 4]
        every.append(lesson(asked, answer, task=f"task{number % 4}", number=number, weight=(1.0, 0.5)[number % 2], before=before))
    return (*every, every[0])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def trained(base: Path, out: Path, examples: Sequence[Example], settings: TrainSettings = PLAN, seed: int = 1) -> TrainReport:
    return fine_tune(base, examples, out, settings, seed=seed)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """The largest change of any weight."""
    assert before.keys() == after.keys()
    return max(float((after[name].float() - weight.float()).abs().max()) for name, weight in before.items())


def loss_on(folder: Path, examples: Sequence[Example]) -> float:
    """Mean loss of a checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    bundles = pack_examples(examples, ChatTokenizer(TOKENIZER), row_tokens=4096)
    with torch.inference_mode():
        return float(term_losses(model, collate([row for bundle in bundles for row in bundle.rows])).mean())


def answer(folder: Path, text: str) -> Completion:
    """The likeliest reply of a checkpoint."""

    async def once() -> Completion:
        engine = TransformersEngine.from_folder(folder, slots=1, max_context=256)
        try:
            return await engine.generate(Ask((Message("user", text),), Sampling(temperature=0.0), seed=0))
        finally:
            await engine.close()

    return asyncio.run(once())


def test_the_loss_falls_on_a_small_set(base: Path, tmp_path: Path) -> None:
    report = trained(base, tmp_path / "out", lessons(), PLAN.model_copy(update={"epochs": 8.0}))
    assert (report.examples, report.steps) == (25, 8)
    assert 0 < report.loss < loss_on(base, lessons())
    assert loss_on(tmp_path / "out", lessons()) < 0.5 * loss_on(base, lessons())


def test_the_loss_is_told_for_each_kind_of_example(base: Path, tmp_path: Path) -> None:
    mixed = [replace(example, kind="counterfactual") if number % 3 else example for number, example in enumerate(lessons())]
    report = trained(base, tmp_path / "out", mixed)
    assert report.by_kind.keys() == {"counterfactual", "rehearsal"}
    assert sum(report.by_kind.values()) == pytest.approx(report.loss, rel=1e-4)
    only = trained(base, tmp_path / "only", [example for example in mixed if example.kind == "rehearsal"])
    assert only.by_kind == pytest.approx({"rehearsal": only.loss}, rel=1e-4)


def test_an_example_is_learned_by_heart_and_the_engine_says_it(base: Path, tmp_path: Path) -> None:
    trained(
        base, tmp_path / "out", [lesson("what now?", "go left")], PLAN.model_copy(update={"epochs": 30.0, "learning_rate": 5e-3})
    )
    said = answer(tmp_path / "out", "what now?")
    assert (said.text, said.finish) == ("go left", "stop")
    assert said.token_ids == lesson("what now?", "go left").target_ids


def test_a_checkpoint_loads_as_any_other_and_nothing_else_is_written(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "out", lessons())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in base.iterdir()}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32 and not model.training
    text = "you see a box and a wall"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text) == TOKENIZER(text)


def test_training_says_nothing(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    steps: list[tuple[int, int]] = []
    fine_tune(base, lessons(), tmp_path, PLAN, seed=1, told=lambda done, total: steps.append((done, total)))
    assert capfd.readouterr().out == ""
    assert steps == [(1, 2), (2, 2)]


@pytest.mark.parametrize("batch_size", [8, pytest.param(64, marks=pytest.mark.slow)])
def test_a_step_is_the_same_however_it_is_cut_into_passes(base: Path, tmp_path: Path, batch_size: int) -> None:
    results = []
    for micro_tokens in (8192, 64, 16):
        settings = PLAN.model_copy(update={"micro_tokens": micro_tokens, "batch_size": batch_size})
        out = tmp_path / str(micro_tokens)
        results.append((trained(base, out, lessons(), settings), weights(out)))
    (whole, reference), *others = results
    change = moved(weights(base), reference)
    assert whole.steps >= 2 and change > 1e-4
    for report, found in others:
        assert report.rows > whole.rows
        assert report.steps == whole.steps
        assert report.loss == pytest.approx(whole.loss, rel=1e-5)
        assert moved(reference, found) < 0.02 * change


def test_the_same_seed_gives_the_same_weights_and_another_one_others(base: Path, tmp_path: Path) -> None:
    settings = PLAN.model_copy(update={"batch_size": 4, "lora": LoraSettings(rank=2, alpha=4)})
    for name, seed in {"first": 5, "again": 5, "other": 6}.items():
        torch.manual_seed(len(name))  # what was drawn before does not matter
        trained(base, tmp_path / name, lessons(), settings, seed=seed)
    first, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again", "other"))
    assert first == again != other


def test_an_adapter_is_merged_into_an_ordinary_checkpoint(base: Path, tmp_path: Path) -> None:
    settings = PLAN.model_copy(update={"lora": LoraSettings(rank=4, alpha=8, targets=("q_proj", "v_proj")), "learning_rate": 1e-2})
    trained(base, tmp_path / "out", lessons(), settings)
    before, after = weights(base), weights(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in base.iterdir()}
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed == {name for name in before if "q_proj" in name or "v_proj" in name}
    assert answer(tmp_path / "out", "what now?").token_ids


def test_an_adapter_for_layers_that_are_not_there_is_refused(base: Path, tmp_path: Path) -> None:
    settings = PLAN.model_copy(update={"lora": LoraSettings(targets=("nonsense",))})
    with pytest.raises(UserError, match=r"^train\.lora\.targets: wanted names of linear layers .*nonsense"):
        trained(base, tmp_path, lessons(), settings)


def test_nothing_to_train_on_is_one_sentence(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^there is no example to train on: explore with a larger budget"):
        trained(base, tmp_path, [])


@pytest.mark.skipif(torch.cuda.is_available(), reason="FlexAttention trains here")
def test_flex_attention_is_refused_where_it_cannot_train(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"wants a GPU.*train\.attention=auto"):
        trained(base, tmp_path / "out", lessons(), PLAN.model_copy(update={"attention": "flex"}))
    assert not (tmp_path / "out").exists()


def test_an_example_without_sampled_ids_is_refused(base: Path, tmp_path: Path) -> None:
    bare = Example("e", "rehearsal", "t", 0, "turn", (Message("user", "what now?"),), "go left", ())
    with pytest.raises(UserError, match=r"holds no sampled ids; explore with a server"):
        trained(base, tmp_path, [bare])


def test_a_checkpoint_without_weights_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((base / "config.json").read_text())
    with pytest.raises(CorruptFile, match="has no weights"):
        trained(tmp_path, tmp_path / "out", lessons())


def test_small_steps_are_not_lost_on_a_model_saved_in_bfloat16(base: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    TOKENIZER.save_pretrained(half)
    trained(half, tmp_path / "out", lessons(), PLAN.model_copy(update={"learning_rate": 1e-6}))
    after = weights(tmp_path / "out")
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    assert 0 < moved(weights(half), after) < 1e-5


@pytest.mark.parametrize(("share", "learns"), [(0.0, True), (0.05, True), (1.0, False)])
def test_a_single_step_is_no_warm_up_unless_all_of_it_is(base: Path, tmp_path: Path, share: float, learns: bool) -> None:
    report = trained(base, tmp_path, lessons(), PLAN.model_copy(update={"epochs": 1.0, "warmup_share": share}))
    assert report.steps == 1
    assert (moved(weights(base), weights(tmp_path)) > 0) == learns


def test_bundles_hold_no_more_examples_than_asked_for_and_count_their_target_tokens() -> None:
    tokenizer = ChatTokenizer(TOKENIZER)
    for row_tokens, most in [(10_000, 100), (10_000, 3), (30, 3), (1, 1)]:
        bundles = pack_examples(lessons(), tokenizer, row_tokens=row_tokens, most=most)
        assert max(bundle.examples for bundle in bundles) <= most
        assert sum(bundle.examples for bundle in bundles) == len(lessons())
        assert sum(bundle.target_tokens for bundle in bundles) == sum(len(example.target_ids) for example in lessons())
        weight = sum(sum(row.term_weight) for bundle in bundles for row in bundle.rows)
        assert weight == pytest.approx(sum(example.weight * len(example.target_ids) for example in lessons()))


@pytest.mark.slow
def test_what_a_process_refuses_is_said_as_one_process_would_say_it(base: Path, tmp_path: Path) -> None:
    settings = PLAN.model_copy(update={"lora": LoraSettings(targets=("nonsense",)), "processes": 2})
    with pytest.raises(UserError, match=r"^train\.lora\.targets: wanted names"):
        fine_tune(base, lessons(), tmp_path, settings, seed=1)
