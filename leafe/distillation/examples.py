"""LEAFE stage 2's two example sets, drawn from a forest (paper, section 3.2).

Counterfactual examples take a branch's revised action as target under the prompt that the policy would have read at that turn without
advice. Without rollback a fresh attempt had the experience in every prompt: each of its turns is then a target, under its history without
the experience, and the attempt counts as one branch.

Rehearsal examples take the turns of successful attempts. Prompts are rendered anew from the records without a single experience;
targets are the sampled ids, never re-tokenised. Attempts that leafe or the world broke give no examples, and neither do turns whose
reply, or an earlier one in their prompt, quotes an experience word for word beside its action; paraphrases are not detected.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from leafe.chat import Prompts, Scene, bare_messages
from leafe.digest import digest, seed_for
from leafe.records import BROKEN, Attempt, Example, Target, Tree, Turn

Kind = Literal["counterfactual", "rehearsal"]


@dataclass(frozen=True, slots=True)
class Selection:
    """The choice of turns that become examples.

    A branch qualifies when it succeeded (`success`), when it did better than the attempt it left or led on to a success
    (`improved`), or always (`any`). `branches_per_task` branches are drawn a task, and `success_share` of all successful attempts.
    `beta` is the weight of a rehearsal example; a counterfactual one weighs 1. With `rehearse` `successes` every rehearsed turn has that
    weight; with `tasks` each success of a task with `c` of them, drawn or not, adds 1/c to its turns, scaled so that `beta` is the mean
    over all rehearsal examples. `logprobs` keeps the log-probability of each target when it was sampled, if the forest holds it: at the
    temperature of sampling, and, for a revised action, with the advice in the prompt.
    """

    qualify: Literal["success", "improved", "any"] = "improved"
    branches_per_task: int = 3
    success_share: float = 1.0
    beta: float = 1.0
    seed: int = 0
    logprobs: bool = False
    rehearse: Literal["successes", "tasks"] = "successes"


def distill(trees: Sequence[Tree], prompts: Prompts, selection: Selection) -> list[Example]:
    """Both example sets, counterfactual first, each in the forest's order of task ids."""
    ordered = sorted(trees, key=lambda tree: tree.task.id)
    return [*counterfactual(ordered, prompts, selection), *rehearsal(ordered, prompts, selection)]


def counterfactual(trees: Iterable[Tree], prompts: Prompts, selection: Selection) -> Iterator[Example]:
    """`branches_per_task` qualifying branch turns of each tree."""
    for tree in trees:
        fits = _qualifier(tree, selection.qualify)
        usable = usable_turns(tree)
        events = []
        for attempt, turns in tree.revisions():
            revised = [turn for turn in turns if turn.id in usable and fits(attempt, turn)]
            if revised and attempt.stop not in BROKEN:
                events.append(revised)
        draw = random.Random(seed_for(selection.seed, "counterfactual", tree.task.id))
        chosen = draw.sample(events, min(selection.branches_per_task, len(events)))
        for revised in sorted(chosen, key=lambda turns: turns[0].attempt):
            yield from (_example("counterfactual", selection, prompts, tree, turn=turn) for turn in revised)


def rehearsal(trees: Iterable[Tree], prompts: Prompts, selection: Selection) -> Iterator[Example]:
    """The turns of `success_share` of the successful attempts, each turn once; branched attempts count like any other."""
    successes = [(tree, attempt) for tree in trees for attempt in tree.attempts if attempt.success]
    draw = random.Random(seed_for(selection.seed, "rehearsal"))
    count = ceil(round(selection.success_share * len(successes), 9))  # 0.2 * 35 is a little more than 7
    chosen = sorted(draw.sample(range(len(successes)), count))
    by_tree: defaultdict[str, list[Attempt]] = defaultdict(list)
    for index in chosen:
        tree, attempt = successes[index]
        by_tree[tree.task.id].append(attempt)
    found: list[Example] = []
    shares: list[float] = []
    for tree in {tree.task.id: tree for tree, _ in successes}.values():
        usable = usable_turns(tree)
        paths = [tree.trajectory(attempt.leaf) for attempt in by_tree[tree.task.id]]
        turns = {turn.id: turn for path in paths for turn in path if turn.id in usable}
        times = Counter(turn.id for path in paths for turn in path)
        won = sum(attempt.success for attempt in tree.attempts)
        found += (_example("rehearsal", selection, prompts, tree, turn=turn) for turn in turns.values())
        shares += (times[turn] / won for turn in turns)
    yield from found if selection.rehearse == "successes" else _weighted(found, shares, selection.beta)


