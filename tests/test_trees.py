"""The method's heart on every kind of world: an attempt fails, is looked back on, is rolled back, verified, and succeeds.

The policy is a script. It plays the right way up to a turn, then something useless until its turns are used up; it names that turn, and
with the experience in sight it goes on rightly. What is learned from it has to be the revised action under the very prompt that the first
attempt read there.
"""

from __future__ import annotations

import asyncio
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from openenv_server import LETTERS, serve_fake
from players import rules, turns_in

from leafe.chat import Notes, Scene, act_messages
from leafe.digest import canonical
from leafe.distillation.examples import Selection, distill
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Environment, Fidelity
from leafe.envs.registry import make
from leafe.errors import MissingDependency
from leafe.forest.builder import Rules, TreeBuilder
from leafe.forest.driver import Rollout, Runtime, drive
from leafe.forest.explore import explore
from leafe.history import History
from leafe.prompts import load_prompts
from leafe.records import Ask, Experience, Sampling, StopReason, Task, Tree, encode
from leafe.replies import Form, parse_action, render_action, render_reflection
from leafe.worlds.sandbox.probe import objection
from leafe.worlds.scienceworld.java import needs

LESSON = "THE LESSON: it was the other one."


@dataclass(frozen=True)
class Story:
    """A task, the actions that solve it, and one that is of no use at any turn from `turn` on."""

    make: Callable[[], Environment]
    task: Task
    right: tuple[str, ...]
    useless: str
    turn: int


def expertly(name: str, arguments: dict[str, Any], useless: str, split: str = "train") -> Story:
    """The story of a world with an expert; it goes wrong in the middle."""
    environment = make(name, arguments)
    task = environment.tasks(split, 1)[0]
    environment.reset(task)
    right = tuple(environment.expert())
    environment.close()
    return Story(lambda: make(name, arguments), replace(task, horizon=len(right) + 2), right, useless, len(right) // 2 + 1)


def programs(name: str) -> Story:
    """The story of a task whose wrong programs are known."""
    if objection() is not None:
        pytest.skip("no sandbox contains programs on this machine; leafe doctor says what it wants")
    environment = make(name)
    task = environment.tasks("train", 1)[0]
    environment.reset(task)
    right, wrong = environment.example_actions()[:2]
    return Story(lambda: make(name), task, (wrong, right), wrong, 2)


def frozen_lake(fidelity: str) -> Story:
    pytest.importorskip("gymnasium", reason="wants pip install -e '.[gymnasium]'")
    arguments = {"id": "FrozenLake-v1", "kwargs": {"is_slippery": False}, "horizon": 8, "fidelity": fidelity}
    task = make("gymnasium", arguments).tasks("train", 1)[0]
    way = ("down", "down", "right", "right", "down", "right")
    return Story(lambda: make("gymnasium", arguments), task, way, "left", 4)


def simulated() -> Story:
    try:
        needs()
    except MissingDependency as missing:
        pytest.skip(str(missing))
    return expertly("scienceworld", {"types": "lifespan-longest-lived"}, "inventory")


def safe(address: str) -> Story:
    arguments = {"url": address, "fidelity": "replay", "horizon": 4}
    environment = make("openenv", arguments)
    task = environment.tasks("train", 1)[0]
    for word in (one + other for one in LETTERS for other in LETTERS):
        environment.reset(task)
        if environment.step(word).success:
            environment.close()
            return Story(lambda: make("openenv", arguments), task, ("zz", word), "zz", 2)
    raise AssertionError("no word opens the safe")


def sums(folder: Path) -> Story:
    (folder / "sums.jsonl").write_text("\n".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) for n in range(20)))
    arguments = {"data": str(folder / "sums.jsonl"), "reward": "test_single_turn:exact"}
    task = make("single-turn", arguments).tasks("train", 1)[0]
    return Story(lambda: make("single-turn", arguments), task, ("?", task.payload["answer"]), "?", 2)


def alfworld(folder: Path) -> Story:
    if "LEAFE_DATA" not in os.environ:
        pytest.skip("LEAFE_DATA names no folder with alfworld/")
    with tarfile.open(Path(os.environ["LEAFE_DATA"], "alfworld", "valid_seen.tar.xz")) as packed:
        packed.extractall(folder, filter="data")
    return expertly("alfworld", {"data": str(folder)}, "look", "valid_seen")


STORIES: dict[str, Callable[[Path, ExitStack], Story]] = {
    "sokoban": lambda folder, stack: expertly("sokoban", {"min_length": 6, "horizon": 20}, "no move"),
    "household": lambda folder, stack: expertly("household", {}, "inventory"),
    "alfworld": lambda folder, stack: alfworld(folder),
    "webshop": lambda folder, stack: expertly("webshop", {}, "search[an umbrella for two]"),
    "scienceworld": lambda folder, stack: simulated(),
    "codecontests": lambda folder, stack: programs("codecontests"),
    "mbpp": lambda folder, stack: programs("mbpp"),
    "gymnasium": lambda folder, stack: frozen_lake("replay"),
    "gymnasium, copied": lambda folder, stack: frozen_lake("snapshot"),
    "openenv": lambda folder, stack: safe(stack.enter_context(serve_fake())),
    "single-turn": lambda folder, stack: sums(folder),
}


# A second process with Java takes long; `test_scienceworld.py` has the same of one.
@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] if name == "scienceworld" else []) for name in STORIES])
def story(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Story]:
    with ExitStack() as stack:
        if request.param == "openenv":
            pytest.importorskip("websockets", reason="wants pip install -e '.[openenv]'")
        yield STORIES[request.param](tmp_path, stack)


