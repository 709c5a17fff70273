"""The explorers as generators, fed by hand: what they ask for, in which order, what they count, and how each ending is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from players import FULL, MOVES, PLACES, TERSE, Hand, Policy, breaks, erratic, grown, key_in, rules, scripted, steady, turns_in

from leafe.chat import fill
from leafe.envs.base import Environment
from leafe.errors import EnvironmentFailure, EpisodeError, ReplayDiverged
from leafe.forest.builder import Rules, TreeBuilder
from leafe.forest.effects import Effect, Play, Reset, Restored, Rollback, Step
from leafe.forest.explore import EXPLORERS, explore, refine, retry
from leafe.forest.play import independent, once
from leafe.records import Ask, Completion, Experience, Observation, StopReason, Task, Tree, decode, encode
from leafe.results import exploration_row
from leafe.worlds.fakes import Lookup
from leafe.worlds.sokoban.environment import Sokoban

WRONG = "open place1"


def constant(action: str = WRONG, reflection: str = "turn 1: open place2") -> Policy:
    return steady(action, reflection)


def shape(tree: Tree) -> list[tuple[int | None, int | None, int]]:
    """Each attempt's parent, branching turn and depth."""
    return [(attempt.parent, attempt.turn, attempt.depth) for attempt in tree.attempts]


def stops(tree: Tree) -> list[StopReason]:
    return [attempt.stop for attempt in tree.attempts]


# Order


def test_a_failed_attempt_is_reflected_on_and_its_branch_succeeds() -> None:
    hand = Hand(Lookup(), scripted(WRONG, "open place2", WRONG, "turn 2: open place3", "open place3"))
    tree = grown(explore, hand, key_in(3), max_attempts=2)
    assert shape(tree) == [(None, None, 0), (0, 2, 1)]
    assert stops(tree) == [StopReason.TURN_LIMIT, StopReason.SUCCESS]
    assert [turn.action for turn in tree.trajectory(tree.attempts[1].leaf)] == [WRONG, "open place3"]
    assert tree.attempts[1].experience == "open place3" and tree.attempts[1].reward == 1.0
    assert [turn.experience for turn in tree.turns] == [None, None, None, "open place3"]
    assert len(tree.turns) == tree.spend.turns == 4


def test_branches_are_played_in_the_order_in_which_they_were_asked_for() -> None:
    # Every turn is reflected on, so the first attempt alone asks for three branches and each of those for more.
    tree = grown(explore, Hand(Lookup(), constant()), key_in(5), reflect_every=1, max_attempts=7, max_depth=2)
    assert [attempt.parent for attempt in tree.attempts] == [None, 0, 0, 0, 1, 1, 1]
    assert [attempt.depth for attempt in tree.attempts] == [0, 1, 1, 1, 2, 2, 2]


def test_where_no_request_is_left_an_attempt_starts_from_the_root() -> None:
    tree = grown(explore, Hand(Lookup(), constant(reflection="turn none")), key_in(5))
    assert shape(tree) == [(None, None, 0)] * 3
    assert [(one.experience, one.error) for one in tree.reflections] == [(None, None)] * 2


def test_no_branch_is_deeper_than_max_depth() -> None:
    tree = grown(explore, Hand(Lookup(), constant()), key_in(5), max_depth=2, max_attempts=7)
    assert [attempt.depth for attempt in tree.attempts] == [0, 1, 2, 0, 1, 2, 0]
    flat = grown(explore, Hand(Lookup(), constant()), key_in(5), max_depth=0)
    assert [attempt.depth for attempt in flat.attempts] == [0, 0, 0] and flat.reflections == ()


@pytest.mark.parametrize(("every", "after"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3]), (5, []), (0, [])])
def test_every_kth_turn_is_reflected_on_but_never_the_last(every: int, after: list[int]) -> None:
    hand = Hand(Lookup(), constant())
    tree = grown(
        explore, hand, key_in(5, horizon=5), reflect_every=every, reflect_on_failure=False, max_attempts=20, turns=5, max_depth=9
    )
    assert [one.after_turn for one in tree.reflections if one.attempt == 0] == after
    assert all(turns_in(ask) == one.after_turn for ask, one in zip(reflections(hand), tree.reflections, strict=True))


def reflections(hand: Hand) -> list[Ask]:
    return [ask for ask in hand.asks if ask.purpose == "reflect"]


