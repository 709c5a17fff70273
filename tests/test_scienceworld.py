"""ScienceWorld: what can be known without Java, how simulators are shared, and the original simulator where it can be had."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from command import leafe
from hypothesis import given
from hypothesis import strategies as st

from leafe.config import parse
from leafe.distillation.examples import Selection, distill
from leafe.doctor import java_finding
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.check import check_environment
from leafe.envs.registry import make
from leafe.envs.world import World
from leafe.errors import EnvironmentFailure, MissingDependency, UnknownName, UserError
from leafe.experiment import Experiment, ForestSpec, explore_tasks
from leafe.hardware import java_command
from leafe.progress import Silent
from leafe.prompts import load_prompts
from leafe.records import Ask, Observation, StopReason, Task
from leafe.worlds.scienceworld.catalogue import (
    KINDS,
    SIMPLIFICATIONS,
    checked_simplifications,
    chosen_kinds,
    drawn,
    spec_of,
    variations,
)
from leafe.worlds.scienceworld.environment import POOL, ScienceWorld
from leafe.worlds.scienceworld.java import Options, needs
from leafe.worlds.scienceworld.pool import Pool

try:
    needs()
    LACKING = ""
except MissingDependency as missing:
    LACKING = str(missing)
with_simulator = pytest.mark.skipif(bool(LACKING), reason=LACKING)


def task_of(kind: str, variation: int, simplifications: str = "easy", horizon: int = 50) -> Task:
    """A task as `tasks` would give it, but for its instruction."""
    payload = {"task": kind, "variation": variation, "simplifications": simplifications}
    return Task(f"scienceworld-{kind}-{variation}-{simplifications}", "scienceworld", "Do it.", horizon, payload)


# Without Java


def test_the_thirty_tasks_have_the_published_numbers_of_variations() -> None:
    assert len({kind.number for kind in KINDS}) == len({kind.name for kind in KINDS}) == 30
    sizes = {split: sum(len(variations(kind, split)) for kind in KINDS) for split in ("train", "dev", "test")}
    assert sizes == {"train": 3592, "dev": 1796, "test": 1819}
    for kind in KINDS:
        parts = [number for split in ("train", "dev", "test") for number in variations(kind, split)]
        assert parts == list(range(kind.variations)) and kind.turns >= 10


@given(st.integers(0, 10**9), st.sampled_from(["train", "dev", "valid", "test"]), st.sets(st.sampled_from(KINDS), min_size=1))
def test_every_variation_is_drawn_once_and_the_kinds_come_in_turn(seed: int, split: str, kinds: set[Any]) -> None:
    listed = [kind for kind in KINDS if kind in kinds]
    order = list(drawn(listed, split, seed))
    assert sorted((kind.name, number) for kind, number in order) == sorted(
        (kind.name, number) for kind in listed for number in variations(kind, split)
    )
    assert {kind for kind, _ in order[: len(listed)]} == kinds
    assert order == list(drawn(listed, split, seed))


def test_tasks_are_chosen_by_name_or_number_and_electricity_must_not_be_taken_from_those_that_need_it() -> None:
    assert [kind.name for kind in chosen_kinds("1-2, boil", "")] == ["boil", "melt"]
    assert len(chosen_kinds(None, "easy")) == 30 and len(chosen_kinds(None, "noElectricalAction")) == 26
    with pytest.raises(UnknownName, match="did you mean 'boil'"):
        chosen_kinds("bol", "")
    with pytest.raises(UserError, match="power-component cannot be solved with noElectricalAction"):
        chosen_kinds("3-1", "noElectricalAction")
    with pytest.raises(UserError, match="names or numbers"):
        chosen_kinds(" , ", "")


def test_simplifications_have_one_order_and_easy_stands_alone() -> None:
    assert checked_simplifications("teleportAction, openDoors") == checked_simplifications("openDoors,teleportAction")
    assert (checked_simplifications("easy"), checked_simplifications("none"), checked_simplifications("")) == ("easy", "", "")
    assert checked_simplifications(",".join(SIMPLIFICATIONS)) == ",".join(SIMPLIFICATIONS)
    with pytest.raises(UnknownName, match="did you mean 'openDoors'"):
        checked_simplifications("openDoor")
    with pytest.raises(UserError, match="easy alone"):
        checked_simplifications("easy,openContainers")


@pytest.mark.parametrize("split", ["tain", "valid_seen"])
def test_an_unknown_split_is_refused(split: str) -> None:
    with pytest.raises(UnknownName, match="unknown split"):
        variations(KINDS[0], split)


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"task": "boil"},
        {"task": "bake", "variation": 0, "simplifications": ""},
        {"task": "boil", "variation": 30, "simplifications": ""},
    ],
)
def test_a_task_that_names_no_variation_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="names no variation"):
        spec_of(Task("t", "scienceworld", "Do.", 5, payload))
    assert spec_of(task_of("boil", 3)).id == "scienceworld-boil-3-easy"


def test_without_the_package_the_command_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scienceworld", None)
    said = leafe("check-env", "scienceworld")
    assert said.status == 2 and said.err.count("\n") == 1
    assert "ScienceWorld" in said.err and "pip install" in said.err and "[scienceworld]" in said.err


@pytest.mark.skipif("Java" not in LACKING and bool(LACKING), reason=LACKING)
def test_without_java_the_command_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    said = leafe("check-env", "scienceworld")
    assert said.status == 2 and said.err.count("\n") == 1
    assert "Java" in said.err and "apt-get install default-jre-headless" in said.err


def test_the_doctor_knows_where_java_is_or_what_brings_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert java_command() is None and java_finding(None).verdict == "optional" and "apt-get" in java_finding(None).mend
    (tmp_path / "home" / "bin").mkdir(parents=True)
    (tmp_path / "home" / "bin" / "java").touch(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert java_finding(java_command()).found == str(tmp_path / "home" / "bin" / "java")


@pytest.mark.parametrize(
    "argument", ["heap=5", "simulators=0", "horizon=0", "types=nothing", "simplifications=hard", "heap=big", "size=1"]
)
def test_a_wrong_argument_is_one_sentence_and_status_two(argument: str) -> None:
    said = leafe("check-env", "scienceworld", argument)
    assert said.status == 2 and said.err.count("\n") == 1 and "Traceback" not in said.err
    assert argument.partition("=")[0] in said.err or argument.partition("=")[2] in said.err


# Sharing


@dataclass
class Counter:
    """A simulator's stand-in: it counts, and knows whether it was ended."""

    options: Options
    count: int = 0
    alive: bool = True
    disowned: bool = False
    held: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        """Is no more."""
        self.alive = False

    def disown(self) -> None:
        """Is somebody else's."""
        self.disowned = True


