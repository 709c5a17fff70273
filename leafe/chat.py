"""From history to messages: the only place that knows the form of a prompt. `leafe/replies/` knows the form of replies.

A prompt is a function of records alone, so the same history gives the same prompt when it is sampled from, when it is trained on without
its experiences, and when it is measured. Values are put into a template once and never read as templates themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace

from leafe.errors import UserError
from leafe.records import Message, Observation, Shortening, Task, Turn
from leafe.replies import NO_HALF, Form, Half, ParseFailure, render_action

# What each template may name, and what it has to; anything else in braces is a mistake that is reported when the prompts are loaded.
PLACES: dict[str, set[str]] = {
    "system": {"actions_help"},
    "example": set(),
    "example_reply": set(),
    "first": {"instruction", "observation", "horizon"},
    "turn": {"turn", "observation", "horizon", "instruction"},
    "end": {"turn", "observation"},
    "experience": {"experience"},
    "reflect": {"turn"},
    "reflect_end": {"turn"},
    "feedback": {"experiences"},
    "notes": {"notes"},
    "unread": {"problem", "turn"},
    "reflect_again": {"problem", "turn"},
    "reflect_turn": {"turn", "numbers", "experience"},
    "reflect_advice": {"turn", "named"},
    "left_out": set(),
    "predict": {"turn"},
    "alternative": {"action", "observation"},
    "compare": {"action", "observation", "alternatives"},
    "contrast": {"turn"},
    "comparison": {"action", "observation", "alternatives"},
    "reminder": set(),
}
NEEDED = {
    "first": "observation",
    "turn": "observation",
    "end": "observation",
    "experience": "experience",
    "feedback": "experiences",
    "notes": "notes",
    "reflect_turn": "experience",
    "reflect_advice": "named",
    "alternative": "observation",
    "compare": "alternatives",
    "comparison": "alternatives",
}
# Templates that a profile may do without. Without `unread` the world is given a reply that holds no action; without `reflect_again` an
# unreadable reflection is asked for again in the same words; without `reflect_turn` and `reflect_advice` it is always asked for whole;
# without `notes` they are shown as feedback is.
OPTIONAL = frozenset(
    {
        "notes",
        "example",
        "example_reply",
        "end",
        "unread",
        "reflect_again",
        "reflect_turn",
        "reflect_advice",
        "left_out",
        "reminder",
    }
    | {"predict", "alternative", "compare", "contrast", "comparison"}
)
LEFT_OUT = "(left out)"
NUMBERS_LISTED = 12
_PLACE = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True, slots=True)
class Prompts:
    """The templates of one profile, and the environment's own line of help, which `system` may name. `form` is the form of replies.

    `notes` holds lessons from elsewhere, `feedback` those of earlier attempts at this task. `example` and `example_reply` are a worked
    exchange, two messages before the task. `end` shows the last turn's observation when an ended attempt is reflected on.
    `unread` answers a reply without an action in the environment's place, `reflect_again` asks anew after an unreadable
    reflection, `reflect_turn` and `reflect_advice` ask for the missing half, `left_out` replaces an observation that a
    shortened history leaves out, `reminder` ends the text of each turn. The five texts of
    Early Experience are in `comparing.py`.
    """

    system: str
    first: str
    turn: str
    experience: str
    reflect: str
    reflect_end: str
    feedback: str
    notes: str = ""
    example: str = ""
    example_reply: str = ""
    end: str = ""
    unread: str = ""
    reflect_again: str = ""
    reflect_turn: str = ""
    reflect_advice: str = ""
    left_out: str = LEFT_OUT
    reminder: str = ""
    predict: str = ""
    alternative: str = ""
    compare: str = ""
    contrast: str = ""
    comparison: str = ""
    form: Form = "tags"
    actions_help: str = ""


def check_prompts(prompts: Prompts) -> None:
    """Raises `UserError` when a template names a value that it cannot have, or omits the one that it exists for."""
    for purpose, allowed in PLACES.items():
        named = places_in(getattr(prompts, purpose))
        if named - allowed:
            wanted = ", ".join(f"{{{name}}}" for name in sorted(allowed)) or "no value"
            raise UserError(f"the prompt {purpose!r} may name {wanted} and names {{{min(named - allowed)}}}")
        wanted_here = purpose in NEEDED and (purpose not in OPTIONAL or getattr(prompts, purpose))
        if wanted_here and NEEDED[purpose] not in named:
            raise UserError(f"the prompt {purpose!r} wants {{{NEEDED[purpose]}}} and does not name it; add it to {purpose}.txt")

    if bool(prompts.example) != bool(prompts.example_reply):
        given, lacking = ("example", "example_reply") if prompts.example else ("example_reply", "example")
        raise UserError(f"the prompt {given!r} wants the other half of the exchange; write {lacking}.txt as well")


def places_in(template: str) -> set[str]:
    """The values that a template names."""
    return set(_PLACE.findall(template))


def fill(template: str, **values: str | int) -> str:
    """Puts values where a template names them, once: braces inside a value stay what they are."""
    return _PLACE.sub(lambda match: str(values[match.group(1)]), template)


def turn_text(prompts: Prompts, task: Task, turn: int, observation: str) -> str:
    """The text that the policy reads before it takes turn `turn`."""
    template = prompts.first if turn == 1 else prompts.turn
    text = fill(template, turn=turn, observation=observation, horizon=task.horizon, instruction=task.instruction)
    return text + prompts.reminder


def reply_text(prompts: Prompts, turn: Turn, *, thoughts: bool = True) -> str:
    """The policy's reply at a turn as a history shows it: the reply as it was, or without its thoughts the action alone."""
    if thoughts:
        return turn.completion.text
    return render_action(prompts.form, turn.action) if turn.parsed else turn.action