def test_turns_are_counted_from_the_root_in_a_branch_too() -> None:
    hand = Hand(Lookup(), constant(reflection="turn 2: no"))
    tree = grown(explore, hand, key_in(5, horizon=4), reflect_every=2, reflect_on_failure=False, max_attempts=2, max_depth=1)
    assert [(one.attempt, one.after_turn) for one in tree.reflections] == [(0, 2)]
    assert [turn.index for turn in tree.turns] == [1, 2, 3, 4, 2, 3, 4]


def test_an_attempt_is_reflected_on_at_its_end_with_the_words_for_an_end() -> None:
    hand = Hand(Lookup(), constant())
    grown(explore, hand, key_in(5), reflect_every=2, max_attempts=6, max_depth=1)
    ends = [ask.messages[-1].content for ask in reflections(hand)]
    assert [text.endswith(TERSE.reflect_end) for text in ends[:2]] == [False, True]
    assert ends[0].endswith(TERSE.reflect) and not ends[0].endswith(TERSE.reflect_end)


def test_nothing_is_reflected_on_when_no_further_attempt_may_take_it_up() -> None:
    for settings_ in ({"max_attempts": 1, "reflect_every": 1}, {"turns": 3}):
        assert grown(explore, Hand(Lookup(), constant()), key_in(5), **settings_).reflections == ()
    # Attempt 0 fills the queue with all that may still start: nothing later is reflected on.
    tree = grown(explore, Hand(Lookup(), constant()), key_in(5, horizon=4), reflect_every=1, max_attempts=3)
    assert [(one.attempt, one.after_turn) for one in tree.reflections] == [(0, 1), (0, 2)]


def test_a_success_is_not_reflected_on_and_its_branches_are_still_played() -> None:
    policy = scripted(WRONG, "turn 1: open place3", "open place3", "open place3", WRONG, "turn none", "open place3")
    tree = grown(explore, Hand(Lookup(), policy), key_in(3), reflect_every=1, max_attempts=3)
    assert stops(tree) == [StopReason.SUCCESS] * 3
    assert shape(tree) == [(None, None, 0), (0, 1, 1), (None, None, 0)]


# What is counted


@pytest.mark.parametrize("budget", range(1, 12))
@pytest.mark.parametrize("name", EXPLORERS)
def test_the_budget_of_turns_is_used_to_the_last_and_never_overrun(name: str, budget: int) -> None:
    hand = Hand(Lookup(), constant())
    tree = grown(EXPLORERS[name], hand, key_in(5), turns=budget, max_attempts=99, reflect_every=2)
    assert len(hand.steps) == len(tree.turns) == tree.spend.turns == budget
    used_up = budget % 3 != 0 if name != "tree" else tree.trajectory(tree.attempts[-1].leaf)[-1].index < 3
    assert (stops(tree)[-1] is StopReason.BUDGET) == used_up


def test_reflections_and_replayed_steps_are_counted_apart_from_turns() -> None:
    hand = Hand(Lookup(), constant(reflection="turn 3: open place2"))
    tree = grown(explore, hand, key_in(5), max_attempts=3)
    acts = [ask for ask in hand.asks if ask.purpose == "act"]
    assert tree.spend.turns == 3 + 1 + 1
    assert (tree.spend.rollbacks, tree.spend.replayed_steps) == (2, 2 + 2)
    assert tree.spend.reflections == 2
    assert tree.spend.reflection_tokens == 2 * len("turn 3: open place2")
    assert tree.spend.sampled_tokens == sum(len(turn.completion.token_ids) for turn in tree.turns)
    assert tree.spend.prompt_tokens == sum(len(message.content) for ask in acts for message in ask.messages)


def test_a_rollback_to_the_first_turn_is_a_reset_and_counts_as_a_rollback() -> None:
    hand = Hand(Lookup(), constant())
    tree = grown(explore, hand, key_in(5), max_attempts=2)
    assert tree.attempts[1].turn == 1 and (tree.spend.rollbacks, tree.spend.replayed_steps) == (1, 0)
    assert [type(effect) for effect in hand.effects if isinstance(effect, Reset | Rollback)] == [Reset, Reset]


def test_a_budget_in_tokens_counts_actions_and_reflections() -> None:
    once_round = 3 * len(WRONG) + len("turn 1: open place2")
    tree = grown(explore, Hand(Lookup(), constant()), key_in(5), tokens=once_round, max_attempts=9)
    assert tree.spend.turns == 3 and tree.spend.reflections == 1 and len(tree.attempts) == 1
    tree = grown(explore, Hand(Lookup(), constant()), key_in(5), tokens=once_round + 1, max_attempts=9)
    assert tree.spend.turns == 4 and stops(tree)[-1] is StopReason.BUDGET


