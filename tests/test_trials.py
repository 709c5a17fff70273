"""The trials at load: what is equal passes, what differs is refused in a sentence, and what passes is right when checked otherwise."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from leafe.distillation.trial import choose_packing, try_packing
from leafe.engines.transformers import TransformersEngine
from leafe.engines.trial import give_back, take_over
from leafe.engines.twin import limits, twin
from leafe.errors import CorruptFile, UserError
from leafe.records import Example, Message
from leafe.settings import LoraSettings, TrainSettings
from leafe.training.sft import fine_tune, try_training

TOKENIZER = tiny_tokenizer()
PLAN = TrainSettings(epochs=1.0, learning_rate=1e-2, batch_size=8)


def benchmark() -> ModuleType:
    """`benchmarks/architectures.py`, which makes the table of the docs."""
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "architectures.py"
    spec = importlib.util.spec_from_file_location("architectures", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["architectures"] = module
    spec.loader.exec_module(module)
    return module


ARCHITECTURES = benchmark()

# What each kind is to say of packed training and of the engine; the table of the docs has the others.
EXPECTED = {
    "llama": ("equal: tree (", "equal ("),
    "gemma2": ("equal: tree (", "equal ("),
    "gpt_oss": ("equal: tree (", "equal ("),
    "gptj": ("equal: dense (", "refused"),
    "doge": ("equal: dense, paths of up to 24", "refused"),
    "gpt_neo": ("equal: dense, rows of up to 24", "refused"),
    "llama4_text": ("equal: tree, rows of up to 24", "equal: conversations of up to 24"),
    "phi3, longrope": ("equal: tree, paths of up to 48", "equal: conversations of up to 48"),
    "llama, dynamic rope": ("equal: tree, paths of up to 64", "equal: conversations of up to 64"),
    "falcon, alibi": ("refused", "refused"),
    "mamba": ("refused", "refused"),
}
LONG = {"gpt_oss", "phi3, longrope", "llama4_text"}  # a length like theirs is found with dynamic rope


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in EXPECTED])
def test_an_architecture_is_equal_up_to_a_length_or_refused(name: str) -> None:
    line = ARCHITECTURES.examine(name, tries=1, prompts=5)
    packing, engine = EXPECTED[name]
    assert ARCHITECTURES.cell(line.packing).startswith(packing)
    assert ARCHITECTURES.cell(line.engine).startswith(engine)


@pytest.mark.slow  # some minutes
def test_no_architecture_is_wrong_or_ends_in_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert ARCHITECTURES.main(["--jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(line["packing"]["word"] == "equal" for line in lines) >= 80
    assert sum(line["engine"]["word"] == "equal" for line in lines) >= 60


class OfItsRow(LlamaForCausalLM):
    """A model whose numbers depend on where in the row a token stands, which packing changes."""

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        place = torch.arange(input_ids.shape[1], dtype=torch.float32)
        embedded = self.model.embed_tokens(input_ids) + 0.2 * torch.sin(place / 5)[None, :, None]
        return super().forward(inputs_embeds=embedded, **options)


class OfItsLength(LlamaForCausalLM):
    """A model that goes by the longest position of a pass, beyond a context that its configuration names."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **options: Any) -> Any:
        longest = input_ids.shape[1] if position_ids is None else int(position_ids.max()) + 1
        scale = 1.5 if longest > self.config.keep_window_size else 1.0
        embedded = scale * self.model.embed_tokens(input_ids)
        return super().forward(inputs_embeds=embedded, position_ids=position_ids, **options)


def made_of(kind: Callable[[Any], Any], **fields: Any) -> Any:
    """A tiny Llama of another class, with further fields in its configuration."""
    config = tiny_model("llama").config
    for name, value in fields.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return kind(config).eval()


def test_a_model_that_is_packed_wrongly_is_refused_with_what_was_found() -> None:
    with pytest.raises(UserError, match=r"OfItsRow .*tree, dense.*logits") as caught:
        choose_packing(made_of(OfItsRow))
    assert "\n" not in str(caught.value)


