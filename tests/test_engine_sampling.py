"""Drawing tokens: the numbers, the distribution, the truncation."""

from __future__ import annotations

import pytest
import torch

from leafe.engines.sampling import draw, uniform
from leafe.errors import EngineError
from leafe.records import Sampling


def many(logits: list[float], sampling: Sampling, count: int = 4000) -> torch.Tensor:
    ids, _ = draw(torch.tensor([logits]).repeat(count, 1), [sampling] * count, [uniform(seed, 0) for seed in range(count)])
    return torch.bincount(torch.tensor(ids), minlength=len(logits)) / count


def test_numbers_are_spread_evenly_over_seeds_and_over_tokens() -> None:
    for numbers in ([uniform(seed, 3) for seed in range(4000)], [uniform(3, index) for index in range(4000)]):
        assert torch.histc(torch.tensor(numbers), 10, 0, 1).sub(400).abs().max() < 100
    assert len({uniform(seed, index) for seed in range(50) for index in range(50)}) == 2500


def test_draws_follow_the_distribution_at_any_temperature() -> None:
    logits = [2.0, 1.0, 0.0, -1.0]
    for temperature in (0.5, 1.0, 2.0):
        wanted = torch.softmax(torch.tensor(logits) / temperature, -1)
        assert (many(logits, Sampling(temperature)) - wanted).abs().max() < 0.03


def test_nucleus_keeps_the_smallest_set_that_holds_the_mass() -> None:
    probs = torch.tensor([0.1, 0.5, 0.15, 0.25])
    found = many(probs.log().tolist(), Sampling(top_p=0.7))
    assert (found - torch.tensor([0, 2 / 3, 0, 1 / 3])).abs().max() < 0.03
    assert many(probs.log().tolist(), Sampling(top_p=0.01)).tolist() == [0, 1, 0, 0]


def test_log_probabilities_are_those_of_the_distribution_before_truncation() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    [token], [logprob] = draw(logits, [Sampling(0.5, 0.5)], [0.9])
    assert token == 0
    assert logprob == round(float(torch.log_softmax(logits / 0.5, -1)[0, 0]), 5)


def test_temperature_zero_is_greedy_beside_rows_that_are_not() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.9]] * 2)
    ids, _ = draw(logits, [Sampling(0.0), Sampling(1.0)], [0.999999, 0.999999])
    assert ids == [1, 2]


def test_an_id_of_no_chance_is_never_drawn() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]])
    for number in (0.0, 0.5, 1 - 2.0**-53):
        assert draw(logits, [Sampling()], [number])[0][0] in (0, 1)


def test_logits_that_are_not_numbers_are_an_error() -> None:
    with pytest.raises(EngineError, match="not numbers"):
        draw(torch.tensor([[0.0, torch.nan]]), [Sampling()], [0.5])