def test_no_two_requests_share_a_seed_and_another_run_draws_others() -> None:
    hands = [Hand(Lookup(), constant()) for _ in range(3)]
    for hand, seed, task in zip(hands, (1, 2, 1), (key_in(5), key_in(5), key_in(5, number=1)), strict=True):
        grown(explore, hand, task, reflect_every=1, max_attempts=9, seed=seed)
    seeds = [ask.seed for hand in hands for ask in hand.asks]
    assert len(set(seeds)) == len(seeds) > 40


# Replies that cannot be read


def test_an_unreadable_reflection_is_asked_for_once_more_then_kept_as_data_and_play_starts_afresh() -> None:
    hand = Hand(Lookup(), constant(reflection="no idea"))
    tree = grown(explore, hand, key_in(5), max_attempts=2)
    (reflection,) = tree.reflections
    assert [reply.text for reply in reflection.replies] == ["no idea", "no idea"]
    assert reflection.experience is None and reflection.error == "wanted one turn and one experience"
    assert shape(tree) == [(None, None, 0), (None, None, 0)]
    first, second = reflections(hand)
    assert first.messages == second.messages and first.seed != second.seed
    assert tree.spend.reflections == 1 and tree.spend.reflection_tokens == 2 * len("no idea")


def test_a_turn_out_of_range_counts_as_unreadable_and_the_second_reply_may_mend_it() -> None:
    policy = scripted(WRONG, WRONG, WRONG, "turn 4: open place3", "turn 3: open place3", "open place3")
    tree = grown(explore, Hand(Lookup(), policy), key_in(3), max_attempts=2)
    (reflection,) = tree.reflections
    assert len(reflection.replies) == 2 and reflection.error is None
    assert reflection.experience is not None and reflection.experience.turn == 3
    assert shape(tree) == [(None, None, 0), (0, 3, 1)]


def test_a_reply_without_an_action_costs_a_turn_keeps_its_text_and_reaches_the_environment() -> None:
    hand = Hand(Lookup(), scripted("what\n  now?", "open place3"))
    tree = grown(independent, hand, key_in(3), max_attempts=1)
    unread, read = tree.turns
    assert hand.steps == ["what now?", "open place3"]
    assert (unread.parsed, unread.completion.text, unread.observation.text[:17]) == (False, "what\n  now?", "That is no action")
    assert (read.parsed, read.index, tree.spend.turns) == (True, 2, 2)
    assert "what\n  now?" in [message.content for message in hand.asks[1].messages]


def test_an_attempt_is_given_up_after_as_many_unreadable_replies_in_a_row_as_patience_says() -> None:
    policy = scripted("", "\n", WRONG, "", " ", "")
    tree = grown(independent, Hand(Lookup(), policy), key_in(5, horizon=9), max_attempts=1, patience=3)
    assert stops(tree) == [StopReason.PARSE_ERROR] and tree.spend.turns == 6


# Endings


class Ending(Environment):
    """Ends after one step, or at once, as it is told."""

    name = "ending"

    def __init__(self, first: Observation, then: Observation) -> None:
        self._first, self._then = first, then

    def tasks(self, split: str, count: int, seed: int = 0) -> list[Task]:
        """None."""
        return []

    def reset(self, task: Task) -> Observation:
        """The first observation."""
        return self._first

    def step(self, action: str) -> Observation:
        """The other one."""
        return self._then


@pytest.mark.parametrize(
    ("done", "success", "stop"),
    [
        (True, False, StopReason.FAILURE),
        (True, True, StopReason.SUCCESS),
        (False, True, StopReason.SUCCESS),
        (False, False, StopReason.TURN_LIMIT),
    ],
)
def test_what_the_environment_ends_and_what_the_horizon_ends_have_different_names(
    done: bool, success: bool, stop: StopReason
) -> None:
    last = Observation("The end.", done, success, -100.0)
    for task, environment in (
        (key_in(1, horizon=1), Ending(Observation("Go."), last)),
        (key_in(1, horizon=0), Ending(last, Observation("Never."))),
    ):
        tree = grown(explore, Hand(environment, constant()), task, max_attempts=1)
        (attempt,) = tree.attempts
        assert (attempt.stop, attempt.success, attempt.reward) == (stop, success, -100.0)


