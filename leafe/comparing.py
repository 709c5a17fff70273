"""The prompts of Early Experience: what an action leads to, and why the expert's is the better one (arXiv 2510.08558).

    predict      asks what an action leads to, below the history and the action; the answer is the observation
    alternative  one of the policy's own actions with its outcome, as the next three show it
    compare      asks the policy itself why the expert's action is better, with all outcomes; its answer is a thought
    contrast     asks for the comparison without any outcome, where replies have no room for thoughts
    comparison   the answer to `contrast`, made from the outcomes and the expert's action

A profile has `compare`, or both `contrast` and `comparison`, which then are used; bare replies need these two. A prompt that is trained
on never shows an outcome; only a target does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from leafe.chat import WHOLE, Prompts, Scene, act_messages, bare_messages, fill, reply_text
from leafe.records import Message, Shortening, Turn
from leafe.replies import ParseFailure, parse_action, parse_thought, render_thought


def lacking(prompts: Prompts, *, predicts: bool, compares: bool) -> list[str]:
    """The files that a profile wants and does not have."""
    missing = ["predict"] if predicts and not prompts.predict else []
    if compares and not prompts.alternative:
        missing.append("alternative")
    if compares and not makes_comparisons(prompts):
        missing += ["contrast", "comparison"] if prompts.form == "bare" else [] if prompts.compare else ["compare"]
    return missing


def makes_comparisons(prompts: Prompts) -> bool:
    """Whether a template makes the comparisons, and not the policy."""
    return bool(prompts.contrast and prompts.comparison)


def predict_messages(scene: Scene, trajectory: Sequence[Turn], turn: Turn, shortening: Shortening = WHOLE) -> tuple[Message, ...]:
    """The prompt whose answer is the outcome of `turn`, taken after `trajectory`. The turn's thoughts are left out."""
    reply = Message("assistant", reply_text(scene.prompts, turn, thoughts=False), sampled=True)
    question = Message("user", fill(scene.prompts.predict, turn=turn.index))
    return (*bare_messages(scene, trajectory, shortening), reply, question)


def compare_messages(
    scene: Scene, trajectory: Sequence[Turn], expert: Turn, others: Sequence[Turn], *, shortening: Shortening = WHOLE
) -> tuple[Message, ...]:
    """The prompt that asks the policy why `expert` was better than `others`, with the outcome of each. It is never trained on."""
    *before, last = act_messages(scene, trajectory, shortening=shortening)
    return (*before, replace(last, content=last.content + _told(scene.prompts, scene.prompts.compare, expert, others)))


def contrast_messages(scene: Scene, trajectory: Sequence[Turn], shortening: Shortening = WHOLE) -> tuple[Message, ...]:
    """The prompt of a comparison that is a reply of its own: the history and the question, without an outcome."""
    *before, last = bare_messages(scene, trajectory, shortening)
    return (*before, replace(last, content=last.content + fill(scene.prompts.contrast, turn=len(trajectory) + 1)))


def made_comparison(prompts: Prompts, expert: Turn, others: Sequence[Turn]) -> str:
    """The answer to `contrast`, from the outcome of each action."""
    return _told(prompts, prompts.comparison, expert, others)


def read_comparison(prompts: Prompts, reply: str, action: str, *, whole: bool = True) -> str:
    """The thought of a reply to `compare`. Raises `ParseFailure` for one that no reply with the expert's action could begin with."""
    thought = parse_thought(reply, action=action, whole=whole)
    if thought in prompts.compare:
        raise ParseFailure("the comparison repeats the question")
    if parse_action(prompts.form, render_thought(prompts.form, thought, action)) != action:
        raise ParseFailure("the comparison holds what would be read as another action")
    return thought


def _told(prompts: Prompts, template: str, expert: Turn, others: Sequence[Turn]) -> str:
    listed = [fill(prompts.alternative, action=other.action, observation=other.observation.text) for other in others]
    return fill(template, action=expert.action, observation=expert.observation.text, alternatives="\n".join(listed))
