"""Attention over packed trees: what it refuses, and that it leaves a model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from leafe.distillation.attention import tree_attention
from leafe.distillation.pack import collate, pack, term_losses
from leafe.errors import UserError

SIZES: dict[str, Any] = {"vocab_size": 12, "hidden_size": 32, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48, "head_dim": 16}
BATCH = collate([pack([([1, 2, 3, 4], [5, 6], 1.0), ([1, 2, 3], [7, 8, 9], 1.0)])])


def mistral(window: int) -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SIZES, **HEADS, sliding_window=window))


def apart(model: PreTrainedModel) -> torch.Tensor:
    """The losses of the batch's samples, each computed alone."""
    found = {}
    for ids, first in (([1, 2, 3, 4, 5, 6], 4), ([1, 2, 3, 7, 8, 9], 3)):
        logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for place in range(first, len(ids)):
            found[tuple(ids[:place]), ids[place]] = -logits[place - 1, ids[place]]
    order = [((1, 2, 3), 7), ((1, 2, 3, 4), 5), ((1, 2, 3, 4, 5), 6), ((1, 2, 3, 7), 8), ((1, 2, 3, 7, 8), 9)]
    return torch.stack([found[term] for term in order])


@pytest.mark.parametrize("kind", ["tree", "dense"])
@pytest.mark.parametrize("window", [6, 4, 2])
def test_a_window_is_that_of_each_path(kind: Any, window: int) -> None:
    model = mistral(window).eval()
    with torch.inference_mode(), tree_attention(model, kind):
        assert torch.allclose(term_losses(model, BATCH), apart(mistral_like(model, window)), atol=1e-5)


@pytest.mark.slow  # compiles, for which it wants a C++ compiler
def test_flex_attention_computes_the_same_losses() -> None:
    model = mistral(window=6).eval()
    with torch.inference_mode(), tree_attention(model, "flex"):
        assert torch.allclose(term_losses(model, BATCH), apart(mistral_like(model)), atol=1e-5)


def mistral_like(model: PreTrainedModel, window: int = 6) -> PreTrainedModel:
    """The same weights, outside of any context."""
    twin = mistral(window).eval()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.slow
def test_a_window_shorter_than_a_path_is_refused_by_flex_attention() -> None:
    model = mistral(window=4)
    with tree_attention(model, "flex"), pytest.raises(UserError, match=r"sees 4 tokens back, and the longest example has 5"):
        term_losses(model, BATCH)


def test_a_model_without_positions_is_refused() -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=12, hidden_size=32, n_layer=2, n_head=2))
    with pytest.raises(UserError, match="takes no position ids"):
        term_losses(model, BATCH)


def test_a_model_that_takes_no_attention_function_is_refused() -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=12, hidden_size=32, n_layer=2, n_head=2))
    with pytest.raises(UserError, match=r"no attention function from outside.*train\.attention=dense"), tree_attention(model):
        pass


@pytest.mark.parametrize("kind", ["tree", "dense"])
def test_attention_with_a_cap_on_its_scores_and_a_window_in_some_layers_is_that_of_each_path(kind: Any) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(**SIZES, **HEADS, sliding_window=3, attn_logit_softcapping=0.5, initializer_range=0.3)
    model = Gemma2ForCausalLM(config).eval()
    with torch.inference_mode():
        wanted = apart(model)
        with tree_attention(model, kind):
            assert torch.allclose(term_losses(model, BATCH), wanted, atol=1e-5)


def test_a_model_is_left_as_it_was() -> None:
    model = tiny_model()
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="stop"), tree_attention(model):
        assert model.config._attn_implementation != before
        raise RuntimeError("stop")
    assert model.config._attn_implementation == before


def test_activation_checkpointing_computes_the_same() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with tree_attention(model):
            term_losses(model, BATCH).sum().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]))
    assert torch.equal(*gradients)
