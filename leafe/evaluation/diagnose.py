"""The figures that decide whether LEAFE can help a model in an environment, measured without training.

From one tree exploration and one of independent samples at the same budget: how many reflections can be read, which turns they name,
whether branches succeed more often than fresh attempts, how many tasks each way solves, and the reflection gap: at the turns that
reflections named, how often the first action is one of the best with the advice in the prompt and without it. The gap is reported twice:
for reflections on attempts without advice, the model's own mistakes, and for reflections on branches, the cases that advice did not fix.
Without an expert the gap in actions cannot be measured, and only the gap in success is reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from leafe.chat import Scene, bare_messages
from leafe.digest import seed_for
from leafe.engines.base import UNCONTINUED, Engine, continues
from leafe.envs.base import Environment
from leafe.envs.settled import let_go
from leafe.envs.world import World, observation_digest
from leafe.errors import EpisodeError
from leafe.evaluation.passk import Interval, Resampling
from leafe.forest.builder import Rules
from leafe.forest.closing import closed_act
from leafe.forest.faults import Faults, faults_of
from leafe.forest.play import action_in
from leafe.records import BROKEN, UNJUDGED, Ask, Attempt, Completion, Tree, Turn, taken
from leafe.replies import ParseFailure

RESAMPLES = 2000
DRAWS = 4  # unadvised actions a branching turn


@dataclass(frozen=True, slots=True)
class BranchPoint:
    """One turn that a reflection named: the action taken with its advice, and the best actions."""

    tree: Tree
    attempt: Attempt
    turn: Turn
    best: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The figures, as shares from 0 to 1 with intervals over tasks. None if there was nothing to measure.

    `advised_optimal`, `unadvised_optimal` and `reflection_gap` are about the `branch_points` in attempts without advice, those named
    `later` about branches of branches. Reflections without room in the context are in the faults alone.
    """

    reflections: int
    parsed: Interval | None
    named_turns: dict[str, int]
    branch_success: Interval | None
    fresh_success: Interval | None
    success_gap: Interval | None
    tasks_solved_by_tree: int
    tasks_solved_by_independent: int
    tasks: int
    branch_points: int
    advised_optimal: Interval | None
    unadvised_optimal: Interval | None
    reflection_gap: Interval | None
    branch_points_later: int
    advised_optimal_later: Interval | None
    unadvised_optimal_later: Interval | None
    reflection_gap_later: Interval | None
    tree_faults: Faults
    independent_faults: Faults


def shares(values: Sequence[Sequence[float]], seed: int = 0, *, how: Resampling = Resampling(RESAMPLES)) -> Interval | None:
    """The mean of all values, with a bootstrap interval over groups (one group a task), by default of 95 %."""
    groups = [group for group in values if len(group)]
    if not groups:
        return None
    sums = np.array([sum(group) for group in groups])
    sizes = np.array([len(group) for group in groups])
    draws = np.random.default_rng(seed).integers(0, len(groups), (how.resamples, len(groups)))
    runtime = sums[draws].sum(1) / sizes[draws].sum(1)
    tail = (1 - how.confidence) / 2
    low, high = np.quantile(runtime, [tail, 1 - tail])
    return Interval(float(sums.sum() / sizes.sum()), float(low), float(high))


def best_actions(environment: Environment, tree: Tree, turn: Turn) -> tuple[str, ...]:
    """The actions after which the expert needs the fewest further ones, in the state before `turn`; empty without an expert.

    The world's example actions are compared, and the expert's own, which need not lead along a shortest way. The state is reached by a
    verified replay, once for each of them. Raises `EpisodeError` when it is not reached.
    """
    world, trajectory = World(environment), taken(tree.trajectory(turn.parent))
    actions = [one.action for one in trajectory]
    digests = [observation_digest(tree.root), *(observation_digest(one.observation) for one in trajectory)]

    def left_after(candidate: str) -> int | None:
        world.replay(actions, digests, task=tree.task)
        observation = world.step(candidate)
        if observation.done:
            return 0 if observation.success else None
        return len(environment.expert()) or None

    over = world.replay(actions, digests, task=tree.task).done
    own = () if over else environment.expert()[:1]
    left = {action: left_after(action) for action in dict.fromkeys((*environment.example_actions(), *own)) if own}
    fewest = min((number for number in left.values() if number is not None), default=None)
    return tuple(action for action, number in left.items() if number is not None and number == fewest)