def matched(
    trees: Sequence[Tree], others: Sequence[Tree], prompts: Prompts, selection: Selection, *, by_task: bool = True
) -> tuple[list[Example], list[Example]]:
    """The rehearsal examples of two forests over the same tasks, matched in turns and in number.

    For each task only attempts count that ended within the turns that both forests spent on it. Without `by_task` all count: if tasks are
    left once they are solved, only the total turns are equal. From the side with more examples as many as the other has are drawn by the
    seed. Each side's examples are in the forest's order of task ids.
    """
    spent = [{tree.task.id: tree.spend.turns for tree in forest} for forest in (trees, others)]
    sides = []
    for forest in (trees, others):
        ordered = sorted((tree for tree in forest if all(tree.task.id in one for one in spent)), key=lambda tree: tree.task.id)
        equal = [tree.within(min(one[tree.task.id] for one in spent)) for tree in ordered] if by_task else ordered
        sides.append(list(rehearsal(equal, prompts, selection)))
    fewest = min(len(side) for side in sides)
    draw = random.Random(seed_for(selection.seed, "matched"))
    cut = [[side[index] for index in sorted(draw.sample(range(len(side)), fewest))] for side in sides]
    if selection.rehearse == "tasks":  # the cut may have moved the mean
        cut = [list(_weighted(side, [one.weight for one in side], selection.beta)) for side in cut]
    return cut[0], cut[1]


def _weighted(examples: Sequence[Example], shares: Sequence[float], mean: float) -> Iterator[Example]:
    """The examples with weights in proportion to `shares`, whose mean is `mean`."""
    scale = mean * len(shares) / (sum(shares) or 1.0)
    return (replace(example, weight=share * scale) for example, share in zip(examples, shares, strict=True))


def _qualifier(tree: Tree, qualify: str) -> Callable[[Attempt, Turn], bool]:
    """Whether a branch, given as the attempt and its revised turn, is learned from."""
    reward = {attempt.index: attempt.reward for attempt in tree.attempts}
    # A later branch may leave this one after its revised turn, at any depth; its success is then owed to that turn as well.
    won = {turn.id for attempt in tree.attempts if attempt.success for turn in tree.trajectory(attempt.leaf)}

    def improved(attempt: Attempt, turn: Turn) -> bool:
        return turn.id in won or (attempt.parent is not None and attempt.reward > reward[attempt.parent])

    return {"success": lambda attempt, turn: attempt.success, "improved": improved, "any": lambda attempt, turn: True}[qualify]


UNLEARNED = ("repetition", "closed")  # ways in which replies ended that are not learned from


def usable_turns(tree: Tree) -> set[str]:
    """The ids of the turns with an action, in full, whose prompt and reply quote no experience."""
    told = {text for attempt in tree.attempts for text in (attempt.experience or "").split("\n") if text.strip()}
    told |= {turn.experience for turn in tree.turns if turn.experience}
    quoting: set[str | None] = set()
    for turn in tree.turns:  # a turn comes after its parent
        text = turn.completion.text
        before, _, after = text.rpartition(turn.action) if turn.action else (text, "", "")  # a reply of thoughts alone
        if turn.parent in quoting or any(advice in before or advice in after for advice in told):
            quoting.add(turn.id)
    # A reply that was ended while it repeated itself would teach to repeat; a closed one would teach to think for too long.
    whole = (turn for turn in tree.turns if turn.parsed and turn.completion.finish not in UNLEARNED)
    return {turn.id for turn in whole if turn.id not in quoting}


def _example(kind: Kind, selection: Selection, prompts: Prompts, tree: Tree, *, turn: Turn) -> Example:
    ids, logprobs = turn.completion.token_ids, turn.completion.logprobs
    kept = selection.logprobs and len(ids) == len(logprobs)
    return Example(
        id=digest(kind, turn.id),
        kind=kind,
        task=tree.task.id,
        attempt=turn.attempt,
        origin=turn.id,
        messages=bare_messages(Scene(prompts, tree.task, tree.root_of(turn)), tree.trajectory(turn.parent), turn.shortening),
        target=turn.completion.text,
        target_ids=ids,
        weight=selection.beta if kind == "rehearsal" else 1.0,
        targets=tuple(Target(token, logprob=value) for token, value in zip(ids, logprobs, strict=True)) if kept else (),
    )
