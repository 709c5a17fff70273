"""Drawing one token per row of logits, as a function of the logits and of a number in [0, 1) that a seed decides.

The invariant: no global random state. The number for token `index` of a request is `uniform(seed, index)`, and the token is found by
inverting the cumulative distribution in the order of the ids, so a row's draw never depends on the other rows.

`draw` is for a processor. `draw_there` computes the same by tensors alone, for a GPU: it neither sorts nor accumulates a whole vocabulary,
and takes probabilities in float32, so one draw in some millions may fall on a neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from leafe.errors import EngineError
from leafe.records import Sampling

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
LOGPROB_DIGITS = 5
CHUNK = 1024  # ids whose probabilities are added up before the cumulative sum
BROKEN_LOGITS = "the model's logits are not numbers; the checkpoint is broken or its dtype overflows"
Score = tuple[float, tuple[tuple[int, float], ...]]  # a log-probability, and the most probable ids with their probabilities
INFINITE = 0x7F800000  # the bits of infinity in float32


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
    temperature = torch.tensor([sampling.temperature or 1.0 for sampling in samplings], device=logits.device)
    logprobs = torch.log_softmax(logits.float() / temperature[:, None], dim=-1)
    if not bool(torch.isfinite(logprobs.amax(dim=-1)).all()):
        raise EngineError(BROKEN_LOGITS)
    greedy = torch.tensor([sampling.temperature == 0 for sampling in samplings], device=logits.device)
    best = logprobs.argmax(dim=-1)
    chosen = best if bool(greedy.all()) else torch.where(greedy, best, _invert(logprobs, samplings, numbers))
    taken = logprobs.gather(1, chosen[:, None])[:, 0]
    return chosen.tolist(), [round(value, LOGPROB_DIGITS) for value in taken.tolist()]


def _invert(logprobs: torch.Tensor, samplings: Sequence[Sampling], numbers: Sequence[float]) -> torch.Tensor:
    probs = logprobs.double().exp()
    if any(sampling.top_p < 1 for sampling in samplings):
        probs = _nucleus(probs, samplings)
    cumulative = probs.cumsum(dim=-1)
    target = torch.tensor(numbers, dtype=torch.float64, device=logprobs.device) * cumulative[:, -1]
    found = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    # With a number just below one, rounding can put the target on the end of the cumulative sum, behind ids of probability 0.
    last = (cumulative < cumulative[:, -1:]).sum(dim=-1)
    return torch.minimum(found, last)


def _nucleus(probs: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """`probs` with zeros outside the smallest set of most probable ids that holds `top_p` of the mass."""
    mass = torch.tensor([sampling.top_p for sampling in samplings], dtype=torch.float64, device=probs.device)
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = (before < mass[:, None]) | (mass[:, None] >= 1)
    kept[:, 0] = True
    return torch.zeros_like(probs).scatter_(1, order, ordered * kept)


def score(logits: torch.Tensor, ids: Sequence[int], top: int) -> list[Score]:
    """For each row of `logits` (rows, vocabulary) the log-probability of its id at temperature 1 and the `top` ids of most probability."""
    if not ids:
        return []
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    if not bool(torch.isfinite(logprobs.amax(dim=-1)).all()):
        raise EngineError(BROKEN_LOGITS)
    taken = logprobs.gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0].tolist()
    best, places = logprobs.topk(min(top, logprobs.shape[1]), dim=-1)
    tops = [tuple(zip(row, probs, strict=True)) for row, probs in zip(places.tolist(), best.exp().tolist(), strict=True)]
    return [(round(value, LOGPROB_DIGITS), row) for value, row in zip(taken, tops, strict=True)]


def draw_there(logits: torch.Tensor, temperatures: torch.Tensor, masses: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """(2, rows) in float64: ids and log-probabilities, one for each row of `logits` (rows, vocabulary), as `draw` gives them unrounded.

    `temperatures`, `masses` (top-p; empty if it is 1 in each row) and `numbers` are (rows,) in float64. Nothing waits for the device, so
    that a CUDA graph can hold it; logits that are not numbers give a log-probability that is not a number.
    """
    greedy = temperatures == 0
    temperature = torch.where(greedy, 1.0, temperatures).float()
    logprobs = torch.log_softmax(logits.float() / temperature[:, None], dim=-1)
    best, place = logprobs.max(dim=-1)
    probs = F.pad(logprobs.exp(), (0, -logprobs.shape[1] % CHUNK))
    chosen = torch.where(greedy, place, _invert_there(_nucleus_there(probs, masses) if len(masses) else probs, numbers))
    taken = logprobs.gather(1, chosen[:, None])[:, 0]
    return torch.stack((chosen.double(), torch.where(torch.isfinite(best), taken, torch.nan).double()))


def _invert_there(probs: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """As `_invert` finds ids: the chunk in which the target lies first, then the id in it."""
    chunks = probs.view(len(probs), -1, CHUNK)
    cumulative = chunks.sum(-1, dtype=torch.float64).cumsum(-1)
    target = numbers * cumulative[:, -1]
    chunk = _first_above(cumulative, target)
    below = F.pad(cumulative, (1, 0)).gather(1, chunk[:, None])[:, 0]
    inside = chunks.gather(1, chunk[:, None, None].expand(-1, 1, CHUNK))[:, 0].cumsum(-1, dtype=torch.float64)
    return chunk * CHUNK + _first_above(inside, target - below)


def _first_above(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first place of each row whose cumulative sum is above the target; never one of weight zero, whatever rounding does."""
    last = (cumulative < cumulative[:, -1:]).sum(-1)
    return torch.minimum((cumulative <= target[:, None]).sum(-1), last)


def _nucleus_there(probs: torch.Tensor, masses: torch.Tensor) -> torch.Tensor:
    """As `_nucleus` keeps ids: the least probability that is kept is found by bisection over the bits of its float32."""
    bits = probs.view(torch.int32)
    low, high = torch.zeros_like(bits[:, :1]), torch.full_like(bits[:, :1], INFINITE)
    for _ in range(31):  # `low` always keeps the mass, `high` never does
        middle = low + (high - low) // 2
        enough = torch.where(bits >= middle, probs, 0.0).sum(-1, keepdim=True, dtype=torch.float64) >= masses[:, None]
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    above = torch.where(bits > low, probs, 0.0).sum(-1, keepdim=True, dtype=torch.float64)
    least = bits == low
    before = above + (least.cumsum(-1) - 1) * probs  # valid for ids of exactly that probability, the only ones for which it is used
    kept = (bits > low) | (least & (before < masses[:, None])) | (masses[:, None] >= 1)
    return torch.where(kept, probs, 0.0)
