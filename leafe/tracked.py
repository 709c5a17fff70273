"""The figures that trackers receive while stages are under way: cumulative, by how much is done, at most a hundred times a stage."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from leafe.evaluation.outcomes import Outcome, read_outcomes
from leafe.progress import Tracker
from leafe.records import Tree

PARTS = 100


def due(done: int, total: int) -> bool:
    """Whether another hundredth of the whole is done.

    >>> [done for done in range(1, 1001) if due(done, 1000)] == list(range(10, 1001, 10)), sum(due(done, 7) for done in range(1, 8))
    (True, 7)
    """
    return done * PARTS // total > (done - 1) * PARTS // total


def exploring(tracker: Tracker, stage: str, known: Collection[Tree], total: int) -> None:
    """Sends the totals of the trees so far, out of so many tasks."""
    if not due(len(known), total):
        return
    solved = sum(any(attempt.success for attempt in tree.attempts) for tree in known)
    figures = {
        "solved": solved,
        "solved_share": solved / len(known),
        "turns": sum(tree.spend.turns for tree in known),
        "attempts": sum(len(tree.attempts) for tree in known),
    }
    tracker.log(stage, len(known), figures)


def measuring(tracker: Tracker, stage: str, path: Path, total: int) -> Callable[[Outcome], None]:
    """A function to call with each outcome of a measurement; those that the file at `path` has already are counted in."""
    successes = [one.success for one in read_outcomes(path)] if path.exists() else []

    def told(one: Outcome) -> None:
        successes.append(one.success)
        if due(len(successes), total):
            tracker.log(stage, len(successes), {"successes": sum(successes), "success_share": sum(successes) / len(successes)})

    return told