def policy_of(story: Story, form: Form, thought: str = "") -> Callable[[Ask], str]:
    """Goes wrong at the story's turn unless it was told better; `thought` stands before each action."""

    def policy(ask: Ask) -> str:
        if ask.purpose == "reflect":
            return render_reflection(form, Experience(story.turn, LESSON))
        turn, taught = turns_in(ask), any(LESSON in message.content for message in ask.messages)
        right = taught or turn < story.turn - 1
        return thought + render_action(form, story.right[turn] if right and turn < len(story.right) else story.useless)

    return policy


def driven(story: Story, rules: Rules, engine: ScriptedEngine) -> Tree:
    """The tree of a story, driven as a run drives it."""
    environment = story.make()
    rules = replace(rules, can_roll_back=environment.fidelity is not Fidelity.NONE)
    rollout = Rollout(story.task.id, story.task, explore(TreeBuilder(story.task, rules)))

    async def main() -> Tree:
        async for _, tree in drive([rollout], Runtime(engine, story.make, placement=environment.placement), concurrency=1):
            return tree
        raise AssertionError("no tree")

    try:
        return asyncio.run(main())
    finally:
        environment.close()


def told(story: Story) -> tuple[Tree, list[Ask]]:
    """The tree of two attempts, and what the engine was asked."""
    prompts = load_prompts("full", story.task.env)
    engine = ScriptedEngine(policy_of(story, prompts.form))
    return driven(story, rules(prompts, max_attempts=2), engine), engine.asks


def test_an_attempt_that_failed_succeeds_after_the_rollback_and_its_lesson_is_learned_without_the_words(story: Story) -> None:
    tree, asks = told(story)
    first, second = tree.attempts
    assert first.stop is StopReason.TURN_LIMIT and not first.success
    assert (second.stop, second.parent, second.turn, second.error) == (StopReason.SUCCESS, 0, story.turn, None)
    prompts = load_prompts("full", story.task.env)
    taken = [turn.action for turn in tree.trajectory(second.leaf)]
    assert taken == [parse_action(prompts.form, render_action(prompts.form, action)) for action in story.right]
    assert tree.spend.rollbacks == 1 and tree.spend.turns == story.task.horizon + len(story.right) - story.turn + 1
    examples = distill([tree], prompts, Selection("success", success_share=1.0))
    (lesson,) = [example for example in examples if example.kind == "counterfactual"]
    assert lesson.messages == asks[story.turn - 1].messages  # what the first attempt read at that turn
    assert lesson.target == render_action(prompts.form, story.right[story.turn - 1])
    assert asks[story.turn - 1].purpose == "act" and lesson.target_ids == tuple(lesson.target.encode())
    assert LESSON not in canonical(encode(examples))
    assert len([example for example in examples if example.kind == "rehearsal"]) == len(story.right)


@pytest.mark.parametrize("keep", ["all", "last", "fit"])
def test_long_replies_in_a_short_context_are_reflected_on_and_branched_from(
    story: Story, keep: Literal["all", "last", "fit"]
) -> None:
    long = replace(story, task=replace(story.task, horizon=max(12, story.task.horizon)))
    prompts, thought = load_prompts("full", story.task.env), f"<think>{'I wonder. ' * 160}</think>\n"
    longest = max(len(thought + render_action(prompts.form, action)) for action in (*story.right, story.useless))
    act = Sampling(max_tokens=max(512, longest // 4 + 1))
    engine = ScriptedEngine(policy_of(long, prompts.form, thought), token_bytes=4, max_context=4096)
    history = History(keep, turns=4)
    tree = driven(long, rules(prompts, turns=60, max_attempts=3, act=act, reflect=act, history=history), engine)
    first, second = tree.attempts[:2]
    ends = {
        "all": [StopReason.TOKEN_LIMIT],
        "fit": [StopReason.TURN_LIMIT],
    }  # four pages of a shop may be too long, the last one never
    assert first.stop in ends.get(keep, [StopReason.TOKEN_LIMIT, StopReason.TURN_LIMIT])
    assert second.experience == LESSON and second.parent == 0 and not any(one.no_room or one.unread for one in tree.reflections)
    assert (keep != "all") == any(turn.shortening.thoughts for turn in tree.turns)

    # What was read at each turn can be rendered again from the tree, and what is learned from is what was read there.
    answered = [ask for ask in engine.asks if ask.purpose == "act" and fits(ask)]
    assert len(answered) == len(tree.turns)
    for ask, turn in zip(answered, tree.turns, strict=True):
        scene = Scene(prompts, tree.task, tree.root_of(turn))
        assert ask.messages == act_messages(scene, tree.trajectory(turn.parent), Notes(turn.experience), turn.shortening)
    read = {ask.messages for ask in answered}
    examples = [one for one in distill([tree], prompts, Selection("any", success_share=1.0)) if tree.turns[0].id != one.origin]
    told_at = {turn.id for turn in tree.turns if turn.experience}
    trajectories = {turn.id: {one.id for one in tree.trajectory(turn.id)} for turn in tree.turns}
    bare = [one for one in examples if not trajectories[one.origin] & told_at]
    assert examples and all(one.messages in read for one in bare)


def fits(ask: Ask) -> bool:
    """Whether the engine of 4,096 tokens of four bytes took it."""
    return sum(-(-len(message.content.encode()) // 4) for message in ask.messages) + ask.sampling.max_tokens <= 4096
