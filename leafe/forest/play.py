"""One attempt at a task, from the root or from a rolled-back turn, as a generator of effects.

A reply that holds no action still costs a turn: the policy reads what was missing, or, if the prompts have no text for that, the
environment's answer to the reply. A prompt that leaves no room in the model's context is shortened, if the rules allow it. An
episode that the environment or the rollback breaks ends with a separate stop reason and is data like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from leafe.chat import Notes, Prompts, act_messages, fill
from leafe.errors import EpisodeError, ReplayDiverged, StepTimeout
from leafe.forest.builder import Start, TreeBuilder, last_id, unread
from leafe.forest.closing import closed_act, said_in
from leafe.forest.effects import Play, Reset, Rollback, Step
from leafe.history import first_shortening, shorter
from leafe.records import Attempt, Completion, Observation, Shortening, StopReason, Tree, Turn, taken
from leafe.replies import ParseFailure, parse_action

Pause = Callable[[int, tuple[Turn, ...]], Play[bool | None]]


@dataclass(frozen=True, slots=True)
class Played:
    """A finished attempt, with its trajectory from the root."""

    attempt: Attempt
    trajectory: tuple[Turn, ...]


def stop_of(failure: EpisodeError) -> StopReason:
    """The stop reason for a failure."""
    if isinstance(failure, ReplayDiverged):
        return StopReason.REPLAY_DIVERGED
    return StopReason.STEP_TIMEOUT if isinstance(failure, StepTimeout) else StopReason.ENVIRONMENT_ERROR


def no_pause(attempt: int, trajectory: tuple[Turn, ...]) -> Play[None]:
    """The empty pause between turns."""
    return
    yield from ()


def play(builder: TreeBuilder, start: Start, pause: Pause = no_pause) -> Play[Played]:
    """Plays one attempt to its end and keeps it.

    `pause` runs after each turn that did not end the attempt; if it returns true the attempt ends there, as `rolled_back`.
    """
    number, trajectory = len(builder.attempts), list(start.trajectory)
    stop, error, observation = StopReason.CANCELLED, None, Observation("")
    try:
        observation = yield from begin(builder, start)
        stop = yield from _turns(builder, start, observation, trajectory=trajectory, pause=pause)
    except EpisodeError as failure:
        stop = stop_of(failure)
        error = f"{type(failure).__name__}: {failure}"
    own = trajectory[len(start.trajectory) :]
    attempt = Attempt(
        index=number,
        depth=start.depth,
        stop=stop,
        success=stop is StopReason.SUCCESS,
        reward=(own[-1].observation if own else observation).reward,
        leaf=last_id(trajectory),
        parent=start.parent,
        turn=len(start.trajectory) + 1 if start.branches else None,
        experience=start.advice if start.advice is not None else "\n".join(start.feedback) or None,
        error=error,
        root=builder.shown if builder.shown is not builder.root else None,
    )
    builder.attempts.append(attempt)
    return Played(attempt, tuple(trajectory))


def begin(builder: TreeBuilder, start: Start) -> Play[Observation]:
    """Restores the world to the start of the attempt."""
    if start.branches:
        builder.add_rollback()
    if past := taken(start.trajectory):
        restored = yield Rollback(builder.task, past, builder.lucks(past))
        builder.add_replayed(restored.replayed_steps)
        observation: Observation = restored.observation
        return observation
    observation = yield Reset(builder.task)
    builder.root = builder.root or observation
    if observation.text != builder.root.text and builder.rules.can_roll_back:
        raise ReplayDiverged(f"a fresh reset shows {observation.text!r:.80} where the first one showed {builder.root.text!r:.80}")
    builder.shown = observation if observation.text != builder.root.text else builder.root
    return observation


def _turns(
    builder: TreeBuilder, start: Start, observation: Observation, *, trajectory: list[Turn], pause: Pause
) -> Play[StopReason]:
    """Takes turns until something ends the attempt; appends them to `trajectory`."""
    number, failures, over = len(builder.attempts), 0, verdict(observation)
    while over is None:
        if len(trajectory) >= builder.task.horizon:
            return StopReason.TURN_LIMIT
        if builder.exhausted():
            return StopReason.BUDGET
        advice = start.advice if len(trajectory) == len(start.trajectory) else None
        completion, shortening = yield from reply_for(builder, start, trajectory, advice)
        if completion.finish == "context":
            return StopReason.TOKEN_LIMIT
        builder.add_completion(completion)
        luck = builder.luck(start, trajectory[len(start.trajectory) :])
        turn = yield from _take(builder, _Reply(completion, advice, shortening, luck), trajectory, observation)
        builder.add_turn(turn)
        trajectory.append(turn)
        observation = turn.observation
        failures = 0 if turn.parsed else failures + 1
        over = verdict(turn.observation)
        if over is None and failures >= builder.rules.patience:
            over = StopReason.PARSE_ERROR
        if over is None and (yield from pause(number, tuple(trajectory))):
            over = StopReason.ROLLED_BACK
    return over


def verdict(observation: Observation) -> StopReason | None:
    """The stop reason if the environment ended the episode. Done is not success."""
    if observation.success:
        return StopReason.SUCCESS
    return StopReason.FAILURE if observation.done else None


@dataclass(frozen=True, slots=True)
class _Reply:
    """The policy's reply at a turn, the advice in its prompt, what the prompt left out, and the new seed of the step's randomness."""

    completion: Completion
    advice: str | None
    shortening: Shortening
    luck: int | None


def reply_for(
    builder: TreeBuilder, start: Start, trajectory: list[Turn], advice: str | None
) -> Play[tuple[Completion, Shortening]]:
    """The policy's reply to a history that is shortened, if the rules allow it, until there is room."""
    rules, shortening = builder.rules, first_shortening(builder.rules.history, trajectory)
    while True:
        messages = act_messages(builder.scene, trajectory, Notes(advice, start.feedback, builder.notes), shortening)
        ask = builder.ask_to_act(len(builder.attempts), messages)
        completion: Completion = yield ask
        further = shorter(rules.prompts, trajectory, shortening) if rules.history.keep == "fit" else None
        if completion.finish != "context" or further is None:
            return (yield from closed_act(rules, ask, completion)), shortening
        shortening = further


