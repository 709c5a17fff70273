"""Drawing one token per row of logits, as a function of the logits and of a number in [0, 1) that a seed decides.

The invariant: no global random state. The number for token `index` of a request is `uniform(seed, index)`, and the token is found by
inverting the cumulative distribution in the order of the ids, so a row's draw never depends on the other rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from leafe.errors import EngineError
from leafe.records import Sampling

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
LOGPROB_DIGITS = 5


def uniform(seed: int, index: int) -> float:
    """The number in [0, 1) for token `index` of a request with this seed (SplitMix64; Steele, Lea and Flood, 2014)."""
    word = _mixed(seed & _WORD)  # neighbouring seeds must not give shifted copies of one another
    word = _mixed((word + (index + 1) * _GOLDEN) & _WORD)
    return (word >> 11) * 2.0**-53


def _mixed(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def draw(logits: torch.Tensor, samplings: Sequence[Sampling], numbers: Sequence[float]) -> tuple[list[int], list[float]]:
    """One id per row of `logits` (rows, vocabulary) and its log-probability.

    The log-probability is under the temperature-scaled distribution before any truncation, rounded to 5 decimals. Temperature 0
    takes the most probable id and its log-probability at temperature 1.
    """
    warmth = torch.tensor([sampling.temperature or 1.0 for sampling in samplings], device=logits.device)
    logprobs = torch.log_softmax(logits.float() / warmth[:, None], dim=-1)
    if not bool(torch.isfinite(logprobs.amax(dim=-1)).all()):
        raise EngineError("the model's logits are not numbers; the checkpoint is broken or its dtype overflows")
    greedy = torch.tensor([sampling.temperature == 0 for sampling in samplings], device=logits.device)
    best = logprobs.argmax(dim=-1)
    chosen = best if bool(greedy.all()) else torch.where(greedy, best, _invert(logprobs, samplings, numbers))
    taken = logprobs.gather(1, chosen[:, None])[:, 0]
    return chosen.tolist(), [round(value, LOGPROB_DIGITS) for value in taken.tolist()]


def _invert(logprobs: torch.Tensor, samplings: Sequence[Sampling], numbers: Sequence[float]) -> torch.Tensor:
    chances = logprobs.double().exp()
    if any(sampling.top_p < 1 for sampling in samplings):
        chances = _nucleus(chances, samplings)
    heaped = chances.cumsum(dim=-1)
    target = torch.tensor(numbers, dtype=torch.float64, device=logprobs.device) * heaped[:, -1]
    found = torch.searchsorted(heaped, target[:, None], right=True)[:, 0]
    # With a number just below one, rounding can put the target on the end of the heap, behind ids of no chance at all.
    last = (heaped < heaped[:, -1:]).sum(dim=-1)
    return torch.minimum(found, last)


def _nucleus(chances: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """`chances` with zeros outside the smallest set of most probable ids that holds `top_p` of the mass."""
    mass = torch.tensor([sampling.top_p for sampling in samplings], dtype=torch.float64, device=chances.device)
    ordered, order = chances.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = (before < mass[:, None]) | (mass[:, None] >= 1)
    kept[:, 0] = True
    return torch.zeros_like(chances).scatter_(1, order, ordered * kept)
