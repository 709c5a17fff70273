"""History to messages: the only place that knows what a prompt looks like. What replies look like stands in `replies.py`.

A prompt is a function of records alone, so the same history gives the same prompt when it is sampled from, when it is trained on without
its experiences, and when it is measured. Values are put into a template once and never read as templates themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from leafe.errors import UserError
from leafe.records import Message, Observation, Task, Turn
from leafe.replies import Form

# What each template may name, and what it has to; anything else in braces is a mistake that is reported when the prompts are loaded.
PLACES: dict[str, set[str]] = {
    "system": set(),
    "first": {"instruction", "observation", "horizon"},
    "turn": {"turn", "observation", "horizon", "instruction"},
    "experience": {"experience"},
    "reflect": {"turn"},
    "reflect_end": {"turn"},
    "feedback": {"experiences"},
}
NEEDED = {"first": "observation", "turn": "observation", "experience": "experience", "feedback": "experiences"}
_PLACE = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True, slots=True)
class Prompts:
    """The templates of one profile. `form` is how replies look: `bare` text, or `tags` (`<think>`, `<action>`, ...)."""

    system: str
    first: str
    turn: str
    experience: str
    reflect: str
    reflect_end: str
    feedback: str
    form: Form = "tags"


def check_prompts(prompts: Prompts) -> None:
    """Raises `UserError` when a template names a value that it cannot have, or leaves out the one that it is there for."""
    for purpose, allowed in PLACES.items():
        named = set(_PLACE.findall(getattr(prompts, purpose)))
        if named - allowed:
            wanted = ", ".join(f"{{{name}}}" for name in sorted(allowed)) or "no value"
            raise UserError(f"the prompt {purpose!r} may name {wanted} and names {{{min(named - allowed)}}}")
        if purpose in NEEDED and NEEDED[purpose] not in named:
            raise UserError(f"the prompt {purpose!r} wants {{{NEEDED[purpose]}}} and does not name it; add it to {purpose}.txt")


def fill(template: str, **values: str | int) -> str:
    """Puts values where a template names them, once: braces inside a value stay what they are."""
    return _PLACE.sub(lambda match: str(values[match.group(1)]), template)


def turn_text(prompts: Prompts, task: Task, turn: int, observation: str) -> str:
    """What the policy reads before it takes turn `turn`."""
    template = prompts.first if turn == 1 else prompts.turn
    return fill(template, turn=turn, observation=observation, horizon=task.horizon, instruction=task.instruction)


@dataclass(frozen=True, slots=True)
class Notes:
    """What is told beside the history: `advice` for the turn about to be taken, `feedback` from earlier tries for all of them."""

    advice: str | None = None
    feedback: tuple[str, ...] = ()


NOTHING = Notes()


@dataclass(frozen=True, slots=True)
class Scene:
    """What stays the same through all attempts at a task: how prompts look, the task, and what its reset shows."""

    prompts: Prompts
    task: Task
    root: Observation


def act_messages(scene: Scene, walk: Sequence[Turn], notes: Notes = NOTHING) -> tuple[Message, ...]:
    """The prompt for the turn after `walk`, every experience of the walk in its place."""
    messages = _history(scene, walk, notes.feedback)
    if notes.advice is not None:
        messages[-1] = _extended(messages[-1], fill(scene.prompts.experience, experience=notes.advice))
    return tuple(messages)


def reflect_messages(scene: Scene, walk: Sequence[Turn], *, ended: bool, feedback: tuple[str, ...] = ()) -> tuple[Message, ...]:
    """The prompt that asks where the walk went wrong, below the history and `feedback` that the policy acted on.

    `ended` says whether the attempt is over.
    """
    messages = _history(scene, walk, feedback)
    question = scene.prompts.reflect_end if ended else scene.prompts.reflect
    messages[-1] = _extended(messages[-1], fill(question, turn=len(walk)))
    return tuple(messages)


def bare_messages(scene: Scene, walk: Sequence[Turn]) -> tuple[Message, ...]:
    """The experience-free prompt for the turn after `walk`: what a model without any advice would have read there."""
    return tuple(_history(scene, [replace(turn, experience=None) for turn in walk], ()))


def _history(scene: Scene, walk: Sequence[Turn], feedback: tuple[str, ...]) -> list[Message]:
    prompts, task, root = scene.prompts, scene.task, scene.root
    messages = [Message("system", fill(prompts.system))] if prompts.system else []
    observation = root
    for number in range(1, len(walk) + 2):
        content = turn_text(prompts, task, number, observation.text)
        if number == 1 and feedback:
            content += fill(prompts.feedback, experiences="\n".join(f"- {text}" for text in feedback))
        if number > len(walk):
            return [*messages, Message("user", content)]
        turn = walk[number - 1]
        if turn.experience is not None:
            content += fill(prompts.experience, experience=turn.experience)
        messages += [Message("user", content), Message("assistant", turn.completion.text, sampled=True)]
        observation = turn.observation
    raise AssertionError("unreachable: the loop returns at its last number")


def _extended(message: Message, text: str) -> Message:
    return Message(message.role, message.content + text, message.sampled)
