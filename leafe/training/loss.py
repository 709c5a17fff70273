"""Losses: functions from logits at targets to each term's share of the loss of an optimiser step.

A loss is any object that has `merges` and can be called with the logits of a pass, `(terms, vocabulary)` in float32 or better, and its
`Terms`; it returns `(terms,)`. The shares of a step's passes and processes add up to its loss. Advantages, log-probabilities and teachers
come with the examples (`records.Target`); nothing here computes them.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from leafe.distillation.pack import PackedBatch, term_logits
from leafe.errors import UserError
from leafe.records import Example
from leafe.training.terms import Normalise, Step, Terms


class Loss(Protocol):
    """A function of logits and `Terms` that gives each term's share of the step's loss.

    `merges` is true if it is linear in the weight and reads only target, kind and teacher of a term, so that equal terms may be
    added up before it is called. Two more attributes are optional: `whole_groups`, true if all terms of a group have to be in one
    pass, and `check(examples)`, which raises `UserError` for examples that lack what the loss needs, before the first step.
    """

    @property
    def merges(self) -> bool:
        """Whether equal terms may be added up."""
        ...

    def __call__(self, logits: Tensor, terms: Terms) -> Tensor:
        """The shares of the step's loss."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Weight times minus log-probability of the target: supervised training, or REINFORCE if weights are advantages."""

    normalise: Normalise = "targets"

    def __post_init__(self) -> None:
        _check_settings(self)

    @property
    def merges(self) -> bool:
        """True unless a term has to know its sequence."""
        return self.normalise != "sequence"

    def __call__(self, logits: Tensor, terms: Terms) -> Tensor:
        """Linear in the weight."""
        return functional.cross_entropy(logits, terms.target, reduction="none") * terms.weight / terms.divisor(self.normalise)


@dataclass(frozen=True)
class ClippedRatio:
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7) with weights as advantages, and a penalty for diverging from a reference.

    With `r` the ratio of a target's probability now to that when it was sampled, and `A` its weight, a term is
    `-min(r A, clip(r, 1 - low, 1 + high) A) + kl * k3`; a `high` above `low` is DAPO's clip-higher (arXiv 2503.14476). `k3` is
    Schulman's estimator of the divergence from the reference, `exp(d) - d - 1` with `d = log reference - log now`, as in GRPO (arXiv
    2402.03300, eq. 4). `entropy` is the weight of a bonus, `-entropy * H`, with `H` the entropy in nats of the whole distribution at the
    target's position, whatever its `A`. `temperature` is the one of sampling, at which both recorded log-probabilities are taken.
    Figures: `clipped`, the share of terms whose `A` has no gradient, `ratio`, and `kl` and `entropy` if they have a weight.
    """

    low: float = 0.2
    high: float = 0.2
    kl: float = 0.0
    normalise: Normalise = "targets"
    temperature: float = 1.0
    entropy: float = 0.0
    merges: Literal[False] = False

    def __post_init__(self) -> None:
        _check_settings(self, positive=("temperature",), others=("low", "high", "kl", "entropy"))

    def check(self, examples: Sequence[Example]) -> None:
        """Requires the log-probability of every target, and with `kl` that of a reference."""
        _want(self, examples, "logprob", "distil with distill.logprobs=true, or score them with the policy that sampled them")
        if self.kl:
            _want(self, examples, "reference", "score the targets with the reference model, or set kl=0")

    def __call__(self, logits: Tensor, terms: Terms) -> Tensor:
        """Never merged: the clipping is not linear in the weight."""
        warm = logits if self.temperature == 1 else logits / self.temperature
        now = -functional.cross_entropy(warm, terms.target, reduction="none")
        ratio = (now - terms.logprob).exp()
        free, held = ratio * terms.weight, ratio.clamp(1 - self.low, 1 + self.high) * terms.weight
        losses = -torch.minimum(free, held)
        terms.figures.update(clipped=(held < free).to(now.dtype), ratio=ratio.detach())
        if self.kl:
            apart = terms.reference - now
            divergence = apart.exp() - apart - 1
            terms.figures["kl"] = divergence.detach()
            losses = losses + self.kl * divergence
        if self.entropy:
            logprobs = warm.log_softmax(-1)
            spread = -(logprobs.exp() * logprobs).sum(-1)
            terms.figures["entropy"] = spread.detach()
            losses = losses - self.entropy * spread
        return losses / terms.divisor(self.normalise)


@dataclass(frozen=True)
class Distribution:
    """Weight times the cross-entropy of the model under a teacher's top tokens, `-sum_v T(v) log S(v)`, or the divergence of both.

    `rest` treats the mass that the teacher's tokens leave out: `drop` leaves it out of the sum, `renormalise` scales the tokens up to 1,
    `bucket` makes all other tokens one more outcome, whose probability by the model is the sum of theirs: a lower bound of the whole
    divergence, by the data processing inequality. `kl` subtracts the teacher's entropy, which changes no gradient and shows how far both
    are apart; it is at least 0, except with `drop`. With `mixed` a target without a teacher's tokens is certain.
    """

    rest: Literal["drop", "renormalise", "bucket"] = "drop"
    kl: bool = False
    mixed: bool = False
    normalise: Normalise = "targets"

    def __post_init__(self) -> None:
        _check_settings(self)

    @property
    def merges(self) -> bool:
        """True, for terms with equal teachers, unless a term has to know its sequence."""
        return self.normalise != "sequence"

    def check(self, examples: Sequence[Example]) -> None:
        """Requires a teacher's tokens at every target unless they are `mixed`."""
        if not self.mixed:
            _want(self, examples, "top", "score the targets with the teacher, or set mixed=True where some have none")

    def __call__(self, logits: Tensor, terms: Terms) -> Tensor:
        """Linear in the weight."""
        ids, shares = terms.top()
        if ids.numel() and int(ids.max()) >= logits.shape[-1]:
            raise UserError(
                f"a teacher's token has the id {int(ids.max())}, and the model's vocabulary ends at {logits.shape[-1] - 1}; take a teacher"
                " with the same tokenizer"
            )
        if self.rest == "renormalise":
            shares = shares / shares.sum(1, keepdim=True)
        logprobs = logits.log_softmax(-1)
        losses = -(shares * logprobs.gather(1, ids)).sum(1)
        if self.kl:
            losses = losses + torch.xlogy(shares, shares).sum(1)
        if self.rest == "bucket":
            left, log_rest = _rest(logprobs, ids, shares)
            losses = losses - left * log_rest
            losses = losses + torch.xlogy(left, left) if self.kl else losses
        return losses * terms.weight / terms.divisor(self.normalise)