def test_a_model_that_batches_wrongly_is_refused_and_left_as_it_was() -> None:
    model = made_of(OfItsRow)
    usual = model.config._attn_implementation
    with pytest.raises(UserError, match=r"cannot run a OfItsRow \(its logits are off by .*over HTTP instead"):
        take_over(model)
    assert model.config._attn_implementation == usual


def test_what_changes_beyond_a_named_length_is_allowed_up_to_it() -> None:
    model = made_of(OfItsLength, keep_window_size=1000)
    assert limits(model.config) == {"keep_window_size": 1000}
    assert choose_packing(model).cap.path == 1000
    taken = take_over(model)
    give_back(model, taken.attention)
    assert taken.longest == 1000


def test_a_way_that_fails_its_trial_is_refused_though_it_is_asked_for() -> None:
    model = ARCHITECTURES.build("nemotron")
    assert choose_packing(model).kind == "dense"
    with pytest.raises(UserError, match=r"tree: its layers do not hand on .*set train\.attention=auto"):
        choose_packing(model, "tree")


def test_an_architecture_is_tried_once_and_weights_that_give_no_numbers_are_refused_all_the_same() -> None:
    def passes(model: Any, work: Callable[[Any], Any]) -> int:
        calls: list[None] = []
        with model.register_forward_hook(lambda *_: calls.append(None)):
            work(model)
        return len(calls)

    def engine(model: Any) -> None:
        give_back(model, take_over(model).attention)

    for trial in (engine, choose_packing):
        fields = {
            "rope_parameters": {"rope_type": "default", "rope_theta": 12345.0 + len(trial.__name__)}
        }  # which no other test tries
        assert passes(made_of(LlamaForCausalLM, **fields), trial) > 5
        assert passes(made_of(LlamaForCausalLM, **fields).train(), trial) == 1
        broken = made_of(LlamaForCausalLM, **fields)
        broken.model.norm.weight.data.fill_(float("nan"))
        with pytest.raises(UserError, match="logits are off by"):
            trial(broken)
        assert passes(made_of(LlamaForCausalLM, **fields), trial) == 1


def test_a_trial_changes_neither_the_model_nor_what_is_drawn_next() -> None:
    model = ARCHITECTURES.build("phi3, longrope").train()
    before = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    try_packing(model, "tree")
    give_back(model, take_over(model).attention)
    assert torch.equal(torch.rand(3), wanted) and model.training
    assert all(torch.equal(value, before[name]) for name, value in [*model.named_parameters(), *model.named_buffers()])


def test_a_twin_is_small_and_keeps_its_kinds_of_layers() -> None:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 8
    config = Qwen2Config(hidden_size=1024, num_hidden_layers=24, sliding_window=4096, use_sliding_window=True, layer_types=kinds)
    with torch.device("meta"):
        large = Qwen2ForCausalLM(config)
    small = twin(large, "sliding_window", 16)
    assert small is not None and sum(weight.numel() for weight in small.parameters()) < 5_000_000
    assert small.config.layer_types == kinds[:6] and small.config.sliding_window == 16
    assert small.config.hidden_size // small.config.num_attention_heads == 32
    assert (config.sliding_window, config.num_hidden_layers) == (4096, 24)


def checkpoint(model: Any, folder: Path) -> Path:
    """A folder that `leafe` loads."""
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def lessons(words: int = 3) -> list[Example]:
    """One example, of a prompt with so many words."""
    ids = tuple(TOKENIZER.encode("go left", add_special_tokens=False))
    return [Example("e", "rehearsal", "t", 0, "turn", (Message("user", "go up " * words),), "go left", ids)]


def logits(folder: Path) -> torch.Tensor:
    """Of a saved checkpoint, on some ids."""
    with torch.no_grad():
        found: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.arange(20)[None]).logits
    return found


