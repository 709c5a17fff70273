"""Folders that are no checkpoint of ours: each is one sentence, said before any weights are computed with; odd ones that work do work."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SPECIAL, tiny_model, tiny_tokenizer
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from leafe.distillation.attention import tree_attention
from leafe.distillation.pack import collate, pack, term_losses
from leafe.engines.loading import context_of, load_checkpoint, load_config, load_tokenizer
from leafe.engines.transformers import TransformersEngine
from leafe.errors import CorruptFile, UserError
from leafe.model_folder import locate

END = SPECIAL.index("<|end|>")


def checkpoint(folder: Path) -> Path:
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def edited(folder: Path, name: str, **values: Any) -> None:
    path = checkpoint(folder) / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def encoder_decoder(folder: Path) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    T5ForConditionalGeneration(T5Config(vocab_size=300, **sizes)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def encoder(folder: Path) -> None:
    CLIPTextConfig(vocab_size=300).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=300, **sizes)).save_pretrained(folder / "unused")
    (folder / "model.safetensors").write_bytes((folder / "unused" / "model.safetensors").read_bytes())
    tiny_tokenizer().save_pretrained(folder)


def gguf(folder: Path) -> None:
    (folder / "model-q4_k_m.gguf").write_bytes(b"GGUF")


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")


def no_tokenizer(folder: Path) -> None:
    checkpoint(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def foreign_tokenizer(folder: Path) -> None:
    checkpoint(folder)
    words = [f"word{number}" for number in range(20)]
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(words)
    tokenizer.save_pretrained(folder)


def control_token_without_embedding(folder: Path) -> None:
    checkpoint(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = "<|turn|>" + str(tokenizer.chat_template)
    tokenizer.save_pretrained(folder)


def no_weights(folder: Path) -> None:
    (checkpoint(folder) / "model.safetensors").unlink()


def pickled_weights(folder: Path) -> None:
    no_weights(folder)
    torch.save({}, folder / "pytorch_model.bin")


def text(name: str, content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (checkpoint(folder) / name).write_text(content)

    return write


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "an encoder and a decoder": (encoder_decoder, r"\(t5\) reads by an encoder; wanted a decoder-only model"),
    "an encoder": (encoder, r"\(clip_text_model\) is no decoder that continues text"),
    "code of its own": (
        partial(edited, name="config.json", model_type="house", auto_map={"AutoConfig": "house.House"}),
        r"\(house\) needs code that comes with it, which is never run here; serve it over HTTP",
    ),
    "a family that nobody knows": (partial(edited, name="config.json", model_type="house"), "cannot be loaded: .*house"),
    "quantised weights": (
        partial(edited, name="config.json", quantization_config={"quant_method": "awq", "bits": 4}),
        r"is quantised \(awq\) and cannot be trained; serve it over HTTP .* or give whole weights",
    ),
    "quantised weights of a part": (
        partial(edited, name="config.json", text_config={"quantization_config": {}, "compression_config": {"a": 1}}),
        r"is quantised \(method not named\)",
    ),
    "GGUF": (gguf, "that is GGUF, which llama.cpp reads: serve it over HTTP"),
    "an adapter": (adapter, "that is an adapter: merge it into its model"),
    "nothing": (Path.mkdir, "wanted a directory with config.json, model.safetensors and a tokenizer"),
    "no weights": (no_weights, "has no weights; wanted model.safetensors"),
    "pickled weights": (pickled_weights, "has pytorch_model.bin; wanted model.safetensors"),
    "no tokenizer": (no_tokenizer, "no usable tokenizer|cannot be loaded"),
    "a broken tokenizer": (text("tokenizer.json", "{"), "cannot be loaded"),
    "a tokenizer of another model": (foreign_tokenizer, r"has the token 'word\d+' with id 3\d\d and the model has embeddings for 300"),
    "a control token without embedding": (control_token_without_embedding, r"has the token '<\|turn\|>' with id 300"),
    "a broken configuration": (text("config.json", "{"), "cannot be loaded"),
    "a configuration that is a list": (text("config.json", "[]"), "cannot be loaded"),
    "no vocabulary": (partial(edited, name="config.json", vocab_size=None), "cannot be loaded"),
    "end tokens that are words": (
        partial(edited, name="generation_config.json", eos_token_id=["<|end|>"]),
        "has eos_token_id .*; wanted an id or a list of ids|cannot be loaded",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_folder_that_cannot_be_used_is_one_sentence(name: str, tmp_path: Path) -> None:
    make, reason = FAULTS[name]
    folder = tmp_path / "model"
    if name != "nothing":
        folder.mkdir()
    make(folder)
    with pytest.raises(UserError, match=reason) as refusal:
        TransformersEngine.from_folder(folder)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


@pytest.mark.parametrize("name", ["GGUF", "an adapter"])
def test_a_model_is_located_or_told_what_it_is_before_anything_is_begun(name: str, tmp_path: Path) -> None:
    make, reason = FAULTS[name]
    make(tmp_path)
    for place in (tmp_path, *(path for path in tmp_path.iterdir() if name == "GGUF")):
        with pytest.raises(UserError, match=reason):
            locate(str(place), {"nano": tmp_path})


def test_a_model_that_also_sees_is_loaded_sampled_from_and_trained_by_its_text(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    reads = sizes | {"vocab_size": 300, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "eos_token_id": END}
    sees = sizes | {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=reads, vision_config=sees, mm_tokens_per_image=1, image_token_index=299)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert TransformersEngine.from_folder(tmp_path, slots=2, max_context=512).max_context == 64
    model, _ = load_checkpoint(tmp_path)
    samples = [([5, 6, 7], [8, 9], 1.0), ([5, 6, 9], [8], 1.0)]
    with tree_attention(model.train()):
        packed, apart = (term_losses(model, collate(rows)) for rows in ([pack(samples)], [pack([one]) for one in samples]))
    assert torch.allclose(packed, apart, atol=1e-5)


def test_a_special_token_that_nothing_writes_needs_no_embedding(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    tokenizer.save_pretrained(tmp_path)
    model, loaded = load_checkpoint(tmp_path)
    assert len(loaded) > 300 == model.get_input_embeddings().weight.shape[0]


@pytest.mark.parametrize("eos", [None, 2, [2, 3], [2, 5000]])
def test_end_tokens_of_the_generation_config_are_one_or_several(eos: int | list[int] | None, tmp_path: Path) -> None:
    edited(tmp_path, "generation_config.json", eos_token_id=eos)
    wanted = {END} | set([] if eos is None else [eos] if isinstance(eos, int) else eos)
    assert TransformersEngine.from_folder(tmp_path, slots=2, max_context=64).stop_ids == wanted


def test_a_tokenizer_that_knows_no_end_at_all_is_refused() -> None:
    tokenizer = tiny_tokenizer(template="{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}assistant: ")
    tokenizer.eos_token = None
    model = tiny_model()
    model.generation_config.eos_token_id = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        TransformersEngine(model, tokenizer, slots=2, max_context=64)


def test_a_broken_file_is_told_from_a_wrong_kind(tmp_path: Path) -> None:
    text("config.json", "{")(tmp_path)
    with pytest.raises(CorruptFile):
        load_checkpoint(tmp_path)


def test_the_tokenizer_and_the_context_are_known_without_a_model(tmp_path: Path) -> None:
    config = load_config(checkpoint(tmp_path))
    assert [context_of(config, cap) for cap in (0, 512, 9999)] == [2048, 512, 2048]
    (tmp_path / "model.safetensors").unlink()
    assert load_tokenizer(tmp_path).encode("go left") == tiny_tokenizer().encode("go left")


@pytest.mark.parametrize("name", ["GGUF", "no tokenizer", "a broken configuration"])
def test_what_is_needed_to_know_them_is_refused_in_the_same_words(name: str, tmp_path: Path) -> None:
    make, reason = FAULTS[name]
    make(tmp_path)
    with pytest.raises(UserError, match=reason):
        load_config(tmp_path)
        load_tokenizer(tmp_path)