ROUNDING = 1e-6  # mass that is left out by rounding only


def _rest(logprobs: Tensor, ids: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The mass that a teacher's tokens leave to all others, and the model's log-probability of those; both 0 if there are none."""
    counts = torch.zeros_like(logprobs, dtype=torch.uint8).scatter_add(1, ids, (shares > 0).byte())  # padding repeats an id
    left = 1 - shares.sum(1)
    there = (left > ROUNDING) & (counts == 0).any(1)
    others = logprobs.masked_fill((counts > 0) & there[:, None], -torch.inf)
    return torch.where(there, left, 0.0), torch.where(there, others.logsumexp(1), 0.0)


@dataclass(frozen=True)
class Preference:
    """DPO (arXiv 2305.18290, eq. 7) on groups of two sequences: `-log sigmoid(beta m)`, averaged over the groups of the step.

    `m` is the sum over the group's targets of weight times `log now - log reference`. The preferred sequence has weights above 0, such as
    1, the other one below, such as -1; a target of weight 0, such as one that both share, has no effect. Weights of 1 / length make the sum
    a mean. Figures: `margin`, the mean of `m`, and `preferred`, the share of groups in which it is above 0.
    """

    beta: float = 0.1
    merges: Literal[False] = False
    whole_groups: Literal[True] = True

    def __post_init__(self) -> None:
        _check_settings(self, positive=("beta",))

    def check(self, examples: Sequence[Example]) -> None:
        """Requires groups of a preferred and another sequence, with a reference."""
        _want(self, examples, "reference", "score the targets with the reference model")
        groups: dict[tuple[str, str], dict[int, set[int]]] = {}
        for example in examples:
            if not example.group:
                raise UserError(f"{_loss(self)} wants pairs, and {_named(example)} has no group; give both sides of a pair one")
            weights = [example.weight * target.weight for target in example.targets]
            sides = groups.setdefault((example.task, example.group), {}).setdefault(example.attempt, set())
            sides |= {1 if weight > 0 else -1 for weight in weights if weight}
        for (task, group), sequences in groups.items():
            if sorted(map(sorted, sequences.values())) != [[-1], [1]]:
                found = ", ".join(f"attempt {attempt} with {_SIDES[tuple(sorted(sides))]}" for attempt, sides in sequences.items())
                raise UserError(
                    f"{_loss(self)} wants two attempts in a group, one with weights above 0 and one with weights below, and group {group!r}"
                    f" of task {task} has {found}; give both sides of the pair, or leave the group out"
                )

    def __call__(self, logits: Tensor, terms: Terms) -> Tensor:
        """A group's loss in equal shares at its terms."""
        now = -functional.cross_entropy(logits, terms.target, reduction="none")
        groups, place = torch.unique(terms.group, return_inverse=True)
        margin = now.new_zeros(len(groups)).index_add(0, place, terms.weight * (now - terms.reference))
        terms.figures.update(margin=margin.detach(), preferred=(margin.detach() > 0).to(now.dtype))
        losses = -functional.logsigmoid(self.beta * margin) / terms.step.groups
        return (losses / torch.bincount(place, minlength=len(groups)))[place]


_SIDES: Mapping[tuple[int, ...], str] = {
    (): "none but 0",
    (1,): "weights above 0",
    (-1,): "weights below 0",
    (-1, 1): "weights above and below 0",
}


def _want(loss: Loss, examples: Sequence[Example], name: str, remedy: str) -> None:
    """Refuses examples with a target that lacks the field `name`."""
    missing = {"logprob": None, "reference": None, "top": ()}[name]
    told = {"logprob": "log-probability", "reference": "reference log-probability", "top": "teacher's tokens"}[name]
    for example in examples:
        told_of = [target for target in example.targets if getattr(target, name) != missing]
        if lacking := len(example.target_ids) - len(told_of):
            raise UserError(
                f"{_loss(loss)} wants the {told} (`{name}`) of every target, and {_named(example)} lacks it at {lacking} of"
                f" {len(example.target_ids)}; {remedy}"
            )


def _check_settings(loss: object, *, positive: Sequence[str] = (), others: Sequence[str] = ()) -> None:
    """Refuses invalid settings of a loss: a number below 0, or 0 if it has to be `positive`; an unknown normalisation."""
    normalise = getattr(loss, "normalise", "targets")
    if normalise not in ("targets", "sequence") and (not isinstance(normalise, int) or normalise < 1):
        raise UserError(f"normalise: wanted 'targets', 'sequence' or a number of tokens, found {normalise!r}")
    if getattr(loss, "rest", "drop") not in ("drop", "renormalise", "bucket"):
        raise UserError(f"rest: wanted 'drop', 'renormalise' or 'bucket', found {getattr(loss, 'rest', None)!r:.80}")
    for name in (*positive, *others):
        value = getattr(loss, name)
        if not (value > 0 or (value == 0 and name in others)):
            raise UserError(f"{name}: wanted a number above 0{' or 0' if name in others else ''}, found {value}")


def _loss(loss: object) -> str:
    return f"the loss {type(loss).__name__}"


def _named(example: Example) -> str:
    return f"the example {example.id} of task {example.task}"


def check_examples(loss: Loss, examples: Sequence[Example]) -> None:
    """Raises `UserError` if a loss cannot be used or examples lack what it needs; called before the first step."""
    if isinstance(loss, type):
        raise UserError(f"wanted a loss, found the class {loss.__name__}; make one of it, as {loss.__name__}()")
    if not callable(loss) or not isinstance(getattr(loss, "merges", None), bool):
        raise UserError(f"wanted a loss, a function with `merges = True` or `merges = False`, found {loss!r:.80}")
    check: Callable[[Sequence[Example]], None] | None = getattr(loss, "check", None)
    if check is not None:
        check(examples)


def check_picklable(loss: Loss) -> None:
    """Raises `UserError` for a loss that cannot be sent to other processes, such as one that was defined in a notebook."""
    reason = ""
    try:
        pickle.loads(pickle.dumps(loss))
    except Exception as error:  # pickling a foreign object may raise anything
        reason = f"{error!s:.120}"
    if type(loss).__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        reason = "it was defined in no file"
    if reason:
        raise UserError(
            f"{_loss(loss)} cannot be sent to other processes ({reason}); define it in a module, or set train.processes=1"
        )


def described(loss: Loss) -> str:
    """A loss by its kind, and by its settings if it shows them."""
    kind, shown = type(loss), repr(loss)
    return f"{kind.__module__}.{kind.__qualname__}" if " at 0x" in shown else shown


def packing_of(loss: Loss) -> dict[str, bool]:
    """The arguments of `pack_examples` that depend on a loss."""
    return {"merges": loss.merges, "whole_groups": bool(getattr(loss, "whole_groups", False))}


class PassLoss(NamedTuple):
    """Each term's share of the step's loss, `(terms,)`, and the loss's figures."""

    losses: Tensor
    figures: Mapping[str, Tensor]


def pass_loss(model: Any, batch: PackedBatch, loss: Loss, step: Step) -> PassLoss:
    """The loss of one forward pass through packed rows; the passes of all processes add up to the loss of the step."""
    logits = term_logits(model, batch)
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    terms = Terms(batch.term_target, batch.term_weight, batch.term_kind, step, batch.term_detail, precise.dtype)
    losses = loss(precise, terms)
    if not isinstance(losses, Tensor) or losses.shape != terms.target.shape:
        found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise UserError(f"{_loss(loss)} should give one value a term, {tuple(terms.target.shape)}, and gave {found}")
    return PassLoss(losses, terms.figures)
