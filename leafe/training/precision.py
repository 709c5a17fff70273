"""Weights in bfloat16 that lose no step.

A float32 weight is held in two halves: `high`, the nearest bfloat16, is in the model and is computed with; `low`, the 16 bits that
rounding leaves out, is kept beside it. Together they are the float32 weight to the bit, so a step of a millionth is kept although
bfloat16 has steps of a 256th. Both take four bytes, while a bfloat16 weight and a float32 copy of it would take six. Gradients are
those of bfloat16 weights: if a step has several passes, they add up in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

PIECE = 2**26  # weights that are turned into float32 at a time, at least one whole tensor
NOT_A_NUMBER = 0x7FC00000  # one of the many bit patterns, which survives rounding

Low = Mapping[Tensor, Tensor]
"""The lower half of each weight that has one, by the weight."""


def split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The bfloat16 nearest to each float32 of `weight`, and the rest as int16; both of its shape."""
    bits = weight.view(torch.int32).masked_fill(weight.isnan(), NOT_A_NUMBER)
    high = (bits + 0x8000).bitwise_right_shift_(16)
    low = bits.sub_(high, alpha=1 << 16).to(torch.int16)
    return high.to(torch.int16).view(torch.bfloat16), low


def join(high: Tensor, low: Tensor) -> Tensor:
    """The float32 of which `high` and `low` are the halves, to the bit."""
    bits = high.contiguous().view(torch.int16).to(torch.int32).bitwise_left_shift_(16)
    return bits.add_(low).view(torch.float32)


def split_model(model: Any, device: torch.device | str, *, frozen: bool = False, offload: bool = False) -> dict[Tensor, Tensor]:
    """Moves a float32 model to a device in bfloat16, weight by weight, and returns the lower halves.

    With `offload` they stay on the CPU, as do those of a `frozen` model. Weights that are already bfloat16 have none, and those that
    transformers keeps in float32 stay so.
    """
    low: dict[Tensor, Tensor] = {}
    kept = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    for name, weight in model.named_parameters():
        whole = weight.data.to(device)
        if whole.dtype == torch.float32 and not any(part in name for part in kept):
            whole, rest = split(whole.contiguous())
            if not frozen:
                low[weight] = rest.cpu() if offload else rest
            elif rest.any():
                low[weight] = rest.cpu()
        weight.data = whole
    model.to(device)  # buffers
    return low


def join_model(model: Any, low: Low) -> None:
    """Makes a float32 model of a split one, on the CPU."""
    for weight in model.parameters():
        weight.data = join(weight.data.cpu(), low[weight].cpu()) if weight in low else weight.data.float().cpu()
    model.to("cpu")


class Joined(Mapping[str, Tensor]):
    """Weights by name, in float32 where they are split, each put together when it is asked for."""

    def __init__(self, weights: Mapping[str, Tensor], low: Low) -> None:
        self._weights, self._low = weights, low

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each, which needs nothing put together."""
        return {name: weight.shape for name, weight in self._weights.items()}

    def __getitem__(self, name: str) -> Tensor:
        weight = self._weights[name]
        low = self._low.get(weight)
        return weight.data if low is None else join(weight.data, low.to(weight.device))

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class SplitOptimizer(torch.optim.Optimizer):
    """An optimiser around another one, which takes its steps in float32 on the weights of a split model, some at a time.

    `inner` was made for the model's weights and has taken no step yet. It is given stand-ins, which hold a weight in float32 during its
    step and are empty in between. They are where the lower halves are: if those are on the CPU, so is the state of `inner`, and its steps
    are taken there. `state_dict` has its state and the lower halves.
    """

    def __init__(self, inner: torch.optim.Optimizer, low: Low) -> None:
        self.inner, self._low = inner, low
        self._stand_ins: dict[Tensor, nn.Parameter] = {}
        super().__init__([dict(group) for group in inner.param_groups], dict(inner.defaults))
        for group in inner.param_groups:
            group["params"] = [self._stand_in(weight) for weight in group["params"]]

    def _stand_in(self, weight: Tensor) -> nn.Parameter:
        self._stand_ins[weight] = nn.Parameter(torch.empty(0, dtype=torch.float32, device=self.place(weight)))
        return self._stand_ins[weight]

    def place(self, weight: Tensor) -> torch.device:
        """The device on which a weight takes its steps and has its state."""
        return self._low.get(weight, weight).device

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every weight that has a gradient; the gradients are freed."""
        for ours, theirs in zip(self.param_groups, self.inner.param_groups, strict=True):
            theirs.update({name: value for name, value in ours.items() if name != "params"})
        for weights in self._some():
            for weight in weights:
                place = self.place(weight)
                whole = join(weight.to(place), self._low[weight]) if weight in self._low else weight.data
                self._stand_ins[weight].data = whole
                self._stand_ins[weight].grad = None if weight.grad is None else weight.grad.to(place).float()
                weight.grad = None
            self.inner.step()
            for weight in weights:
                self._put_back(weight)

    def moments(self, weight: Tensor) -> dict[str, Any]:
        """The state of a weight between steps."""
        found: dict[str, Any] = self.inner.state[self._stand_ins[weight]]
        return found

    def state_dict(self) -> dict[str, Any]:
        """The inner state and the lower halves, with which a training can be resumed."""
        return {**super().state_dict(), "inner": self.inner.state_dict(), "low": self._halves()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the result of `state_dict`."""
        given = dict(state_dict)
        self.inner.load_state_dict(given.pop("inner"))
        for low, kept in zip(self._halves(), given.pop("low"), strict=True):
            low.copy_(kept)
        super().load_state_dict(given)

    def _halves(self) -> list[Tensor]:
        return [self._low[weight] for group in self.param_groups for weight in group["params"] if weight in self._low]

    def _some(self) -> Iterator[Sequence[Tensor]]:
        """Groups of weights with gradients, so small that the stand-ins stay small beside the model."""
        found: list[Tensor] = []
        for weight in [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]:
            if found and sum(one.numel() for one in found) + weight.numel() > PIECE:
                yield found
                found = []
            found.append(weight)
        if found:
            yield found

    def _put_back(self, weight: Tensor) -> None:
        stand_in = self._stand_ins[weight]
        stand_in.grad = None
        if weight in self._low:
            pieces = (one.detach().view(-1).split(PIECE) for one in (stand_in, weight, self._low[weight]))
            for whole, high, low in zip(*pieces, strict=True):
                for half, found in zip((high, low), split(whole), strict=True):
                    half.copy_(found)
        stand_in.data = stand_in.data.new_empty(0)


def in_float32(optimizer: torch.optim.Optimizer, low: Low) -> torch.optim.Optimizer:
    """The optimiser itself, or one that steps it in float32 if it was made for split weights."""
    split = any(weight in low for group in optimizer.param_groups for weight in group["params"])
    return SplitOptimizer(optimizer, low) if split and not isinstance(optimizer, SplitOptimizer) else optimizer
