"""Asking the policy where an attempt went wrong: one question, one retry, and the answer kept as data whatever it is.

Nothing is ever made up or clamped: a reply that does not parse twice over is a reflection without an experience and with an error.
"""

from __future__ import annotations

from leafe.chat import reflect_messages
from leafe.forest.effects import Play
from leafe.forest.growth import Growth
from leafe.records import Completion, Experience, Reflection, Turn
from leafe.replies import Unreadable, parse_reflection

TRIES = 2


def reflect(
    growth: Growth, attempt: int, walk: tuple[Turn, ...], *, ended: bool, feedback: tuple[str, ...] = ()
) -> Play[Experience | None]:
    """The experience that the policy draws from a walk, or None when it names none or cannot be read.

    `feedback` is what the attempt was told beside its history.
    """
    messages = reflect_messages(growth.scene, walk, ended=ended, feedback=feedback)
    replies: list[Completion] = []
    experience, error = None, None
    for _ in range(TRIES):
        reply: Completion = yield growth.ask_to_reflect(attempt, messages)
        replies.append(reply)
        if reply.finish == "context":
            error = "the model's context leaves no room to reflect"
            break
        try:
            experience, error = parse_reflection(growth.rules.prompts.form, reply.text, len(walk)), None
            break
        except Unreadable as failure:
            error = str(failure)
    growth.add_reflection(Reflection(attempt, len(walk), tuple(replies), experience, error))
    return experience
