"""How much of its history a policy reads: what always stays, what goes first, and that the same prompt can be rendered again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from players import FULL, TERSE, Hand, grown, key_in, steady, turns_in

from leafe.chat import WHOLE, Notes, Prompts, Scene, act_messages, bare_messages, reflect_messages
from leafe.forest.effects import Effect, Restored, Rollback, Step
from leafe.forest.explore import explore
from leafe.history import History, first_shortening, shorter
from leafe.records import Ask, Completion, Observation, Shortening, StopReason, Turn
from leafe.replies import render_action
from leafe.worlds.fakes import Lookup

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def walk_of(*said: tuple[str, str, str]) -> list[Turn]:
    """Turns from thoughts, actions and observations."""
    turns: list[Turn] = []
    for number, (thought, action, seen) in enumerate(said, start=1):
        parent = turns[-1].id if turns else None
        reply = Completion(f"<think>{thought}</think>" + render_action("tags", action))
        turns.append(Turn(f"t{number}", parent, number, 0, action, True, reply, Observation(seen)))
    return turns


WALK = walk_of(*((f"thought-{number} " * 9, f"action-{number}", f"seen-{number} " * 9) for number in range(1, 6)))
SCENE = Scene(FULL, key_in(1), Observation("seen-0"))


def shown(shortening: Shortening) -> str:
    return "\n".join(message.content for message in act_messages(SCENE, WALK, shortening=shortening))


def every_shortening(prompts: Prompts, trajectory: list[Turn], start: Shortening = WHOLE) -> list[Shortening]:
    found = [start]
    while (further := shorter(prompts, trajectory, found[-1])) is not None:
        found.append(further)
    return found


def test_thoughts_go_first_then_observations_the_oldest_of_each_before_the_younger() -> None:
    text = shown(Shortening(2, 0))
    assert [number for number in range(1, 6) if f"thought-{number}" in text] == [3, 4, 5]
    assert all(f"seen-{number}" in text for number in range(6))
    text = shown(Shortening(5, 2))
    assert "thought" not in text and [number for number in range(6) if f"seen-{number}" in text] == [0, 3, 4, 5]
    steps = every_shortening(FULL, WALK)
    assert steps == sorted(steps, key=lambda one: (one.thoughts, one.observations)) and len(set(steps)) == len(steps)
    assert all(one.thoughts == len(WALK) for one in steps if one.observations)


@given(st.lists(st.tuples(texts, texts.filter(str.strip), texts), max_size=8))
def test_the_task_the_first_observation_the_last_one_and_every_action_always_stay(said: list[tuple[str, str, str]]) -> None:
    trajectory = walk_of(*said)
    scene = Scene(FULL, key_in(1), Observation("what the reset shows"))
    whole = act_messages(scene, trajectory)
    for shortening in every_shortening(FULL, trajectory):
        messages = act_messages(scene, trajectory, shortening=shortening)
        assert [message.role for message in messages] == [message.role for message in whole]
        assert messages[:2] == whole[:2] and messages[-1] == whole[-1]
        replies = [message.content for message in messages if message.sampled]
        assert all(render_action("tags", turn.action) in reply for turn, reply in zip(trajectory, replies, strict=True))


@given(st.lists(st.tuples(texts, texts.filter(str.strip), texts), max_size=8))
def test_each_shortening_is_shorter_than_the_one_before_and_there_are_few(said: list[tuple[str, str, str]]) -> None:
    trajectory = walk_of(*said)
    sizes = [
        sum(len(message.content) for message in act_messages(replace(SCENE, task=key_in(1)), trajectory, shortening=one))
        for one in every_shortening(FULL, trajectory)
    ]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes) <= 6


def test_an_observation_that_is_shorter_than_what_stands_for_it_does_not_make_the_prompt_longer() -> None:
    stands = len(FULL.left_out)
    trajectory = walk_of(("", "look", ""), ("", "look", "x" * (stands + 5)), ("", "look", ""))
    assert [one.observations for one in every_shortening(FULL, trajectory)] == [0, 0]
    trajectory = walk_of(("", "look", ""), ("", "look", "x" * (3 * stands)), ("", "look", ""))
    assert every_shortening(FULL, trajectory)[-1] == Shortening(3, 2)


def test_the_last_turns_are_kept_and_older_ones_shortened_to_their_actions() -> None:
    assert first_shortening(History("last", 2), WALK) == Shortening(3, 3)
    assert first_shortening(History("last", 9), WALK) == first_shortening(History("all"), WALK) == WHOLE


def test_what_was_left_out_once_stays_out() -> None:
    later = [*WALK[:-1], replace(WALK[-1], shortening=Shortening(3, 0))]
    assert first_shortening(History("fit"), later) == Shortening(3, 0)
    assert first_shortening(History("fit"), []) == WHOLE


def test_the_prompt_without_experiences_leaves_out_what_the_sampled_one_left_out() -> None:
    advised = [replace(turn, experience="go left") for turn in WALK]
    short = Shortening(5, 1)
    assert bare_messages(SCENE, advised, short) == act_messages(SCENE, WALK, shortening=short)


def test_a_reply_that_held_no_action_is_kept_in_a_few_words_when_its_thoughts_go() -> None:
    mute = replace(WALK[0], parsed=False, stepped=False, action="I ponder.", completion=Completion("I ponder.\n" * 99))
    (reply,) = (one.content for one in act_messages(SCENE, [mute], shortening=Shortening(1, 0)) if one.sampled)
    assert reply == "I ponder."


class Narrow(Hand):
    """A hand whose model takes prompts of `limit` characters."""

    limit = 900

    def _result(self, effect: Effect) -> Completion | Observation | Restored:
        if isinstance(effect, Ask) and sum(len(message.content) for message in effect.messages) > self.limit:
            return Completion("", finish="context", prompt_tokens=99)
        return super()._result(effect)


def thinks(ask: Ask) -> str:
    if ask.purpose == "reflect":
        return "<turn>2</turn><experience>Open place5.</experience>"
    return f"<think>{'hm ' * 90}</think><action>open place{1 + turns_in(ask) % 4}</action>"


def test_an_attempt_with_a_full_context_goes_on_over_a_shorter_history() -> None:
    hand = Narrow(Lookup(places=5), thinks)
    scene = Scene(FULL, key_in(5), Observation(""))
    Narrow.limit = sum(len(message.content) for message in reflect_messages(scene, [], ended=True)) + 400
    tree = grown(explore, hand, key_in(5, horizon=6), prompts=FULL, history=History("fit"), max_attempts=2)
    assert [attempt.stop for attempt in tree.attempts] == [StopReason.TURN_LIMIT] * 2
    assert tree.spend.turns == 6 + 5 and tree.attempts[1].turn == 2
    left_out = [turn.shortening.thoughts for turn in tree.turns if turn.attempt == 0]
    assert left_out == sorted(left_out) and left_out[0] == 0 < left_out[-1]
    sampled = [
        ask.messages for ask in hand.asks if ask.purpose == "act" and sum(len(m.content) for m in ask.messages) <= hand.limit
    ]
    rendered = [
        act_messages(Scene(FULL, tree.task, tree.root), tree.trajectory(turn.parent), Notes(turn.experience), turn.shortening)
        for turn in tree.turns
    ]
    assert sampled == rendered


def test_looking_back_shortens_the_history_even_where_acting_does_not() -> None:
    hand = Narrow(Lookup(places=5), thinks)
    scene = Scene(FULL, key_in(5), Observation(""))
    Narrow.limit = sum(len(message.content) for message in reflect_messages(scene, [], ended=True)) + 400
    tree = grown(explore, hand, key_in(5, horizon=6), prompts=FULL, max_attempts=2)
    assert tree.attempts[0].stop is StopReason.TOKEN_LIMIT and not any(turn.shortening.thoughts for turn in tree.turns)
    assert tree.reflections[0].experience is not None and tree.attempts[1].turn == 2


# A reply without an action


def test_a_reply_without_an_action_costs_a_turn_and_never_reaches_the_world() -> None:
    said = iter(["I look around.", "<action>open place5</action>"])
    hand = Hand(Lookup(places=5), lambda ask: next(said))
    tree = grown(explore, hand, key_in(5, horizon=3), prompts=FULL, max_attempts=1)
    mute, right = tree.turns
    assert (mute.parsed, mute.stepped, right.parsed, right.stepped) == (False, False, True, True)
    assert hand.steps == ["open place5"] and tree.attempts[0].success and tree.spend.turns == 2
    assert "there was no <action>" in mute.observation.text and mute.observation.text in hand.asks[1].messages[-1].content


def test_a_profile_without_words_for_it_gives_the_world_what_was_said() -> None:
    said = iter(["look\naround", "open place5"])
    hand = Hand(Lookup(places=5), lambda ask: next(said))
    tree = grown(explore, hand, key_in(5, horizon=3), prompts=TERSE, max_attempts=1)
    assert hand.steps == ["look around", "open place5"] and [turn.stepped for turn in tree.turns] == [True, True]


def test_a_rollback_past_a_reply_without_an_action_replays_what_the_world_was_given() -> None:
    def policy(ask: Ask) -> str:
        if ask.purpose == "reflect":
            return "<turn>3</turn><experience>Open place5.</experience>"
        if "Open place5." in ask.messages[-1].content:
            return "<action>open place5</action>"
        return ["<action>open place1</action>", "hm?", "<action>open place2</action>"][turns_in(ask)]

    hand = Hand(Lookup(places=5), policy)
    tree = grown(explore, hand, key_in(5, horizon=3), prompts=FULL, max_attempts=2)
    assert [attempt.success for attempt in tree.attempts] == [False, True] and tree.attempts[1].turn == 3
    (rollback,) = [effect for effect in hand.effects if isinstance(effect, Rollback)]
    assert [turn.action for turn in rollback.trajectory] == ["open place1"]
    assert [effect.action for effect in hand.effects if isinstance(effect, Step)] == ["open place1", "open place2", "open place5"]


def test_the_second_question_says_what_was_wrong_with_the_first_answer() -> None:
    hand = Hand(Lookup(places=5), steady("<action>open place1</action>", "<turn>9</turn>"))
    grown(explore, hand, key_in(5, horizon=2), prompts=FULL, max_attempts=2)
    first, second = [ask.messages for ask in hand.asks if ask.purpose == "reflect"][:2]
    assert second[:-1] == first[:-1] and second[-1].content.startswith(first[-1].content)
    assert "there is no turn '9'" in second[-1].content


@pytest.mark.parametrize("prompts", [TERSE, FULL])
def test_what_cannot_be_answered_twice_is_kept_as_unread(prompts: Prompts) -> None:
    tree = grown(explore, Hand(Lookup(), steady("open place1", "hm?")), key_in(5, horizon=2), prompts=prompts, max_attempts=2)
    assert tree.reflections[0].unread and not tree.reflections[0].no_room and len(tree.reflections[0].replies) == 2
