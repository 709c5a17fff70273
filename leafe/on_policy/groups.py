"""The definitions of an on-policy method: its groups, its settings, and how turns become examples.

A group is the attempts at one task that are compared; `leafe.on_policy.training` draws the tasks, plays the groups, learns and keeps to
the budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, Self, TypeVar

from pydantic import Field, model_validator

from leafe.chat import Prompts, Scene, bare_messages
from leafe.digest import digest
from leafe.errors import UserError
from leafe.forest.builder import Rules
from leafe.forest.effects import Play
from leafe.group import launched
from leafe.records import Example, Target, Task, Tree, Turn
from leafe.settings import RunConfig, Settings
from leafe.training.advantages import BINARY, Advantage, advantages, teaches
from leafe.training.learner_settings import check_learner

if TYPE_CHECKING:
    from leafe.engines.base import Engine

Member = TypeVar("Member")


class OnPolicySettings(Settings):
    """`groups` tasks a step, `passes` optimiser steps on each batch; `start` is the model that training starts from, or else the base.

    `steps` is the planned number of batches; 0 for as many as the budget is sure to hold. With `dynamic` other tasks replace groups that
    teach nothing. `low` and `high` are how far the ratio may go before it is clipped, `kl` is the weight of the divergence from the model
    that training starts from, `entropy` that of a bonus for the entropy of the next token. `reward` is `success`, or the environment's
    `reward` of an attempt's last step, not the sum over its steps. `normalise` is the unit over which the loss is a mean (`targets`,
    `sequence`, or a number of tokens).
    """

    groups: int = Field(8, ge=1)
    passes: int = Field(1, ge=1)
    steps: int = Field(0, ge=0)
    start: str = ""
    reward: Literal["success", "reward"] = "success"
    dynamic: bool = True
    low: float = Field(0.2, gt=0)
    high: float = Field(0.2, gt=0)
    kl: float = Field(0.0, ge=0)
    entropy: float = Field(0.0, ge=0)
    normalise: Literal["targets", "sequence"] | Annotated[int, Field(ge=1)] = "sequence"


class ComparedSettings(OnPolicySettings):
    """The settings of methods whose groups have `size` members, each with an `advantage` over the others; `k` is that of `pkpo`."""

    size: int = Field(8, ge=2)
    advantage: Advantage = "grpo"
    k: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _advantage_fits(self) -> Self:
        if self.advantage == "pkpo" and self.k >= self.size:
            raise ValueError(f"k: wanted less than the {self.size} attempts of a group, found {self.k}")
        if self.advantage in BINARY and self.reward == "reward":
            raise ValueError(
                f"reward: wanted 'success' for the advantage {self.advantage}, which takes only 0 and 1, found 'reward'"
            )
        return self


class Groups(Protocol):
    """The groups of a method."""

    @property
    def arm(self) -> str:
        """The name of the method, under which the trained model is measured."""
        ...

    @property
    def rounds(self) -> int:
        """The most passes over all tasks for one batch of which a group teaches; until one does, others are drawn to the budget's end."""
        ...

    def most_turns(self, horizon: int) -> int:
        """The most turns that the group of a task of that horizon can take."""
        ...

    def plays(self, number: int, task: Task, rules: Rules) -> Sequence[Play[Tree]]:
        """The plays of the `number`th task drawn, run concurrently; their randomness follows from `number` and the seed of `rules`."""
        ...

    async def learn(self, place: str, trees: Sequence[Tree], engine: Engine) -> Sequence[Example]:
        """The examples from the results of `plays`, which may be none. `place` names the group; the engine has the step's weights."""
        ...


def check_one_process(method: str, config: RunConfig) -> None:
    """Refuses settings and launchers of several processes, for methods whose learner samples and learns in one process.

    Raises `UserError`.
    """
    if config.train.processes > 1 or config.train.sharding != "none" or launched():
        raise UserError(
            f"method {method} trains in one process, which samples with the weights that it trains; set train.processes=1"
            " train.sharding=none, and start it without a launcher such as torchrun"
        )


