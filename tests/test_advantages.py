"""Advantages against their definitions: small cases by hand, and gradients by enumeration of every group."""

from __future__ import annotations

from itertools import product
from math import isclose, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.errors import UserError
from leafe.training.advantages import KINDS, Advantage, advantages, teaches


def gradient(kind: Advantage, n: int, chance: float, *, k: int = 1) -> float:
    """The expected derivative, by the chance of success, of advantage times log-probability, over all groups of n attempts."""
    total = 0.0
    for rewards in product((0.0, 1.0), repeat=n):
        probability = prod(chance if reward else 1 - chance for reward in rewards)
        slopes = [1 / chance if reward else -1 / (1 - chance) for reward in rewards]
        found = sum(one * slope for one, slope in zip(advantages(rewards, kind, k=k), slopes, strict=True))
        total += probability * (found if kind == "pkpo" else found / n)
    return total


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
def test_leaving_one_out_follows_the_mean_reward_and_not_doing_so_shrinks_it(n: int, chance: float) -> None:
    assert isclose(gradient("rloo", n, chance), 1.0)
    assert isclose(gradient("dr_grpo", n, chance), 1 - 1 / n)


@pytest.mark.parametrize("n", [2, 4, 7])
@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
def test_max_rl_follows_the_sum_of_pass_at_k_over_k(n: int, chance: float) -> None:
    assert isclose(gradient("max_rl", n, chance), sum((1 - chance) ** (k - 1) for k in range(1, n)))


@pytest.mark.parametrize(("n", "k"), [(2, 1), (4, 1), (4, 2), (4, 3), (7, 4), (7, 6)])
@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
def test_pkpo_follows_pass_at_k(n: int, k: int, chance: float) -> None:
    assert isclose(gradient("pkpo", n, chance, k=k), k * (1 - chance) ** (k - 1))


def test_a_group_by_hand() -> None:
    rewards = [1.0, 0.0, 0.0, 0.0]
    assert advantages(rewards, "dr_grpo") == [0.75, -0.25, -0.25, -0.25]
    assert advantages(rewards, "rloo") == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    assert advantages(rewards, "grpo") == pytest.approx([0.75 / 0.5001, *[-0.25 / 0.5001] * 3])
    assert advantages(rewards, "max_rl") == [3.0, -1.0, -1.0, -1.0]
    # k = 2 of 4: the success counts 2/4, a failure 2/4 (1 - C(2,1)/C(3,1)) = 1/6. Without a failure two of three pairs hold the success.
    assert advantages(rewards, "pkpo", k=2) == pytest.approx([0.5, *[1 / 6 - 0.5 * 2 / 3] * 3])


@pytest.mark.parametrize("kind", KINDS)
@given(reward=st.sampled_from([0.0, 1.0]), n=st.integers(2, 8))
def test_a_group_that_is_all_right_or_all_wrong_teaches_nothing(kind: Advantage, reward: float, n: int) -> None:
    assert advantages([reward] * n, kind) == pytest.approx([0.0] * n, abs=1e-12) and not teaches([reward] * n)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo", "max_rl"])
@given(rewards=st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=8))
def test_advantages_of_a_group_add_up_to_nothing(kind: Advantage, rewards: list[float]) -> None:
    assert sum(advantages(rewards, kind)) == pytest.approx(0.0, abs=1e-9)


def test_what_cannot_be_compared_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"at least two attempts.*found 1"):
        advantages([1.0], "grpo")
    with pytest.raises(UserError, match=r"max_rl wants rewards of 0 and 1.*found 0\.5.*dr_grpo"):
        advantages([0.5, 1.0], "max_rl")
    with pytest.raises(UserError, match=r"k from 1 to 3.*found 4"):
        advantages([0.0, 1.0, 0.0, 1.0], "pkpo", k=4)
