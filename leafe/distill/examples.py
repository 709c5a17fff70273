"""LEAFE stage 2's two example sets, drawn from a forest (paper, section 3.2).

Counterfactual examples take a branch's revised action as target under the prompt that the policy would have read there without any
advice. Rehearsal examples take the turns of successful attempts. Prompts are rendered anew from the records without a single
experience; targets are the ids that were sampled, never re-tokenised. Attempts that our plumbing broke give nothing.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from leafe.chat import Prompts, Scene, bare_messages
from leafe.digest import digest, seed_for
from leafe.records import BROKEN, Attempt, Example, Tree, Turn

Kind = Literal["counterfactual", "rehearsal"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which turns become examples.

    A branch qualifies when it succeeded (`success`), when it did better than the attempt it left or led on to a success
    (`improved`), or always (`any`). `branches_per_task` branches are drawn a task, and `success_share` of all successful attempts. `beta` is the
    weight of a rehearsal example; a counterfactual one weighs 1.
    """

    qualify: Literal["success", "improved", "any"] = "improved"
    branches_per_task: int = 3
    success_share: float = 0.2
    beta: float = 1.0
    seed: int = 0


def distill(trees: Sequence[Tree], prompts: Prompts, choice: Choice) -> list[Example]:
    """Both example sets, counterfactual first, each in the forest's order of task ids."""
    ordered = sorted(trees, key=lambda tree: tree.task.id)
    return [*counterfactual(ordered, prompts, choice), *rehearsal(ordered, prompts, choice)]


def counterfactual(trees: Iterable[Tree], prompts: Prompts, choice: Choice) -> Iterator[Example]:
    """`branches_per_task` qualifying branch turns of each tree."""
    for tree in trees:
        fits = _qualifier(tree, choice.qualify)
        events = [turn for attempt, turn in tree.branch_turns() if attempt.stop not in BROKEN and turn.parsed and fits(attempt)]
        draw = random.Random(seed_for(choice.seed, "counterfactual", tree.task.id))
        chosen = draw.sample(events, min(choice.branches_per_task, len(events)))
        scene = Scene(prompts, tree.task, tree.root)
        yield from (
            _example("counterfactual", 1.0, scene, tree, turn=turn) for turn in sorted(chosen, key=lambda turn: turn.attempt)
        )


def rehearsal(trees: Iterable[Tree], prompts: Prompts, choice: Choice) -> Iterator[Example]:
    """The turns of `success_share` of the successful attempts, each turn once; branched attempts count like any other."""
    successes = [(tree, attempt) for tree in trees for attempt in tree.attempts if attempt.success]
    draw = random.Random(seed_for(choice.seed, "rehearsal"))
    count = ceil(choice.success_share * len(successes))
    chosen = sorted(draw.sample(range(len(successes)), count))
    by_tree: defaultdict[str, list[Attempt]] = defaultdict(list)
    for index in chosen:
        tree, attempt = successes[index]
        by_tree[tree.task.id].append(attempt)
    for tree in {tree.task.id: tree for tree, _ in successes}.values():
        turns = {turn.id: turn for attempt in by_tree[tree.task.id] for turn in tree.walk(attempt.leaf) if turn.parsed}
        scene = Scene(prompts, tree.task, tree.root)
        yield from (_example("rehearsal", choice.beta, scene, tree, turn=turn) for turn in turns.values())


def _qualifier(tree: Tree, qualify: str) -> Callable[[Attempt], bool]:
    children: defaultdict[int, list[Attempt]] = defaultdict(list)
    for attempt in tree.attempts:
        if attempt.parent is not None:
            children[attempt.parent].append(attempt)

    def leads_on(attempt: Attempt) -> bool:
        return attempt.success or any(
            leads_on(child) for child in children[attempt.index] if (child.turn or 0) > (attempt.turn or 0)
        )

    def improved(attempt: Attempt) -> bool:
        before = tree.attempts[attempt.parent].reward if attempt.parent is not None else 0.0
        return attempt.reward > before or leads_on(attempt)

    return {"success": lambda attempt: attempt.success, "improved": improved, "any": lambda attempt: True}[qualify]


def _example(kind: Kind, weight: float, scene: Scene, tree: Tree, *, turn: Turn) -> Example:
    return Example(
        id=digest(kind, turn.id),
        kind=kind,
        task=tree.task.id,
        attempt=turn.attempt,
        origin=turn.id,
        messages=bare_messages(scene, tree.walk(turn.parent)),
        target=turn.completion.text,
        target_ids=turn.completion.token_ids,
        weight=weight,
    )
