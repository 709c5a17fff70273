"""Household games: what the generator draws, what players read, how splits are kept apart, and a tree explored in a house."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.config import parse
from leafe.distillation.examples import Selection, distill
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.check import check_environment
from leafe.envs.world import World, observation_digest
from leafe.errors import UnknownName, UserError
from leafe.experiment import Experiment, ForestSpec, explore_tasks
from leafe.progress import Silent
from leafe.prompts import load_prompts
from leafe.records import Ask, StopReason, Task, Tree
from leafe.worlds.household.environment import FORMS, Household
from leafe.worlds.household.generator import Recipe, houses
from leafe.worlds.household.house import GOALS, ITEMS, PLACES, SPLITS, House, from_payload, home_of, kind_of
from leafe.worlds.household.texts import game_file
from leafe.worlds.pddl.environment import KEPT
from leafe.worlds.pddl.game import Game

recipes = st.builds(
    Recipe,
    rooms=st.integers(1, 4),
    places=st.integers(4, 16),
    items=st.integers(2, 16),
    goals=st.sets(st.sampled_from(sorted(GOALS)), min_size=1).map(sorted).map(tuple),
    skew=st.sampled_from([0.0, 0.5, 1.0]),
)


def some_house(recipe: Recipe, seed: int, split: str = "train") -> House:
    return next(houses(recipe, split, seed))


def solved(environment: Household, task: Task) -> list[str]:
    """Plays a task as the expert does and returns the commands."""
    environment.reset(task)
    commands = list(environment.expert())
    last = [environment.step(command) for command in commands][-1]
    assert last.success and last.done and last.reward == 1.0
    return commands


# Generator


@settings(max_examples=40)
@given(recipes, st.integers(0, 10**6))
def test_every_house_has_the_wanted_size_and_a_task_that_is_not_done_and_can_be(recipe: Recipe, seed: int) -> None:
    house = some_house(recipe, seed)
    assert len(house.rooms) == recipe.rooms and all(places for _, places in house.rooms)
    assert sum(place.rpartition(" ")[0] in PLACES for place in house.places) == recipe.places
    assert house.goal in recipe.goals and house.split() == "train"
    game = Game(game_file(house))
    assert not game.won(game.start)
    environment = Household()
    task = Task("t", "household", house.sentence, 30, house.payload())
    assert 0 < len(solved(environment, task)) <= 30


@settings(max_examples=40)
@given(recipes, st.integers(0, 10**6))
def test_a_house_is_the_same_after_a_way_through_its_payload(recipe: Recipe, seed: int) -> None:
    house = some_house(recipe, seed)
    assert from_payload(house.payload()) == house


@settings(max_examples=40)
@given(recipes, st.integers(0, 10**6))
def test_players_read_rooms_places_and_items_by_the_names_of_the_house(recipe: Recipe, seed: int) -> None:
    house = some_house(recipe, seed)
    game = Game(game_file(house))
    here = dict(house.rooms)[house.start]
    seen = {command.removeprefix("go to ") for command in game.commands(game.start) if command.startswith("go to ")}
    assert seen == set(here)
    others = {name for name, _ in house.rooms} - {house.start}
    assert {command.removeprefix("walk to ") for command in game.commands(game.start) if command.startswith("walk")} == others
    lying = dict(house.items)
    for place in here:
        text = game.step(game.start, f"go to {place}")[1]
        if text.endswith("is closed."):
            assert not any(kind in text for kind in lying.get(place, ()))
        else:
            listed = text.partition(": ")[2].removesuffix(".").split(", ")
            assert sorted(map(kind_of, listed)) == sorted(lying.get(place, ("",)))


def test_skewed_items_lie_at_home_and_even_ones_anywhere() -> None:
    def share_at_home(skew: float) -> float:
        found = Counter[bool]()
        for house in islice(houses(Recipe(places=12, items=20, goals=("put",), skew=skew), "train", 3), 60):
            for place, kinds in house.items:
                found.update(kind_of(place) in (home_of(kind), home_of(kind, 1)) for kind in kinds)
        return found[True] / found.total()

    assert share_at_home(0.0) < 0.25 < 0.75 < share_at_home(0.8) < share_at_home(1.0) == 1.0
    assert all(home_of(item) != home_of(item, 1) for item in ITEMS)


def test_no_house_is_in_two_splits_whatever_the_task_in_it() -> None:
    found = {split: set(islice(houses(Recipe(1, 4, 3), split, seed=5), 60)) for split in SPLITS}
    shells = {split: {(house.rooms, house.items) for house in found[split]} for split in SPLITS}
    for split, some in shells.items():
        assert len(some) > 40
        assert not any(some & others for name, others in shells.items() if name != split)
    house = next(iter(found["test"]))
    assert replace(house, goal="wash", item="vase", start=house.start).split() == "test"


def test_a_game_is_made_once_while_any_episode_plays_it() -> None:
    many = [(Household(), task) for task in Household().tasks("train", KEPT + 2, 3)]
    for environment, task in many:
        environment.reset(task)
    games = [environment.snapshot().game for environment, _ in many]
    for environment, task in many:
        environment.reset(task)
    assert all(environment.snapshot().game is game for (environment, _), game in zip(many, games, strict=True))


@pytest.mark.parametrize("count", [25, pytest.param(250, marks=pytest.mark.slow)])
def test_the_expert_solves_every_game_of_two_splits_within_the_horizon(count: int) -> None:
    environment = Household()
    lengths = [len(solved(environment, task)) for split in ("train", "test") for task in environment.tasks(split, count)]
    assert len(lengths) == 2 * count and max(lengths) <= 30


# Environment


def test_check_env_finds_nothing_wrong_in_many_rollbacks() -> None:
    report = check_environment(Household, name="household", rollbacks=60, count=4, spec="household")
    assert report.passed, [finding for finding in report.findings if finding.verdict == "fail"]


def test_the_first_text_names_the_room_and_the_wish_and_hides_the_items() -> None:
    environment = Household(rooms=2)
    for task in environment.tasks("train", 30):
        first = environment.reset(task).text
        assert first.endswith(f"\nTask: {task.instruction}") and "Doors lead to: " in first
        assert not any(f"{item} 1" in first for item in ITEMS)


def test_text_that_is_no_command_is_answered_with_what_would_be_one() -> None:
    environment = Household()
    environment.reset(environment.tasks("train", 1)[0])
    before = environment.snapshot()
    assert environment.step("dance").text == f"Nothing happens. Commands: {FORMS}."
    assert environment.snapshot() == before


def otherwise(command: str) -> str:
    """The command as a language model might write it."""
    return re.sub(r"([a-z]+ [0-9]+)", r"the \1", command).title() + "."


def test_a_lenient_house_understands_commands_written_otherwise_and_answers_the_same() -> None:
    strict, lenient, replayed = Household(rooms=2), Household(rooms=2, lenient=True), World(Household(rooms=2, lenient=True))
    for task in strict.tasks("train", 5):
        shown = [strict.reset(task), lenient.reset(task)]
        assert shown[0] == shown[1]
        commands = list(strict.expert())
        assert strict.step(otherwise(commands[0])).text.startswith("Nothing happens.")
        answers = [lenient.step(otherwise(command)) for command in commands]
        assert answers == [strict.step(command) for command in commands] and answers[-1].success
        said = [otherwise(command) for command in commands]
        digests = [observation_digest(one) for one in (shown[0], *answers)]
        assert replayed.replay(said, digests, task=task) == answers[-1]


def test_a_lenient_house_guesses_nothing() -> None:
    environment = Household(rooms=1, lenient=True)
    environment.reset(environment.tasks("train", 1)[0])
    before, possible = environment.snapshot(), environment.example_actions()
    goes = next(command for command in possible if command.startswith("go to "))
    for text in (
        "go",
        "go to",
        "go to the",
        "the",
        "",
        ".",
        goes + "!",
        goes + " now",
        goes.replace(" to ", " "),
        "please " + goes,
    ):
        assert environment.step(text).text.startswith("Nothing happens.") and environment.snapshot() == before
    assert not environment.step(f" {goes.upper()} . ").text.startswith("Nothing happens.")


def test_check_env_passes_in_a_lenient_house() -> None:
    arguments = {"lenient": True}
    report = check_environment(
        lambda: Household(lenient=True), name="household", rollbacks=20, count=2, spec="household", arguments=arguments
    )
    assert report.passed, [finding for finding in report.findings if finding.verdict == "fail"]


def test_admissible_commands_are_listed_when_wanted() -> None:
    environment = Household(rooms=1, admissible=True)
    text = environment.reset(environment.tasks("train", 1)[0]).text
    assert text.splitlines()[-1] == f"Possible: {', '.join(environment.example_actions())}."


def test_nothing_changes_after_the_end_and_a_plan_serves_the_whole_way() -> None:
    environment = Household()
    task = environment.tasks("train", 1)[0]
    environment.reset(task)
    while environment.expert():
        last = environment.step(environment.expert()[0])
    assert last.done and environment.step("look") == last and not environment.expert()


@pytest.mark.parametrize(
    ("settings_", "sentence"),
    [
        ({"rooms": 9}, "household wants 1 to 6 rooms; found rooms=9"),
        ({"rooms": 3, "places": 2}, "one for each room"),
        ({"items": 1}, "2 to 200 items"),
        ({"skew": 1.5}, "a skew from 0 to 1"),
        ({"goals": ""}, "at least one goal"),
        ({"goals": "put,sing"}, "unknown goal 'sing'"),
        ({"horizon": 0}, "a horizon of at least 1"),
    ],
)
def test_a_house_that_cannot_be_is_refused_in_one_sentence(settings_: dict[str, object], sentence: str) -> None:
    make: Callable[..., Household] = Household
    with pytest.raises(UserError, match=sentence):
        make(**settings_)


def test_an_unknown_split_and_a_task_without_a_house_are_refused() -> None:
    with pytest.raises(UnknownName, match="unknown split 'exam'"):
        Household().tasks("exam", 1)
    good = Household().tasks("train", 1)[0].payload
    for payload in (
        {},
        {**good, "goal": "sing"},
        {**good, "start": "attic 1"},
        {**good, "item": "(a)"},
        {**good, "rooms": [["a", 1]]},
    ):
        with pytest.raises(UserError, match="holds no house"):
            Household().reset(Task("t", "household", "Do.", 5, payload))


@pytest.mark.slow
def test_more_houses_than_there_are_are_refused() -> None:
    few = Household(rooms=1, places=len(PLACES), items=2, goals="two", skew=1.0)
    with pytest.raises(UserError, match=r"20000 .*'valid'.* \d+ "):
        few.tasks("valid", 20_000)


# Exploration


def explored(world: Household, plans: dict[str, list[str]], prompts: str) -> list[Tree]:
    """Trees of a policy that knows each plan and follows it but for the second turn, until it is advised."""

    def answer(ask: Ask) -> str:
        texts = [message.content for message in ask.messages if message.role == "user"]
        commands = next(commands for sentence, commands in plans.items() if any(sentence in text for text in texts))
        turn = sum(message.role == "assistant" for message in ask.messages) + 1
        if ask.purpose == "reflect":
            return f"turn 2: {commands[1]}"
        advised = any("Advice: " in text for text in texts)
        return commands[turn - 1] if turn == 1 or (advised and turn <= len(commands)) else "look"

    recipe = f"name: house\nenvironment: {{name: household}}\nprompts: {prompts}\ntasks: {{train: {len(plans)}}}\n"
    config = parse(recipe + "explore: {turns: 60, max_attempts: 2, max_depth: 2}", "house")
    engine = ScriptedEngine(answer, token_bytes=8)
    return explore_tasks(
        Experiment(config, Path("none"), lambda folder: engine, lambda: world_like(world), Silent()),
        "explore",
        ForestSpec("tree", 5, Path("none")),
    )


def world_like(world: Household) -> Household:
    """Another instance with the same houses."""
    return Household(rooms=2, places=6, items=5, goals="put,wash", horizon=14)


def test_a_policy_that_goes_wrong_is_advised_rolled_back_and_succeeds() -> None:
    world = world_like(Household())
    plans: dict[str, list[str]] = {}
    for task in world.tasks("train", 3):
        plans[task.instruction] = solved(world, task)
    trees = explored(world, plans, "terse")
    for tree in trees:
        commands = plans[tree.task.instruction]
        first, second = tree.attempts
        assert (first.stop, second.stop) == (StopReason.TURN_LIMIT, StopReason.SUCCESS)
        assert second.turn == 2 and tree.spend.rollbacks == 1
        assert [turn.action for turn in tree.trajectory(second.leaf)] == commands
    examples = distill(trees, load_prompts("terse", "household"), Selection(qualify="success"))
    wrong = [example for example in examples if example.kind == "counterfactual"]
    assert len(wrong) == len(trees)
    for example in wrong:
        tree = next(tree for tree in trees if tree.task.id == example.task)
        commands = plans[tree.task.instruction]
        assert example.target == commands[1] and len(example.target_ids) == -(-len(commands[1]) // 8)
        assert [message.content for message in example.messages if message.role == "assistant"] == commands[:1]
        assert not any("Advice" in message.content for message in example.messages)


@pytest.mark.parametrize("profile", ["terse", "full"])
def test_the_prompts_say_the_task_once_and_the_horizon(profile: str) -> None:
    prompts = load_prompts(profile, "household")
    assert "{instruction}" not in prompts.first and "{horizon}" in prompts.first
    verbs = [form.split(" ")[0] for form in FORMS.split(", ")]
    assert profile == "terse" or all(f"{verb} " in prompts.system.replace("\n", " ").replace(",", " ") for verb in verbs)
