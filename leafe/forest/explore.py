"""LEAFE stage 1: a tree of attempts that grows by reflection and verified rollback (paper, section 3.1).

Requests wait in one first-in-first-out queue, so the tree grows breadth first. A failed attempt, and every K-th turn of one under way,
is reflected on; the experience makes a request to go on from the turn it names. Where there is nothing to reflect on, or no request is
left, an attempt starts afresh from the root, until the budget is used up. An environment that cannot be rolled back gets the
experience as feedback to a fresh attempt instead.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from leafe.forest.effects import Play
from leafe.forest.growth import Growth, Start
from leafe.forest.play import Played, independent, play
from leafe.forest.reflect import reflect
from leafe.records import BROKEN, StopReason, Tree, Turn

# Endings after which looking back is of no use: it worked, our plumbing broke, or the task's budget ran out in the middle.
UNREFLECTED = BROKEN | {StopReason.SUCCESS, StopReason.BUDGET, StopReason.TOKEN_LIMIT}


def explore(growth: Growth) -> Play[Tree]:
    """Grows the tree of one task until its budget is used up."""
    queue: deque[Start] = deque()
    while growth.may_start():
        start = queue.popleft() if queue else Start()
        played = yield from play(growth, start, _Pause(growth, queue, start))
        if _worth_reflecting(growth, played):
            yield from _branch(growth, queue, start, played.attempt.index, played.walk, ended=True)
    return growth.tree("tree")


def _worth_reflecting(growth: Growth, played: Played) -> bool:
    attempt, rules = played.attempt, growth.rules
    wanted = rules.reflect_on_failure and attempt.stop not in UNREFLECTED and bool(played.walk)
    return wanted and attempt.depth < rules.max_depth and growth.may_start()


@dataclass(frozen=True)
class _Pause:
    """Reflection under way, every K turns of the attempt's walk."""

    growth: Growth
    queue: deque[Start]
    start: Start

    def __call__(self, attempt: int, walk: tuple[Turn, ...]) -> Play[None]:
        rules = self.growth.rules
        due = rules.reflect_every and len(walk) % rules.reflect_every == 0 and len(walk) < self.growth.task.horizon
        if due and self.start.depth < rules.max_depth and not self.growth.exhausted():
            yield from _branch(self.growth, self.queue, self.start, attempt, walk, ended=False)


def _branch(growth: Growth, queue: deque[Start], start: Start, attempt: int, walk: tuple[Turn, ...], *, ended: bool) -> Play[None]:
    """Reflects on a walk and queues what follows from it."""
    experience = yield from reflect(growth, attempt, walk, ended=ended)
    if experience is None:
        return
    if growth.rules.can_roll_back:
        queue.append(Start(walk[: experience.turn - 1], start.depth + 1, attempt, advice=experience.text))
    else:
        queue.append(Start((), start.depth + 1, attempt, feedback=(*start.feedback, experience.text)))


def refine(growth: Growth) -> Play[Tree]:
    """IR of the paper: each retry from the root with the feedback of all failed attempts before it in the prompt."""
    feedback: tuple[str, ...] = ()
    while growth.may_start():
        start = Start((), len(feedback), len(growth.attempts) - 1 if feedback else None, feedback=feedback)
        played = yield from play(growth, start)
        if played.attempt.stop is StopReason.SUCCESS:
            feedback = ()
        elif played.attempt.stop not in UNREFLECTED and growth.may_start():
            experience = yield from reflect(growth, played.attempt.index, played.walk, ended=True)
            feedback += (experience.text,) if experience is not None else ()
    return growth.tree("refine")


EXPLORERS = {"tree": explore, "independent": independent, "refine": refine}
