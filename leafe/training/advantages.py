"""Advantages: how much each attempt of a group counts for or against its actions. A group is the attempts at one task.

With `n` attempts, reward `r_i`, mean `m`, and `c` successes where rewards are 0 or 1:

| kind | advantage | its expectation is the gradient of |
|---|---|---|
| `grpo` | `(r_i - m) / (s + 1e-4)`, `s` the sample's standard deviation (arXiv 2402.03300) | nothing in closed form |
| `dr_grpo` | `r_i - m` (arXiv 2503.20783) | `(1 - 1/n) E[r]` |
| `rloo` | `r_i` minus the mean of the others (arXiv 2402.14740) | `E[r]` |
| `max_rl` | `(r_i - m) / m`, 0 without a success (arXiv 2602.02710) | the sum over `k < n` of `Pass@k / k` |
| `pkpo` | success `k/n`, failure `k/n (1 - C(n-1-c, k-1) / C(n-1, k-1))` (arXiv 2505.15201), minus a baseline | `Pass@k` |

The last two are about success and failure: they take rewards of 0 and 1 only. The gradient is that of the mean over the
group of advantage times the whole attempt's log-probability, for `pkpo` of the sum. The loss is that, up to a constant factor, at the first
pass on a batch if `normalise` is a number: with `sequence` the tokens of long attempts count for less, and with `targets` the divisor is
drawn with the attempts. Dr. GRPO is `dr_grpo` with a number, the longest attempt in tokens. Groups that are all right or all wrong teach
nothing, whatever the kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt
from typing import Literal, get_args

from leafe.errors import UserError

Advantage = Literal["grpo", "dr_grpo", "rloo", "max_rl", "pkpo"]
KINDS: tuple[Advantage, ...] = get_args(Advantage)
BINARY: tuple[Advantage, ...] = ("max_rl", "pkpo")
LEAST_SPREAD = 1e-4  # added to the standard deviation


def advantages(rewards: Sequence[float], kind: Advantage, *, k: int = 1) -> list[float]:
    """One advantage for each attempt of a group. `k` is that of `pkpo`'s Pass@k, at most the number of attempts minus one.

    Raises `UserError` for a group of one, for rewards that the kind cannot use, and for a `k` that is too large.
    """
    n = len(rewards)
    if n < 2:
        raise UserError(f"a group wants at least two attempts to be compared, found {n}; set a larger group")
    if kind in BINARY and any(reward not in (0.0, 1.0) for reward in rewards):
        found = next(reward for reward in rewards if reward not in (0.0, 1.0))
        raise UserError(f"{kind} wants rewards of 0 and 1, success or failure, and found {found:g}; choose dr_grpo or rloo")
    mean = sum(rewards) / n
    centred = [reward - mean for reward in rewards]
    if kind == "dr_grpo":
        return centred
    if kind == "rloo":
        return [one * n / (n - 1) for one in centred]
    if kind == "grpo":
        spread = sqrt(sum(one * one for one in centred) / (n - 1))
        return [one / (spread + LEAST_SPREAD) for one in centred]
    if kind == "max_rl":
        return [one / mean for one in centred] if mean else centred
    return _for_pass_at_k([reward == 1.0 for reward in rewards], k)


def teaches(rewards: Sequence[float]) -> bool:
    """Whether a group's rewards differ: otherwise every advantage is 0."""
    return len(set(rewards)) > 1


def _for_pass_at_k(successes: list[bool], k: int) -> list[float]:
    """`pkpo`: each attempt's weight minus a baseline from the group without the attempt, which leaves the expected gradient unchanged."""
    n = len(successes)
    if not 1 <= k < n:
        raise UserError(f"pkpo wants k from 1 to {n - 1}, one less than the attempts of a group, and found {k}")
    without = [_pass_at_k(successes[:i] + successes[i + 1 :], k) for i in range(n)]
    return [weight - k / n * share for weight, share in zip(_weights(successes, k), without, strict=True)]


def _weights(successes: Sequence[bool], k: int) -> list[float]:
    n, failures = len(successes), len(successes) - sum(successes)
    # The share, among sets of k attempts with a given failed one, of those without a success.
    wrong = k / n * (1 - comb(failures - 1, k - 1) / comb(n - 1, k - 1)) if failures else 0.0
    return [k / n if success else wrong for success in successes]


def _pass_at_k(others: Sequence[bool], k: int) -> float:
    """The share of sets of k attempts that hold a success."""
    return 1 - comb(len(others) - sum(others), k) / comb(len(others), k)
