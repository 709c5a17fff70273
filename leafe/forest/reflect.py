"""Asking the policy where an attempt went wrong: one question, one retry; any answer is kept as data.

If a first reply gave only the turn or only the experience, the retry asks for the other half alone, if the prompts have a text for that.

Nothing is ever invented or clamped: a reply that fails to parse twice is a reflection without an experience and with an error. If the
history leaves no room for the question it is shortened, whatever the rules for acting are: a full context is a reason to reflect.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from leafe.chat import Prompts, half_kept, reflect_messages
from leafe.forest.builder import TreeBuilder
from leafe.forest.closing import closed_reflect, half_for, said_in
from leafe.forest.effects import Play
from leafe.history import shorter
from leafe.records import Ask, Completion, Experience, Message, Reflection, Shortening, Turn
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
        kept = half_kept(prompts, unread) if unread else NO_HALF
        end = partial(closed_reflect, builder.rules, kept=kept, turns=len(trajectory))
        reply, shortening = yield from answer(builder, attempt, trajectory, question=question, shortening=shortening, end=end)
        replies.append(reply)
        if reply.finish == "context":
            error = NO_ROOM
            break
        try:
            said, whole = said_in(reply, "turn"), reply.finish != "length"
            named = parse_reflection(prompts.form, said, len(trajectory), whole=whole, kept=half_for(reply, kept))
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


def as_it_is(ask: Ask, reply: Completion) -> Play[Completion]:
    """A reply that is given no end."""
    return reply
    yield


def answer(
    builder: TreeBuilder,
    attempt: int,
    trajectory: tuple[Turn, ...],
    *,
    question: Callable[[Shortening], tuple[Message, ...]],
    shortening: Shortening,
    end: Callable[[Ask, Completion], Play[Completion]] = as_it_is,
) -> Play[tuple[Completion, Shortening]]:
    """The policy's reply to a question, after a history that is shortened until there is room; `end` may complete it."""
    while True:
        ask = builder.ask_to_reflect(attempt, question(shortening))
        reply: Completion = yield ask
        further = shorter(builder.rules.prompts, trajectory, shortening)
        if reply.finish != "context" or further is None:
            return (yield from end(ask, reply)), shortening
        shortening = further
