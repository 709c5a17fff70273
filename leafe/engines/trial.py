"""The trial of a model for the in-process engine: batched requests must compute what the plain forward pass computes.

Several requests of different lengths go through a cache of small blocks, one of them on blocks that another one computed, and the logits
after each piece are compared with those of the whole text alone: on the model itself, and beyond each limit that its configuration names
(a window, a chunk, an original context) on a small twin in which that limit is short. A model that differs is refused; one that differs
only beyond a limit gets a cap on the length of conversations.

Differences are in units of the effect of attention: the root mean square over the vocabulary of the error, divided by how much logits
after the same token differ with what came before. In float32 rounding gave at most 2e-5. In sixteen bits a single choice of experts may
differ, so there the median over positions counts, at a tolerance that shows only gross faults, and a float32 twin is tried as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from leafe.engines.prefixes import Copy
from leafe.engines.slots import ATTENTION, BlockCache, Layout, Piece, forward, plan
from leafe.engines.steps import step_of
from leafe.engines.twin import architecture, computes, decoder, limits, quiet, random_ids, spread, twin
from leafe.errors import UserError

TOLERANCE = 1e-3
TWIN_TOLERANCE = 1e-4  # a twin is small and of ordinary weights, so its rounding is too
ROUGH = 0.5  # in sixteen bits
SHORT = 16  # tokens of a limit in a twin
LONG = 40  # tokens of the longest request if there is no limit
BLOCK, STEP_BLOCK = 8, 16  # the second is the least that the GPU kernels take
LARGE = 20_000_000  # weights of a model that is tried on few tokens, and its twin on more
Layouts = Callable[[Sequence[Piece], BlockCache, torch.device], Layout]
_known: dict[tuple[Any, ...], tuple[int | None, int | None]] = {}
_passed: dict[tuple[Any, ...], tuple[float, int | None, int | None]] = {}


@dataclass(frozen=True, slots=True)
class Taken:
    """The result of `take_over`: the name of the model's usual attention, and how far logits were off.

    `longest` and `most` are the most tokens of a conversation and of a pass, None for no limit.
    """

    attention: str
    longest: int | None
    most: int | None
    difference: float


@torch.inference_mode()
def take_over(model: Any) -> Taken:
    """Sets the model's attention to the engine's, after a trial that shows that the model computes the same with it.

    A process tries each architecture once.

    Raises `UserError` for a model that keeps state of another kind or whose attention cannot be replaced, and leaves it as it was.
    """
    usual: str = decoder(model).config._attn_implementation
    try:
        known = architecture(model)
        if known not in _passed or not computes(model):
            _passed[known] = _trials(model)
        difference, longest, most = _passed[known]
        _replace(model)
    except Exception as error:  # whatever a foreign forward pass raises
        give_back(model, usual)
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        name = type(model).__name__
        raise UserError(f"the in-process engine cannot run a {name} ({reason:.200}); serve it over HTTP instead.") from error
    return Taken(usual, longest, most, difference)


def _trials(model: Any) -> tuple[float, int | None, int | None]:
    """The difference on the model itself, and the longest conversation and pass. A large model is tried on few tokens, its twin on more."""
    named = limits(model.config)
    large = model.dtype != torch.float32 or sum(weight.numel() for weight in model.parameters()) > LARGE
    small = twin(model) if large else None
    if named or small is not None:  # before anything that costs more
        difference = _tried(model, min([SHORT, *(value - 1 for value in named.values())]))
    caps = [_caps(model, name, value) for name, value in named.items()]
    longest = min((conversation for conversation, _ in caps if conversation), default=None)
    most = min((tokens for _, tokens in caps if tokens), default=None)
    length = min(LONG, longest or LONG)
    crowded = most is None or most > 4 * length
    if small is None:
        difference = _tried(model, length, crowded=crowded)
    else:
        _tried(small, length, crowded=crowded, strict=True)
    return difference, longest, most


@torch.inference_mode()
def steps_obstacle(model: Any) -> str:
    """The reason why GPU steps cannot be used with a model, empty if they compute what the plain forward pass does.

    That is tried on the model itself and, for each limit that its configuration names, on a twin in which it is short.
    """
    try:
        difference = _tried(model, LONG if not limits(model.config) else SHORT, crowded=True, layout=step_of)
        for name, value in limits(model.config).items():
            small = twin(model, name, min(value, SHORT))
            if small is None:
                return f"beyond its {name} it cannot be tried"
            _tried(small, 3 * min(value, SHORT), crowded=True, strict=True, layout=step_of)
        small = twin(model) if model.dtype != torch.float32 else None
        if small is not None:
            _tried(small, LONG, crowded=True, strict=True, layout=step_of)
    except Exception as error:  # whatever a foreign forward pass raises
        return (str(error).strip() or type(error).__name__).split("\n")[0]
    return "" if isfinite(difference) else "its logits are not numbers"


def give_back(model: Any, attention: str) -> None:
    """Undoes `take_over`; `attention` is what that returned."""
    decoder(model).set_attn_implementation(attention)
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.__dict__.pop("forward", None)


def _replace(model: Any) -> None:
    with quiet():
        decoder(model).set_attn_implementation(ATTENTION)
    if decoder(model).config._attn_implementation != ATTENTION:
        raise ValueError("it takes no attention function from outside")
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # in float32 twice as fast as MKL on processors that MKL does not favour
        for layer in model.modules():
            if type(layer) is nn.Linear:
                layer.forward = partial(_linear, layer)  # type: ignore[method-assign]


def _linear(layer: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    if torch.is_grad_enabled() or layer.weight.dtype != torch.float32 or layer.weight.device.type != "cpu":
        return F.linear(states, layer.weight, layer.bias)
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, layer.weight, layer.bias, "none", [], "")
    return product


def _caps(model: Any, name: str, value: int) -> tuple[int | None, int | None]:
    """The longest conversations and passes for a limit that the configuration names. If it cannot be tried they stay below it."""
    key = (type(model), model.config.to_json_string(), model.device, name)
    if key not in _known:
        short = min(value, SHORT)
        small = twin(model, name, short)
        if small is not None and _passes(small, 3 * short, crowded=True):
            _known[key] = None, None
        else:
            small = twin(model, name, short)  # anew: long requests may have left their mark on the first
            alone = small is not None and _passes(small, short, crowded=False)
            crowded = small is not None and _passes(small, short - 1, crowded=True)
            _known[key] = value if alone else value - 1, None if crowded else value - 1
    return _known[key]


def _passes(model: Any, longest: int, *, crowded: bool) -> bool:
    try:
        return _tried(model, longest, crowded=crowded, strict=True) <= TWIN_TOLERANCE
    except Exception:  # whatever a foreign forward pass raises
        return False


def _tried(model: Any, longest: int, *, crowded: bool = False, strict: bool = False, layout: Layouts = plan) -> float:
    """The difference of the engine's logits from the plain ones, for requests of up to `longest` tokens, one at a time or all in one pass.

    Raises `ValueError` if that is too far.
    """
    usual = decoder(model).config._attn_implementation
    requests = _requests(model, longest, crowded=crowded)
    wanted = [model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float() for ids in requests]
    try:
        _replace(model)
        found = _engine(_Passes(model, requests, crowded=crowded, layout=layout), requests)
    finally:
        give_back(model, usual)
    effect = spread([logits[-1] for logits in wanted])
    errors = [float((row - wanted[number][place]).square().mean().sqrt()) for number, place, row in found]
    rough = model.dtype != torch.float32
    difference = (median(errors) if rough else max(errors)) / effect if effect > 0 else inf
    if not isfinite(difference) or difference > (ROUGH if rough else TWIN_TOLERANCE if strict else TOLERANCE):
        raise ValueError(f"its logits are off by {difference:.2g} of what attention does to them")
    return difference


def _requests(model: Any, longest: int, *, crowded: bool) -> list[list[int]]:
    """Texts of different lengths, some much shorter, that end alike; the second shares the first half of the first."""
    tail = random_ids(model, min(3, longest - 1), 99)
    first = random_ids(model, longest - len(tail), 1)
    half = max(1, len(first) // 2)
    lengths = [max(1, longest // 6), *([longest // 2, longest - len(tail), longest - len(tail)] if crowded else [])]
    others = [random_ids(model, length, 3 + number) for number, length in enumerate(lengths)]
    texts = [first, [*first[:half], *random_ids(model, max(1, half - 2), 2)], *others]
    return [[*text, *tail] for text in texts]


class _Passes:
    """Passes of the engine over parts of requests. `found` has request, place and logits after each part."""

    def __init__(self, model: Any, requests: Sequence[Sequence[int]], *, crowded: bool, layout: Layouts) -> None:
        self.found: list[tuple[int, int, torch.Tensor]] = []
        self._model, self._requests, self._crowded, self._layout = model, requests, crowded, layout
        self._size = BLOCK if layout is plan else STEP_BLOCK
        each = -(-max(map(len, requests)) // self._size)
        self._cache = BlockCache(1 + each * len(requests), self._size)
        self._tables = [list(range(1 + each * number, 1 + each * (number + 1))) for number in range(len(requests))]

    def compute(self, *parts: tuple[int, int, int]) -> None:
        """Runs `(request, start, stop)` in one pass, or in one pass each; empty parts are left out."""
        parts = tuple(part for part in parts if part[1] < part[2])
        for one in [parts] if self._crowded else [(part,) for part in parts]:
            self._pass(one)

    def _pass(self, parts: Sequence[tuple[int, int, int]]) -> None:
        pieces = [Piece(self._requests[number][start:stop], start, self._tables[number]) for number, start, stop in parts]
        logits = forward(self._model, self._layout(pieces, self._cache, self._model.device)).float()
        self.found += [(number, stop - 1, row) for (number, _, stop), row in zip(parts, logits, strict=False)]

    def reuse(self, source: int, target: int, count: int) -> None:
        """Gives one request the first `count` tokens that another has computed: whole blocks, then a copy of the rest."""
        whole, rest = divmod(count, self._size)
        self._tables[target][:whole] = self._tables[source][:whole]
        if rest:
            self._cache.copy([Copy(self._tables[source][whole], self._tables[target][whole], rest)])


def _engine(passes: _Passes, requests: Sequence[Sequence[int]]) -> list[tuple[int, int, torch.Tensor]]:
    """(request, place, logits) after parts of requests side by side, then a token at a time; the second uses the first's blocks."""
    lengths = [len(ids) for ids in requests]
    others = range(2, len(requests))
    shared = next(place for place in range(lengths[1]) if place + 1 == lengths[1] or requests[0][place] != requests[1][place])
    passes.compute((0, 0, 1))  # alone, for what depends on the longest position of a pass
    passes.compute((0, 1, max(1, shared)), *((number, 0, lengths[number] // 2) for number in others))
    passes.reuse(0, 1, shared)
    rest = [(number, lengths[number] // 2, lengths[number] - 1) for number in others]
    passes.compute((0, max(1, shared), lengths[0] - 2), (1, shared, lengths[1] - 1), *rest)
    last = [(number, lengths[number] - 1, lengths[number]) for number in (1, *others)]
    passes.compute((0, max(1, shared, lengths[0] - 2), lengths[0] - 1), *last)
    passes.compute((0, lengths[0] - 1, lengths[0]))
    return passes.found