@dataclass(frozen=True, slots=True)
class Notes:
    """Lessons in a prompt beside the history: `advice` for the turn about to be taken; for all turns `feedback` from earlier attempts at
    the task and `notes` from elsewhere.
    """

    advice: str | None = None
    feedback: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


NOTHING = Notes()


WHOLE = Shortening()


@dataclass(slots=True)
class Memory:
    """The messages of the last rendered history, so that a longer one costs only its additional turns."""

    trajectory: list[Turn] = field(default_factory=list)
    told: str = ""
    shortening: Shortening = WHOLE
    messages: list[Message] = field(default_factory=list)

    def kept(self, trajectory: Sequence[Turn], told: str, shortening: Shortening) -> int:
        """How many turns of `trajectory` are rendered as before."""
        if told != self.told:
            return 0
        most = min(len(trajectory), len(self.trajectory))
        if shortening != self.shortening:  # turns that both leave out look the same
            both = (*astuple(shortening), *astuple(self.shortening))
            most = min(most, *both)
        if self.trajectory[:most] == list(trajectory[:most]):
            return most
        return next(number for number in range(most) if self.trajectory[number] is not trajectory[number])


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that stays the same through all attempts at a task: the prompts, the task, and its first observation."""

    prompts: Prompts
    task: Task
    root: Observation
    memory: Memory = field(default_factory=Memory, compare=False, repr=False)


def act_messages(
    scene: Scene, trajectory: Sequence[Turn], notes: Notes = NOTHING, shortening: Shortening = WHOLE
) -> tuple[Message, ...]:
    """The prompt for the turn after `trajectory`, every experience of the trajectory in its place."""
    messages = _history(scene, trajectory, _told(scene.prompts, notes.notes, notes.feedback), shortening)
    if notes.advice is not None:
        messages[-1] = _extended(messages[-1], fill(scene.prompts.experience, experience=notes.advice))
    return tuple(messages)


def reflect_messages(
    scene: Scene,
    trajectory: Sequence[Turn],
    *,
    ended: bool,
    notes: tuple[str, ...] = (),
    feedback: tuple[str, ...] = (),
    shortening: Shortening = WHOLE,
    unread: ParseFailure | None = None,
) -> tuple[Message, ...]:
    """The prompt that asks where the trajectory went wrong, below the history, `notes` and `feedback` that the policy acted on.

    `ended` says whether the attempt is over. `unread` is the failure of a first reply, which makes this the second question.
    """
    question = _question(scene.prompts, len(trajectory), ended=ended, unread=unread)
    return question_messages(scene, trajectory, question, ended=ended, notes=notes, feedback=feedback, shortening=shortening)


def question_messages(
    scene: Scene,
    trajectory: Sequence[Turn],
    question: str,
    *,
    ended: bool,
    notes: tuple[str, ...] = (),
    feedback: tuple[str, ...] = (),
    shortening: Shortening = WHOLE,
) -> tuple[Message, ...]:
    """The prompt that asks any question about a trajectory, below the history with its notes and feedback."""
    messages = _history(scene, trajectory, _told(scene.prompts, notes, feedback), shortening, ended=ended)
    messages[-1] = _extended(messages[-1], question)
    return tuple(messages)


def _told(prompts: Prompts, notes: tuple[str, ...], feedback: tuple[str, ...]) -> str:
    """The text below the first observation: notes, and the lessons of earlier attempts."""
    if not prompts.notes:
        notes, feedback = (), (*notes, *feedback)
    listed = [(prompts.notes, "notes", notes), (prompts.feedback, "experiences", feedback)]
    return "".join(fill(text, **{name: "\n".join(f"- {one}" for one in items)}) for text, name, items in listed if items)


def half_kept(prompts: Prompts, unread: ParseFailure) -> Half:
    """The part of a reply that is kept, because the second question asks for the rest alone."""
    half = unread.half
    asked = prompts.reflect_turn if half.experience else prompts.reflect_advice
    return half if asked and half != NO_HALF else NO_HALF


def _question(prompts: Prompts, turns: int, *, ended: bool, unread: ParseFailure | None) -> str:
    """The question for a reflection, or for the half that a first reply lacked.

    A reply that could not be read is not quoted: small models repeat their own text when they see it.
    """
    whole = fill(prompts.reflect_end if ended else prompts.reflect, turn=turns)
    if unread is None:
        return whole
    kept = half_kept(prompts, unread)
    if kept.experience:
        return fill(prompts.reflect_turn, turn=turns, numbers=_numbers(turns), experience=kept.experience)
    if kept.turn is not None:
        return fill(prompts.reflect_advice, turn=turns, named=kept.turn)
    return whole + fill(prompts.reflect_again, problem=str(unread), turn=turns)


def _numbers(turns: int) -> str:
    """The turns to choose from: small models name turns that do not exist unless they read all of them."""
    if turns > NUMBERS_LISTED:
        return f"a number from 1 to {turns}"
    *before, last = [str(number) for number in range(1, turns + 1)]
    return f"{', '.join(before)} or {last}" if before else last


def bare_messages(scene: Scene, trajectory: Sequence[Turn], shortening: Shortening = WHOLE) -> tuple[Message, ...]:
    """The experience-free prompt for the turn after `trajectory`: the text that a model without any advice would have read.

    `shortening` is that of the prompt that the turn was sampled from.
    """
    return tuple(_history(scene, [replace(turn, experience=None) for turn in trajectory], "", shortening))


def _history(scene: Scene, trajectory: Sequence[Turn], told: str, shortening: Shortening, *, ended: bool = False) -> list[Message]:
    """The history and the present observation; reuses the messages of the scene's last prompt."""
    prompts, memory = scene.prompts, scene.memory
    kept, opening = memory.kept(trajectory, told, shortening), _opening(prompts)
    messages = memory.messages[: len(opening) + 2 * kept] if kept else opening
    for number in range(kept + 1, len(trajectory) + 1):
        turn = trajectory[number - 1]
        content = _seen(scene, trajectory, number, told=told, shortening=shortening)
        if turn.experience is not None:
            content += fill(prompts.experience, experience=turn.experience)
        reply = reply_text(prompts, turn, thoughts=number > shortening.thoughts)
        messages += [Message("user", content), Message("assistant", reply, sampled=True)]
    memory.trajectory, memory.told, memory.shortening, memory.messages = list(trajectory), told, shortening, list(messages)
    if ended and prompts.end and trajectory:
        return [*messages, Message("user", fill(prompts.end, turn=len(trajectory), observation=trajectory[-1].observation.text))]
    return [*messages, Message("user", _seen(scene, trajectory, len(trajectory) + 1, told=told, shortening=shortening))]


def _seen(scene: Scene, trajectory: Sequence[Turn], number: int, *, told: str, shortening: Shortening) -> str:
    """The text that the policy reads before it takes a turn, without the advice for it."""
    before = scene.root if number == 1 else trajectory[number - 2].observation
    # The last observation is the state that the policy acts in: it always stays.
    left_out = 1 < number <= len(trajectory) and number - 1 <= shortening.observations
    text = turn_text(scene.prompts, scene.task, number, scene.prompts.left_out if left_out else before.text)
    return text + told if number == 1 else text


def _opening(prompts: Prompts) -> list[Message]:
    """The messages ahead of every task."""
    system = [Message("system", fill(prompts.system, actions_help=prompts.actions_help))] if prompts.system else []
    # The worked reply was not sampled, so it is no target of training.
    example = [Message("user", prompts.example), Message("assistant", prompts.example_reply)] if prompts.example else []
    return system + example


def _extended(message: Message, text: str) -> Message:
    return Message(message.role, message.content + text, message.sampled)
