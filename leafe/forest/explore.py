"""LEAFE stage 1: a tree of attempts that grows by reflection and verified rollback (paper, section 3.1).

Requests wait in one first-in-first-out queue, so the tree grows breadth first. The policy reflects on a failed attempt, and on every K-th
turn of a running one; the experience becomes a request to continue from the turn it names. If there is nothing to reflect on, or no
request is left, an attempt starts from the root, until the budget is used up. In an environment that cannot be rolled back the experience
is feedback to a fresh attempt instead; where all of it leaves no room for a turn, the older half is left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from leafe.forest.builder import Start, TreeBuilder
from leafe.forest.effects import Play
from leafe.forest.play import Played, independent, play
from leafe.forest.reflect import reflect
from leafe.records import BROKEN, StopReason, Tree, Turn

# Endings after which a reflection is useless: success, a failure of the machinery, or an exhausted budget.
UNREFLECTED = BROKEN | {StopReason.SUCCESS, StopReason.BUDGET}


def explore(builder: TreeBuilder) -> Play[Tree]:
    """Grows the tree of one task until its budget is used up."""
    queue: deque[Start] = deque()
    while builder.may_start():
        looking_back = _LookingBack(builder, queue, queue.popleft() if queue else Start())
        played = yield from play(builder, looking_back.start, looking_back.on_the_way)
        if _left_no_room(builder, looking_back.start, played):
            if fewer := _newer_half(looking_back.start.feedback):
                queue.appendleft(replace(looking_back.start, feedback=fewer))
            continue
        yield from looking_back.at_the_end(played)
    return builder.tree("tree")


def _left_no_room(builder: TreeBuilder, start: Start, played: Played) -> bool:
    """Whether an attempt's feedback left no room for its first turn. It is taken out then, so that it costs none of the attempts."""
    lost = bool(start.feedback) and played.attempt.stop is StopReason.TOKEN_LIMIT and not played.trajectory
    if lost:
        builder.attempts.pop()
    return lost


def _newer_half(feedback: tuple[str, ...]) -> tuple[str, ...]:
    return feedback[(len(feedback) + 1) // 2 :]


@dataclass(frozen=True)
class _LookingBack:
    """The times at which an attempt is reflected on, and the requests that follow."""

    builder: TreeBuilder
    queue: deque[Start]
    start: Start

    def on_the_way(self, attempt: int, trajectory: tuple[Turn, ...]) -> Play[None]:
        """Every K turns, unless the horizon is reached or a request would be useless."""
        every = self.builder.rules.reflect_every
        if every and len(trajectory) % every == 0 and len(trajectory) < self.builder.task.horizon and self._of_use(underway=1):
            yield from self._reflect(attempt, trajectory, ended=False)

    def at_the_end(self, played: Played) -> Play[None]:
        """Reflects on a failed attempt."""
        failed = played.attempt.stop not in UNREFLECTED and bool(played.trajectory)
        if failed and self.builder.rules.reflect_on_failure and self._of_use(underway=0):
            yield from self._reflect(played.attempt.index, played.trajectory, ended=True)

    def _of_use(self, *, underway: int) -> bool:
        """Whether a request made now could still be played: after those running and in the queue, and not too deep."""
        rules, ahead = self.builder.rules, len(self.builder.attempts) + underway + len(self.queue)
        return self.start.depth < rules.max_depth and ahead < rules.max_attempts and not self.builder.exhausted()

    def _reflect(self, attempt: int, trajectory: tuple[Turn, ...], *, ended: bool) -> Play[None]:
        experience = yield from reflect(self.builder, attempt, trajectory, ended=ended, feedback=self.start.feedback)
        if experience is None:
            return
        depth = self.start.depth + 1
        if self.builder.rules.can_roll_back:
            self.queue.append(Start(trajectory[: experience.turn - 1], depth, attempt, advice=experience.text))
        else:
            self.queue.append(Start((), depth, attempt, feedback=(*self.start.feedback, experience.text)))


def refine(builder: TreeBuilder) -> Play[Tree]:
    """IR of the paper: each retry from the root with the feedback of all attempts that failed since the last success in the prompt."""
    yield from _from_the_root(builder)
    return builder.tree("refine")


def retry(builder: TreeBuilder) -> Play[Tree]:
    """Verbal retry (Reflexion, arXiv 2303.11366): like `refine`, but with only the latest `Rules.memory` experiences in the prompt.

    A retry that succeeds empties the memory, as in `refine`; Reflexion itself then ends, which is `stop_when_solved` 1.
    """
    yield from _from_the_root(builder, latest=builder.rules.memory)
    return builder.tree("retry")


def _from_the_root(builder: TreeBuilder, latest: int | None = None) -> Play[None]:
    """Retries from the root, each with the experiences of the failed ones since the last success, or the `latest` of them.

    A retry whose experiences leave no room for its first turn begins again without the older half of them.
    """
    feedback: tuple[str, ...] = ()
    failed = 0
    while builder.may_start():
        start = Start((), failed, len(builder.attempts) - 1 if feedback else None, feedback=feedback)
        played = yield from play(builder, start)
        if _left_no_room(builder, start, played):
            feedback = _newer_half(feedback)
            failed = min(failed, len(feedback))
        elif played.attempt.stop is StopReason.SUCCESS:
            feedback, failed = (), 0
        elif played.attempt.stop not in UNREFLECTED and played.trajectory and builder.may_start():
            experience = yield from reflect(builder, played.attempt.index, played.trajectory, ended=True, feedback=feedback)
            if experience is not None:
                told = (*feedback, experience.text)
                feedback, failed = told[-latest:] if latest else told, failed + 1


Explorer = Callable[[TreeBuilder], Play[Tree]]
EXPLORERS: dict[str, Explorer] = {"tree": explore, "independent": independent, "refine": refine, "retry": retry}