@pytest.mark.parametrize("name", EXPLORERS)
def test_an_attempt_that_ended_at_its_reset_has_nothing_to_reflect_on(name: str) -> None:
    hand = Hand(Ending(Observation("Dead.", done=True), Observation("Never.")), constant())
    tree = grown(EXPLORERS[name], hand, key_in(1))
    assert stops(tree) == [StopReason.FAILURE] * 3 and hand.asks == []


class Full(Hand):
    """A hand whose model's context is full after some messages."""

    limit = 5

    def _result(self, effect: Effect) -> Completion | Observation | Restored:
        if isinstance(effect, Ask) and len(effect.messages) > self.limit:
            return Completion("", finish="context", prompt_tokens=99)
        return super()._result(effect)


def test_a_full_context_ends_the_attempt_by_name_and_costs_no_turn() -> None:
    tree = grown(explore, Full(Lookup(), constant()), key_in(5, horizon=9), max_attempts=2)
    assert stops(tree) == [StopReason.TOKEN_LIMIT] * 2
    (reflection,) = tree.reflections
    assert tree.spend.turns == 2 * 3 and reflection.no_room and not reflection.unread


def test_the_advice_of_the_worked_example_is_refused_word_for_word_and_asked_for_again() -> None:
    shown = "<turn>1</turn>\n<experience>Look in the drawer.</experience>"
    prompts = replace(FULL, reflect_end=f"Look back. For example:\n{shown}", reflect_again="Again: {problem}.")
    act = f"<action>{WRONG}</action>"
    own = "<turn>2</turn><experience>open place3</experience>"
    hand = Hand(Lookup(), scripted(act, act, act, shown, own, "<action>open place3</action>"))
    tree = grown(explore, hand, key_in(3), prompts=prompts, max_attempts=2)
    (reflection,) = tree.reflections
    assert [reply.text for reply in reflection.replies] == [shown, own]
    assert reflection.experience is not None and reflection.experience.text == "open place3"


@pytest.mark.parametrize(
    ("first", "second", "asked"),
    [
        ("<turn></turn><experience>open place3</experience>", "2", "Which of the turns"),
        ("<turn>2</turn>", "open place3", "turn 2 was the first that went wrong"),
    ],
)
def test_the_half_of_a_reflection_that_was_read_is_kept_and_the_other_is_asked_for(first: str, second: str, asked: str) -> None:
    act = f"<action>{WRONG}</action>"
    hand = Hand(Lookup(), scripted(act, act, act, first, second, "<action>open place3</action>"))
    tree = grown(explore, hand, key_in(3), prompts=FULL, max_attempts=2)
    (reflection,) = tree.reflections
    assert [reply.text for reply in reflection.replies] == [first, second] and not reflection.unread
    assert reflection.experience == Experience(2, "open place3")
    question = [ask for ask in hand.asks if ask.purpose == "reflect"][-1].messages[-1].content
    assert asked in question and "<experience>" not in question
    assert tree.attempts[1].stop is StopReason.SUCCESS


def test_a_reflection_that_does_not_fit_is_not_asked_for_twice() -> None:
    tree = grown(explore, Full(Lookup(), constant()), key_in(5), max_attempts=2)
    (reflection,) = tree.reflections
    assert len(reflection.replies) == 1 and reflection.error is not None and "context" in reflection.error
    assert stops(tree) == [StopReason.TURN_LIMIT] * 2


# What breaks


@pytest.mark.parametrize(
    ("kind", "stop"),
    [(EnvironmentFailure, StopReason.ENVIRONMENT_ERROR), (ReplayDiverged, StopReason.REPLAY_DIVERGED)],
)
def test_a_failure_ends_its_attempt_alone_and_is_not_reflected_on(kind: type[EpisodeError], stop: StopReason) -> None:
    hand = Hand(Lookup(), constant(), breaks({4}, kind))
    tree = grown(explore, hand, key_in(5))
    assert stops(tree)[0] is stop and tree.attempts[0].error == f"{kind.__name__}: broken at 4"
    assert stops(tree)[1:] == [StopReason.TURN_LIMIT] * 2
    assert tree.spend.turns == 1 + 3 + 3 and len(tree.trajectory(tree.attempts[0].leaf)) == 1
    assert {one.attempt for one in tree.reflections} == {1}


