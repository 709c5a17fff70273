"""Passes as a device takes them: padding changes nothing, few lengths are compiled, and nothing is asked of the device."""

from __future__ import annotations

import random
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

from leafe.distillation.attention import compiled_layers, tree_attention
from leafe.distillation.pack import PackedBatch, PackedRow, collate, pack, term_losses
from leafe.distillation.passes import lengthened, padded_length, parts_for, ready


def row(seed: int, history: int = 40, branches: int = 3) -> PackedRow:
    """Branches that share a history."""
    source = random.Random(seed)
    shared = [source.randrange(5, 290) for _ in range(history)]
    ends = [[source.randrange(5, 290) for _ in range(10)] for _ in range(branches)]
    return pack([([*shared, *end], [7, 8, seed % 90 + 9], 1.0) for end in ends])


@given(st.integers(1, 100_000), st.sampled_from([1, 2, 4, 8]))
def test_lengths_are_few_and_little_is_wasted(tokens: int, parts: int) -> None:
    length = padded_length(tokens, parts)
    assert length >= tokens and length % 128 == 0
    assert padded_length(length, parts) == length
    assert length - tokens < max(128, tokens / parts)


@given(st.integers(1, 40_000), st.sampled_from([1, 4]), st.integers(128, 33_000))
def test_a_row_is_not_padded_beyond_what_a_pass_may_hold(tokens: int, parts: int, most: int) -> None:
    assert tokens <= padded_length(tokens, parts, most) <= max(most, padded_length(tokens, parts))
    assert tokens > most or padded_length(tokens, parts, most) <= most


@pytest.mark.parametrize(("parts", "most"), [(1, 9), (2, 16), (4, 28), (8, 48)])
def test_few_lengths_are_compiled_up_to_32_thousand_tokens(parts: int, most: int) -> None:
    assert len({padded_length(tokens, parts) for tokens in range(1, 32_769)}) <= most


def test_a_short_training_pads_more_and_compiles_less() -> None:
    found = [parts_for(passes) for passes in (0.5, 6, 400, 2_000, 100_000)]
    assert found == [1, 1, 2, 4, 8]


def gradients(model: Any, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    losses = term_losses(model, batch)
    (losses * batch.term_weight).sum().backward()
    return losses.detach(), torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def test_tokens_behind_a_row_bear_no_loss_and_give_no_gradient() -> None:
    model, batch = tiny_model(), collate([row(1), row(2)])
    longer = lengthened(batch, padded_length(len(batch.ids)))
    assert len(longer.ids) == len(longer.depth) == len(longer.end) == 256 > len(batch.ids)
    (losses, wanted), (found, grown) = gradients(model, batch), gradients(model, longer)
    assert torch.allclose(losses, found, atol=1e-5) and torch.allclose(wanted, grown, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["tree", "dense", "flex"])
def test_a_pass_has_the_terms_of_its_rows(kind: str) -> None:
    rows = [row(1), row(2)]
    batch, wanted = ready(rows, kind, "cpu"), collate(rows)
    own = len(wanted.ids)
    for name in ("term_at", "term_target", "term_weight"):
        assert torch.equal(getattr(batch, name), getattr(wanted, name))
    assert torch.equal(batch.ids[:own], wanted.ids) and torch.equal(batch.end[:own], wanted.end)
    assert len(batch.ids) == (256 if kind == "flex" else own)
    assert bool(batch.blocks) == (kind == "tree")


@pytest.mark.parametrize("kind", ["tree", "dense"])
def test_a_step_asks_nothing_of_the_device(kind: Any) -> None:
    model, batch = tiny_model().train(), ready([row(1), row(2)], kind, "cpu")
    # Tensors without values stand for those of a device: reading one of them raises.
    with FakeTensorMode(allow_non_fake_inputs=True), tree_attention(model, kind):
        (term_losses(model, batch) * batch.term_weight).sum().backward()


def test_layers_are_compiled_once_for_each_length_whatever_the_trees_are() -> None:
    model, compiled = tiny_model(), CompileCounter()
    with torch.no_grad(), tree_attention(model, "flex"):
        for layer in model.model.layers:
            layer.forward = torch.compile(layer.forward, dynamic=False, backend=compiled)
        for number, (seed, history) in enumerate([(1, 40), (2, 50), (3, 60), (4, 120), (5, 130), (6, 45)]):
            batch = ready([row(seed, history)], "flex", "cpu")
            assert term_losses(model, batch).isfinite().all()
            assert compiled.frame_count == (1 if number < 3 else 2)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_flex_attention_trains_as_attention_in_blocks_does_and_waits_for_nothing(compiled: bool) -> None:
    model, rows = tiny_model().cuda().train(), [row(1), row(2)]
    with tree_attention(model, "tree"):
        losses, wanted = gradients(model, ready(rows, "tree", "cuda"))
    with tree_attention(model, "flex"), compiled_layers(model) if compiled else nullcontext():
        found, grown = gradients(model, ready(rows, "flex", "cuda"))
        torch.cuda.set_sync_debug_mode("error")
        try:
            gradients(model, ready(rows, "flex", "cuda"))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(losses, found, atol=1e-4)
    assert torch.allclose(wanted, grown, atol=1e-3 * float(wanted.abs().max()))
