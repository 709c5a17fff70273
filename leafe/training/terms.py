"""What a loss reads: the terms of one forward pass, and how much the optimiser step holds that the pass is a part of.

Where a loss normalises, it divides by what `Step` counts, never by what one pass happens to hold, so that the shares of all passes and
processes add up to the step's loss. Three ways are known, by their `Normalise`:

    targets     the sum over terms by the targets of the step: supervised training, and DAPO (arXiv 2503.14476, eq. 8) over all groups
    sequence    the mean over a sequence's targets, over a group's sequences, over groups: GRPO (arXiv 2402.03300, eq. 3)
    N           the sum over terms by the sequences of the step times N tokens, the longest reply: Dr. GRPO (arXiv 2503.20783)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from leafe.distillation.pack import Detail, Source
from leafe.distillation.rows import Bundle
from leafe.errors import UserError

Normalise = Literal["targets", "sequence"] | int


class Step(NamedTuple):
    """How much one optimiser step holds, over all of its passes and processes; `pack.Source` says what sequences and groups are."""

    targets: int
    sequences: int
    groups: int

    @classmethod
    def of(cls, bundles: Sequence[Bundle]) -> Step:
        """What bundles hold together."""
        return cls(
            sum(bundle.target_tokens for bundle in bundles),
            sum(bundle.sequences for bundle in bundles),
            sum(bundle.groups for bundle in bundles),
        )


@dataclass(frozen=True)
class Terms:
    """The terms of one pass. Tensors are `(terms,)` on the device of the logits, values of the type of the logits.

    `target` are ids, `weight` the product of an example's and its target's weight: an advantage where a method has one. A loss may put
    values of one dimension into `figures` under a name, of which a learner reports the mean over the step. The rest is for losses that do
    not merge, and raises `UserError` where a target does not have it.
    """

    target: Tensor
    weight: Tensor
    kind: tuple[str, ...]
    step: Step
    details: tuple[Detail, ...]
    dtype: torch.dtype = torch.float32
    figures: dict[str, Tensor] = field(default_factory=dict)

    @property
    def logprob(self) -> Tensor:
        """Log-probabilities by the policy that sampled the targets."""
        return self._tensor(self._each("logprob", lambda detail: detail.logprob), self.dtype)

    @property
    def reference(self) -> Tensor:
        """Log-probabilities by the reference policy."""
        return self._tensor(self._each("reference", lambda detail: detail.reference), self.dtype)

    @property
    def example(self) -> Tensor:
        """Numbers of the terms' examples, unique over the step."""
        return self._numbers("example", lambda source: source.example)

    @property
    def sequence(self) -> Tensor:
        """Numbers of the terms' sequences."""
        return self._numbers("sequence", lambda source: source.sequence)

    @property
    def group(self) -> Tensor:
        """Numbers of the terms' groups."""
        return self._numbers("group", lambda source: source.group)

    @property
    def length(self) -> Tensor:
        """How many targets a term's sequence has."""
        return self._numbers("length", lambda source: source.length)

    @property
    def size(self) -> Tensor:
        """How many sequences a term's group has."""
        return self._numbers("size", lambda source: source.size)

    def top(self) -> tuple[Tensor, Tensor]:
        """Ids and probabilities of the teacher's tokens, `(terms, most)`; where a term has fewer, others have probability 0.

        A target without a teacher's tokens has its own id with probability 1.
        """
        given = [detail.top for detail in self.details]
        if not all(given):
            given = [top or ((target, 1.0),) for top, target in zip(given, self.target.tolist(), strict=True)]
        most = max(map(len, given), default=0)
        padded = [[*top, *[(top[0][0], 0.0)] * (most - len(top))] for top in given]
        ids = [[token for token, _ in top] for top in padded]
        shares = [[share for _, share in top] for top in padded]
        return self._tensor(ids, torch.long), self._tensor(shares, self.dtype)

    def divisor(self, normalise: Normalise) -> Tensor | int:
        """What the losses of terms are divided by."""
        if normalise == "targets":
            return self.step.targets
        if normalise == "sequence":
            return self.length * self.size * self.step.groups
        return self.step.sequences * normalise

    def _numbers(self, name: str, read: Callable[[Source], int]) -> Tensor:
        return self._tensor(self._each(name, lambda detail: None if detail.source is None else read(detail.source)), torch.long)

    def _each(self, name: str, read: Callable[[Detail], float | None]) -> list[float | None]:
        values = [read(detail) for detail in self.details]
        if None in values:
            raise UserError(
                f"this loss reads `{name}`, which a target lacks: give it to every target of the examples, and set `merges = False` in the"
                " loss, since terms that were merged have none"
            )
        return values

    def _tensor(self, values: Sequence[object], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.target.device)