def test_a_rollback_that_diverges_takes_no_turn_and_the_other_branches_are_played() -> None:
    diverging = [True, False]

    def spoil(number: int, effect: Effect) -> EpisodeError | None:
        return ReplayDiverged("other board") if isinstance(effect, Rollback) and diverging.pop(0) else None

    hand = Hand(Lookup(), constant(reflection="turn 2: open place2"), spoil)
    tree = grown(explore, hand, key_in(5), reflect_every=2, max_attempts=3, max_depth=1)
    assert stops(tree) == [StopReason.TURN_LIMIT, StopReason.REPLAY_DIVERGED, StopReason.TURN_LIMIT]
    assert [turn.attempt for turn in tree.turns] == [0, 0, 0, 2, 2]
    assert tree.attempts[1].leaf == tree.turns[0].id and tree.attempts[1].error == "ReplayDiverged: other board"
    assert [attempt.index for attempt, _ in tree.branch_turns()] == [2]
    assert tree.spend.rollbacks == 2 and tree.spend.replayed_steps == 1


def test_the_tokens_of_an_action_that_broke_the_environment_are_counted() -> None:
    hand = Hand(Lookup(), constant(), breaks({2}))
    tree = grown(explore, hand, key_in(5), max_attempts=1)
    assert tree.turns == () and tree.spend.turns == 0 and tree.spend.sampled_tokens == len(WRONG)


def test_an_environment_that_breaks_at_every_step_ends_after_max_attempts() -> None:
    hand = Hand(Lookup(), constant(), lambda number, effect: EnvironmentFailure("no") if isinstance(effect, Step) else None)
    tree = grown(explore, hand, key_in(5), max_attempts=4)
    assert stops(tree) == [StopReason.ENVIRONMENT_ERROR] * 4 and tree.attempts[0].leaf is None


def test_a_failed_first_reset_leaves_the_root_to_the_next_one() -> None:
    tree = grown(explore, Hand(Lookup(), constant(), breaks({0})), key_in(5), max_attempts=2)
    assert stops(tree) == [StopReason.ENVIRONMENT_ERROR, StopReason.TURN_LIMIT]
    assert tree.root.text.startswith("Places:")


def test_a_reset_that_shows_something_else_is_a_divergence() -> None:
    class Moody(Lookup):
        def reset(self, task: Task) -> Observation:
            self.count = getattr(self, "count", 0) + 1
            return replace(super().reset(task), text=f"Mood {self.count}.")

    tree = grown(explore, Hand(Moody(), constant()), key_in(5), max_attempts=2)
    assert stops(tree) == [StopReason.TURN_LIMIT, StopReason.REPLAY_DIVERGED]


def test_a_bug_of_ours_is_not_taken_for_a_broken_environment() -> None:
    play = explore(TreeBuilder(key_in(5), rules()))
    next(play)
    with pytest.raises(ZeroDivisionError):
        play.throw(ZeroDivisionError())


# Prompts


def acting(hand: Hand) -> list[Ask]:
    return [ask for ask in hand.asks if ask.purpose == "act"]


@pytest.mark.parametrize("prompts", [TERSE, FULL], ids=["bare", "tags"])
def test_the_experience_stands_at_the_branching_turn_and_stays_below_it(prompts: object) -> None:
    tags = prompts is FULL
    action = f"<action>{WRONG}</action>" if tags else WRONG
    told = "<turn>2</turn><experience>try {turn}</experience>" if tags else "turn 2: try {turn}"
    hand = Hand(Lookup(), constant(action, told))
    grown(explore, hand, key_in(5), prompts=FULL if tags else TERSE, max_attempts=2)
    plain, branch = acting(hand)[:3], acting(hand)[3:]
    advice = fill((FULL if tags else TERSE).experience, experience="try {turn}")
    pivot = branch[0].messages
    assert pivot[:-1] == plain[1].messages[:-1]
    assert pivot[-1].content == plain[1].messages[-1].content + advice
    assert branch[1].messages[: len(pivot)] == pivot
    assert "try {turn}" not in "".join(message.content for ask in plain for message in ask.messages)


def test_a_branch_of_a_branch_keeps_the_advice_above_its_turn_and_drops_the_advice_at_it() -> None:
    policy = scripted(
        *(WRONG, WRONG, WRONG, "turn 2: FIRST"),  # attempt 0
        *("open place2", WRONG, "turn 3: SECOND"),  # attempt 1, from turn 2
        *("open place4", "turn 2: THIRD"),  # attempt 2, from turn 3
        *("open place3",),  # attempt 3, from turn 2
    )
    hand = Hand(Lookup(), policy)
    tree = grown(explore, hand, key_in(3), max_attempts=4)
    assert shape(tree) == [(None, None, 0), (0, 2, 1), (1, 3, 2), (2, 2, 3)]
    second, third = (" ".join(message.content for message in ask.messages) for ask in acting(hand)[-2:])
    assert "FIRST" in second and "SECOND" in second
    assert "THIRD" in third and "FIRST" not in third and "SECOND" not in third
    assert [turn.action for turn in tree.trajectory(tree.attempts[3].leaf)] == [WRONG, "open place3"]


