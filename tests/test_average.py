"""The weights between two checkpoints, against averages worked out by hand: ends, precision, ties, files in pieces, other models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from leafe.errors import CorruptFile, UserError
from leafe.training.average import INDEX, average_checkpoints
from leafe.training.weights import untie_embeddings

IDS = torch.tensor([[7, 50, 21, 99]])


def saved(folder: Path, seed: int, *, kind: str = "llama", dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    tiny_model(kind, seed=seed).to(dtype).save_pretrained(folder, **options)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: one for file in sorted(folder.glob("*.safetensors")) for name, one in load_file(file).items()}


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)


def averaged(first: Path, second: Path, out: Path, share: float) -> Path:
    out.mkdir()
    average_checkpoints(first, second, out, share)
    return out


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    return saved(folder / "first", 1), saved(folder / "second", 2)


def test_every_weight_lies_where_the_share_says_and_the_model_computes_with_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = averaged(*pair, tmp_path / "out", 0.25)
    one, other, between = tensors(pair[0]), tensors(pair[1]), tensors(out)
    assert between.keys() == other.keys()
    for name, tensor in between.items():
        assert torch.allclose(tensor, 0.75 * one[name] + 0.25 * other[name], rtol=0, atol=1e-7) and tensor.dtype == torch.float32
    by_hand = tiny_model("llama", seed=1)
    state, added = by_hand.state_dict(), tiny_model("llama", seed=2).state_dict()
    by_hand.load_state_dict({name: 0.75 * value + 0.25 * added[name] for name, value in state.items()})
    assert torch.allclose(loaded(out)(IDS).logits, by_hand(IDS).logits, atol=1e-5)
    assert {file.name for file in out.iterdir()} == {file.name for file in pair[1].iterdir()}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_at_its_ends_the_average_is_one_of_the_two_to_the_bit(pair: tuple[Path, Path], tmp_path: Path, share: float) -> None:
    between, wanted = tensors(averaged(*pair, tmp_path / "out", share)), tensors(pair[round(share)])
    assert all(torch.equal(between[name], wanted[name]) for name in wanted)


def test_a_base_in_half_precision_is_averaged_in_float32_and_the_precision_of_the_second_is_kept(tmp_path: Path) -> None:
    half, whole = saved(tmp_path / "half", 1, dtype=torch.bfloat16), saved(tmp_path / "whole", 2)
    up = tensors(averaged(half, whole, tmp_path / "up", 0.5))
    down = tensors(averaged(whole, half, tmp_path / "down", 0.5))
    one, other = tensors(half), tensors(whole)
    for name in other:
        exact = (one[name].float() + other[name]) / 2
        assert up[name].dtype == torch.float32 and torch.allclose(up[name], exact, rtol=0, atol=1e-7)
        rounded_first = ((one[name] + other[name].bfloat16()) / 2 == exact.bfloat16()).float().mean()
        rounded_last = (down[name] == exact.bfloat16()).float().mean()
        assert down[name].dtype == torch.bfloat16 and rounded_last > 0.999
        assert rounded_first < 0.95 or name.endswith("norm.weight")  # which are all one


@pytest.mark.parametrize("in_pieces", [0, 1])
def test_checkpoints_in_several_files_are_read_and_written_as_the_second_is(in_pieces: int, tmp_path: Path) -> None:
    sizes = [{"max_shard_size": "60KB"} if number == in_pieces else {} for number in range(2)]
    pair = [saved(tmp_path / str(number), number, **size) for number, size in enumerate(sizes)]
    assert (pair[in_pieces] / INDEX).exists() and len(list(pair[in_pieces].glob("*.safetensors"))) > 2
    out = averaged(pair[0], pair[1], tmp_path / "out", 0.5)
    assert {file.name for file in out.iterdir()} == {file.name for file in pair[1].iterdir()}
    one, other, between = (tensors(folder) for folder in (*pair, out))
    assert all(torch.allclose(between[name], (one[name] + other[name]) / 2, atol=1e-7) for name in other)
    loaded(out)


def tied(folder: Path, seed: int, *, apart: bool = False) -> Path:
    model = tiny_model(seed=seed)
    model.config.tie_word_embeddings = True
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    model.tie_weights()
    if apart:  # as an adapter on embeddings leaves them
        untie_embeddings(model)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    out = averaged(tied(tmp_path / "first", 1), tied(tmp_path / "second", 2), tmp_path / "out", 0.5)
    assert "lm_head.weight" not in tensors(out)
    model = loaded(out)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_tied_embeddings_of_the_base_are_averaged_with_both_of_an_untied_arm(tmp_path: Path) -> None:
    first, second = tied(tmp_path / "first", 1), tied(tmp_path / "second", 2, apart=True)
    between, one, other = (tensors(folder) for folder in (averaged(first, second, tmp_path / "out", 0.5), first, second))
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert torch.allclose(between[name], (one["model.embed_tokens.weight"] + other[name]) / 2, atol=1e-7)


def test_an_average_has_no_adapter_since_that_of_the_second_model_is_not_its_own(pair: tuple[Path, Path], tmp_path: Path) -> None:
    second = saved(tmp_path / "second", 2)
    (second / "adapter").mkdir()
    (second / "adapter" / "adapter_config.json").write_text("{}")
    out = averaged(pair[0], second, tmp_path / "out", 0.5)
    assert {file.name for file in out.iterdir()} == {file.name for file in second.iterdir()} - {"adapter"}


def test_checkpoints_of_different_models_are_refused_with_the_weight_that_differs(pair: tuple[Path, Path], tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    tiny_model("llama", vocabulary=400).save_pretrained(wide)
    tiny_tokenizer().save_pretrained(wide)
    with pytest.raises(
        UserError, match=r"two checkpoints of one model, and lm_head\.weight is \[400, 64\] in .*wide and \[300, 64\]"
    ):
        averaged(wide, pair[1], tmp_path / "out", 0.5)


def test_weights_that_cannot_be_read_are_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    torn = saved(tmp_path / "torn", 3)
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:100])
    with pytest.raises(CorruptFile, match=r"weights in .*torn.* cannot be read"):
        averaged(pair[0], torn, tmp_path / "out", 0.5)
