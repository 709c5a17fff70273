"""One attempt at a task, from the root or from a rolled-back turn, as a generator of effects.

A reply that holds no action still costs a turn: the policy reads what was missing, or, where the prompts have no words for that, what the
environment answers to the text. A prompt that leaves no room in the model's context is shortened, if the rules say so. An
episode that the environment or the rollback breaks ends with a name of its own and is data like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from leafe.chat import Notes, act_messages, fill
from leafe.errors import EpisodeError, ReplayDiverged, StepTimeout
from leafe.forest.effects import Play, Reset, Rollback, Step
from leafe.forest.growth import Growth, Start, last_id, unread
from leafe.history import first_shortening, shorter
from leafe.records import Attempt, Completion, Observation, Shortening, StopReason, Tree, Turn, taken
from leafe.replies import Unreadable, parse_action

Pause = Callable[[int, tuple[Turn, ...]], Play[None]]


@dataclass(frozen=True, slots=True)
class Played:
    """An attempt that is over, with its walk from the root."""

    attempt: Attempt
    walk: tuple[Turn, ...]


def stop_of(failure: EpisodeError) -> StopReason:
    """The name of the ending that a failure makes."""
    if isinstance(failure, ReplayDiverged):
        return StopReason.REPLAY_DIVERGED
    return StopReason.STEP_TIMEOUT if isinstance(failure, StepTimeout) else StopReason.ENVIRONMENT_ERROR


def no_pause(attempt: int, walk: tuple[Turn, ...]) -> Play[None]:
    """What happens between turns when nothing does."""
    return
    yield from ()


def play(growth: Growth, start: Start, pause: Pause = no_pause) -> Play[Played]:
    """Plays one attempt to its end and keeps it. `pause` runs after each turn that did not end the attempt."""
    number, walk = len(growth.attempts), list(start.walk)
    stop, error, observation = StopReason.CANCELLED, None, Observation("")
    try:
        observation = yield from _begin(growth, start)
        stop = yield from _turns(growth, start, observation, walk=walk, pause=pause)
    except EpisodeError as failure:
        stop = stop_of(failure)
        error = f"{type(failure).__name__}: {failure}"
    own = walk[len(start.walk) :]
    attempt = Attempt(
        index=number,
        depth=start.depth,
        stop=stop,
        success=stop is StopReason.SUCCESS,
        reward=(own[-1].observation if own else observation).reward,
        leaf=last_id(walk),
        parent=start.parent,
        turn=len(start.walk) + 1 if start.advice is not None else None,
        experience=start.advice if start.advice is not None else "\n".join(start.feedback) or None,
        error=error,
        root=growth.shown if growth.shown is not growth.root else None,
    )
    growth.attempts.append(attempt)
    return Played(attempt, tuple(walk))


def _begin(growth: Growth, start: Start) -> Play[Observation]:
    """Brings the world to where the attempt begins."""
    if start.advice is not None:
        growth.add_rollback()
    if past := taken(start.walk):
        restored = yield Rollback(growth.task, past, growth.lucks(past))
        growth.add_replayed(restored.replayed_steps)
        observation: Observation = restored.observation
        return observation
    observation = yield Reset(growth.task)
    growth.root = growth.root or observation
    if observation.text != growth.root.text and growth.rules.can_roll_back:
        raise ReplayDiverged(f"a fresh reset shows {observation.text!r:.80} where the first one showed {growth.root.text!r:.80}")
    growth.shown = observation if observation.text != growth.root.text else growth.root
    return observation


def _turns(growth: Growth, start: Start, observation: Observation, *, walk: list[Turn], pause: Pause) -> Play[StopReason]:
    """Takes turns until something ends the attempt; appends them to `walk`."""
    number, misread, over = len(growth.attempts), 0, _verdict(observation)
    while over is None:
        if len(walk) >= growth.task.horizon:
            return StopReason.TURN_LIMIT
        if growth.exhausted():
            return StopReason.BUDGET
        advice = start.advice if len(walk) == len(start.walk) else None
        completion, shortening = yield from _reply(growth, start, walk, advice)
        if completion.finish == "context":
            return StopReason.TOKEN_LIMIT
        growth.add_completion(completion)
        luck = growth.luck(start, walk[len(start.walk) :])
        turn = yield from _take(growth, _Reply(completion, advice, shortening, luck), walk, observation)
        growth.add_turn(turn)
        walk.append(turn)
        observation = turn.observation
        misread = 0 if turn.parsed else misread + 1
        over = _verdict(turn.observation)
        if over is None and misread >= growth.rules.patience:
            over = StopReason.PARSE_ERROR
        if over is None:
            yield from pause(number, tuple(walk))
    return over


def _verdict(observation: Observation) -> StopReason | None:
    """How the environment ended the episode, if it did. Done is not success."""
    if observation.success:
        return StopReason.SUCCESS
    return StopReason.FAILURE if observation.done else None


@dataclass(frozen=True, slots=True)
class _Reply:
    """What the policy said at a turn, what its prompt held and left out, and what the step draws its randomness from anew."""

    completion: Completion
    advice: str | None
    shortening: Shortening
    luck: int | None


def _reply(growth: Growth, start: Start, walk: list[Turn], advice: str | None) -> Play[tuple[Completion, Shortening]]:
    """The policy's reply, over a history that is shortened until it leaves room where the rules want that."""
    rules, shortening = growth.rules, first_shortening(growth.rules.history, walk)
    while True:
        messages = act_messages(growth.scene, walk, Notes(advice, (*rules.notes, *start.feedback)), shortening)
        completion: Completion = yield growth.ask_to_act(len(growth.attempts), messages)
        further = shorter(rules.prompts, walk, shortening) if rules.history.keep == "fit" else None
        if completion.finish != "context" or further is None:
            return completion, shortening
        shortening = further


def _take(growth: Growth, reply: _Reply, walk: list[Turn], before: Observation) -> Play[Turn]:
    """Reads the action out of a reply and takes it. `before` is what the policy saw last."""
    prompts, attempt, index = growth.rules.prompts, len(growth.attempts), len(walk) + 1
    problem = ""
    try:
        action = parse_action(prompts.form, reply.completion.text, whole=reply.completion.finish != "length")
    except Unreadable as failure:
        action, problem = unread(reply.completion), str(failure)
    stepped = not (problem and prompts.unread)
    if stepped:
        observation: Observation = yield Step(action, reply.luck)
    else:
        observation = Observation(fill(prompts.unread, problem=problem, turn=index), reward=before.reward)
    return Turn(
        id=growth.turn_id(attempt, index),
        parent=last_id(walk),
        index=index,
        attempt=attempt,
        action=action,
        parsed=not problem,
        completion=reply.completion,
        observation=observation,
        experience=reply.advice,
        stepped=stepped,
        shortening=reply.shortening,
    )


def independent(growth: Growth) -> Play[Tree]:
    """IS of the paper: fresh attempts from the root until the budget is used up."""
    while growth.may_start():
        yield from play(growth, Start())
    return growth.tree("independent")


def once(growth: Growth) -> Play[Tree]:
    """A single attempt from the root, as evaluation takes it."""
    growth.rules = replace(growth.rules, turns=growth.task.horizon, tokens=0)
    yield from play(growth, Start())
    return growth.tree("once")