def test_an_environment_without_rollback_gets_the_experience_as_feedback_from_the_root() -> None:
    hand = Hand(Lookup(), scripted(WRONG, WRONG, WRONG, "turn 2: A", WRONG, WRONG, WRONG, "turn 1: B", "open place3"))
    tree = grown(explore, hand, key_in(3), can_roll_back=False)
    assert not any(isinstance(effect, Rollback) for effect in hand.effects) and tree.spend.rollbacks == 0
    assert shape(tree) == [(None, None, 0), (0, None, 1), (1, None, 2)]
    assert [attempt.experience for attempt in tree.attempts] == [None, "A", "A\nB"]
    told = [ask.messages[0].content.endswith(fill(TERSE.feedback, experiences="- A\n- B")) for ask in acting(hand)]
    assert told == [False] * 6 + [True]
    assert list(tree.branch_turns()) == [] and {turn.experience for turn in tree.turns} == {None}


def test_refining_puts_all_earlier_feedback_in_each_retry_and_in_its_reflection() -> None:
    fails = (WRONG, WRONG, WRONG)
    hand = Hand(Lookup(), scripted(*fails, "turn 1: A", *fails, "turn 1: B", *fails, "turn 1: C", "open place3", WRONG))
    tree = grown(refine, hand, key_in(3), max_attempts=5, turns=11)
    assert shape(tree) == [(None, None, 0), (0, None, 1), (1, None, 2), (2, None, 3), (None, None, 0)]
    assert [attempt.experience for attempt in tree.attempts] == [None, "A", "A\nB", "A\nB\nC", None]
    first = [ask.messages[0].content for ask in hand.asks]
    assert [text.count("\n- ") for text in first] == [0] * 4 + [1] * 4 + [2] * 4 + [3] + [0]
    assert [turns_in(ask) for ask in reflections(hand)] == [3, 3, 3]


def test_refining_keeps_its_feedback_when_a_reflection_cannot_be_read() -> None:
    fails = (WRONG, WRONG, WRONG)
    hand = Hand(Lookup(), scripted(*fails, "turn 1: A", *fails, "eh", "eh", *fails))
    tree = grown(refine, hand, key_in(5))
    assert [attempt.experience for attempt in tree.attempts] == [None, "A", "A"]


class Small(Hand):
    """A hand whose model reads only so many experiences at once."""

    room = 3

    def _result(self, effect: Effect) -> Completion | Observation | Restored:
        if isinstance(effect, Ask) and effect.messages[0].content.count("\n- ") > self.room:
            return Completion("", finish="context", prompt_tokens=99)
        return super()._result(effect)


@pytest.mark.parametrize(("room", "told"), [(3, [0, 1, 2, 3, 2, 3, 2, 3]), (1, [0, *[1] * 7]), (0, [0] * 8)])
@pytest.mark.parametrize("explorer", [refine, retry])
def test_retries_whose_experiences_fill_the_context_drop_the_older_ones_and_use_all_turns(
    explorer: Callable[[TreeBuilder], Play[Tree]], room: int, told: list[int]
) -> None:
    numbers = iter(range(100))
    hand = Small(Lookup(), lambda ask: WRONG if ask.purpose == "act" else f"turn 1: advice {next(numbers)}")
    hand.room = room
    tree = grown(explorer, hand, key_in(5), turns=24, max_attempts=8, memory=99)
    assert tree.spend.turns == 24 and {turn.attempt for turn in tree.turns} == set(range(8))
    assert [one.experience.count("advice") if one.experience else 0 for one in tree.attempts] == told
    latest = [one.experience.split()[-1] for one in tree.attempts if one.experience]
    assert latest == sorted(latest) and [one.depth for one in tree.attempts] == told


