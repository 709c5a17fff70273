"""The prompts for instruction-tuned models: what they show is read as what they ask for, and nothing in them stands in for an answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from leafe.chat import Prompts
from leafe.prompts import load_prompts
from leafe.replies import Form, Unreadable, parse_action, parse_reflection

FULL = Path(load_prompts.__globals__["__file__"]).parent / "full"
WORLDS = sorted(path.name for path in FULL.iterdir() if path.is_dir())
PROGRAMS = ("codecontests", "mbpp")


def full(world: str) -> Prompts:
    """The profile for a world, with the reminder on."""
    return load_prompts("full", world, remind=True, actions_help="Moves: up, down.")


def shown(text: str) -> list[str]:
    """The worked replies of a prompt: what stands below a line that ends with a colon and says that a reply is good."""
    return [part.partition("\n\n")[0] for part in re.split(r"a good (?:reply|answer) is:\n", text)[1:]]


@pytest.mark.parametrize("world", [*WORLDS, "unknown"])
def test_a_worked_exchange_of_a_world_is_read_as_an_action(world: str) -> None:
    prompts = full(world)
    replies = shown(prompts.system)
    assert replies
    for reply in replies:
        assert parse_action(prompts.form, reply.partition("\nAnd later")[0])


@pytest.mark.parametrize("world", [*WORLDS, "unknown"])
def test_a_worked_reflection_of_a_world_is_read(world: str) -> None:
    prompts = full(world)
    for text in (prompts.reflect, prompts.reflect_end):
        (reply,) = shown(text)
        assert parse_reflection(prompts.form, reply, 2) is not None


@pytest.mark.parametrize("world", [*WORLDS, "unknown"])
@pytest.mark.parametrize("purpose", ["first", "turn", "experience", "feedback", "unread", "left_out", "reminder"])
def test_no_other_prompt_holds_anything_that_could_be_taken_for_an_action(world: str, purpose: str) -> None:
    prompts = full(world)
    forms: tuple[Form, ...] = ("tags", prompts.form)
    for form in forms:
        with pytest.raises(Unreadable):
            parse_action(form, getattr(prompts, purpose))


@pytest.mark.parametrize("world", WORLDS)
def test_worlds_of_programs_are_asked_for_a_fence_and_the_others_for_tags(world: str) -> None:
    assert full(world).form == ("program" if world in PROGRAMS else "tags")


def test_an_unknown_world_says_its_own_help_to_the_policy() -> None:
    assert "{actions_help}" in full("unknown").system