def check_on_policy(name: str, config: RunConfig, settings: OnPolicySettings, *, scored: str = "", whole: bool = False) -> None:
    """Raises `UserError` if the engine gives no log-probabilities or takes no weights, or all attempts at a task would be the same.

    `scored` names the part of the method that needs scores, which are computed at temperature 1; with `whole` it needs draws from the
    whole distribution as well. Refuses settings that have no effect here.
    """
    if config.explore.tokens:
        raise UserError(
            f"method {name} has a budget of turns alone, found explore.tokens={config.explore.tokens}; type explore.tokens=0"
        )
    if found := config.explore.stop_when_solved:
        raise UserError(
            f"method {name} draws tasks in turn and leaves none once it is solved; explore.stop_when_solved: wanted 0, found {found}; type"
            " explore.stop_when_solved=0"
        )
    check_learner(config.train)
    if config.engine.kind == "openai":
        raise UserError(
            f"method {name} gives the engine new weights at every step, which engine.kind=openai does not take;"
            " type engine.kind=transformers, or engine.kind=vllm to measure through a server of the run's own"
        )
    check_one_process(name, config)
    draw = config.sampling.act
    if draw.temperature == 0:
        raise UserError(
            f"method {name} compares different attempts at a task, and at temperature 0 they are all the same; type"
            " sampling.act.temperature=1"
        )
    if settings.kl:
        _require_draws(config, f"{name}.kl", whole=True, otherwise=f", or {name}.kl=0")
    if scored:
        _require_draws(config, scored, whole=whole)


def _require_draws(config: RunConfig, part: str, *, whole: bool, otherwise: str = "") -> None:
    """Raises `UserError` where actions are drawn at another temperature than texts are scored at, or, for the `whole`, with a cut."""
    draw = config.sampling.act
    found = {"temperature": draw.temperature, **({"top_p": draw.top_p} if whole else {})}
    if wrong := {f"sampling.act.{name}=1": value for name, value in found.items() if value != 1}:
        raise UserError(
            f"{part} wants {' and '.join(wrong)}, since its formula needs draws from the distribution that texts are scored with, found"
            f" {' and '.join(f'{value:g}' for value in wrong.values())}; type {' '.join(wrong)}{otherwise}"
        )


def reward_of(tree: Tree, attempt: int, settings: OnPolicySettings) -> float:
    """The reward of an attempt: success, or the environment's reward of its last step."""
    played = tree.attempts[attempt]
    return float(played.success) if settings.reward == "success" else played.reward


def compared(members: Sequence[tuple[Member, float]], settings: ComparedSettings) -> list[tuple[Member, float]]:
    """Members of a group, given with their rewards, each with its advantage; none if the group teaches nothing."""
    rewards = [reward for _, reward in members]
    if len(members) < 2 or not teaches(rewards):
        return []
    found = advantages(rewards, settings.advantage, k=min(settings.k, len(rewards) - 1))
    if not any(found):  # as PKPO's are where fewer than k members failed
        return []
    return [(member, advantage) for (member, _), advantage in zip(members, found, strict=True)]


def sampled_examples(
    prompts: Prompts, tree: Tree, turns: Iterable[Turn], *, kind: str, group: str, attempt: int, weight: float
) -> Iterator[Example]:
    """Examples of turns that the policy took without advice, each with its sampled tokens as targets.

    `attempt` is the number of their sequence, `weight` its advantage. Raises `UserError` if log-probabilities are missing.
    """
    for turn in turns:
        said = turn.completion
        if not said.token_ids:
            continue
        if len(said.logprobs) != len(said.token_ids):
            raise UserError(
                f"method {kind} wants the log-probability of every sampled token, and the engine gave none; type"
                " engine.kind=transformers"
            )
        yield Example(
            id=digest(kind, group, attempt, turn.id),
            kind=kind,
            task=tree.task.id,
            attempt=attempt,
            origin=turn.id,
            messages=bare_messages(Scene(prompts, tree.task, tree.root_of(turn)), tree.trajectory(turn.parent), turn.shortening),
            target=said.text,
            target_ids=said.token_ids,
            weight=weight,
            group=group,
            targets=tuple(Target(one, logprob=min(0.0, value)) for one, value in zip(said.token_ids, said.logprobs, strict=True)),
        )