@pytest.mark.parametrize(("room", "most"), [(2, 2), (1, 1), (0, 0)])
def test_a_tree_without_rollback_drops_the_older_feedback_that_fills_the_context_and_uses_all_turns(room: int, most: int) -> None:
    numbers = iter(range(100))
    hand = Small(Lookup(), lambda ask: WRONG if ask.purpose == "act" else f"turn 1: advice {next(numbers)}")
    hand.room = room
    tree = grown(explore, hand, key_in(5), turns=24, max_attempts=8, max_depth=9, can_roll_back=False)
    assert tree.spend.turns == 24 and {turn.attempt for turn in tree.turns} == set(range(8))
    assert max(one.experience.count("advice") if one.experience else 0 for one in tree.attempts) == most
    assert StopReason.TOKEN_LIMIT not in stops(tree)


def test_a_verbal_retry_is_told_the_latest_experiences_only_and_begins_anew_after_a_success() -> None:
    fails = (WRONG, WRONG, WRONG)
    answers = (*fails, "turn 1: A", *fails, "turn 1: B", *fails, "turn 1: C", *fails, "turn 1: D", "open place3", WRONG)
    hand = Hand(Lookup(), scripted(*answers))
    tree = grown(retry, hand, key_in(3), max_attempts=6, turns=14, memory=2)
    assert tree.method == "retry"
    assert shape(tree) == [(None, None, 0), (0, None, 1), (1, None, 2), (2, None, 3), (3, None, 4), (None, None, 0)]
    assert [attempt.experience for attempt in tree.attempts] == [None, "A", "A\nB", "B\nC", "C\nD", None]
    first = [ask.messages[0].content for ask in hand.asks]
    assert [text.count("\n- ") for text in first] == [0] * 4 + [1] * 4 + [2] * 9 + [0]


def test_a_verbal_retry_with_room_for_all_experiences_is_refinement() -> None:
    trees = [grown(explorer, Hand(Lookup(), erratic(PLACES)), key_in(0), max_attempts=8, memory=8) for explorer in (refine, retry)]
    assert replace(trees[1], method="refine") == trees[0] and max(one.depth for one in trees[0].attempts) > 1


def test_independent_attempts_never_reflect_and_know_nothing_of_each_other() -> None:
    hand = Hand(Lookup(), erratic(PLACES))
    tree = grown(independent, hand, key_in(5), max_attempts=6, reflect_every=1)
    assert shape(tree) == [(None, None, 0)] * 6 and tree.reflections == ()
    assert {turns_in(ask) for ask in hand.asks} <= {0, 1, 2}
    assert len({ask.messages for ask in hand.asks if turns_in(ask) == 0}) == 1


def test_a_single_attempt_may_use_its_whole_horizon_whatever_the_budget() -> None:
    tree = grown(once, Hand(Lookup(), constant()), key_in(5, horizon=7), turns=2, tokens=1, max_attempts=9)
    assert stops(tree) == [StopReason.TURN_LIMIT] and tree.spend.turns == 7


# Any policy


def check_prompts_of(hand: Hand, prompts: object) -> None:
    for ask in hand.asks:
        assert all(one.role != other.role and one.content != other.content for one, other in pairwise(ask.messages))
        assert ask.messages[-1].role == "user"
        assert [message.sampled for message in ask.messages] == [message.role == "assistant" for message in ask.messages]
        users = [message.content for message in ask.messages if message.role == "user"]
        assert [text.split(":")[0].split("\n")[-1] for text in users] == [str(number + 1) for number in range(len(users))]


def check_tree(tree: Tree, limits: Rules) -> None:
    ids = [turn.id for turn in tree.turns]
    assert len(set(ids)) == len(ids)
    assert tree.spend.turns == len(tree.turns) <= limits.turns
    assert len(tree.attempts) <= limits.max_attempts and [one.index for one in tree.attempts] == list(range(len(tree.attempts)))
    assert tree.spend.rollbacks == sum(one.turn is not None for one in tree.attempts)
    assert tree.spend.reflections == len(tree.reflections)
    for attempt in tree.attempts:
        trajectory = tree.trajectory(attempt.leaf)
        own = [turn for turn in tree.turns if turn.attempt == attempt.index]
        start = (attempt.turn or 1) - 1
        assert [turn.index for turn in trajectory] == list(range(1, len(trajectory) + 1)) and len(trajectory) <= tree.task.horizon
        assert list(trajectory[start:]) == own
        assert attempt.depth <= limits.max_depth or tree.method in ("refine", "retry")
        assert attempt.success == (attempt.stop is StopReason.SUCCESS) == any(turn.observation.success for turn in own)
        assert [turn.experience for turn in own] == (
            [attempt.experience, *[None] * len(own)][: len(own)] if attempt.turn else [None] * len(own)
        )
        if attempt.turn is not None and attempt.parent is not None:
            assert attempt.parent < attempt.index
            assert trajectory[:start] == tree.trajectory(tree.attempts[attempt.parent].leaf)[:start]
    for reflection in tree.reflections:
        assert 1 <= len(reflection.replies) <= 2
        assert reflection.experience is None or 1 <= reflection.experience.turn <= reflection.after_turn
    assert decode(Tree, json.loads(json.dumps(encode(tree)))) == tree


