"""Exploration around an expert's trajectory: the policy's alternatives in each of its states, and their outcomes (arXiv 2510.08558).

The expert is that of the environment, or the policy's shortest success. Each alternative is sampled from the bare prompt of its state,
differs from the expert's action and the state's other alternatives, and is taken after a verified rollback, for one step. These steps
count against the task's budget as turns of the policy; the expert's are counted apart. Alternatives are taken in rounds over all
states, so that a small budget is spread over the whole trajectory.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from leafe.comparing import compare_messages, read_comparison
from leafe.digest import seed_for
from leafe.errors import EpisodeError
from leafe.forest.builder import Start, TreeBuilder, last_id
from leafe.forest.effects import Expert, Plan, Play, Restored, Rollback, Step
from leafe.forest.play import action_in, begin, play, reply_for, stop_of, verdict
from leafe.forest.reflect import NO_ROOM, answer
from leafe.history import first_shortening
from leafe.records import (
    BROKEN,
    Attempt,
    Completion,
    Experience,
    Message,
    Observation,
    Reflection,
    Shortening,
    StopReason,
    Tree,
    Turn,
    taken,
)
from leafe.replies import ParseFailure, parse_action, render_action

SEARCH = 0.5  # share of a task's budget for a success of the policy, if there is no other expert
DRAWS = 2  # times the number of alternatives: most replies that are drawn in a state, for all of its alternatives together
ExpertSource = Literal["auto", "environment", "successes"]


@dataclass(frozen=True, slots=True)
class Around:
    """The expert, the number of `alternatives` in each state, and whether the policy `compares` them in words.

    As an explorer it grows the tree of one task: `Around("auto")(builder)`. States are drawn for the whole budget, so a tree does not
    continue with more turns, as `explore.stop_when_solved` would have it.
    """

    expert: ExpertSource = "auto"
    alternatives: int = 3
    compares: bool = False

    def __call__(self, builder: TreeBuilder) -> Play[Tree]:
        """Plays the expert's trajectory, then the alternatives."""
        if self.expert != "successes":
            yield from _follow_plan(builder)
        if self.expert != "environment" and expert_among(builder.attempts, builder.turns) is None:
            yield from _until_success(builder, share=SEARCH if self.alternatives else 1.0)
        way = _way(builder)
        yield from _alternatives(builder, way, self.alternatives)
        if self.compares:
            for state in way:
                yield from _compare(builder, state)
        return builder.tree("early_experience")


@dataclass(slots=True)
class _State:
    """A state of the expert's trajectory: the turns before it, the expert's turn, and the alternatives tried in it."""

    before: tuple[Turn, ...]
    expert: Turn
    draws: int = 0
    seen: set[str] = field(default_factory=set)
    tried: list[Turn] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Fork:
    """A state of an expert's trajectory, with the turns that were tried in place of the expert's, as a tree holds them.

    `shortening` is what the state's prompts left out.
    """

    before: tuple[Turn, ...]
    expert: Turn
    others: tuple[Turn, ...]
    comparison: Experience | None = None

    @property
    def shortening(self) -> Shortening:
        """The shortening of a prompt that was really used, if there is one."""
        return self.others[0].shortening if self.others else self.expert.shortening


def expert_among(attempts: Iterable[Attempt], turns: Sequence[Turn]) -> Attempt | None:
    """The attempt to learn from: a success of the environment's expert, else the policy's shortest success from the root."""
    length: dict[int, int] = {}
    for turn in turns:
        length[turn.attempt] = length.get(turn.attempt, 0) + 1
    won = [one for one in attempts if one.success and one.turn is None and one.index in length]
    return min(won, key=lambda one: (one.by != "environment", length[one.index], one.index), default=None)


def forks(tree: Tree) -> Iterator[Fork]:
    """The states of a tree's expert, in order; none if it has no expert. Turns without an action are skipped."""
    expert = expert_among(tree.attempts, tree.turns)
    if expert is None:
        return
    beside = {one.index: one.turn for one in tree.attempts if one.parent == expert.index and one.turn and one.stop not in BROKEN}
    said = {one.experience.turn: one.experience for one in tree.reflections if one.experience and one.attempt == expert.index}
    way = tree.trajectory(expert.leaf)
    for number, turn in enumerate(way):
        if turn.parsed:
            others = tuple(other for other in tree.turns if beside.get(other.attempt) == turn.index)
            yield Fork(way[:number], turn, others, said.get(turn.index))


def _follow_plan(builder: TreeBuilder) -> Play[None]:
    """Plays the actions of the environment's expert, if the policy could express them and has the turns; else nothing is kept."""
    trajectory: list[Turn] = []
    stop, error, observation = StopReason.TURN_LIMIT, None, Observation("")
    try:
        observation = yield from begin(builder, Start())
        plan: Plan = yield Expert()
        actions = _said(builder, plan)
        if not actions or len(actions) > builder.task.horizon:
            return
        for action, reply in actions:
            observation = yield from _expert_step(builder, trajectory, action, reply)
            if over := verdict(observation):
                stop = over
                break
        else:
            stop, error = StopReason.ENVIRONMENT_ERROR, f"EnvironmentFailure: the {len(actions)} actions of expert() solve nothing"
    except EpisodeError as failure:
        stop, error = stop_of(failure), f"{type(failure).__name__}: {failure}"
    builder.attempts.append(
        Attempt(
            index=len(builder.attempts),
            depth=0,
            stop=stop,
            success=stop is StopReason.SUCCESS,
            reward=observation.reward,
            leaf=last_id(trajectory),
            error=error,
            by="environment",
        )
    )


