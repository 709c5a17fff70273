"""Prompts: the same history gives the same one, advice has its place, and no value is ever read as a template."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from players import FULL, TERSE, Breaking, completion, key_in, turns_in

from leafe.chat import Notes, Prompts, Scene, act_messages, bare_messages, check_prompts, fill, half_kept, reflect_messages
from leafe.config import parse
from leafe.engines.scripted import ScriptedEngine
from leafe.errors import UnknownName, UserError
from leafe.experiment import Experiment
from leafe.lab import Lab
from leafe.memory.questions import Questions
from leafe.progress import Silent
from leafe.prompts import PROFILES, load_prompts
from leafe.records import Ask, Message, Observation, Sampling, Turn
from leafe.replies import NO_HALF, Half, ParseFailure

BOTH = pytest.mark.parametrize("prompts", [TERSE, FULL], ids=["bare", "tags"])


def turn(index: int, action: str, shows: str = "Empty.", advice: str | None = None) -> Turn:
    said = completion(action, Ask((), Sampling(), 0))
    parent = f"t{index - 1}" if index > 1 else None
    return Turn(f"t{index}", parent, index, 0, action, True, said, Observation(shows), advice)


def scene(prompts: Prompts = TERSE, shows: str = "Places.") -> Scene:
    return Scene(prompts, key_in(1), Observation(shows))


@given(value=st.text(max_size=30) | st.sampled_from(["{turn}", "{observation}{instruction}", "{{x}}", "{experience}", "\\1"]))
def test_braces_in_what_is_told_are_never_read_as_templates(value: str) -> None:
    def told(text: str, prompts: Prompts) -> list[str]:
        told = Scene(prompts, replace(key_in(1), instruction=text), Observation(text))
        trajectory = [turn(1, text, text, text)]
        acting = act_messages(told, trajectory, Notes(text, (text, text)))
        return [message.content for message in (*acting, *reflect_messages(told, trajectory, ended=True))]

    for prompts in (TERSE, FULL):
        assert told(value, prompts) == [text.replace("§", value) for text in told("§", prompts)]


def test_values_are_put_in_once() -> None:
    assert fill("{turn} {observation}", turn=1, observation="{turn}") == "1 {turn}"
    with pytest.raises(KeyError):
        fill("{turn}")


@BOTH
def test_the_advice_stands_in_the_prompt_of_its_turn_and_stays_in_later_ones(prompts: Prompts) -> None:
    before = [turn(1, "open place1")]
    told = act_messages(scene(prompts), before, Notes("look elsewhere"))
    untold = act_messages(scene(prompts), before)
    assert told[:-1] == untold[:-1]
    assert told[-1].content == untold[-1].content + fill(prompts.experience, experience="look elsewhere")
    later = act_messages(scene(prompts), [*before, turn(2, "open place2", advice="look elsewhere")])
    assert later[: len(told)] == told


@BOTH
def test_the_bare_prompt_is_the_acting_prompt_without_any_advice(prompts: Prompts) -> None:
    plain = [turn(1, "open place1"), turn(2, "open place2")]
    advised = [turn(1, "open place1", advice="one"), turn(2, "open place2", advice="two")]
    assert bare_messages(scene(prompts), advised) == act_messages(scene(prompts), plain)


@BOTH
def test_feedback_stands_in_the_first_message_of_acting_and_of_reflecting(prompts: Prompts) -> None:
    trajectory = [turn(1, "open place1")]
    for messages in (
        act_messages(scene(prompts), trajectory, Notes(feedback=("not 1", "not 2"))),
        reflect_messages(scene(prompts), trajectory, ended=True, feedback=("not 1", "not 2")),
    ):
        first = next(message for message in messages if message.role == "user" and message.content != prompts.example)
        assert first.content.endswith(fill(prompts.feedback, experiences="- not 1\n- not 2"))


@BOTH
def test_only_what_the_policy_wrote_is_marked_as_sampled_and_sides_take_turns(prompts: Prompts) -> None:
    trajectory = [turn(1, "open place1"), turn(2, "open place2", advice="not 1")]
    messages = reflect_messages(scene(prompts), trajectory, ended=False)
    written = [message.role == "assistant" and message.content != prompts.example_reply for message in messages]
    assert [message.sampled for message in messages] == written
    assert all(one.role != other.role for one, other in pairwise(messages))
    assert turns_in(Ask(messages, Sampling(), 0, "reflect")) == 2
    assert messages[-1].role == "user"


def test_an_empty_system_prompt_makes_no_message() -> None:
    assert act_messages(scene(TERSE), []) == (Message("user", "Find the key. 3 turns.\n1: Places."),)
    assert act_messages(scene(FULL), [])[0] == Message("system", fill(FULL.system, actions_help=FULL.actions_help))


@pytest.mark.parametrize("profile", PROFILES)
def test_both_shipped_profiles_load_for_any_environment(profile: str) -> None:
    assert load_prompts(profile, "lookup") == load_prompts(profile, "my_package.worlds:Maze")
    assert load_prompts("terse", "lookup").form == "bare" and load_prompts("full", "lookup").form == "tags"


def own_folder(path: Path, profile: str = "full") -> Path:
    return Path(shutil.copytree(Path(load_prompts.__code__.co_filename).parent / profile, path / "mine"))


def test_a_folder_of_the_users_own_works_and_may_differ_for_one_environment(tmp_path: Path) -> None:
    folder = own_folder(tmp_path)
    assert load_prompts(str(folder), "lookup") == FULL
    (folder / "lookup").mkdir()
    (folder / "lookup" / "turn.txt").write_text("Now turn {turn}:\n{observation}\n")
    assert load_prompts(str(folder), "lookup") == replace(FULL, turn="Now turn {turn}:\n{observation}")
    assert load_prompts(str(folder), "gymnasium") == FULL
    (folder / "form.txt").write_text("bare\n")
    assert load_prompts(str(folder), "lookup").form == "bare"


def test_texts_for_a_class_are_found_by_its_name(tmp_path: Path) -> None:
    folder = own_folder(tmp_path)
    (folder / Breaking.name).mkdir()
    (folder / Breaking.name / "turn.txt").write_text("Now turn {turn}:\n{observation}\n")
    config = parse(f"name: trial\nenvironment: {{name: 'players:Breaking'}}\nprompts: {folder}", "trial")
    run = Experiment(config, tmp_path, lambda folder: ScriptedEngine([]), Breaking, Silent())
    assert run.prompts.turn == run.rules(0).prompts.turn == "Now turn {turn}:\n{observation}"
    (folder / Breaking.name / "ace_reflect.txt").write_text("Well?\n")
    assert Questions.of(Lab(run), {"ace_reflect": set()}).text("ace_reflect", {}) == "Well?"


def test_a_folder_that_lacks_a_file_or_holds_another_form_is_refused(tmp_path: Path) -> None:
    folder = own_folder(tmp_path)
    (folder / "form.txt").write_text("json")
    with pytest.raises(UserError, match="wants one of the words bare, tags, program and holds 'json'"):
        load_prompts(str(folder), "lookup")
    (folder / "form.txt").unlink()
    (folder / "turn.txt").write_bytes(b"\xff\xfe{turn}")
    with pytest.raises(UserError, match=r"turn\.txt as UTF-8"):
        load_prompts(str(folder), "lookup")
    (folder / "turn.txt").unlink()
    with pytest.raises(UserError, match=r"wants a file turn\.txt"):
        load_prompts(str(folder), "lookup")
    with pytest.raises(UnknownName, match="did you mean 'terse'"):
        load_prompts("ters", "lookup")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"turn": "{turn} {observatoin} {observation}"}, r"'turn' may name .*\{turn\} and names \{observatoin\}"),
        ({"system": "You play {game}."}, r"'system' may name .* and names \{game\}"),
        ({"first": "Turn {turn}. {observation}"}, r"'first' may name .* names \{turn\}"),
        ({"turn": "Turn {turn}."}, r"'turn' wants \{observation\}"),
        ({"experience": "Beware."}, r"'experience' wants \{experience\}"),
        ({"feedback": "Beware of {experience}."}, r"'feedback' may name \{experiences\} and names \{experience\}"),
    ],
)
def test_a_template_with_a_wrong_or_a_missing_place_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_prompts(replace(FULL, **change))


def test_braces_that_name_no_value_are_plain_text() -> None:
    prompts = replace(FULL, system='Answer as JSON, {"action": 1}, {} or {Name}.')
    check_prompts(prompts)
    assert act_messages(scene(prompts), [])[0].content == prompts.system


def test_a_worked_exchange_stands_ahead_of_the_task_and_is_no_target() -> None:
    shown = replace(FULL, example="Another task.\n\nYou see a door.", example_reply="<action>open door</action>")
    exchange = (Message("user", shown.example), Message("assistant", shown.example_reply))
    trajectory = [turn(1, "open place1")]
    for messages in (
        act_messages(scene(shown), trajectory),
        bare_messages(scene(shown), trajectory),
        reflect_messages(scene(shown), trajectory, ended=True),
    ):
        assert messages[1:3] == exchange
        assert not any(message.sampled for message in exchange)
    plain = replace(FULL, example="", example_reply="")
    assert act_messages(scene(shown), trajectory)[3:] == act_messages(scene(plain), trajectory)[1:]


@pytest.mark.parametrize("half", ["example", "example_reply"])
def test_half_of_a_worked_exchange_is_refused(half: str) -> None:
    other = "example_reply" if half == "example" else "example"
    with pytest.raises(UserError, match=rf"{half}.*{other}\.txt"):
        check_prompts(replace(FULL, **{"example": "", "example_reply": "", half: "text"}))


def test_what_the_last_turn_came_to_is_told_as_that_when_an_attempt_is_over() -> None:
    prompts = replace(FULL, end="Turn {turn} came to: {observation}")
    trajectory = [turn(1, "open place1", shows="Empty 1."), turn(2, "open place2", shows="Empty 2.")]
    (*before, over), (*same, on_the_way) = (reflect_messages(scene(prompts), trajectory, ended=ended) for ended in (True, False))
    assert before == same
    assert over.content.startswith("Turn 2 came to: Empty 2.") and "Turn 3" not in over.content
    assert on_the_way.content.startswith("Turn 3.")
    older = replace(prompts, end="")
    assert reflect_messages(scene(older), trajectory, ended=True)[-1].content.startswith("Turn 3.")


def second(unread: ParseFailure, prompts: Prompts = FULL) -> str:
    """The text of the question after a reply that could not be read."""
    *before, question = reflect_messages(scene(prompts), [turn(1, "open place1")], ended=True, unread=unread)
    assert before == list(reflect_messages(scene(prompts), [turn(1, "open place1")], ended=True)[:-1])
    return question.content


def test_a_second_question_names_the_fault_and_does_not_quote_the_reply() -> None:
    first = reflect_messages(scene(FULL), [turn(1, "open place1")], ended=True)[-1].content
    again = second(ParseFailure("there was no turn"))
    assert again.startswith(first) and "there was no turn" in again
    assert second(ParseFailure("there was no turn"), replace(FULL, reflect_again="")) == first


@pytest.mark.parametrize(
    ("half", "asks_for", "shows"),
    [(Half(turn=1), "reflect_advice", "turn 1 was the first"), (Half(experience="Go {left}."), "reflect_turn", "Go {left}.")],
)
def test_a_second_question_asks_for_the_other_half_alone_if_the_profile_has_words_for_it(
    half: Half, asks_for: str, shows: str
) -> None:
    unread = ParseFailure("half of it", half)
    assert shows in second(unread) and "<turn>" not in second(unread) and half_kept(FULL, unread) == half
    without = replace(FULL, **{asks_for: ""})
    assert second(unread, without) == second(ParseFailure("half of it")) and half_kept(without, unread) == NO_HALF
