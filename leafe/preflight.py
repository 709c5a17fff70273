"""Whether replies and prompts fit and a server can score, found out before anything costly is begun.

Lengths follow from one played episode, for which no model is asked: the expert's actions are played where the environment knows some,
else its example actions. Settings that can never work are refused with what to type instead; a sentence reports what will be shortened
or end early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from leafe.chat import Prompts, Scene, act_messages, reflect_messages
from leafe.envs.base import Environment
from leafe.envs.settled import fewest_turns
from leafe.envs.wording import complaint
from leafe.envs.world import World
from leafe.errors import EngineError, EpisodeError, UserError
from leafe.history import shorter
from leafe.records import Completion, Message, Shortening, Task, Turn
from leafe.replies import render_action
from leafe.settings import RunConfig
from leafe.stages import Scored

Count = Callable[[Sequence[Message]], int]


@dataclass(frozen=True, slots=True)
class Meter:
    """The sizes of texts for a model: `prompt` counts the tokens of a conversation, `text` those of a text; `context` is 0 if unknown.

    `notes` reports changes for the model's chat template that its user may not expect.
    """

    prompt: Count
    text: Callable[[str], int]
    context: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """An episode that was played without a model: its trajectory, whose replies are bare actions, and actions that might be taken."""

    scene: Scene
    trajectory: tuple[Turn, ...]
    actions: tuple[str, ...]
    planned: int = 0  # turns that the expert takes


def rehearse(environment: Environment, prompts: Prompts, task: Task) -> Rehearsed | None:
    """Plays a task; None where the environment breaks, which exploring will meet and report."""
    world = World(environment)
    try:
        scene = Scene(prompts, task, world.reset(task))
        plan, known = list(world.expert()), list(world.example_actions())
        trajectory: list[Turn] = []
        while (plan or known) and len(trajectory) < task.horizon and not world.observation.done:
            action = (
                plan[len(trajectory)] if len(trajectory) < len(plan) else known[len(trajectory) % len(known)] if known else plan[-1]
            )
            said = Completion(render_action(prompts.form, action))
            parent = trajectory[-1].id if trajectory else None
            trajectory.append(Turn(str(len(trajectory)), parent, len(trajectory) + 1, 0, action, True, said, world.step(action)))
        return Rehearsed(scene, tuple(trajectory), (*plan, *known), len(plan))
    except EpisodeError:
        return None


def short_horizons(environment: Environment, tasks: Sequence[Task]) -> Iterator[str]:
    """Sentences on tasks that cannot be solved within their horizon, as far as the environment knows. Raises `UserError` if that breaks."""
    needed = [(least, task) for task in tasks if (least := fewest_turns(environment, task)) is not None and least > task.horizon]
    if needed:
        least, task = max(needed, key=lambda one: one[0] - one[1].horizon)
        yield (
            f"{len(needed)} of {len(tasks)} tasks cannot be solved within their horizon: {task.id} has {task.horizon} turns and takes at "
            f"least {least}; type environment.args.horizon={least} or more"
        )


def refuse_unscored(method: str, wanted: Scored, given: Callable[[], int]) -> None:
    """Raises `UserError` if a server cannot score what a method wants. `given` tries it: how many most probable tokens there are."""
    try:
        most = given()
    except (UserError, EngineError) as error:
        raise UserError(f"method {method} has texts scored by the engine that explores, and {error}") from None
    if most < wanted.top:
        raise UserError(
            f"method {method} reads the {wanted.top} most probable tokens at each position, and the server gives {most} and refuses"
            f" {wanted.top}; type {wanted.setting}={most}, or let the server give more, as vLLM does with --max-logprobs {wanted.top}"
        )


def check_lengths(config: RunConfig, played: Rehearsed, meter: Meter) -> list[str]:
    """Sentences on lengths, for the user. Raises `UserError` where no reply or no prompt can fit."""
    wordless = complaint(played.scene.root.text)
    about_text = [f"{config.environment.name}: {wordless}"] if wordless else []
    return [
        *about_text,
        *_reply_sentences(config, played, meter),
        *(_context_sentences(config, played, meter) if meter.context else ()),
    ]


def _reply_sentences(config: RunConfig, played: Rehearsed, meter: Meter) -> Iterator[str]:
    horizon, taken = played.scene.task.horizon, played.planned
    if taken > horizon:
        yield f"the expert takes {taken} turns for the first task, and the horizon is {horizon}; type environment.args.horizon={taken}"
    room, form = config.sampling.act.max_tokens, played.scene.prompts.form
    # The token that ends a reply is drawn as well.
    replies = {text: meter.text(text) + 1 for text in (render_action(form, action) for action in played.actions)}
    if not replies:
        return
    shortest, longest = min(replies, key=lambda text: replies[text]), max(replies, key=lambda text: replies[text])
    if replies[shortest] > room:
        raise UserError(
            f"sampling.act.max_tokens is {room}, and a reply as short as {shortest!r:.60} takes {replies[shortest]} tokens: every reply "
            f"would be cut; type sampling.act.max_tokens={_round(replies[longest] * 4)}"
        )
    if replies[longest] > room:
        yield (
            f"sampling.act.max_tokens is {room}, and {longest!r:.40} alone takes {replies[longest]} tokens: such replies will be cut; "
            f"type sampling.act.max_tokens={_round(replies[longest] * 2)}"
        )


def _context_sentences(config: RunConfig, played: Rehearsed, meter: Meter) -> Iterator[str]:
    scene, trajectory, act = played.scene, played.trajectory, config.sampling.act.max_tokens
    first = meter.prompt(act_messages(scene, ()))
    _require_room(first + act, "the first prompt and a reply", "act", config, context=meter.context)
    if not trajectory:
        return
    shortest = reflect_messages(scene, trajectory[:1], ended=True, shortening=_shortest(scene.prompts, trajectory[:1]))
    reflection = meter.prompt(shortest) + config.sampling.reflect.max_tokens
    _require_room(reflection, "reflecting on one turn", "reflect", config, context=meter.context)
    observed = (meter.prompt(act_messages(scene, trajectory)) - first) / len(trajectory)
    replied = sum(meter.text(turn.completion.text) for turn in trajectory) / len(trajectory)
    turn, horizon = observed + max(0.0, act - replied), scene.task.horizon
    whole = first + round((horizon - 1) * turn) + act
    if whole <= meter.context:
        return
    sizes = f"{horizon} turns of about {observed - replied:.0f} tokens to read and up to {act} to say may take {whole:,} tokens"
    yield f"{sizes}, and the context is {meter.context:,}: {_what_happens(config, int((meter.context - first - act) / turn) + 1)}"


def _what_happens(config: RunConfig, turn: int) -> str:
    if config.history.keep == "fit":
        return f"from about turn {turn} on the oldest thoughts and then the oldest observations are left out (history.keep=fit)"
    if config.history.keep == "last" and config.history.turns < turn:
        return f"all but the last {config.history.turns} turns are shortened to their actions (history.keep=last)"
    return f"attempts may end for lack of room from about turn {turn} on; type history.keep=fit to leave out what is oldest"


def _require_room(needed: int, what: str, kind: str, config: RunConfig, *, context: int) -> None:
    if needed <= context:
        return
    most = getattr(config.sampling, kind).max_tokens
    left = context - (needed - most)
    mend = f"type sampling.{kind}.max_tokens={left}" if left >= most // 8 and left > 0 else "choose a model with a longer context"
    cap = f", or raise engine.max_context, which is {config.engine.max_context}" if config.engine.max_context else ""
    raise UserError(
        f"{what} take {needed:,} tokens, of which sampling.{kind}.max_tokens is {most}, and the context is {context:,}; {mend}{cap}"
    )


def _shortest(prompts: Prompts, trajectory: Sequence[Turn]) -> Shortening:
    now = Shortening()
    while (further := shorter(prompts, trajectory, now)) is not None:
        now = further
    return now


def _round(tokens: int) -> int:
    """The next power of two, as sizes are usually given."""
    return 1 << max(0, tokens - 1).bit_length()
