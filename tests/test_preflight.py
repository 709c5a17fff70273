"""What is worked out about lengths before anything is begun."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from leafe.config import parse
from leafe.envs.registry import make
from leafe.errors import EnvironmentFailure, UserError
from leafe.preflight import Meter, Rehearsed, check_lengths, rehearse, short_horizons
from leafe.prompts import load_prompts
from leafe.records import Message, Observation, Task
from leafe.settings import RunConfig
from leafe.worlds.fakes import Lookup

RECIPE = "name: trial\nprompts: full\nenvironment: {name: sokoban, args: {min_length: 6, horizon: 20}}\n"


def config(*overrides: str) -> RunConfig:
    return parse(RECIPE, "trial", overrides)


def played(config: RunConfig) -> Rehearsed:
    environment = make(config.environment.name, config.environment.args)
    (task,) = environment.tasks("train", 1)
    found = rehearse(environment, load_prompts(config.prompts, config.environment.name), task)
    assert found is not None
    return found


def meter(context: int) -> Meter:
    """A token is four characters."""

    def prompt(messages: Sequence[Message]) -> int:
        return sum(len(message.content) // 4 + 4 for message in messages)

    return Meter(prompt, lambda text: len(text) // 4 + 1, context)


def test_an_experts_whole_episode_is_played() -> None:
    found = played(config())
    assert found.trajectory[-1].observation.success and [turn.action for turn in found.trajectory] == list(
        found.actions[: len(found.trajectory)]
    )


def test_a_limit_below_the_shortest_reply_is_refused_with_what_to_type() -> None:
    tight = config("sampling.act.max_tokens=4")
    with pytest.raises(UserError, match=r"sampling.act.max_tokens is 4.*<action>.*sampling.act.max_tokens="):
        check_lengths(tight, played(tight), meter(0))


def test_a_context_without_room_for_one_turn_is_refused_with_what_to_type() -> None:
    with pytest.raises(UserError, match=r"the first prompt and a reply take .* the context is 540; type sampling.act.max_tokens="):
        check_lengths(config(), played(config()), meter(540))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["history.keep=all"], "type history.keep=fit"),
        (["history.keep=fit"], "oldest thoughts"),
        (["history.keep=last", "history.turns=2"], "all but the last 2 turns"),
    ],
)
def test_what_outgrows_the_context_is_said_with_what_happens_then(overrides: list[str], said: str) -> None:
    (sentence,) = check_lengths(config(*overrides), played(config()), meter(4096))
    assert said in sentence and "20 turns" in sentence and "4,096" in sentence


def test_what_fits_is_not_spoken_of() -> None:
    assert check_lengths(config(), played(config()), meter(1 << 20)) == []
    assert check_lengths(config(), played(config()), meter(0)) == []


def test_tasks_that_cannot_be_solved_within_their_horizon_are_told() -> None:
    environment = make("sokoban", {"min_length": 10, "max_length": 12, "horizon": 9})
    (sentence,) = short_horizons(environment, environment.tasks("train", 3))
    assert sentence.startswith("3 of 3 tasks cannot be solved within their horizon: sokoban-") and "has 9 turns" in sentence
    assert re.search(r"takes at least 1[012]; type environment\.args\.horizon=1[012] or more$", sentence)
    enough = make("sokoban", {"min_length": 10, "max_length": 12, "horizon": 12})
    assert list(short_horizons(enough, enough.tasks("train", 3))) == []
    assert list(short_horizons(Lookup(), Lookup().tasks("train", 3))) == []


def test_an_expert_that_takes_longer_than_the_horizon_is_told() -> None:
    tight = config("environment.args.horizon=3")
    late = check_lengths(tight, played(tight), meter(0))[0]
    assert re.match(r"the expert takes \d+ turns for the first task, and the horizon is 3; type environment.args.horizon=\d+", late)


class Broken(Lookup):
    """Breaks at its reset."""

    def reset(self, task: Task) -> Observation:
        """Raises."""
        raise EnvironmentFailure("no")


def test_a_world_that_breaks_is_left_for_exploring_to_tell() -> None:
    (task,) = Lookup().tasks("train", 1)
    assert rehearse(Broken(), load_prompts("full", "lookup"), task) is None


# Sizes that go with the prompts


def test_sizes_follow_the_profile_and_the_world_unless_the_recipe_says_otherwise() -> None:
    text = "name: trial\nenvironment: {name: %s}\nprompts: %s\n"
    sizes = {
        (name, profile): parse(text % (name, profile), "trial").sampling.act.max_tokens
        for name in ("sokoban", "mbpp")
        for profile in ("terse", "full")
    }
    assert sizes["sokoban", "terse"] == 4 and sizes["sokoban", "full"] >= 256 and sizes["mbpp", "full"] > sizes["sokoban", "full"]
    assert parse(text % ("mbpp", "full"), "trial", ["sampling.act.max_tokens=77"]).sampling.act.max_tokens == 77
    assert (
        parse(text % ("mbpp", "full") + "sampling: {act: {temperature: 0.5}}\n", "trial").sampling.act.max_tokens
        == sizes["mbpp", "full"]
    )
