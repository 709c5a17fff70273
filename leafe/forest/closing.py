"""The completion of a reply that was cut: its thoughts are closed, and the policy is asked for the action alone.

If that fails (the engine cannot continue a reply, the context has no room, the action is cut as well) the reply stays cut. Not all of the
text of a closed reply was sampled, so it is never learned from.
"""

from __future__ import annotations

from dataclasses import replace

from leafe.forest.builder import TreeBuilder
from leafe.forest.effects import Play
from leafe.records import Completion, Message
from leafe.replies.closing import closed_action, closed_thoughts, with_action


def closed(builder: TreeBuilder, messages: tuple[Message, ...], reply: Completion) -> Play[Completion]:
    """A reply to `messages`, completed if it was cut and the rules have tokens for that. Actions have to be in tags."""
    rules = builder.rules
    if reply.finish != "length" or not rules.closing or rules.prompts.form != "tags":
        return reply
    begun = closed_thoughts(reply.text)
    end: Completion = yield builder.ask_to_close(len(builder.attempts), messages, begun)
    drawn, prompt = reply.drawn + end.drawn, reply.prompt_tokens + end.prompt_tokens
    action = closed_action(end.text, whole=end.finish == "stop")
    if not end.drawn:
        return reply
    if not action:
        return replace(reply, counted=drawn, prompt_tokens=prompt)
    return Completion(with_action(begun, action), finish="closed", prompt_tokens=prompt, counted=drawn)
