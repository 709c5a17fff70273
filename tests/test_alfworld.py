"""ALFWorld's files as an environment: splits, task types, bad data, and the original's recorded answers where the data are.

Without the data, games of our own lie in folders named as the official ones are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command import leafe

from leafe.envs.check import check_environment
from leafe.envs.world import World
from leafe.errors import CorruptFile, UnknownName, UserError
from leafe.records import Task
from leafe.worlds.alfworld import TYPES, ALFWorld
from leafe.worlds.household.environment import Household
from leafe.worlds.household.house import from_payload
from leafe.worlds.household.texts import game_file
from leafe.worlds.pddl.game import Game
from leafe.worlds.pddl.gamefile import NAME, GameFile, read_game, write_game
from leafe.worlds.pddl.names import shown_names
from leafe.worlds.pddl.planner import plan

RECORDED = Path(__file__).with_name("alfworld_traces.json")
FOLDERS = {
    "train": [official for official in TYPES.values() for _ in range(2)],
    "valid_seen": ["pick_and_place_simple", "pick_and_place_with_movable_recep", "pick_two_obj_and_place"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some games in folders named as the official ones are."""
    root = tmp_path_factory.mktemp("alfworld")
    world = Household(rooms=1, places=4, items=3)
    for split, types in FOLDERS.items():
        for number, (kind, task) in enumerate(zip(types, world.tasks("test", len(types), seed=len(split)), strict=True)):
            game = game_file(from_payload(task.payload))
            world.reset(task)
            path = root / "json_2.1.1" / split / f"{kind}-Mug-None-Shelf-{number}" / f"trial_{number}" / NAME
            path.parent.mkdir(parents=True)
            path.write_text(write_game(replace(game, walkthrough=tuple(world.expert()) if number % 2 else ())))
    return root


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared official games, unpacked."""
    if "LEAFE_DATA" not in os.environ:
        pytest.skip("LEAFE_DATA names no folder with alfworld/")
    root = tmp_path_factory.mktemp("official")
    for archive in sorted(Path(os.environ["LEAFE_DATA"], "alfworld").glob("*.tar.xz")):
        with tarfile.open(archive) as packed:
            wanted = [member for member in packed.getmembers() if member.name.endswith(NAME)]
            packed.extractall(root, wanted, filter="data")
    return root


def of_type(types: str | int | None, data: Path, count: int) -> list[str]:
    return sorted(task.payload["type"] for task in ALFWorld(data=str(data), types=types).tasks("train", count))


def test_a_split_is_a_folder_and_holds_the_six_task_types(data: Path) -> None:
    assert of_type(None, data, 12) == sorted(2 * list(TYPES))
    for types, expected in (
        ("heat", ["heat"]),
        ("pick_two_obj_and_place, cool", ["cool", "two"]),
        (3, ["clean"]),
        ("1,2", ["look", "pick"]),
    ):
        assert of_type(types, data, 2 * len(expected)) == sorted(2 * expected)
    found = ALFWorld(data=str(data / "json_2.1.1")).tasks("valid", 2)
    assert {task.payload["type"] for task in found} == {"pick", "two"}  # the one with a movable receptacle is left out


def test_tasks_are_drawn_by_the_seed_and_named_by_their_content(data: Path) -> None:
    world = ALFWorld(data=str(data))
    first, again, other = world.tasks("train", 12, 1), world.tasks("train", 12, 1), world.tasks("train", 12, 2)
    assert first == again and first != other and sorted(task.id for task in first) == sorted(task.id for task in other)
    assert first[:5] == world.tasks("train", 5, 1)
    assert all(task.horizon == 50 and task.instruction and not Path(task.payload["game"]).is_absolute() for task in first)


def test_games_without_a_solution_are_left_out(data: Path, tmp_path: Path) -> None:
    source = next((data / "json_2.1.1" / "valid_seen").rglob(NAME))
    game = read_game(source)
    hopeless = replace(game, problem=re.sub(r"\(portable \w+\)", "", game.problem), solvable=None)
    kinds = [replace(game, solvable=True), replace(game, solvable=False), hopeless]
    for number, one in enumerate(kinds):
        path = tmp_path / "train" / f"pick_and_place_simple-Mug-None-Shelf-{number}" / "trial" / NAME
        path.parent.mkdir(parents=True)
        path.write_text(write_game(one))
    assert len(ALFWorld(data=str(tmp_path)).tasks("train", 1)) == 1
    with pytest.raises(UserError, match=r"2 games .*train.* 1 .* 2 "):
        ALFWorld(data=str(tmp_path)).tasks("train", 2)


def test_check_env_passes_by_snapshot_with_the_data_named_by_argument_or_variable(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"data": str(data)}
    report = check_environment(
        lambda: ALFWorld(data=str(data)), name="alfworld", rollbacks=60, count=4, spec="alfworld", arguments=arguments
    )
    assert report.passed, [finding for finding in report.findings if finding.verdict == "fail"]
    monkeypatch.setenv("ALFWORLD_DATA", str(data))
    assert leafe("check-env", "alfworld", "--rollbacks", "8", "--split", "train").status == 0


def test_a_replay_and_a_snapshot_lead_to_the_same_place(data: Path) -> None:
    world = World(ALFWorld(data=str(data)))
    task = world.environment.tasks("train", 1)[0]
    world.reset(task)
    commands = list(world.environment.expert())
    for command in commands[:-1]:
        world.step(command)
    world.rollback(2)
    assert world.step("dance").text == "Nothing happens."
    world.rollback(2)
    for command in commands[1:]:
        last = world.step(command)
    assert last.success and world.rollbacks == 2


def test_a_command_is_matched_as_it_is_typed_unless_the_world_is_lenient(data: Path) -> None:
    strict, lenient = ALFWorld(data=str(data)), ALFWorld(data=str(data), lenient=True)
    task = strict.tasks("train", 1)[0]
    assert strict.reset(task) == lenient.reset(task)
    for command in list(strict.expert()):
        said = command.upper().replace(" TO ", " To  the ") + " ."
        assert strict.step(said).text == "Nothing happens." and strict.command_in(said) == said
        assert lenient.command_in(said) == command and lenient.step(said) == strict.step(command)


def test_the_walkthrough_is_the_expert_at_the_start_and_a_plan_is_afterwards(data: Path) -> None:
    world = ALFWorld(data=str(data))
    for task in world.tasks("train", 12):
        world.reset(task)
        commands = list(world.expert())
        file = read_game(data / "json_2.1.1" / task.payload["game"] / NAME)
        assert commands == list(file.walkthrough or commands)
        world.step(commands[0])
        assert len(world.expert()) == len(commands) - 1


def in_raw_ids(game: GameFile) -> GameFile:
    """The game with its walkthrough as some files hold it, things under the identifiers of the problem."""
    names = shown_names(re.findall(r"\w+_bar_\w+", game.problem))
    raw = {name.lower(): identifier for identifier, name in names.items()}
    longest = sorted(raw, key=len, reverse=True)
    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in longest))
    return replace(game, walkthrough=tuple(pattern.sub(lambda found: raw[found.group()], one) for one in game.walkthrough))


@pytest.mark.parametrize("spoil", ["raw ids", "a lost end", "a step too many", "nothing said"])
def test_a_walkthrough_is_played_before_it_is_believed_and_a_plan_stands_in(spoil: str, data: Path, tmp_path: Path) -> None:
    source = next(path for path in sorted((data / "json_2.1.1" / "train").rglob(NAME)) if read_game(path).walkthrough)
    game = read_game(source)
    spoilt = {
        "raw ids": in_raw_ids(game),
        "a lost end": replace(game, walkthrough=game.walkthrough[:-1]),
        "a step too many": replace(game, walkthrough=(*game.walkthrough, "look")),
        "nothing said": replace(in_raw_ids(game), solvable=None),
    }[spoil]
    assert spoilt != game
    spoiled(data, tmp_path, "\ufeff" + write_game(spoilt))
    world = ALFWorld(data=str(tmp_path))
    world.reset(world.tasks("train", 1)[0])
    commands = list(world.expert())
    assert [world.step(command).success for command in commands] == [False] * (len(commands) - 1) + [True]
    assert len(commands) == len(game.walkthrough) and world.expert() == []
    report = check_environment(
        lambda: ALFWorld(data=str(tmp_path)), name="alfworld", rollbacks=10, count=1, arguments={"data": str(tmp_path)}
    )
    assert report.passed, [finding for finding in report.findings if finding.verdict == "fail"]


def spoiled(data: Path, tmp_path: Path, text: str) -> Path:
    path = tmp_path / "train" / "pick_and_place_simple-Mug-None-Shelf-1" / "trial_1" / NAME
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_a_file_cut_anywhere_is_named_and_ends_the_command_with_status_2(data: Path, tmp_path: Path) -> None:
    whole = next((data / "json_2.1.1" / "train").rglob(NAME)).read_text()
    path = spoiled(data, tmp_path, whole[: len(whole) // 2])
    for command in (["play"], ["check-env"]):
        said = leafe(*command, "alfworld", f"data={tmp_path}")
        assert said.status == 2 and said.err.count("\n") == 1, said
        assert "is no whole JSON" in said.err and "fetch the game file again" in said.err
    game = json.loads(whole)
    for key in ("pddl_domain", "pddl_problem", "grammar"):
        path.write_text(json.dumps({**game, key: game[key][: len(game[key]) // 2]}))
        with pytest.raises(CorruptFile, match="fetch the game file again"):
            ALFWorld(data=str(tmp_path)).tasks("train", 1)
    path.write_text(json.dumps({**game, "grammar": game["grammar"].replace('"task"', '"chore"')}))
    with pytest.raises(CorruptFile, match="does not say what is wanted"):
        ALFWorld(data=str(tmp_path)).tasks("train", 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "alfworld wants the folder with its games, as data=PATH or in ALFWORLD_DATA; to get them type: "),
        (["data=/nowhere/at/all"], "alfworld finds no folder /nowhere/at/all"),
        (["data={empty}"], "holds no game.tw-pddl"),
        (["data={data}", "types=bake"], "unknown task type 'bake'"),
        (["data={data}", "types=''"], "types wants some of pick, look"),
        (["data={data}", "horizon=0"], "alfworld wants a horizon of at least 1"),
        (["data={data}", "--split", "exam"], "'exam'"),
    ],
)
def test_bad_arguments_are_one_sentence_and_status_2(
    arguments: list[str], sentence: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    filled = [argument.format(data=data, empty=tmp_path) for argument in arguments]
    for command in ("play", "check-env"):
        said = leafe(command, "alfworld", *filled)
        assert said.status == 2 and said.err.count("\n") == 1 and sentence in said.err, said


def test_a_task_is_only_played_from_the_file_that_it_was_drawn_from(data: Path) -> None:
    world = ALFWorld(data=str(data))
    task, other = world.tasks("train", 2)
    with pytest.raises(UserError, match="is another game than the one"):
        world.reset(replace(task, payload=other.payload | {"digest": task.payload["digest"]}))
    with pytest.raises(UserError, match="cannot read the game"):
        world.reset(Task("t", "alfworld", "Do.", 5, {"game": "train/none"}))
    with pytest.raises(UnknownName, match=r"unknown split of .* 'valid_unseen'"):
        world.tasks("valid_unseen", 1)


@pytest.mark.skipif(find_spec("textworld") is not None, reason="the original is installed")
def test_without_the_original_the_command_that_installs_it_is_named(data: Path) -> None:
    said = leafe("check-env", "alfworld-original", f"data={data}")
    assert said.status == 2
    assert said.err.count("\n") == 1 and "pip install" in said.err and "[alfworld-reference]" in said.err


# The official games


def mark(text: str, admissible: list[str], reward: int, done: bool) -> str:
    """The digest that `benchmarks/alfworld_traces.py` keeps of what the original showed after a command."""
    seen: list[Any] = [text, sorted(set(admissible)), reward, done]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


@pytest.mark.parametrize("recorded", json.loads(RECORDED.read_text()), ids=lambda recorded: recorded["game"].split("/")[1])
def test_every_answer_is_the_originals(recorded: dict[str, Any], official: Path) -> None:
    game = Game(read_game(official / "json_2.1.1" / recorded["game"] / NAME))
    for episode in recorded["episodes"]:
        state, text = game.start, game.tell("intro")
        marks = [mark(text, list(game.commands(state)), 0, False)]
        for command in episode["commands"]:
            state, text = game.step(state, command)
            won = game.won(state)
            marks.append(mark(text, list(game.commands(state)), int(won), won))
        assert marks == episode["marks"]


@pytest.mark.slow
def test_official_walkthroughs_win_and_our_plans_are_as_short(official: Path) -> None:
    world = ALFWorld(data=str(official))
    lengths = []
    for task in world.tasks("valid_seen", 140):
        world.reset(task)
        commands = list(world.expert())
        game = world.snapshot().game
        lengths.append((len(plan(game, game.start) or []), len(commands)))
        assert [world.step(command) for command in commands][-1].success
    assert all(ours == theirs for ours, theirs in lengths)


def test_an_official_walkthrough_in_raw_ids_gives_way_to_a_plan_that_wins(official: Path) -> None:
    world = ALFWorld(data=str(official))
    for task in world.tasks("valid_seen", 3, seed=5):
        path = world.path_of(task)
        kept = path.read_text()
        spoilt = in_raw_ids(read_game(path))
        assert "_bar_" in " ".join(spoilt.walkthrough)
        path.write_text(write_game(spoilt))
        world.reset(task)
        assert [world.step(command) for command in list(world.expert())][-1].success
        path.write_text(kept)


def test_official_splits_hold_what_they_should(official: Path) -> None:
    world = ALFWorld(data=str(official))
    found = [task.payload["type"] for task in world.tasks("valid_seen", 140)]
    assert {kind: found.count(kind) for kind in TYPES} == {"pick": 35, "look": 13, "clean": 27, "heat": 16, "cool": 25, "two": 24}
