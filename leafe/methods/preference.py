"""Preference pairs from rollback: of two actions at one history, the one whose outcome was better is preferred (DPO, arXiv 2305.18290).

    measure base -> explore -> pairs, scored by the model that training starts from -> train -> measure

A pair is the revised action of a branch and the action that it superseded, under the one prompt without advice that both share. The loss is
`leafe.training.loss.Preference`: `-log sigmoid(beta (log-ratio of the preferred - log-ratio of the other))`, with ratios to the model that
training starts from. With `start` exploring and training begin with a checkpoint of any method.

Where this differs from DPO:
1. No judge decides the preference: both actions were played to an end from one verified state, and the outcomes differ. An action's
   outcome is the best of all attempts that took it; that may favour the superseded one.
2. Tokens with which both begin have no loss, so that they are not pushed down with the rest of the worse action.
3. The preferred action was sampled with advice in the prompt, and is scored and learned without it.
4. Pairs of the same action are left out, and so are replies that hold no action, quote an experience or are the beginning of the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from pydantic import Field

from leafe.chat import Prompts, Scene, bare_messages
from leafe.digest import digest
from leafe.distillation.examples import usable_turns
from leafe.engines.scoring import with_references
from leafe.errors import UserError
from leafe.methods.base import Method, Policy, Scored, Settings, Stage, require_rollback
from leafe.records import BROKEN, Example, Shortening, Target, Tree, Turn
from leafe.run import RunDirectory
from leafe.settings import RunConfig

if TYPE_CHECKING:
    from leafe.lab import Lab

KIND = "preference"


class PreferenceSettings(Settings):
    """`beta` is how fast a pair is satisfied, `pairs_per_task` the most pairs of a task; `start` is the model to begin with.

    Without `start` that is the base.
    """

    beta: float = Field(0.1, gt=0)
    pairs_per_task: int = Field(8, ge=1)
    start: str = ""


class Preferences(Method):
    """The revised action against the superseded one."""

    name = "preference"
    summary = "of two actions at one history, the one with the verifiably better outcome is preferred (DPO on rollback pairs)"
    Settings = PreferenceSettings

    def stages(self, lab: Lab, run: RunDirectory, settings: PreferenceSettings) -> Iterable[Stage]:
        """As in the drawing above. Raises `UserError` if the environment has no rollback, or there is no model `start`."""
        require_rollback(lab, self.name, otherwise="leafe")
        if "train preference" not in run.stages:
            lab.start(settings.start)  # refused now if it is no model

        def start() -> Policy:
            return Policy(lab.start(settings.start))

        def examples() -> Sequence[Example]:
            trees = lab.trees(run, 1)
            found = [one for tree in trees for one in pairs(tree, lab.prompts, settings.pairs_per_task)]
            return _scored(lab, settings, found)

        yield lab.measure(run, "base", Policy(lab.base))
        yield lab.explore(run, 1, start)
        yield lab.distill(run, 1, examples, needs=("explore round 1",))
        yield lab.train(
            run,
            self.name,
            lambda: lab.examples(run, 1),
            start=start,
            needs=("distil round 1",),
            loss=lambda: lab.losses.Preference(settings.beta),
        )
        yield lab.measure(run, self.name, lab.trained(run, self.name))

    def scores(self, settings: PreferenceSettings) -> Scored:
        """Both sides of every pair."""
        return Scored()

    def check(self, config: RunConfig, settings: PreferenceSettings) -> None:
        """Raises `UserError` if `start` is set and exploring goes through a server that serves the base."""
        if settings.start and config.engine.kind == "openai":
            raise UserError(
                "preference.start wants another engine.kind than openai, whose server serves the model of the recipe; set model= to the"
                " one that it serves"
            )


def _scored(lab: Lab, settings: PreferenceSettings, examples: Sequence[Example]) -> Sequence[Example]:
    """The examples with their log-probabilities under the model that training starts from."""
    if not examples:
        return examples
    return lab.experiment.with_engine(lab.start(settings.start), lambda engine: with_references(engine, examples))


def pairs(tree: Tree, prompts: Prompts, most: int) -> Iterator[Example]:
    """The two examples of each of at most `most` pairs, the preferred one first, with weights of 1 and -1."""
    found = 0
    outcome, usable = _outcomes(tree), usable_turns(tree)
    for attempt, revised in tree.branch_turns():
        if found == most or attempt.parent is None or attempt.turn is None or attempt.stop in BROKEN:
            continue
        superseded = tree.trajectory(tree.attempts[attempt.parent].leaf)[attempt.turn - 1]
        told_apart = revised.id in outcome and superseded.id in outcome and outcome[revised.id] != outcome[superseded.id]
        comparable = {revised.id, superseded.id} <= usable and _parted(revised, superseded)
        if told_apart and comparable and revised.action != superseded.action:
            found += 1
            better, worse = sorted((revised, superseded), key=lambda turn: outcome[turn.id], reverse=True)
            yield from _pair(tree, prompts, better, worse)


def _shared(one: Turn, other: Turn) -> int:
    """The number of tokens with which both replies begin."""
    return sum(
        1
        for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one.completion.token_ids, other.completion.token_ids, strict=False))
    )


def _parted(one: Turn, other: Turn) -> bool:
    """Whether the replies differ at some token: one that was cut may be the beginning of the other."""
    return _shared(one, other) < min(len(one.completion.token_ids), len(other.completion.token_ids))


def _outcomes(tree: Tree) -> dict[str, tuple[bool, float]]:
    """Success and reward of the best attempt that took a turn, by the turn's id. Broken attempts do not count."""
    best: dict[str, tuple[bool, float]] = {}
    for attempt in tree.attempts:
        if attempt.stop not in BROKEN:
            for turn in tree.trajectory(attempt.leaf):
                best[turn.id] = max(best.get(turn.id, (False, float("-inf"))), (attempt.success, attempt.reward))
    return best


def _pair(tree: Tree, prompts: Prompts, better: Turn, worse: Turn) -> Iterator[Example]:
    """Both sides under one prompt: the shorter of the two that they were sampled with, into which both fit."""
    cut = Shortening(
        max(better.shortening.thoughts, worse.shortening.thoughts),
        max(better.shortening.observations, worse.shortening.observations),
    )
    messages = bare_messages(Scene(prompts, tree.task, tree.root), tree.trajectory(better.parent), cut)
    shared = _shared(better, worse)
    group = digest(KIND, better.id, worse.id)
    for turn, weight in ((better, 1.0), (worse, -1.0)):
        ids = turn.completion.token_ids
        yield Example(
            id=digest(KIND, group, turn.id),
            kind=KIND,
            task=tree.task.id,
            attempt=turn.attempt,
            origin=turn.id,
            messages=messages,
            target=turn.completion.text,
            target_ids=ids,
            weight=weight,
            group=group,
            targets=tuple(Target(one, weight=float(place >= shared)) for place, one in enumerate(ids)),
        )
