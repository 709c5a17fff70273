"""Redistribution of the turns that solved tasks leave: budgets of the next pass over a forest, from the trees of the pass before.

With `Rules.stop_when_solved` a task that has so many successes starts no further attempt. Its unused turns are divided evenly among the
tasks that used up theirs without so many successes, and so on until none are left or no task can use them. A tree of a larger budget
begins with the tree of a smaller one, turn for turn, so it is grown anew from the journal and then further. Budgets follow from trees
alone: neither the order in which tasks end nor a kill changes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from leafe.records import Tree


@dataclass(frozen=True, slots=True)
class Standing:
    """The turns that a task has used, and its successes within them."""

    turns: int
    successes: int


def standing(tree: Tree, budget: int) -> Standing:
    """The standing of a tree after `budget` turns, or after all its turns if it used fewer."""
    return Standing(min(budget, tree.spend.turns), sum(attempt.success for attempt in tree.within(budget).attempts))


def shared_out(budgets: Mapping[str, int], stands: Mapping[str, Standing], *, total: int, solved: int) -> dict[str, int]:
    """The budgets, in turns, of the tasks that continue; `total` is that of all tasks together, `solved` the successes that end one.

    The remainder of an even division goes to the first tasks, a turn each. Empty if nothing is left or no task can use it.

    >>> shared_out({"a": 8, "b": 8, "c": 8}, {"a": Standing(3, 1), "b": Standing(8, 0), "c": Standing(8, 0)}, total=24, solved=1)
    {'b': 11, 'c': 10}
    """
    unsolved = [task for task, one in stands.items() if one.successes < solved and one.turns >= budgets[task]]
    left = total - sum(one.turns for one in stands.values())
    if not unsolved:
        return {}
    each, rest = divmod(left, len(unsolved))
    shares = {task: each + (number < rest) for number, task in enumerate(unsolved)}
    return {task: budgets[task] + share for task, share in shares.items() if share}
