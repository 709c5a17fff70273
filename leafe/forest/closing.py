"""A reply that was cut, or ended where it only repeated itself, is given an end: the policy is asked for the answer alone.

Its thoughts are closed for that. Where nothing comes of it (the engine cannot go on with a reply, the context has no room, the answer has
no end either) the reply stays what it was. Not all of the text was sampled then, so what was closed is never learned from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from leafe.forest.builder import TreeBuilder
from leafe.forest.effects import Play
from leafe.records import Ask, Completion
from leafe.replies import Half, ParseFailure, parse_action, parse_reflection
from leafe.replies.closing import answer_in, begun_with, closed_action, closed_reflection


def closed_act(builder: TreeBuilder, ask: Ask, reply: Completion) -> Play[Completion]:
    """A reply to a request for an action as it is, or with an end where it holds none. Actions have to be in tags."""
    form = builder.rules.prompts.form
    if form != "tags" or not _wants_end(builder, reply, lambda: parse_action(form, reply.text, whole=reply.finish != "length")):
        return reply
    return (
        yield from _closed(
            builder, ask, reply, tag="action", ending=lambda end: closed_action(end.text, whole=end.finish == "stop")
        )
    )


def closed_reflect(builder: TreeBuilder, ask: Ask, reply: Completion, *, kept: Half, turns: int) -> Play[Completion]:
    """The same for a reflection over so many turns, of which the `kept` half is known already. Bare reflections stay as they are."""
    form = builder.rules.prompts.form

    def read() -> None:
        parse_reflection(form, reply.text, turns, whole=reply.finish != "length", kept=kept)

    if form == "bare" or not _wants_end(builder, reply, read):
        return reply
    tag = tag_wanted(kept)
    return (
        yield from _closed(
            builder, ask, reply, tag=tag, ending=lambda end: closed_reflection(end.text, tag, whole=end.finish == "stop")
        )
    )


def tag_wanted(kept: Half) -> str:
    """What a reflection begins with whose `kept` half is known."""
    return "turn" if kept.turn is None else "experience"


def said_in(reply: Completion, tag: str) -> str:
    """What is read of a reply: behind closed thoughts the answer alone."""
    return answer_in(reply.text, tag) if reply.finish == "closed" else reply.text


def _wants_end(builder: TreeBuilder, reply: Completion, read: Callable[[], object]) -> bool:
    if not builder.rules.closing or reply.finish not in ("length", "repetition"):
        return False
    try:
        read()
    except ParseFailure:
        return True
    return False


def _closed(
    builder: TreeBuilder, ask: Ask, reply: Completion, *, tag: str, ending: Callable[[Completion], str | None]
) -> Play[Completion]:
    begun = begun_with(reply.text, tag)
    end: Completion = yield builder.ask_to_close(ask, begun)
    if not end.drawn:
        return reply
    drawn, prompt = reply.drawn + end.drawn, reply.prompt_tokens + end.prompt_tokens
    answer = ending(end)
    if answer is None:
        return replace(reply, counted=drawn, prompt_tokens=prompt)
    return Completion(begun + answer, finish="closed", prompt_tokens=prompt, counted=drawn)
