"""A reply that was cut, or ended where it only repeated itself, is completed: the policy is asked for the answer alone.

Its thoughts are closed for that. Where nothing comes of it (the engine cannot continue a reply, the context has no room, the answer has
no end either) the reply stays what it was. Not all of the text was sampled then, so what was closed is never learned from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from leafe.digest import seed_for
from leafe.forest.builder import Rules
from leafe.forest.effects import Play
from leafe.records import Ask, Completion
from leafe.replies import NO_HALF, Half, ParseFailure, parse_action, parse_reflection
from leafe.replies.closing import answer_in, begun_with, closed_action, closed_reflection, reflection_opening


def closed_act(rules: Rules, ask: Ask, reply: Completion) -> Play[Completion]:
    """A reply to a request for an action as it is, or completed if it holds none. Actions have to be in tags."""
    form = rules.prompts.form
    if form != "tags" or not _may_close(rules, reply):
        return reply
    if _fault(lambda: parse_action(form, reply.text, whole=reply.finish != "length")) is None:
        return reply
    return (yield from _closed(rules, ask, reply, opening="<action>", ending=closed_action))


def closed_reflect(rules: Rules, ask: Ask, reply: Completion, *, kept: Half, turns: int) -> Play[Completion]:
    """The same for a reflection over so many turns, of which the `kept` half is known already. Bare reflections stay as they are."""
    form = rules.prompts.form
    if form == "bare" or not _may_close(rules, reply):
        return reply
    fault = _fault(lambda: parse_reflection(form, reply.text, turns, whole=reply.finish != "length", kept=kept))
    if fault is None:
        return reply
    known = Half(kept.turn if fault.half.turn is None else fault.half.turn)
    if known.turn is None and (fault.half.experience or kept.experience):  # its turn alone is asked for by the next question
        return reply

    def ending(text: str, *, whole: bool) -> str | None:
        return closed_reflection(text, known=known, whole=whole)

    return (yield from _closed(rules, ask, reply, opening=reflection_opening(known), ending=ending))


def said_in(reply: Completion, tag: str) -> str:
    """The part of a reply that is read: after closed thoughts, the answer alone, which begins with a `tag`."""
    return answer_in(reply.text, tag) if reply.finish == "closed" else reply.text


def half_for(reply: Completion, kept: Half) -> Half:
    """The half that is known besides a reply: one that was completed says both."""
    return NO_HALF if reply.finish == "closed" else kept


def _may_close(rules: Rules, reply: Completion) -> bool:
    return bool(rules.closing) and reply.finish in ("length", "repetition")


def _fault(read: Callable[[], object]) -> ParseFailure | None:
    try:
        read()
    except ParseFailure as failure:
        return failure
    return None


def _closed(rules: Rules, ask: Ask, reply: Completion, *, opening: str, ending: Callable[..., str | None]) -> Play[Completion]:
    begun = begun_with(reply.text, opening)
    sampling = replace(ask.sampling, max_tokens=rules.closing)
    end: Completion = yield replace(ask, sampling=sampling, seed=seed_for(ask.seed, "closing"), begun=begun)
    drawn, prompt = reply.drawn + end.drawn, reply.prompt_tokens + end.prompt_tokens
    answer = ending(end.text, whole=end.finish == "stop")
    if answer is None:
        return replace(reply, counted=drawn, prompt_tokens=prompt) if end.drawn else reply
    return Completion(begun + answer, finish="closed", prompt_tokens=prompt, counted=drawn)
