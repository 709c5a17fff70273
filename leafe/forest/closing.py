"""A reply that was cut, or ended where it only repeated itself, is given an end: the policy is asked for the action alone.

Its thoughts are closed for that. Where nothing comes of it (the engine cannot go on with a reply, the context has no room, the action has
no end either) the reply stays what it was. Not all of the text was sampled then, so what was closed is never learned from.
"""

from __future__ import annotations

from dataclasses import replace

from leafe.forest.builder import Rules, TreeBuilder
from leafe.forest.effects import Play
from leafe.records import Completion, Message
from leafe.replies import ParseFailure, parse_action
from leafe.replies.closing import closed_action, closed_thoughts, with_action


def closed(builder: TreeBuilder, messages: tuple[Message, ...], reply: Completion) -> Play[Completion]:
    """A reply to `messages` as it is, or with an end where it wants one. Actions have to be in tags."""
    if not _wants_end(builder.rules, reply):
        return reply
    begun = closed_thoughts(reply.text)
    end: Completion = yield builder.ask_to_close(len(builder.attempts), messages, begun)
    if not end.drawn:
        return reply
    drawn, prompt = reply.drawn + end.drawn, reply.prompt_tokens + end.prompt_tokens
    action = closed_action(end.text, whole=end.finish == "stop")
    if not action:
        return replace(reply, counted=drawn, prompt_tokens=prompt)
    return Completion(with_action(begun, action), finish="closed", prompt_tokens=prompt, counted=drawn)


def _wants_end(rules: Rules, reply: Completion) -> bool:
    if not rules.closing or rules.prompts.form != "tags" or reply.finish not in ("length", "repetition"):
        return False
    try:
        parse_action(rules.prompts.form, reply.text, whole=reply.finish != "length")
    except ParseFailure:
        return True
    return False