def branch_points(trees: Sequence[Tree], make_environment: Callable[[], Environment], limit: int) -> list[BranchPoint]:
    """Up to `limit` branching turns with at least one best action, spread evenly over the forest."""
    events = [(tree, attempt, turn) for tree in trees for attempt, turn in tree.branch_turns() if attempt.stop not in BROKEN]
    count = min(limit, len(events))
    chosen = [events[index * len(events) // count] for index in range(count)]
    environment = make_environment()
    points = []
    try:
        for tree, attempt, turn in chosen:
            try:
                best = best_actions(environment, tree, turn)
            except EpisodeError:
                continue
            if best:
                points.append(BranchPoint(tree, attempt, turn, best))
    finally:
        let_go(environment)
    return points


def is_best(point: BranchPoint, action: str) -> bool:
    """Whether an action is one of the best at a point, read as lenient worlds read it: ignoring case and a final full stop."""

    def read(text: str) -> str:
        return " ".join(text.lower().rstrip(" .").split())

    return read(action) in {read(best) for best in point.best}


async def act_unadvised(point: BranchPoint, engine: Engine, rules: Rules, draws: int) -> float:
    """The share of `draws` actions that are best when the policy acts at the same turn without advice."""
    scene, trajectory = Scene(rules.prompts, point.tree.task, point.tree.root), point.tree.trajectory(point.turn.parent)
    messages = bare_messages(scene, trajectory, point.turn.shortening)
    right = 0
    for number in range(draws):
        seed = seed_for(rules.seed, "unadvised", point.turn.id, number)
        reply = await _completed(engine, rules, Ask(messages, rules.act, seed))
        try:
            right += is_best(point, action_in(rules.prompts, reply))
        except ParseFailure:
            continue
    return right / draws


async def _completed(engine: Engine, rules: Rules, ask: Ask) -> Completion:
    """The reply to a request for an action, completed like those of attempts, with which it is compared."""
    play = closed_act(rules, ask, await engine.generate(ask))
    try:
        end = next(play)
        play.send(await engine.generate(end) if isinstance(end, Ask) and continues(engine) else UNCONTINUED)
    except StopIteration as stop:
        reply: Completion = stop.value
        return reply
    raise AssertionError("a reply is completed by one further request")


class _Gap:
    """The share of first actions at branching turns that are best ones, with the advice and without it."""

    def __init__(self, points: Sequence[tuple[BranchPoint, float]]) -> None:
        self.points = points
        self.advised = self._share(lambda point, share: float(is_best(point, point.turn.action)))
        self.unadvised = self._share(lambda point, share: share)
        self.gap = self._share(lambda point, share: float(is_best(point, point.turn.action)) - share)

    def _share(self, value: Callable[[BranchPoint, float], float]) -> Interval | None:
        by_task: dict[str, list[float]] = {}
        for point, share in self.points:
            by_task.setdefault(point.tree.task.id, []).append(value(point, share))
        return shares(list(by_task.values()))


def diagnosis(
    trees: Sequence[Tree], independent: Sequence[Tree], points: Sequence[BranchPoint], unadvised: Sequence[float]
) -> Diagnosis:
    """The figures from two forests, the branch points and, for each point, its share of best actions without advice."""
    reflections = [[float(not one.unread) for one in tree.reflections if not one.no_room] for tree in trees]
    named = Counter(str(one.experience.turn) for tree in trees for one in tree.reflections if one.experience)
    branches = [
        [float(one.success) for one in tree.attempts if one.experience is not None and one.stop not in UNJUDGED] for tree in trees
    ]
    fresh = [
        [float(one.success) for one in tree.attempts if one.experience is None and one.stop not in UNJUDGED] for tree in independent
    ]
    measured = list(zip(points, unadvised, strict=True))
    first = _Gap([pair for pair in measured if pair[0].attempt.depth == 1])
    later = _Gap([pair for pair in measured if pair[0].attempt.depth > 1])
    return Diagnosis(
        reflections=sum(map(len, reflections)),
        parsed=shares(reflections),
        named_turns={turn: named[turn] for turn in sorted(named, key=int)},
        branch_success=shares(branches),
        fresh_success=shares(fresh),
        success_gap=_paired(branches, fresh),
        tasks_solved_by_tree=_solved(trees),
        tasks_solved_by_independent=_solved(independent),
        tasks=len(trees),
        branch_points=len(first.points),
        advised_optimal=first.advised,
        unadvised_optimal=first.unadvised,
        reflection_gap=first.gap,
        branch_points_later=len(later.points),
        advised_optimal_later=later.advised,
        unadvised_optimal_later=later.unadvised,
        reflection_gap_later=later.gap,
        tree_faults=faults_of(trees),
        independent_faults=faults_of(independent),
    )


def _solved(trees: Sequence[Tree]) -> int:
    return sum(any(attempt.success for attempt in tree.attempts) for tree in trees)


def _paired(branches: Sequence[Sequence[float]], fresh: Sequence[Sequence[float]]) -> Interval | None:
    """The mean difference in success over tasks that have both kinds of attempt."""
    both = [[float(np.mean(one) - np.mean(other))] for one, other in zip(branches, fresh, strict=True) if len(one) and len(other)]
    return shares(both)