def test_training_says_which_attention_it_took(tmp_path: Path) -> None:
    base = checkpoint(tiny_model(), tmp_path / "base")
    taken = {
        wanted: fine_tune(base, lessons(), tmp_path / wanted, PLAN.model_copy(update={"attention": wanted}), seed=1).attention
        for wanted in ("auto", "dense")
    }
    assert taken == {"auto": "tree", "dense": "dense"}


def test_an_example_longer_than_the_trial_allows_is_refused(tmp_path: Path) -> None:
    base = checkpoint(ARCHITECTURES.build("phi3, longrope"), tmp_path / "base")
    assert fine_tune(base, lessons(3), tmp_path / "out", PLAN, seed=1).steps == 1
    with pytest.raises(UserError, match=r"up to 48 tokens.*the longest example has \d+; .*engine\.max_context=48"):
        fine_tune(base, lessons(80), tmp_path / "refused", PLAN, seed=1)


def test_the_engine_holds_no_longer_conversation_than_its_trial_allows() -> None:
    assert TransformersEngine(ARCHITECTURES.build("phi3, longrope"), TOKENIZER, slots=2, max_context=400).max_context == 48
    assert TransformersEngine(ARCHITECTURES.build("mistral"), TOKENIZER, slots=2, max_context=400).max_context == 400


@pytest.mark.parametrize("targets", [("lm_head",), ("embed_tokens", "q_proj"), ("q_proj",), ()])
def test_an_adapter_on_tied_embeddings_is_saved_as_it_was_trained(tmp_path: Path, targets: tuple[str, ...]) -> None:
    config = tiny_model("llama").config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    base = checkpoint(LlamaForCausalLM(config), tmp_path / "base")
    settings = PLAN.model_copy(update={"lora": LoraSettings(rank=4, targets=targets), "epochs": 4.0, "learning_rate": 0.05})
    fine_tune(base, lessons(), tmp_path / "out", settings, seed=1)  # which compares what it saved with what it trained
    apart = bool({"lm_head", "embed_tokens"} & set(targets))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is not apart
    assert not torch.allclose(logits(tmp_path / "out"), logits(base), atol=1e-2)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_trained_model_keeps_its_configuration(tmp_path: Path, use_cache: bool) -> None:
    model = tiny_model()
    model.config.use_cache = use_cache
    fine_tune(checkpoint(model, tmp_path / "base"), lessons(), tmp_path / "out", PLAN, seed=1)
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("base", "out"))
    assert before == after


def test_one_step_is_tried_and_nothing_kept(tmp_path: Path) -> None:
    base = checkpoint(tiny_model(), tmp_path / "base")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert (try_training(base, PLAN).steps, try_training(base, PLAN.model_copy(update={"lora": LoraSettings(rank=2)})).steps) == (
        1,
        1,
    )
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_conversations_that_would_become_too_long_to_train_on_are_refused_by_one_step(tmp_path: Path) -> None:
    base = checkpoint(ARCHITECTURES.build("phi3, longrope"), tmp_path / "base")
    assert try_training(base, PLAN, context=48).longest == 48
    with pytest.raises(UserError, match=r"up to 48 tokens.*type engine\.max_context=48"):
        try_training(base, PLAN)


def test_what_training_would_refuse_is_refused_by_one_step(tmp_path: Path) -> None:
    base = checkpoint(tiny_model(), tmp_path / "base")
    with pytest.raises(UserError, match=r"^train\.lora\.targets: wanted names"):
        try_training(base, PLAN.model_copy(update={"lora": LoraSettings(targets=("nonsense",))}))
    with pytest.raises(UserError, match="does not compute on packed trees"):
        try_training(checkpoint(ARCHITECTURES.build("bloom"), tmp_path / "bloom"), PLAN)
    (tmp_path / "base" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CorruptFile, match="cannot be loaded"):
        try_training(base, PLAN)
