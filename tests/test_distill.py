"""What is learned from a forest: no advice in a prompt, the sampled ids as target, and a way back to the turn it came from."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from players import FULL, TERSE, Hand, Policy, breaks, completion, grown, key_in, rules, turns_in

from leafe.chat import Prompts
from leafe.distillation.examples import Selection, counterfactual, distill, matched, rehearsal
from leafe.envs.base import Environment
from leafe.forest.builder import TreeBuilder
from leafe.forest.explore import EXPLORERS
from leafe.forest.play import once
from leafe.records import BROKEN, Ask, Attempt, Example, Experience, Observation, StopReason, Task, Tree, Turn, encode
from leafe.replies import render_action, render_reflection
from leafe.worlds.fakes import Lookup
from leafe.worlds.sokoban.board import ACTIONS
from leafe.worlds.sokoban.environment import Sokoban

PLACES = [f"open place{number}" for number in range(1, 4)]
SECRET = "SECRET"  # stands in every piece of advice and nowhere else
EVERYTHING = Selection(qualify="any", branches_per_task=1000, success_share=1.0)


def adviser(prompts: Prompts, actions: list[str], *, parrot: bool = False) -> Policy:
    """Plays at random and gives advice with a secret in it; a parrot repeats the advice before it acts."""

    def answer(ask: Ask) -> str:
        draw = random.Random(ask.seed)
        if ask.purpose == "reflect":
            experience = Experience(draw.randint(1, turns_in(ask)), f"{SECRET} {draw.random()} try {draw.choice(actions)}")
            return render_reflection(prompts.form, draw.choice([experience, experience, experience, None]))
        action = draw.choice([*actions, *actions, "what\nnow"])
        if prompts.form == "bare" or "\n" in action:
            return action
        told = [line for line in ask.messages[-1].content.split("\n") if SECRET in line] if parrot else []
        return f"<think>{' '.join(told)}</think>" + render_action(prompts.form, action)

    return answer


def worlds(seed: int) -> tuple[Environment, Task, list[str]]:
    """Some small world with a task and its actions."""
    if seed % 3 == 0:
        environment: Environment = Sokoban(horizon=5, max_length=4, min_length=1)
        return environment, environment.tasks("train", 1, seed)[0], list(ACTIONS)
    return Lookup(places=3), key_in(seed % 4, number=seed), PLACES  # place 0 is nowhere: a task that cannot be solved


def forest(seed: int, *, prompts: Prompts = TERSE, trees: int = 3, parrot: bool = False) -> list[Tree]:
    """Random trees of the tree explorer, or of the other explorers now and then; some have a few failures of the environment."""
    draw, found = random.Random(seed), []
    for number in range(trees):
        environment, task, actions = worlds(10 * seed + number)
        explorer = EXPLORERS[draw.choice(["tree", "tree", "tree", "refine", "independent"])]
        turns, every, can = draw.choice([10, 40]), draw.choice([0, 2]), draw.random() < 0.8
        growing = rules(prompts, seed=seed, max_attempts=8, turns=turns, reflect_every=every, can_roll_back=can)
        failures = {draw.randint(1, 60) for _ in range(draw.choice([0, 0, 4]))}
        hand = Hand(environment, adviser(prompts, actions, parrot=parrot), breaks(failures))
        found.append(hand.finish(explorer(TreeBuilder(task, growing))))
    return found


def turn_of(trees: list[Tree], example: Example) -> tuple[Tree, Turn]:
    """The way back to the forest."""
    tree = next(tree for tree in trees if tree.task.id == example.task)
    return tree, next(turn for turn in tree.turns if turn.id == example.origin)


forests = st.builds(forest, st.integers(0, 10_000), prompts=st.sampled_from([TERSE, FULL]), parrot=st.booleans())


@given(forests)
def test_counterfactual_prompt_never_contains_the_experience(trees: list[Tree]) -> None:
    for example in distill(trees, FULL, EVERYTHING):
        assert SECRET not in "".join(message.content for message in example.messages) + example.target


@given(forests)
@settings(max_examples=30)
def test_log_probabilities_are_kept_where_they_are_asked_for_and_known(trees: list[Tree]) -> None:
    plain, told = (distill(trees, FULL, replace(EVERYTHING, logprobs=kept)) for kept in (False, True))
    assert [replace(example, targets=()) for example in told] == plain
    for example in told:
        _, turn = turn_of(trees, example)
        known = len(turn.completion.logprobs) == len(example.target_ids)
        wanted = turn.completion.logprobs if known else ()
        assert tuple(target.logprob for target in example.targets) == wanted
    unknown = [replace(tree, turns=tuple(map(without_logprobs, tree.turns))) for tree in trees]
    assert distill(unknown, FULL, replace(EVERYTHING, logprobs=True)) == distill(unknown, FULL, EVERYTHING)


def without_logprobs(turn: Turn) -> Turn:
    return replace(turn, completion=replace(turn.completion, logprobs=()))


def test_the_random_forests_hold_what_is_to_be_shown() -> None:
    trees = [tree for seed in range(12) for tree in forest(seed)]
    branches = [(tree, attempt) for tree in trees for attempt, _ in tree.branch_turns()]
    assert any(len(tree.trajectory(attempt.leaf)) > (attempt.turn or 0) for tree, attempt in branches)
    assert {attempt.stop for tree in trees for attempt in tree.attempts} >= {StopReason.ENVIRONMENT_ERROR, StopReason.SUCCESS}
    assert any(not turn.parsed for tree in trees for turn in tree.turns)
    assert any(attempt.depth > 1 for _, attempt in branches)


@given(forests)
@settings(max_examples=30)
def test_targets_are_the_sampled_ids_and_lead_back_to_the_forest(trees: list[Tree]) -> None:
    examples = distill(trees, FULL, EVERYTHING)
    assert len({example.id for example in examples}) == len(examples)
    for example in examples:
        tree, turn = turn_of(trees, example)
        assert (example.target, example.target_ids) == (turn.completion.text, turn.completion.token_ids)
        assert turn.parsed and turn.attempt == example.attempt
        assert tree.task.id == example.task


@given(st.integers(0, 10_000), st.sampled_from([TERSE, FULL]))
@settings(max_examples=25)
def test_a_prompt_is_what_the_engine_would_have_been_asked_without_advice(seed: int, prompts: Prompts) -> None:
    for tree in forest(seed, prompts=prompts):
        if any(attempt.stop in BROKEN for attempt in tree.attempts):
            continue
        environment = worlds(0)[0] if tree.task.env == "sokoban" else Lookup(places=3)
        for example in distill([tree], prompts, EVERYTHING):
            _, turn = turn_of([tree], example)
            replies = iter([one.completion.text for one in tree.trajectory(turn.id)])
            hand = Hand(environment, lambda ask, replies=replies: next(replies, "open place9"))
            hand.finish(once(TreeBuilder(tree.task, rules(prompts, patience=99))))
            assert hand.asks[turn.index - 1].messages == example.messages


@given(forests)
@settings(max_examples=30)
def test_attempts_that_broke_give_nothing(trees: list[Tree]) -> None:
    examples = distill(trees, TERSE, EVERYTHING)
    for example in examples:
        tree, turn = turn_of(trees, example)
        if example.kind == "counterfactual":
            assert tree.attempts[example.attempt].stop not in BROKEN
        else:
            assert any(turn in tree.trajectory(attempt.leaf) for attempt in tree.attempts if attempt.success)


def test_a_diverged_branch_gives_nothing_even_where_any_branch_qualifies() -> None:
    tree = branching(reward=0.0)
    broken = replace(tree.attempts[1], stop=StopReason.REPLAY_DIVERGED)
    assert list(counterfactual([tree], TERSE, EVERYTHING))
    assert not list(counterfactual([replace(tree, attempts=(tree.attempts[0], broken))], TERSE, EVERYTHING))


def a_turn(name: str, parent: str | None, index: int, *, attempt: int, said: str = "open place1", told: str | None = None) -> Turn:
    reply = completion(said, Ask((), rules().act, 0))
    return Turn(name, parent, index, attempt, said.split(">")[-1], True, reply, Observation("Empty."), told)


def branching(*, reward: float, before: float = 0.0, later: tuple[Attempt, ...] = (), more: tuple[Turn, ...] = ()) -> Tree:
    """Attempt 0 takes turns a, b; attempt 1 is rolled back to turn 1 and takes c, d; `later` attempts may follow."""
    turns = (
        a_turn("a", None, 1, attempt=0),
        a_turn("b", "a", 2, attempt=0),
        a_turn("c", None, 1, attempt=1, told="look elsewhere"),
        a_turn("d", "c", 2, attempt=1),
    )
    first = Attempt(0, 0, StopReason.TURN_LIMIT, False, before, "b")
    second = Attempt(1, 1, StopReason.TURN_LIMIT, False, reward, "d", 0, 1, "look elsewhere")
    task = key_in(3, horizon=2)
    spend = grown(EXPLORERS["independent"], Hand(Lookup(), lambda ask: "open place1"), task, max_attempts=1).spend
    return Tree(task, "tree", Observation("Places."), (*turns, *more), (first, second, *later), (), spend)


def events(tree: Tree, qualify: str) -> set[str]:
    """The turns that become counterfactual examples."""
    selection = replace(EVERYTHING, qualify=qualify)  # type: ignore[arg-type]
    return {example.origin for example in counterfactual([tree], TERSE, selection)}


def test_a_branch_that_brought_nothing_qualifies_as_any_only() -> None:
    tree = branching(reward=0.0)
    assert (events(tree, "any"), events(tree, "improved"), events(tree, "success")) == ({"c"}, set(), set())


def test_a_branch_with_a_better_reward_than_its_parent_has_improved() -> None:
    assert events(branching(reward=0.5, before=0.2), "improved") == {"c"}
    assert events(branching(reward=0.5, before=0.5), "improved") == set()
    assert events(branching(reward=-1.0, before=-100.0), "improved") == {"c"}
    assert events(branching(reward=0.5), "success") == set()


def won(index: int, leaf: str, parent: int, turn: int) -> Attempt:
    return Attempt(index, 2, StopReason.SUCCESS, True, 1.0, leaf, parent, turn, "go on")


def test_a_branch_has_improved_when_a_later_branch_keeps_its_turn_and_succeeds() -> None:
    kept = branching(reward=0.0, later=(won(2, "e", 1, 2),), more=(a_turn("e", "c", 2, attempt=2, told="go on"),))
    left = branching(reward=0.0, later=(won(2, "e", 1, 1),), more=(a_turn("e", None, 1, attempt=2, told="go on"),))
    assert events(kept, "improved") == {"c", "e"}
    assert events(left, "improved") == {"e"}
    assert events(kept, "success") == {"e"}


def test_a_success_that_leaves_a_lost_branch_of_a_branch_before_its_turn_still_counts_for_the_first() -> None:
    # Attempt 2 leaves attempt 1 at turn 3; attempt 3 leaves attempt 2 at turn 2, that is, before the turn where attempt 2 began.
    lost = Attempt(2, 2, StopReason.TURN_LIMIT, False, 0.0, "e", 1, 3, "go on")
    more = (a_turn("e", "d", 3, attempt=2, told="go on"), a_turn("f", "c", 2, attempt=3, told="go on"))
    tree = branching(reward=0.0, later=(lost, won(3, "f", 2, 2)), more=more)
    assert events(tree, "improved") == {"c", "f"}


def test_a_reply_that_quotes_its_advice_is_not_learned_from_and_neither_is_what_follows_it() -> None:
    quoting = a_turn("c", None, 1, attempt=1, said="<think>look elsewhere</think>open place1", told="look elsewhere")
    tree = branching(reward=0.0, later=(won(2, "e", 1, 2),), more=(a_turn("e", "c", 2, attempt=2, told="go on"),))
    spoiled = replace(tree, turns=tuple(quoting if turn.id == "c" else turn for turn in tree.turns))
    assert {example.origin for example in distill([tree], TERSE, EVERYTHING)} == {"c", "e"}
    assert distill([spoiled], TERSE, EVERYTHING) == []
    silent = replace(tree, turns=tuple(replace(quoting, action="") if turn.id == "c" else turn for turn in tree.turns))
    assert distill([silent], TERSE, EVERYTHING) == []


def test_an_action_that_is_all_of_the_advice_is_still_learned_from() -> None:
    obedient = a_turn("c", None, 1, attempt=1, said="look elsewhere", told="look elsewhere")
    tree = branching(reward=0.0)
    turns = tuple(obedient if turn.id == "c" else turn for turn in tree.turns)
    assert events(replace(tree, turns=turns), "any") == {"c"}


@given(forests, st.integers(0, 3))
@settings(max_examples=25)
def test_no_task_gives_more_branches_than_asked_for(trees: list[Tree], most: int) -> None:
    every = list(counterfactual(trees, TERSE, EVERYTHING))
    drawn = list(counterfactual(trees, TERSE, replace(EVERYTHING, branches_per_task=most)))
    for tree in trees:
        available = [example for example in every if example.task == tree.task.id]
        taken = [example for example in drawn if example.task == tree.task.id]
        assert set(taken) <= set(available)
        branches = {example.attempt for example in taken}
        assert len(branches) == min(most, len({example.attempt for example in available}))
        assert taken == [example for example in available if example.attempt in branches]


def successes(trees: list[Tree]) -> int:
    return sum(attempt.success for tree in trees for attempt in tree.attempts)


def solved(count: int) -> list[Tree]:
    """Tasks that are each solved once."""
    hand = Hand(Lookup(), lambda ask: "open place1")
    return [grown(EXPLORERS["independent"], hand, key_in(1, number=number), max_attempts=1) for number in range(count)]


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(10, 0.2, 2), (11, 0.2, 3), (35, 0.2, 7), (3, 0.0, 0), (4, 1.0, 4), (0, 0.5, 0)]
)
def test_the_share_of_successes_is_taken_and_rounded_up(count: int, share: float, expected: int) -> None:
    assert len(list(rehearsal(solved(count), TERSE, Selection(success_share=share)))) == expected


def test_a_turn_shared_by_two_successes_is_rehearsed_once() -> None:
    both = (won(2, "e", 1, 2), won(3, "f", 1, 2))
    more = (a_turn("e", "c", 2, attempt=2, told="go on"), a_turn("f", "c", 2, attempt=3, told="go on"))
    examples = list(rehearsal([branching(reward=0.0, later=both, more=more)], TERSE, EVERYTHING))
    assert sorted(example.origin for example in examples) == ["c", "e", "f"]


def test_beta_is_the_weight_of_rehearsal_and_of_nothing_else() -> None:
    trees = [tree for seed in range(3) for tree in forest(seed)]
    weights = {(one.kind, one.weight) for one in distill(trees, TERSE, replace(EVERYTHING, beta=0.25))}
    assert weights == {("counterfactual", 1.0), ("rehearsal", 0.25)}


def test_the_draw_follows_the_seed_and_not_the_order_of_the_forest() -> None:
    trees = [tree for seed in range(6) for tree in forest(seed)]
    selection = Selection(qualify="any", branches_per_task=1, success_share=0.3, seed=1)
    first = distill(trees, TERSE, selection)
    assert distill(trees[::-1], TERSE, selection) == first
    assert distill(trees, TERSE, replace(selection, seed=2)) != first


def test_two_processes_draw_the_same_examples() -> None:
    code = (
        "import json, test_distill as t\n"
        "selection = t.Selection(qualify='any', branches_per_task=2, success_share=0.5, seed=3)\n"
        "print(json.dumps([t.encode(one) for one in t.distill(t.forest(4) + t.forest(5), t.TERSE, selection)]))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    here = distill(forest(4) + forest(5), TERSE, Selection(qualify="any", branches_per_task=2, success_share=0.5, seed=3))
    assert json.loads(outputs.pop()) == [encode(one) for one in here] != []


def won_at(tree: Tree, *names: str) -> Tree:
    """A task with one success for each name, which is the id of its own only turn; all begin with a shared one."""
    task = replace(tree.task, id=names[0])
    shared = replace(a_turn("s", None, 1, attempt=0), id=f"{names[0]}-s")
    turns = (shared, *(replace(a_turn(name, "s", 2, attempt=n), parent=shared.id) for n, name in enumerate(names)))
    attempts = tuple(Attempt(n, 0, StopReason.SUCCESS, True, 1.0, name) for n, name in enumerate(names))
    return replace(tree, task=task, turns=turns, attempts=attempts, spend=replace(tree.spend, turns=len(turns)))


def weights(examples: Iterable[Example]) -> dict[str, float]:
    return {example.origin: example.weight for example in examples}


def test_rehearsal_over_tasks_weighs_each_success_by_how_many_its_task_has_and_keeps_the_mean() -> None:
    trees = [won_at(branching(reward=0.0), *names) for names in (("a", "b", "c", "d"), ("x",))]
    uniform = replace(EVERYTHING, beta=0.5)
    assert set(weights(rehearsal(trees, TERSE, uniform)).values()) == {0.5}
    # Raw: 1/4 for each of a, b, c, d and 4/4 for the turn that they share; 1 for x and 1 for the turn before it. Their mean is 4/7.
    by_task = weights(rehearsal(trees, TERSE, replace(uniform, rehearse="tasks")))
    raw = {"a-s": 1.0, "a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25, "x-s": 1.0, "x": 1.0}
    assert by_task == pytest.approx({turn: value * 0.5 * 7 / 4 for turn, value in raw.items()})


def test_a_task_weighs_by_all_its_successes_whichever_are_drawn() -> None:
    trees = [won_at(branching(reward=0.0), *names) for names in (("a", "b", "c", "d"), ("x",), ("y",))]
    for seed in range(8):
        chosen = Selection(success_share=0.5, seed=seed, rehearse="tasks")
        found = {one.origin: one.weight for one in rehearsal(trees, TERSE, chosen)}
        assert sum(found.values()) / len(found) == pytest.approx(1.0)
        many, few = [found[one] for one in "abcd" if one in found], [found[one] for one in "xy" if one in found]
        assert all(other == pytest.approx(4 * one) for one in many for other in few)


def test_counterfactual_examples_keep_their_weight_however_rehearsal_is_weighed() -> None:
    trees = [tree for seed in range(3) for tree in forest(seed)]
    uniform, by_task = (distill(trees, TERSE, replace(EVERYTHING, rehearse=how, beta=0.3)) for how in ("successes", "tasks"))
    assert [one.id for one in uniform] == [one.id for one in by_task]
    assert {one.weight for one in by_task if one.kind == "counterfactual"} == {1.0}
    sums = [sum(one.weight for one in found if one.kind == "rehearsal") for found in (uniform, by_task)]
    assert sums[0] == pytest.approx(sums[1]) and len({one.weight for one in by_task}) > 2


def test_matched_successes_are_as_many_and_were_found_within_the_same_turns() -> None:
    tree = branching(reward=0.0)
    # The first side took five turns at the task, the second three: the successes c and d of the first came too late.
    first, second = [won_at(tree, "a", "b", "c", "d")], [replace(won_at(tree, "a", "x"), task=replace(tree.task, id="a"))]
    for seed in range(6):
        one, other = matched(first, second, TERSE, replace(EVERYTHING, seed=seed))
        assert len(one) == len(other) == 3
        assert {example.origin for example in one} == {"a-s", "a", "b"} and {example.origin for example in other} == {
            "a-s",
            "a",
            "x",
        }
    one, other = matched(first, second, TERSE, replace(EVERYTHING, seed=3), by_task=False)
    assert len(one) == len(other) == 3 and {example.origin for example in one} - {"a-s", "a", "b"}
    longer = [replace(second[0], spend=replace(second[0].spend, turns=5))]
    draws = set()
    for seed in range(20):
        one, other = matched(first, longer, TERSE, replace(EVERYTHING, seed=seed, rehearse="tasks", beta=0.4))
        assert len(one) == len(other) == 3 and matched(first, longer, TERSE, replace(EVERYTHING, seed=seed))[0] != []
        assert sum(example.weight for example in one) == pytest.approx(1.2)
        draws.add(tuple(example.origin for example in one))
    assert len(draws) > 3
    assert matched(first, [], TERSE, EVERYTHING) == ([], [])