def test_simulators_are_handed_on_and_no_more_are_started_than_wanted() -> None:
    started: list[Counter] = []
    pool = Pool(lambda options: started.append(Counter(options)) or started[-1])  # type: ignore[func-returns-value]
    tenants = [object() for _ in range(5)]
    for tenant in tenants:
        with pool.lent(tenant, Options(), 2) as (_, mine):
            assert not mine
    assert len(started) == len(pool) == 2
    for tenant, kept in zip(tenants, [True, False, False, False, True], strict=True):
        with pool.lent(tenant, Options(), 2) as (_, mine):
            assert mine == kept, "the one used last is taken, so that in rounds of turns some are found again"
    pool.leave(tenants[0])
    with pool.lent(object(), Options(), 2) as (simulator, mine):
        assert not mine and simulator in started
    with pool.lent(object(), Options(deterministic=False), 2) as (simulator, _):
        assert len(started) == 3 and not simulator.options.deterministic


def test_when_nobody_plays_one_simulator_is_kept() -> None:
    pool, tenants = Pool(Counter), [object() for _ in range(3)]
    for tenant in tenants:
        with pool.lent(tenant, Options(), 8):
            pass
    for tenant in tenants[:2]:
        pool.leave(tenant)
    assert len(pool) == 3
    pool.leave(tenants[2])
    assert len(pool) == 1
    pool.close()
    assert len(pool) == 0


def test_what_failed_in_a_call_is_ended_and_what_died_is_replaced() -> None:
    pool, tenant = Pool(Counter), object()
    with pytest.raises(OSError, match="gone"), pool.lent(tenant, Options(), 1) as (first, _):
        raise OSError("gone")
    assert not first.alive and len(pool) == 0
    with pool.lent(tenant, Options(), 1) as (second, mine):
        assert second is not first and not mine
    second.alive = False
    with pool.lent(tenant, Options(), 1) as (third, mine):
        assert third is not second and not mine and len(pool) == 1


