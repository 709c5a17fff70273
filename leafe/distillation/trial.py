"""The trial of a model for packed trees: before training, it must compute on random ids what it computes on the samples one by one.

There is no list of names: every kind of attention is tried on the model itself, and beyond each limit that its configuration names (a
window, a chunk, an original context) on a small twin of it in which that limit is short. A kind that differs is refused; one that differs
only beyond a limit is allowed up to it.

Logits are compared after the last tokens of each sample. The difference is in units of the effect of attention: the root mean square over
the vocabulary of the error, divided by how much logits after the same token differ with what came before. In float32 rounding gave at most
2e-5 on the architectures of `docs/architectures.md`, and the least fault 3e-3 (Doge beyond `keep_window_size`).

A trial proves nothing about ids, lengths and weights that it did not try, nor about behaviour in training mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from leafe.distillation.attention import tree_attention
from leafe.distillation.pack import PackedRow, Sample, pack, term_logits
from leafe.distillation.passes import ready
from leafe.engines.twin import architecture, computes, limits, random_ids, spread, twin
from leafe.errors import UserError

Kind = Literal["tree", "flex", "dense"]
TOLERANCE = 1e-3
TWIN_TOLERANCE = 1e-4  # a twin is small and of ordinary weights, so its rounding is too
LARGE = 20_000_000  # weights of a model that is tried on few tokens, and its twin on more
SHORT = 16  # tokens of a limit in a twin
LONG = 48  # tokens of a path if there is no limit
TAIL = 3  # tokens that all samples end with
_known: dict[tuple[Any, ...], Cap] = {}
_passed: dict[tuple[Any, ...], Packing] = {}


@dataclass(frozen=True, slots=True)
class Cap:
    """The most tokens of a pass and of a path, None for no limit."""

    tokens: int | None = None
    path: int | None = None

    @property
    def longest(self) -> int | None:
        """The most tokens of a sample."""
        return min((most for most in (self.tokens, self.path) if most), default=None)


@dataclass(frozen=True, slots=True)
class Packing:
    """A kind of attention that passed its trial on packed trees: the lengths up to which it did, and how far its logits were off."""

    kind: Kind
    cap: Cap
    difference: float


def choose_packing(model: Any, wanted: Literal["auto", "tree", "flex", "dense"] = "auto", device: str | None = None) -> Packing:
    """The fastest kind of attention that passes, for any length if there is one, or the one that is `wanted`.

    With a `device` small copies are tried on it in place of the model, which may be too large for it. Raises `UserError`, with the
    differences found, when none passes.
    """
    ways: tuple[Kind, ...] = ("flex", "tree", "dense") if (device or model.device.type).startswith("cuda") else ("tree", "dense")
    if wanted != "auto":
        ways = (wanted,)
    reasons: dict[str, list[str]] = {}
    passed: list[Packing] = []
    for kind in ways:
        try:
            passed.append(try_packing(model, kind, device))
        except UserError as error:  # it advises another kind, which is tried here
            reasons.setdefault(str(error).split("; ")[0], []).append(kind)
        if passed and passed[-1].cap.longest is None:
            return passed[-1]
    if passed:  # the longest, and among equals the fastest
        return max(passed, key=lambda packing: packing.cap.longest or 0)
    hint = (
        "set train.attention=auto" if wanted not in ("auto", "dense") else "choose a model that docs/architectures.md calls equal"
    )
    found = "; ".join(f"{', '.join(kinds)}: {reason}" for reason, kinds in reasons.items())
    raise UserError(
        f"a {type(model).__name__} does not compute on packed trees what it computes on single samples ({found}); {hint}"
    )


def try_packing(model: Any, kind: Kind, device: str | None = None) -> Packing:
    """Tries one kind of attention, on the model or on small copies on a `device`. Raises `UserError` with the difference.

    A model in bfloat16 rounds too much to be tried, so its twin in float32 stands in for it. A process tries each architecture once.
    """
    known = (*architecture(model), kind, device)
    itself = device is None and model.dtype == torch.float32
    if known not in _passed or (itself and not computes(model)):
        _passed[known] = _packing(model, kind, device)
    return _passed[known]


def _packing(model: Any, kind: Kind, device: str | None) -> Packing:
    named, rounds = limits(model.config), model.dtype != torch.float32 or device is not None
    large = sum(weight.numel() for weight in model.parameters()) > LARGE
    small = twin(model, device=device) if large or rounds else None
    if rounds and small is None:
        raise UserError(f"no small {type(model).__name__} can be made to try; set train.dtype=float32")
    whole, model = model, small if rounds else model
    difference = 0.0
    if named or small is not None:  # before anything that costs more
        difference = _refused(_difference(model, kind, inside(model, min([SHORT, *(value - 1 for value in named.values())]))))
    caps = [_cap(whole if device else model, kind, name, value, device=device) for name, value in named.items()]
    tokens = min((cap.tokens for cap in caps if cap.tokens), default=None)
    path = min((cap.path for cap in caps if cap.path), default=None)
    length = min(LONG, path or LONG)
    shape = wide if tokens is None or tokens > 4 * length else inside
    tried = model if small is None else small
    found = _refused(_difference(tried, kind, shape(tried, min(length, tokens or length))))
    return Packing(kind, Cap(tokens, path), max(found, difference))


def _refused(difference: float) -> float:
    if difference > TOLERANCE:
        raise UserError(f"its logits are off by {difference:.2g} of what attention does to them")
    return difference


def _cap(model: Any, kind: Kind, name: str, value: int, *, device: str | None = None) -> Cap:
    """The cap for a model whose configuration names the limit `value`; if it cannot be tried, the limit is the cap."""
    key = (type(model), model.config.to_json_string(), kind, device or model.device, name)
    if key not in _known:
        short = min(value, SHORT)
        small = twin(model, name, short, device=device)
        if small is None or not _equal(small, kind, inside(small, short)):
            _known[key] = Cap(value - 1, value - 1)
        elif not _equal(small, kind, wide(small, short)):
            _known[key] = Cap(value, value)
        else:
            _known[key] = Cap(None, None if _equal(small, kind, long(small, short)) else value)
    return _known[key]


def _equal(model: Any, kind: Kind, rows: Rows) -> bool:
    try:
        return _difference(model, kind, rows) <= TWIN_TOLERANCE
    except UserError:
        return False


Rows = Sequence[Sequence[Sequence[int]]]
"""Samples by the row that they are packed in."""


def inside(model: Any, tokens: int) -> Rows:
    """One row of at most `tokens` tokens."""
    return [_branches(model, tokens // 4, [tokens // 4] * 3)]


def wide(model: Any, tokens: int) -> Rows:
    """Rows that are together much longer than `tokens`, with paths that are not."""
    start = tokens // 4
    return [_branches(model, start, [tokens - start] * 4), _branches(model, start, [tokens // 3, tokens // 4], seed=50)]


def long(model: Any, tokens: int) -> Rows:
    """Paths of more than `tokens`, beside short ones."""
    half = max(1, tokens // 2)
    return [_branches(model, half, [3 * tokens, half // 2, 2 * tokens]), _branches(model, half, [half, half // 2], seed=50)]


def _branches(model: Any, start: int, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Samples that share `start` ids and then differ; all end alike, so that logits after the last differ by history."""
    shared, tail = random_ids(model, max(1, start), 100 + seed), random_ids(model, TAIL, 99)
    samples = []
    for number, length in enumerate(lengths, start=1):
        ending = tail[: max(0, min(TAIL, length - 1))]
        samples.append([*shared, *random_ids(model, max(1, length - len(ending)), seed + number), *ending])
    return samples


