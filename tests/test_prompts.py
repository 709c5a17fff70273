"""The prompts for instruction-tuned models: what they show is read as what they ask for, and nothing in them stands in for an answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from leafe.chat import Prompts, fill
from leafe.prompts import load_prompts
from leafe.replies import Form, ParseFailure, parse_action, parse_reflection

FULL = Path(load_prompts.__globals__["__file__"]).parent / "full"
WORLDS = sorted(path.name for path in FULL.iterdir() if path.is_dir())
PROGRAMS = ("codecontests", "mbpp")
PLAIN = ("mbpp",)  # where a worked example made replies no more readable and fewer of them right
SHOWN = [world for world in (*WORLDS, "unknown") if world not in PLAIN]


def full(world: str) -> Prompts:
    """The profile for a world, with the reminder on."""
    return load_prompts("full", world, remind=True, actions_help="Moves: up, down.")


def shown(text: str) -> list[str]:
    """The worked replies of a prompt: what stands below a line that ends with a colon and says that a reply is good."""
    return [part.partition("\n\n")[0] for part in re.split(r"a good (?:reply|answer) is:\n", text)[1:]]


@pytest.mark.parametrize("world", SHOWN)
def test_a_worked_exchange_of_a_world_is_read_as_an_action(world: str) -> None:
    prompts = full(world)
    replies = [prompts.example_reply] if prompts.example_reply else shown(prompts.system)
    assert replies
    for reply in replies:
        assert parse_action(prompts.form, reply)


@pytest.mark.parametrize("world", SHOWN)
def test_a_worked_exchange_stands_in_one_place_alone(world: str) -> None:
    prompts = full(world)
    assert bool(shown(prompts.system)) != bool(prompts.example)


@pytest.mark.parametrize("world", PLAIN)
def test_the_other_worlds_show_none_and_say_how_a_reply_ends(world: str) -> None:
    prompts = full(world)
    assert not shown(prompts.system) and not prompts.example and "```python block" in prompts.system


@pytest.mark.parametrize("world", [*WORLDS, "unknown"])
@pytest.mark.parametrize("purpose", ["reflect", "reflect_end", "reflect_again"])
@pytest.mark.parametrize("turns", [1, 2, 30])
def test_a_question_that_is_repeated_word_for_word_is_no_reflection(world: str, purpose: str, turns: int) -> None:
    prompts = full(world)
    asked = fill(getattr(prompts, purpose), turn=turns, problem="there was no <turn>...</turn>")
    with pytest.raises(ParseFailure):
        parse_reflection(prompts.form, asked, turns)


@pytest.mark.parametrize("world", [*WORLDS, "unknown"])
def test_an_attempt_that_is_over_is_looked_back_on_without_being_asked_for_more(world: str) -> None:
    end = full(world).end
    assert "{observation}" in end and "{turn}" in end and not re.search(r"correct|submit|again|reply", end, re.IGNORECASE)


@pytest.mark.parametrize("world", [*WORLDS, "unknown"])
@pytest.mark.parametrize("purpose", ["example", "first", "turn", "experience", "feedback", "unread", "left_out", "reminder"])
def test_no_other_prompt_holds_anything_that_could_be_taken_for_an_action(world: str, purpose: str) -> None:
    prompts = full(world)
    forms: tuple[Form, ...] = ("tags", prompts.form)
    for form in forms:
        with pytest.raises(ParseFailure):
            parse_action(form, getattr(prompts, purpose))


@pytest.mark.parametrize("world", WORLDS)
def test_worlds_of_programs_are_asked_for_a_fence_and_the_others_for_tags(world: str) -> None:
    assert full(world).form == ("program" if world in PROGRAMS else "tags")


def test_an_unknown_world_says_its_own_help_to_the_policy() -> None:
    assert "{actions_help}" in full("unknown").system