def test_where_memory_is_short_simulators_are_shared_and_without_any_it_is_said() -> None:
    free = [2**30]
    pool = Pool(Counter, lambda: free[0])
    with pool.lent(object(), Options(), 8):
        pass
    free[0] = 2**27
    with pool.lent(object(), Options(), 8):
        assert len(pool) == 1
    pool.close()
    with pytest.raises(UserError, match="MiB of free memory and 128 MiB are free"), pool.lent(object(), Options(), 8):
        pass


def test_many_threads_share_few_simulators_and_none_waits_for_ever() -> None:
    pool, ended = Pool(Counter), []

    def play() -> None:
        tenant = object()
        for _ in range(50):
            with pool.lent(tenant, Options(), 2) as (simulator, _):
                assert simulator.held.acquire(blocking=False), "two have the same simulator"
                simulator.count += 1
                time.sleep(0)
                simulator.held.release()
        pool.leave(tenant)
        ended.append(True)

    threads = [threading.Thread(target=play, daemon=True) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(ended) == 12


# With the simulator


@pytest.fixture(scope="module")
def world() -> Iterator[ScienceWorld]:
    """One instance, which keeps its simulator from test to test."""
    environment = ScienceWorld(simulators=2)
    yield environment
    environment.close()
    POOL.close()


def solved(world: ScienceWorld, task: Task) -> list[str]:
    """Plays the simulator's own solution, which ends when all is done, and returns it."""
    answers, path = [world.reset(task)], list(world.expert())
    for action in path:
        assert not answers[-1].done
        answers.append(world.step(action))
    assert answers[-1].success and answers[-1].done and answers[-1].reward == 1.0
    return path


@pytest.mark.slow
@with_simulator
def test_the_table_of_variations_is_the_simulators_own(world: ScienceWorld) -> None:
    for kind in (KINDS[0], KINDS[15], KINDS[24]):
        world.reset(task_of(kind.name, 0))
        with POOL.lent(world, Options(), 2) as (simulator, _):
            asked = simulator._server
            assert sorted(asked.getTaskNames()) == sorted(one.name for one in KINDS)
            assert [asked.getTaskMaxVariations(one.name) for one in KINDS] == [one.variations for one in KINDS]
            for split, name in (("train", "Train"), ("dev", "Dev"), ("test", "Test")):
                assert list(getattr(asked, f"getVariations{name}")()) == list(variations(kind, split))


@with_simulator
def test_case_and_articles_never_matter_and_a_full_stop_does_not_in_a_lenient_world(world: ScienceWorld) -> None:
    lenient = ScienceWorld(simulators=2, lenient=True)
    lenient.reset(task_of("find-animal", 0))
    plain, otherwise = (lenient.step(action).text for action in ("open door to hallway", "OPEN the door to a hallway."))
    lenient.close()  # its simulator goes to the next
    world.reset(task_of("find-animal", 0))
    assert plain == otherwise == world.step("Open door to the hallway").text
    assert world.step("open door to hallway.").text == "No known action matches that input."


@with_simulator
def test_what_is_wanted_is_what_the_simulator_says_once_the_task_is_loaded(world: ScienceWorld) -> None:
    for task in world.tasks("dev", 3, seed=1):
        world.reset(task)
        assert task.instruction and world.step("task").text == f"Task description:\n{task.instruction}"


@with_simulator
@pytest.mark.parametrize(
    "kind",
    [
        "lifespan-longest-lived",
        "power-component",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("find-plant", "chemistry-mix-paint-secondary-color")),
    ],
)
def test_the_simulators_own_solution_ends_in_success_and_is_known_at_the_start_only(world: ScienceWorld, kind: str) -> None:
    task = task_of(kind, 12)
    path = solved(world, task)
    assert world.expert() == () and world.example_actions() == ()
    world.reset(task)
    world.step(path[0])
    assert world.expert() == ()


@pytest.mark.slow
@with_simulator
def test_a_solution_of_the_simulators_that_loses_is_no_solution(world: ScienceWorld) -> None:
    start = world.reset(task_of("measure-melting-point-unknown-substance", 60))
    assert world.expert() == ()
    assert world.reset(task_of("measure-melting-point-unknown-substance", 60)) == start


@with_simulator
def test_a_wrong_focus_ends_the_episode_without_success(world: ScienceWorld) -> None:
    world.reset(task_of("find-animal", 0))
    lost = world.step(next(action for action in world.example_actions() if action.startswith("focus on ")))
    assert (lost.done, lost.success, lost.reward) == (True, False, -1.0)
    assert world.step("look around") is lost