def _said(builder: TreeBuilder, plan: Plan) -> list[tuple[str, str]]:
    """Each action as it is read from a reply, with that reply; empty if one of them cannot be expressed in a reply."""
    form, said = builder.rules.prompts.form, []
    for action in plan.actions:
        reply = render_action(form, action)
        try:
            said.append((parse_action(form, reply), reply))
        except ParseFailure:
            return []
    return said


def _expert_step(builder: TreeBuilder, trajectory: list[Turn], action: str, reply: str) -> Play[Observation]:
    number, index = len(builder.attempts), len(trajectory) + 1
    observation: Observation = yield Step(action)
    turn = Turn(
        id=builder.turn_id(number, index),
        parent=last_id(trajectory),
        index=index,
        attempt=number,
        action=action,
        parsed=True,
        completion=Completion(reply),
        observation=observation,
        shortening=first_shortening(builder.rules.history, trajectory),
    )
    builder.add_expert_turn(turn)
    trajectory.append(turn)
    return observation


def _until_success(builder: TreeBuilder, *, share: float) -> Play[None]:
    """Attempts of the policy until one succeeds, within a share of the budget."""
    whole = builder.rules
    builder.rules = replace(whole, turns=max(1, int(share * whole.turns)))
    while builder.may_start():
        played = yield from play(builder, Start())
        if played.attempt.success:
            break
    builder.rules = whole


def _way(builder: TreeBuilder) -> list[_State]:
    """The states of the expert's trajectory."""
    expert = expert_among(builder.attempts, builder.turns)
    way = tuple(turn for turn in builder.turns if expert is not None and turn.attempt == expert.index)
    return [_State(way[:number], turn, seen={_same(turn.action)}) for number, turn in enumerate(way) if turn.parsed]


def _same(action: str) -> str:
    """A key that is equal for actions that differ only in case and blanks."""
    return " ".join(action.split()).casefold()


def _alternatives(builder: TreeBuilder, way: Sequence[_State], count: int) -> Play[None]:
    """`count` rounds over the states; in each the policy may find one more alternative a state.

    If the budget does not suffice for a round, its states are drawn at random.
    """
    for state in way:
        state.draws = DRAWS * count
    draw = random.Random(seed_for(builder.rules.seed, builder.task.id, "states"))
    for _ in range(count):
        left = max(0, builder.rules.turns - builder.spend.turns)
        for number in sorted(draw.sample(range(len(way)), min(left, len(way)))):
            yield from _one_more(builder, way[number])


def _one_more(builder: TreeBuilder, state: _State) -> Play[None]:
    """Draws replies until one holds an action that is new in this state, and takes it."""
    while state.draws and not builder.exhausted():
        state.draws -= 1
        reply, shortening = yield from reply_for(builder, Start(), list(state.before), None)
        if reply.finish == "context":
            state.draws = 0
            return
        builder.add_completion(reply)
        try:
            action = action_in(builder.rules.prompts, reply)
        except ParseFailure:
            action = ""
        if not action or _same(action) in state.seen:
            builder.add_discarded()
            continue
        state.seen.add(_same(action))
        yield from _step_aside(builder, state, action, reply, shortening=shortening)
        return


def _step_aside(builder: TreeBuilder, state: _State, action: str, reply: Completion, *, shortening: Shortening) -> Play[None]:
    """Rolls back to a state, verified, and takes one action there, as a separate attempt."""
    number, index, parent = len(builder.attempts), state.expert.index, last_id(state.before)
    stop, error, observation, leaf = StopReason.ONE_STEP, None, Observation(""), parent
    builder.add_rollback()
    past = taken(state.before)
    try:
        restored: Restored = yield Rollback(builder.task, past, builder.lucks(past))
        builder.add_replayed(restored.replayed_steps)
        observation = yield Step(action)
    except EpisodeError as failure:
        stop, error = stop_of(failure), f"{type(failure).__name__}: {failure}"
    else:
        leaf = builder.turn_id(number, index)
        turn = Turn(leaf, parent, index, number, action, True, reply, observation, shortening=shortening)
        builder.add_turn(turn)
        state.tried.append(turn)
        stop = verdict(observation) or stop
    builder.attempts.append(
        Attempt(
            index=number,
            depth=1,
            stop=stop,
            success=stop is StopReason.SUCCESS,
            reward=observation.reward,
            leaf=leaf,
            parent=state.expert.attempt,
            turn=index,
            error=error,
        )
    )


def _compare(builder: TreeBuilder, state: _State) -> Play[None]:
    """Asks the policy why the expert's action is better than those that were tried; kept as a reflection, readable or not."""
    if not state.tried or builder.out_of_tokens():
        return
    expert, prompts = state.expert, builder.rules.prompts

    def question(short: Shortening) -> tuple[Message, ...]:
        return compare_messages(builder.scene, state.before, expert, state.tried, shortening=short)

    shortening = state.tried[0].shortening
    reply, _ = yield from answer(builder, expert.attempt, state.before, question=question, shortening=shortening)
    experience, error = None, NO_ROOM
    if reply.finish != "context":
        try:
            thought = read_comparison(prompts, reply.text, expert.action, whole=reply.finish != "length")
            experience, error = Experience(expert.index, thought), ""
        except ParseFailure as failure:
            error = str(failure)
    builder.add_reflection(Reflection(expert.attempt, len(state.before), (reply,), experience, error or None))
