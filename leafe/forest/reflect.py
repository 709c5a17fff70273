"""Asking the policy where an attempt went wrong: one question, one retry; any answer is kept as data.

If a first reply gave only the turn or only the experience, the retry asks for the other half alone, if the prompts have a text for that.

Nothing is ever invented or clamped: a reply that fails to parse twice is a reflection without an experience and with an error. If the
history leaves no room for the question it is shortened, whatever the rules for acting are: a full context is a reason to reflect.
"""

from __future__ import annotations

from collections.abc import Callable

from leafe.chat import Prompts, half_kept, reflect_messages
from leafe.forest.builder import TreeBuilder
from leafe.forest.effects import Play
from leafe.history import shorter
from leafe.records import Completion, Experience, Message, Reflection, Shortening, Turn
from leafe.replies import NO_HALF, ParseFailure, parse_reflection

TRIES = 2
NO_ROOM = "the model's context leaves no room to reflect"


def reflect(
    builder: TreeBuilder, attempt: int, trajectory: tuple[Turn, ...], *, ended: bool, feedback: tuple[str, ...] = ()
) -> Play[Experience | None]:
    """The experience that the policy draws from a trajectory, or None when it names none or cannot be read.

    `feedback` is the text in the attempt's prompts beside its history and the rules' notes.
    """
    prompts, shortening = builder.rules.prompts, trajectory[-1].shortening
    replies: list[Completion] = []
    experience, error = None, None
    unread: ParseFailure | None = None

    def question(short: Shortening) -> tuple[Message, ...]:
        return reflect_messages(
            builder.scene, trajectory, ended=ended, notes=builder.notes, feedback=feedback, shortening=short, unread=unread
        )

    for _ in range(TRIES):
        reply, shortening = yield from answer(builder, attempt, trajectory, question=question, shortening=shortening)
        replies.append(reply)
        if reply.finish == "context":
            error = NO_ROOM
            break
        try:
            whole, kept = reply.finish != "length", half_kept(prompts, unread) if unread else NO_HALF
            named = parse_reflection(prompts.form, reply.text, len(trajectory), whole=whole, kept=kept)
            experience, error = _own(prompts, named), None
            break
        except ParseFailure as failure:
            unread, error = failure, str(failure)
    builder.add_reflection(Reflection(attempt, len(trajectory), tuple(replies), experience, error))
    return experience


def _own(prompts: Prompts, experience: Experience | None) -> Experience | None:
    """An experience, unless it is the example in the question, which small models repeat word for word."""
    if experience is not None and f"<experience>{experience.text}</experience>" in prompts.reflect + prompts.reflect_end:
        raise ParseFailure("the advice was that of the example, word for word")
    return experience


def answer(
    builder: TreeBuilder,
    attempt: int,
    trajectory: tuple[Turn, ...],
    *,
    question: Callable[[Shortening], tuple[Message, ...]],
    shortening: Shortening,
) -> Play[tuple[Completion, Shortening]]:
    """The policy's reply to a question, after a history that is shortened until there is room."""
    while True:
        reply: Completion = yield builder.ask_to_reflect(attempt, question(shortening))
        further = shorter(builder.rules.prompts, trajectory, shortening)
        if reply.finish != "context" or further is None:
            return reply, shortening
        shortening = further