@with_simulator
def test_an_ambiguous_action_is_answered_with_a_menu_and_the_number_is_part_of_the_way_back(world: ScienceWorld) -> None:
    place = World(world)
    place.reset(task_of("boil", 0, simplifications="none"))
    menu = place.step("open door")
    assert menu.text.startswith("Ambiguous request")
    numbers = world.example_actions()
    assert "0" in numbers and all(number.isdecimal() for number in numbers)
    opened = place.step(f" {numbers[-1]} ")
    assert "open" in opened.text
    assert place.rollback(2).text == menu.text
    assert place.step(numbers[-1]).text == opened.text


@with_simulator
def test_asking_for_actions_and_objects_changes_nothing_that_follows(world: ScienceWorld) -> None:
    # Bees fly at random, by the same numbers that the questions draw from.
    actions = ["teleport to greenhouse", "open bee hive", *["look around", "wait1"] * 2, "look around"]

    def played(environment: ScienceWorld, *, asks: bool = False) -> list[Observation]:
        seen = [environment.reset(task_of("grow-fruit", 3))]
        for turn, action in enumerate(actions):
            assert not asks or turn % 3 or len(environment.example_actions()) > 20
            seen.append(environment.step(action))
        return seen

    silent = played(world)
    assert played(world, asks=True) == silent
    world.close()  # its simulator goes to the next
    seeing = ScienceWorld(simulators=2, objects=True)
    for one, more in zip(silent, played(seeing), strict=True):
        assert more.text.startswith(f"{one.text}\nObjects: ") and len(more.text) - len(one.text) < 4000
    seeing.close()
    assert "a adult bee\n" in "".join(one.text for one in silent[1:]), "they have left the hive"


@pytest.mark.slow
@with_simulator
def test_more_episodes_than_simulators_play_as_if_each_had_its_own(world: ScienceWorld) -> None:
    tasks = [task_of("boil", 1), task_of("grow-plant", 2), task_of("find-animal", 5)]
    actions = ["look around", "teleport to kitchen", "open cupboard", "wait1", "look in cupboard", "inventory"]
    alone = []
    for task in tasks:
        alone.append([world.reset(task), *(world.step(action) for action in actions)])
    world.close()
    crowded = [ScienceWorld(simulators=1) for _ in tasks]
    together = [[environment.reset(task)] for environment, task in zip(crowded, tasks, strict=True)]
    for action in actions:
        for environment, answers in zip(crowded, together, strict=True):
            answers.append(environment.step(action))
    assert together == alone and len(POOL) == 1
    for environment in crowded:
        environment.close()


@pytest.mark.slow
@with_simulator
def test_a_simulator_that_dies_costs_one_episode_and_no_more(world: ScienceWorld) -> None:
    place, task = World(world), task_of("find-plant", 4)
    start = place.reset(task)
    with POOL.lent(world, Options(), 2) as (simulator, _):
        os.kill(simulator.process.pid, 9)
        while simulator.process.runs:
            time.sleep(0.01)
    assert place.step("look around").text == start.text, "another one is led to where this one stood"
    with (
        pytest.raises(EnvironmentFailure, match="Java process ended with status -9"),
        POOL.lent(world, Options(), 2) as (simulator, _),
    ):
        os.kill(simulator.process.pid, 9)
        simulator.step("look around")
    assert place.reset(task).text == start.text


@with_simulator
@pytest.mark.slow
def test_check_env_passes_on_a_few_tasks() -> None:
    arguments = {"types": "lifespan-longest-lived,chemistry-mix-paint-secondary-color", "horizon": 6}
    report = check_environment(
        lambda: make("scienceworld", arguments),
        name="scienceworld",
        rollbacks=6,
        count=2,
        spec="scienceworld",
        arguments=arguments,
    )
    assert report.passed, [finding for finding in report.findings if finding.verdict == "fail"]
    assert report.measured is report.declared


# Processes

PLAYS = """
import sys
from leafe.worlds.scienceworld.environment import POOL, ScienceWorld
from leafe.records import Task
world = ScienceWorld()
world.reset(Task("t", "scienceworld", "Do.", 9, {"task": "find-plant", "variation": 1, "simplifications": "easy"}))
world.step("open door to kitchen")
"""


