"""Early Experience's three kinds of examples, drawn from a forest around an expert's way (arXiv 2510.08558, section 4).

    expert           the history -> the expert's action
    world_model      the history, an action and the question what it leads to -> the observation that followed (of states with alternatives)
    self_reflection  the history -> a comparison of the expert's action with the alternatives and their outcomes, then the action

No prompt shows the outcome of an alternative: a policy will not have it when it acts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import replace

from leafe.chat import Prompts, Scene, bare_messages
from leafe.comparing import contrast_messages, made_comparison, makes_comparisons, predict_messages
from leafe.distillation.examples import UNLEARNED
from leafe.distillation.writing import Writer
from leafe.forest.expert import Fork, forks
from leafe.records import Example, Tree
from leafe.replies import render_thought

EXPERT, WORLD_MODEL, SELF_REFLECTION = "expert", "world_model", "self_reflection"


def early_experience(trees: Iterable[Tree], prompts: Prompts, writer: Writer, kinds: Set[str]) -> list[Example]:
    """The examples of these kinds, kind by kind, each in the forest's order of task ids. A tree without an expert gives none."""
    makers: dict[str, Callable[[Scene, Fork, Writer], Iterable[Example]]] = {
        EXPERT: _of_expert,
        WORLD_MODEL: _of_outcomes,
        SELF_REFLECTION: _of_comparison,
    }
    states = [
        (Scene(prompts, tree.task, tree.root), fork) for tree in sorted(trees, key=lambda one: one.task.id) for fork in forks(tree)
    ]
    return [
        example for kind, make in makers.items() if kind in kinds for scene, fork in states for example in make(scene, fork, writer)
    ]


def _of_expert(scene: Scene, fork: Fork, writer: Writer) -> list[Example]:
    said, messages = fork.expert.completion, bare_messages(scene, fork.before, fork.shortening)
    if said.finish in UNLEARNED:
        writer.left_out[f"{EXPERT}_{said.finish}"] += 1
        return []
    return writer.example(EXPERT, scene.task.id, fork.expert, messages=messages, target=said.text, ids=said.token_ids)


def _of_outcomes(scene: Scene, fork: Fork, writer: Writer) -> Iterator[Example]:
    """One for each alternative that was taken in the state, and one for the expert's action beside them; none without alternatives."""
    for turn in (fork.expert, *fork.others) if fork.others else ():
        messages = predict_messages(scene, fork.before, turn, fork.shortening)
        yield from writer.example(WORLD_MODEL, scene.task.id, turn, messages=messages, target=turn.observation.text)


def _of_comparison(scene: Scene, fork: Fork, writer: Writer) -> list[Example]:
    """In the policy's words, or, if its replies have no room for thoughts, made from the outcomes."""
    prompts = scene.prompts
    if fork.comparison is not None:
        messages = bare_messages(scene, fork.before, fork.shortening)
        target = render_thought(prompts.form, fork.comparison.text, fork.expert.action)
    elif makes_comparisons(prompts) and fork.others:
        messages = contrast_messages(scene, fork.before, fork.shortening)
        target = made_comparison(prompts, fork.expert, fork.others)
    else:
        return []
    found = writer.example(SELF_REFLECTION, scene.task.id, fork.expert, messages=messages, target=target)
    if fork.comparison is not None:
        return found
    # Otherwise the few tokens of the expert's actions would hardly count beside those of observations, which no policy has to write.
    said = len(fork.expert.completion.token_ids or writer.tokens.reply_ids(fork.expert.completion.text))
    return [replace(example, weight=said / len(example.target_ids)) for example in found]