LIMITS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**40),
        "turns": st.integers(1, 40),
        "max_attempts": st.integers(1, 9),
        "max_depth": st.integers(0, 4),
        "reflect_every": st.integers(0, 3),
        "reflect_on_failure": st.booleans(),
        "patience": st.integers(1, 3),
        "can_roll_back": st.booleans(),
    }
)
BOARDS = Sokoban(min_length=2, max_length=6, horizon=7).tasks("train", 4)


@pytest.mark.parametrize("name", EXPLORERS)
@given(limits=LIMITS, place=st.integers(1, 5), horizon=st.integers(1, 6), broken=st.sets(st.integers(0, 60), max_size=4))
@settings(max_examples=60)
def test_whatever_the_policy_does_in_lookup_the_tree_is_sound(
    name: str, limits: dict[str, int], place: int, horizon: int, broken: set[int]
) -> None:
    sound(EXPLORERS[name], Hand(Lookup(), erratic(PLACES), breaks(broken)), key_in(place, horizon=horizon), limits)


@pytest.mark.parametrize("name", EXPLORERS)
@given(limits=LIMITS, board=st.sampled_from(BOARDS), broken=st.sets(st.integers(0, 60), max_size=2))
@settings(max_examples=30)
def test_whatever_the_policy_does_in_sokoban_the_tree_is_sound(
    name: str, limits: dict[str, int], board: Task, broken: set[int]
) -> None:
    sound(EXPLORERS[name], Hand(Sokoban(), erratic(MOVES), breaks(broken, ReplayDiverged)), board, limits)


def sound(explorer: Callable[[TreeBuilder], Play[Tree]], hand: Hand, task: Task, limits: dict[str, int]) -> None:
    tree = grown(explorer, hand, task, **limits)
    check_tree(tree, rules(**limits))
    check_prompts_of(hand, TERSE)
    broken = [attempt for attempt in tree.attempts if attempt.error is not None]
    assert len(broken) == len(hand.failed)
    assert not {attempt.index for attempt in broken} & {one.attempt for one in tree.reflections if one.after_turn == task.horizon}
    assert len(hand.steps) == tree.spend.turns + sum(isinstance(effect, Step) for effect in hand.failed)


@pytest.mark.parametrize(
    ("reply", "handed"),
    [
        ("<think>3 is less than 5.</think> <action><</action>", "<"),
        ("<think>Hm.</think>\n```python\ndef f(x):\n    return x\n```", "```python\ndef f(x):\n    return x\n```"),
        ("<think>" + "So. " * 300 + "</think>\nForty-two.\n\nThat is all.", "Forty-two.\n\nThat is all."),
        ("<think>" + "So. " * 300, ""),
        ("x" * 2000, "x" * 2000),
        ("It is <action>the\nanswer</action>", "the\nanswer"),
        ("It is <action>42", "42"),
        ("<action>1</action> or <action>2</action>", "<action>1</action> or <action>2</action>"),
    ],
)
def test_where_every_text_is_an_action_the_world_is_given_what_a_reply_says(reply: str, handed: str) -> None:
    hand = Hand(Lookup(), scripted(reply, "<action>open place3</action>"))
    grown(independent, hand, key_in(3), max_attempts=1, prompts=replace(FULL, unread=""), free_text=True)
    assert hand.steps[0] == handed


def test_all_tokens_of_questions_are_counted_those_of_their_prompts_too() -> None:
    hand = Hand(Lookup(), steady("open place1", "turn 1: open place2"))
    tree = grown(explore, hand, key_in(3), turns=12)
    asked = [one for one in hand.asks if one.purpose == "reflect"]
    assert asked and tree.spend.question_tokens == sum(len(message.content.encode()) for one in asked for message in one.messages)
    every = sum(len(message.content.encode()) for one in hand.asks for message in one.messages) + sum(
        len(hand.policy(one).encode()) for one in hand.asks
    )
    assert exploration_row("tree", [tree]).tokens == every
