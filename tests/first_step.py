"""A first GRPO step that two trainers can take: a small model with weights from a formula, two groups of attempts of one or two turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tiny import tiny_model

from leafe.distillation.attention import tree_attention
from leafe.distillation.pack import collate
from leafe.distillation.rows import pack_examples
from leafe.records import Example, Message, Target
from leafe.training.advantages import Advantage, advantages
from leafe.training.loss import ClippedRatio, packing_of, pass_loss
from leafe.training.terms import Normalise, Step

LONGEST = 12  # tokens of an attempt, observations included
SIZE = 3


@dataclass(frozen=True)
class Attempted:
    """A prompt, the reply, what the environment said, and the second reply; both empty where the attempt is over after one."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]
    observation: tuple[int, ...]
    second: tuple[int, ...]
    reward: float

    @property
    def ids(self) -> list[int]:
        return [*self.reply, *self.observation, *self.second]

    @property
    def mask(self) -> list[int]:
        return [1] * len(self.reply) + [0] * len(self.observation) + [1] * len(self.second)


GROUPS = [
    [
        Attempted((11, 12, 13), (20, 21, 22), (30, 31), (23, 24, 25, 26), 1.0),
        Attempted((11, 12, 13), (20, 27), (), (), 0.0),
        Attempted((11, 12, 13), (28, 29, 20, 21, 22), (32,), (23,), 0.0),
    ],
    [
        Attempted((14, 15), (40, 41), (33, 34, 35), (42, 43), 1.0),
        Attempted((14, 15), (40, 44, 45, 46), (), (), 1.0),
        Attempted((14, 15), (47,), (36,), (40, 48, 49), 0.0),
    ],
]
EVERY = [one for group in GROUPS for one in group]


@dataclass(frozen=True)
class Variant:
    """A loss in our words, and in TRL's as settings of `GRPOConfig`."""

    advantage: Advantage
    normalise: Normalise
    entropy: float
    trl: dict[str, Any]


VARIANTS = {
    "GRPO": Variant("grpo", "sequence", 0.0, {"loss_type": "grpo", "scale_rewards": "group"}),
    "Dr. GRPO": Variant("dr_grpo", LONGEST, 0.0, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "DAPO": Variant("grpo", "targets", 0.0, {"loss_type": "dapo", "scale_rewards": "group"}),
    "DAPO with an entropy bonus": Variant(
        "grpo", "targets", 0.01, {"loss_type": "dapo", "scale_rewards": "group", "entropy_coef": 0.01}
    ),
}


class Written:
    """A tokenizer for messages that hold ids as numbers."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return [int(word) for message in messages for word in message.content.split()]


def network() -> Any:
    """A Qwen2 of two layers, whose weights no random generator has a part in."""
    model = tiny_model("qwen2", vocabulary=300)
    with torch.no_grad():
        for number, (name, weight) in enumerate(model.named_parameters()):
            if weight.ndim > 1:
                places = torch.arange(weight.numel(), dtype=torch.float64)
                weight.copy_((torch.sin(places * (1.7 + 0.1 * number) + number) * 0.3).reshape(weight.shape))
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return model


def old_logprobs(model: Any, one: Attempted) -> list[float]:
    """What the model that samples gives to every token after the prompt."""
    whole = [*one.prompt, *one.ids]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([whole])).logits[0, len(one.prompt) - 1 : -1]
    return [float(value) for value in logits.log_softmax(-1).gather(1, torch.tensor(one.ids)[:, None])[:, 0]]


def examples(model: Any, kind: Advantage) -> Iterator[Example]:
    """Each reply as an example, with its attempt's advantage."""
    for number, group in enumerate(GROUPS):
        found = advantages([one.reward for one in group], kind)
        for attempt, (one, weight) in enumerate(zip(group, found, strict=True)):
            logprobs = old_logprobs(model, one)
            places = [(0, one.reply), (len(one.reply) + len(one.observation), one.second)]
            for start, ids in places[: 1 + bool(one.second)]:
                text = " ".join(map(str, [*one.prompt, *one.ids[:start]]))
                targets = tuple(Target(token, logprob=min(0.0, logprobs[start + at])) for at, token in enumerate(ids))
                name = f"{number}-{attempt}-{start}"
                yield Example(
                    name, "grpo", f"task{number}", attempt, "", (Message("user", text),), "", ids, weight, f"{number}", targets
                )


def first_step(variant: Variant) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and the gradients of our first step."""
    model = network()
    loss = ClippedRatio(normalise=variant.normalise, entropy=variant.entropy)
    bundles = pack_examples(list(examples(model, variant.advantage)), Written(), row_tokens=1000, most=1000, **packing_of(loss))
    rows = [row for bundle in bundles for row in bundle.rows]
    with tree_attention(model):
        total = pass_loss(model, collate(rows), loss, Step.of(bundles)).losses.sum()
    model.zero_grad(set_to_none=True)
    total.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return float(total.detach()), found


def norm(gradients: dict[str, torch.Tensor]) -> float:
    """Of all gradients together."""
    return float(torch.stack([gradient.double().norm() for gradient in gradients.values()]).norm())
