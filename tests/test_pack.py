"""A packed row computes what its samples would compute apart: the loss and the gradient of every weight."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import gradients
from tiny import precise_model as model
from transformers import PreTrainedModel

from leafe.distillation.attention import blocks, tree_attention
from leafe.distillation.pack import PackedRow, collate, pack, term_losses

Sample = tuple[list[int], list[int], float]
WEIGHTS = (0.25, 0.5, 1.0, 2.0)

tokens = st.integers(1, 5)  # few, so that samples share much
samples = st.lists(
    st.tuples(st.lists(tokens, min_size=1, max_size=6), st.lists(tokens, min_size=1, max_size=4), st.sampled_from(WEIGHTS)),
    min_size=1,
    max_size=6,
)
ANYTHING = [
    [([1], [2], 1.0)],  # one token after one token
    [([1, 2], [3, 4], 1.0), ([1, 2, 3], [4], 0.5)],  # the same text, cut elsewhere
    [([1, 2], [3], 1.0), ([1, 2, 3, 4], [5, 5], 2.0)],  # a sample that is a prefix of another
    [([1, 2], [3, 4], 0.5), ([1, 2], [3, 4], 0.25)],  # twice the same
    [([1], [2, 3], 1.0), ([4], [2, 3], 1.0), ([5, 5], [1], 2.0)],  # nothing shared: branches at the root
    [([1, 2], [3], 1.0), ([1, 2], [4], 1.0), ([1, 2], [5], 1.0)],  # several children of one token
]


def loss_apart(network: PreTrainedModel, given: list[Sample]) -> torch.Tensor:
    """The plain way: each sample alone, no mask and no positions of ours."""
    losses = []
    for prompt, target, weight in given:
        logits = network(input_ids=torch.tensor([[*prompt, *target]])).logits[0]
        chosen = logits[len(prompt) - 1 : -1].log_softmax(-1)
        losses.append(-weight * chosen[torch.arange(len(target)), torch.tensor(target)].sum())
    return torch.stack(losses).sum()


def loss_packed(network: PreTrainedModel, rows: list[PackedRow], *, block: int | None) -> torch.Tensor:
    """In blocks of so many queries, or with the mask of the reference."""
    batch = collate(rows)
    if block is None:
        return (term_losses(network, batch) * batch.term_weight).sum()
    with tree_attention(network):
        return (term_losses(network, replace(batch, blocks=blocks(batch.end, block))) * batch.term_weight).sum()


# Of float32, in gradients that nearly cancel: 2.1e-5 was the most seen. Float64 on the same cases proves the rest.
ROUNDING = 2e-4


def assert_same(network: PreTrainedModel, given: list[Sample], rows: list[PackedRow], tolerance: float) -> None:
    apart = loss_apart(network, given)
    wanted = gradients(network, apart)
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    for block in (None, 2, 5, 256):
        packed = loss_packed(network, rows, block=block)
        assert packed.item() == pytest.approx(apart.item(), rel=tolerance)
        found = gradients(network, packed)
        assert wanted.keys() == found.keys()
        for name, grad in wanted.items():
            assert float((found[name] - grad).abs().max()) <= tolerance * largest, (block, name)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("given", ANYTHING)
def test_a_packed_row_has_the_loss_and_gradients_of_its_samples(kind: str, given: list[Sample]) -> None:
    assert_same(model(kind, torch.float64), given, [pack(given)], 1e-11)
    assert_same(model(kind, torch.float32), given, [pack(given)], ROUNDING)


@given(samples, st.sampled_from(["qwen2", "llama"]), st.integers(0, 5))
@settings(max_examples=20)
def test_any_samples_pack_without_changing_loss_or_gradients(given: list[Sample], kind: str, seed: int) -> None:
    assert_same(model(kind, torch.float64, seed), given, [pack(given)], 1e-11)
    assert_same(model(kind, torch.float32, seed), given, [pack(given)], ROUNDING)


@given(st.lists(samples, min_size=1, max_size=3), st.sampled_from(["qwen2", "llama"]))
@example(
    [[([1], [2], 1.0)], [([1, 2, 3, 4, 5, 5], [1, 2, 3, 4], 1.0), ([2], [5, 5, 5], 0.5)]], "qwen2"
)  # a short row beside a long one
@settings(max_examples=15)
def test_rows_of_a_batch_do_not_see_each_other(groups: list[list[Sample]], kind: str) -> None:
    every = [sample for group in groups for sample in group]
    assert_same(model(kind, torch.float64), every, [pack(group) for group in groups], 1e-11)
    network, rows = model(kind, torch.float64), [pack(group) for group in groups]
    alone = torch.cat([term_losses(network, collate([row])) for row in rows])
    assert torch.allclose(term_losses(network, collate(rows)), alone, rtol=1e-12, atol=1e-11)


def ancestors(row: PackedRow, place: int) -> list[int]:
    """The ids that a place may attend to, by the rule in the module's docstring."""
    return [row.ids[key] for key in range(place + 1) if place < row.end[key]]


@given(samples)
@settings(max_examples=100)
def test_a_row_is_its_samples_and_nothing_else(given: list[Sample]) -> None:
    row = pack(given)
    wanted: dict[tuple[tuple[int, ...], int], float] = {}
    for prompt, target, weight in given:
        for place, token in enumerate(target):
            key = ((*prompt, *target[:place]), token)
            wanted[key] = wanted.get(key, 0.0) + weight
    terms = zip(row.term_at, row.term_target, row.term_weight, strict=True)
    assert {(tuple(ancestors(row, at)), target): weight for at, target, weight in terms} == wanted
    paths = {tuple(ancestors(row, place)) for place in range(len(row.ids))}
    read = [[*prompt, *target[:-1]] for prompt, target, _ in given]
    assert paths == {tuple(ids[: end + 1]) for ids in read for end in range(len(ids))}
    assert len(paths) == len(row.ids)
    assert [len(ancestors(row, place)) - 1 for place in range(len(row.ids))] == row.depth


def test_a_target_with_nothing_before_it_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token before"):
        pack([([], [1], 1.0)])