@torch.no_grad()
def _difference(model: Any, kind: Kind, rows: Rows) -> float:
    """The difference of packed logits from those of single samples. Raises `UserError` if the model cannot compute one of them."""
    training = model.training
    model.eval()
    try:
        together = _tried(lambda: _packed(model, kind, rows))  # first, since an impossible kind is refused at once
        apart = _tried(lambda: [_last(model, ids) for row in rows for ids in row])
    finally:
        model.train(training)
    effect = spread([logits[-1] for logits in apart])
    errors = [float((one - other).square().mean(-1).sqrt().max()) for one, other in zip(together, apart, strict=True)]
    found = max(errors) / effect if effect > 0 else inf
    return found if isfinite(found) else inf


def _tried(work: Callable[[], list[Tensor]]) -> list[Tensor]:
    try:
        return work()
    except UserError:
        raise
    except Exception as error:  # a foreign forward pass may raise anything
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"it fails with {type(error).__name__}: {reason:.160}") from error


def _last(model: Any, ids: Sequence[int]) -> Tensor:
    """Logits (2, vocabulary) after the last tokens of a sample alone."""
    logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -2:]
    return logits.float()


def _packed(model: Any, kind: Kind, rows: Rows) -> list[Tensor]:
    """The same for each sample, from one pass over packed rows."""
    numbers = iter(range(sum(len(row) for row in rows)))
    packed: list[PackedRow] = []
    for row in rows:  # the two targets follow the two last tokens; their ids do not matter
        packed.append(pack(Sample(ids[:-1], [ids[-1], 0], kind=str(next(numbers))) for ids in row))
    batch = ready(packed, kind, model.device)
    with tree_attention(model, kind):
        logits = term_logits(model, batch).float()
    kinds = list(batch.term_kind)
    return [
        logits[[place for place, kind_ in enumerate(kinds) if kind_ == str(number)]]
        for number in range(sum(len(row) for row in rows))
    ]
