"""The input of a loss: the terms of one forward pass, and the counts of the optimiser step that the pass belongs to.

A loss that normalises divides by the counts of `Step`, never by those of one pass, so that the shares of all passes and processes add up
to the step's loss. There are three values of `Normalise`:

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
    """The counts of one optimiser step, over all of its passes and processes; `pack.Source` defines sequences and groups."""

    targets: int
    sequences: int
    groups: int

    @classmethod
    def of(cls, bundles: Sequence[Bundle]) -> Step:
        """The counts of some bundles together."""
        return cls(
            sum(bundle.target_tokens for bundle in bundles),
            sum(bundle.sequences for bundle in bundles),
            sum(bundle.groups for bundle in bundles),
        )


@dataclass(frozen=True)
class Terms:
    """The terms of one pass. Tensors are `(terms,)` on the device of the logits, values of the type of the logits.

    `target` are ids, `weight` the product of an example's and its target's weight: an advantage if the method has one. A loss may put
    one-dimensional values into `figures` under a name, of which a learner reports the mean over the step. The other fields are for losses
    that do not merge, and raise `UserError` if a target lacks them.
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
        """The number of targets of a term's sequence."""
        return self._numbers("length", lambda source: source.length)

    @property
    def size(self) -> Tensor:
        """The number of sequences of a term's group."""
        return self._numbers("size", lambda source: source.size)

    def top(self) -> tuple[Tensor, Tensor]:
        """Ids and probabilities of the teacher's tokens, `(terms, most)`; if a term has fewer, the others have probability 0.

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
        """The divisor of the losses of terms."""
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