def in_a_process(code: str, **surroundings: str) -> subprocess.Popen[str]:
    """Another Python that plays and then goes on with `code`."""
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-c", PLAYS + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **surroundings},
    )


def gone(pid: int, patience: float = 60) -> bool:
    """Whether a process ends within some seconds."""
    until = time.monotonic() + patience
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@with_simulator
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("end", ["kill", pytest.param("exit", marks=pytest.mark.slow)])
def test_the_java_process_ends_with_ours_however_it_ends_and_says_nothing(end: str) -> None:
    told = {"JAVA_TOOL_OPTIONS": "-XX:hashCode=0", "_JAVA_OPTIONS": "-Xmx2g -verbose:gc"}  # which Java would repeat on the terminal
    with in_a_process("print(POOL._seats[0].simulator.process.pid, flush=True)\nsys.stdin.read()", **told) as process:
        assert process.stdout is not None
        java = int(process.stdout.readline())
        assert Path(f"/proc/{java}").exists()
        if end == "kill":
            process.kill()
        assert process.communicate() == ("", "")
        assert gone(java)


@pytest.mark.slow
@with_simulator
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_process_that_is_forked_off_leaves_the_simulator_to_its_parent() -> None:
    code = """
import os
child = os.fork()
if not child:
    before = len(POOL)
    del world
    world = ScienceWorld()
    world.reset(Task("t", "scienceworld", "Do.", 9, {"task": "find-plant", "variation": 1, "simplifications": "easy"}))
    sys.exit(before)
_, status = os.waitpid(child, 0)
print(status, world.step("look around").text[:4], POOL._seats[0].simulator.alive)
"""
    with in_a_process(code) as process:
        out, err = process.communicate()
    assert (out, err) == ("0 This True\n", "")


# Exploration


@with_simulator
def test_a_policy_that_goes_wrong_is_advised_rolled_back_and_succeeds(world: ScienceWorld) -> None:
    chosen = {"types": "lifespan-longest-lived", "simulators": 1}
    tasks = ScienceWorld(**chosen).tasks("train", 1)
    plans = {task.instruction: solved(world, task) for task in tasks}
    world.close()  # its simulator goes to the next

    def answer(ask: Ask) -> str:
        texts = [message.content for message in ask.messages if message.role == "user"]
        commands = next(commands for sentence, commands in plans.items() if any(sentence in text for text in texts))
        turn = sum(message.role == "assistant" for message in ask.messages) + 1
        if ask.purpose == "reflect":
            return f"turn 2: {commands[1]}"
        advised = any("Advice: " in text for text in texts)
        return commands[turn - 1] if turn == 1 or (advised and turn <= len(commands)) else "inventory"

    recipe = "name: science\nenvironment: {name: scienceworld}\nprompts: terse\ntasks: {train: 1}\n"
    config = parse(recipe + "explore: {turns: 60, max_attempts: 2, max_depth: 2}", "science")
    engine = ScriptedEngine(answer, token_bytes=16)
    experiment = Experiment(config, Path("none"), lambda folder: engine, lambda: ScienceWorld(**chosen), Silent())
    trees = explore_tasks(experiment, "explore", ForestSpec("tree", 5, Path("none")))
    for tree in trees:
        first, second = tree.attempts
        assert (first.stop, second.stop, second.turn) == (StopReason.TURN_LIMIT, StopReason.SUCCESS, 2)
        assert tree.spend.rollbacks == 1 and tree.spend.replayed_steps == 1
        assert [turn.action for turn in tree.trajectory(second.leaf)] == plans[tree.task.instruction]
    examples = distill(trees, load_prompts("terse", "scienceworld"), Selection(qualify="success"))
    wrong = {example.task: example for example in examples if example.kind == "counterfactual"}
    assert len(wrong) == len(trees) == 1
    for tree in trees:
        commands, example = plans[tree.task.instruction], wrong[tree.task.id]
        assert (example.target, len(example.target_ids)) == (commands[1], -(-len(commands[1]) // 16))
        assert [message.content for message in example.messages if message.role == "assistant"] == commands[:1]
        assert not any("Advice" in message.content for message in example.messages)


def test_the_full_prompt_names_every_action_of_the_simulator() -> None:
    verbs = "activate close connect deactivate disconnect dunk eat flush focus go inventory look mix move open pick pour put read use wait"
    system = load_prompts("full", "scienceworld").system
    assert all(word in system for word in [*verbs.split(), "teleport", "help", "objects", "task"]) and len(system) < 2500