def action_in(prompts: Prompts, reply: Completion) -> str:
    """The action that a reply takes. Raises `ParseFailure`."""
    return parse_action(prompts.form, said_in(reply, "action"), whole=reply.finish != "length")


def _take(builder: TreeBuilder, reply: _Reply, trajectory: list[Turn], before: Observation) -> Play[Turn]:
    """Parses the action of a reply and takes it. `before` is the last observation that the policy saw."""
    prompts, attempt, index = builder.rules.prompts, len(builder.attempts), len(trajectory) + 1
    problem = ""
    try:
        action = action_in(prompts, reply.completion)
    except ParseFailure as failure:
        action, problem = unread(reply.completion, free_text=builder.rules.free_text), str(failure)
    stepped = not (problem and prompts.unread)
    if stepped:
        observation: Observation = yield Step(action, reply.luck)
    else:
        observation = Observation(fill(prompts.unread, problem=problem, turn=index), reward=before.reward)
    return Turn(
        id=builder.turn_id(attempt, index),
        parent=last_id(trajectory),
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


def independent(builder: TreeBuilder) -> Play[Tree]:
    """IS of the paper: fresh attempts from the root until the budget is used up."""
    while builder.may_start():
        yield from play(builder, Start())
    return builder.tree("independent")


def once(builder: TreeBuilder) -> Play[Tree]:
    """A single attempt from the root, as evaluation takes it."""
    builder.rules = replace(builder.rules, turns=builder.task.horizon, tokens=0)
    yield from play(builder, Start())
    return builder.tree("once")
