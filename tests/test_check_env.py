"""`check-env` passes what keeps its promise and says what is wrong with what does not."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from leafe.digest import canonical
from leafe.envs import check_process
from leafe.envs.base import Environment, Fidelity, Placement
from leafe.envs.calls import Call, carry_out
from leafe.envs.check import CheckReport, check_environment
from leafe.envs.check_findings import Finding
from leafe.envs.registry import make
from leafe.envs.world import World
from leafe.errors import EnvironmentFailure
from leafe.records import Observation, Task, encode
from leafe.terminal import check_table
from leafe.worlds.fakes import Lookup
from leafe.worlds.sokoban.environment import Sokoban


def checked(kind: type[Environment], **settings: Any) -> CheckReport:
    """A quick check of a class."""
    return check_environment(kind, name=kind.__name__, rollbacks=60, count=4, **settings)


def verdicts(report: CheckReport) -> dict[str, str]:
    """The verdict of each finding."""
    return {finding.name: finding.verdict for finding in report.findings}


def sentence(report: CheckReport, name: str) -> str:
    """What a finding says."""
    return next(finding.sentence for finding in report.findings if finding.name == name)


class Counting(Lookup):
    """Tells how many steps this instance ever took: hidden state that no reset clears."""

    steps = 0

    def step(self, action: str) -> Observation:
        self.steps += 1
        answer = super().step(action)
        return Observation(f"{answer.text} Step {self.steps}.", answer.done, answer.success, answer.reward)


class Forgetful(Sokoban):
    """Restores all but the player."""

    def restore(self, snapshot: Any) -> None:
        if self._now is not None and self._now.state.player not in snapshot.state.boxes:
            state = type(snapshot.state)(self._now.state.player, snapshot.state.boxes)
            snapshot = type(snapshot)(snapshot.level, state, snapshot.final, snapshot.dead)
        super().restore(snapshot)


class Aliased(Environment):
    """Hands out its own list as a snapshot."""

    name = "aliased"
    fidelity = Fidelity.SNAPSHOT

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        return [Task(f"aliased-{split}-{number}", self.name, "Say a word.", 6) for number in range(count)]

    def reset(self, task: Task) -> Observation:
        self.said: list[str] = []
        return Observation("Speak.")

    def step(self, action: str) -> Observation:
        self.said += [action] if action in self.example_actions() else []
        return Observation(f"Said: {self.said}.")

    def snapshot(self) -> list[str]:
        return self.said

    def restore(self, snapshot: list[str]) -> None:
        self.said = snapshot

    def example_actions(self) -> Sequence[str]:
        return ("ha", "ho")


class Copied(Aliased):
    """The same with a copy: nothing is wrong with it."""

    def snapshot(self) -> list[str]:
        return list(self.said)

    def restore(self, snapshot: list[str]) -> None:
        self.said = list(snapshot)


class Modest(Lookup):
    """Could be replayed and does not say so."""

    fidelity = Fidelity.NONE


class Strange(Lookup):
    """Rings a bell, crashes on what is no action, and revives the ended."""

    def step(self, action: str) -> Observation:
        if not action.startswith("open"):
            raise IndexError(action)
        return Observation("\a" + super().step(action).text, done=self._found and action != "open place1")


class Restless(Lookup):
    """Draws other tasks every time."""

    drawn = 0

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        Restless.drawn += 1
        return super().tasks(split, count, seed + Restless.drawn)


@pytest.mark.parametrize("spec", ["sokoban", "lookup"])
def test_a_shipped_environment_keeps_what_it_declares(spec: str) -> None:
    report = check_environment(lambda: make(spec), name=spec, rollbacks=80, spec=spec)
    assert report.passed and set(verdicts(report).values()) == {"pass"}
    assert report.measured is report.declared
    assert next(finding for finding in report.findings if finding.name == "rollback").figures["rollbacks"] >= 80
    assert report.figures["step_seconds"] > 0 and report.figures["episode_bytes"] > 0
    assert json.loads(canonical(encode(report)))["name"] == spec


def test_slippery_sokoban_fails_and_the_report_says_why() -> None:
    report = check_environment(lambda: make("slippery-sokoban"), name="slippery", rollbacks=60, spec="slippery-sokoban")
    found = verdicts(report)
    assert not report.passed and report.measured is Fidelity.NONE
    assert {found[name] for name in ("replay", "rollback", "second_process", "fidelity")} == {"fail"}
    assert found["tasks"] == found["reset"] == found["text"] == "pass"
    assert "replay diverged at turn" in sentence(report, "replay") and "rollbacks went wrong" in sentence(report, "rollback")
    assert "declares 'replay'" in sentence(report, "fidelity")


def test_state_that_a_reset_leaves_behind_is_found() -> None:
    report = checked(Counting)
    assert verdicts(report)["replay"] == "fail" and report.measured is Fidelity.NONE


def test_a_snapshot_that_restores_less_than_everything_is_found_by_playing_on() -> None:
    report = checked(Forgetful)
    assert verdicts(report)["replay"] == "pass" and verdicts(report)["rollback"] == "fail"
    assert report.measured is Fidelity.REPLAY and "declares 'snapshot'" in sentence(report, "fidelity")


def test_a_snapshot_shared_with_the_episode_is_found_and_a_copy_is_fine() -> None:
    assert verdicts(checked(Aliased))["rollback"] == "fail"
    report = checked(Copied)
    assert report.passed and verdicts(report)["expert"] == verdicts(report)["after_end"] == "skipped"
    assert verdicts(report)["second_process"] == "skipped" and report.measured is Fidelity.SNAPSHOT


def test_an_environment_without_rollback_passes_and_is_told_when_it_could_do_more() -> None:
    report = checked(Modest)
    assert report.passed and verdicts(report)["rollback"] == "skipped" and report.measured is Fidelity.REPLAY
    assert "'replay' held on every episode here" in sentence(report, "fidelity")


def test_unprintable_text_crashes_on_no_action_and_revived_episodes_are_found() -> None:
    report = checked(Strange)
    found = verdicts(report)
    assert found["text"] == found["after_end"] == found["invalid_action"] == "fail"
    assert r"'\x07'" in sentence(report, "text") and "IndexError" in sentence(report, "invalid_action")


def test_tasks_that_are_drawn_otherwise_every_time_end_the_check() -> None:
    report = checked(Restless)
    assert verdicts(report) == {"tasks": "fail"} and "other tasks" in sentence(report, "tasks")


def test_a_second_process_that_cannot_make_the_environment_is_a_finding() -> None:
    report = checked(Lookup, spec="no_such_module_anywhere:Lookup")
    assert verdicts(report)["second_process"] == "fail" and "cannot import" in sentence(report, "second_process")


def test_tasks_of_a_class_that_hashes_strings_differ_in_a_second_process(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "from leafe.worlds.fakes import Lookup\n"
        "class Hashed(Lookup):\n"
        "    def tasks(self, split, count, seed=0):\n"
        "        return super().tasks(split, count, hash(split) % 10**9)\n"
    )
    (tmp_path / "hashed_world.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = "hashed_world:Hashed"
    report = check_environment(lambda: make(spec), name=spec, rollbacks=10, count=4, spec=spec)
    assert verdicts(report)["second_process"] == "fail" and "builtin hash()" in sentence(report, "second_process")


GAME: dict[str, Any] = {}


class OneAProcess(Aliased):
    """Keeps its words and its lots in the process, as a game engine that exists once in each."""

    placement = Placement.PROCESS

    def reset(self, task: Task) -> Observation:
        GAME.update(said=[], draw=random.Random(0))
        return Observation("Speak.")

    def step(self, action: str) -> Observation:
        if action in self.example_actions():
            GAME["said"] = [*GAME["said"], action, GAME["draw"].randrange(1000)]
        return Observation(f"Said: {GAME['said']}.")

    def snapshot(self) -> Any:
        return GAME["said"], GAME["draw"].getstate()

    def restore(self, snapshot: Any) -> None:
        GAME["said"], state = snapshot
        GAME["draw"].setstate(state)

    def reseed(self, seed: int) -> None:
        GAME["draw"] = random.Random(seed)


class Forgotten(OneAProcess):
    """Its snapshots leave out the words, where there are any."""

    def restore(self, snapshot: Any) -> None:
        GAME["draw"].setstate(snapshot[1])


class Single(Copied):
    """Takes a folder for itself, of which there is one for all processes."""

    instances = 1

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._folder.mkdir()

    def close(self) -> None:
        self._folder.rmdir()


def test_two_worlds_that_share_their_process_are_not_played_in_turn() -> None:
    report = check_environment(OneAProcess, name="process", rollbacks=40, count=3, spec="test_check_env:OneAProcess")
    assert [finding for finding in report.findings if finding.verdict == "fail"] == []
    assert report.measured is Fidelity.SNAPSHOT and verdicts(report)["reseed"] == verdicts(report)["second_process"] == "pass"
    assert verdicts(checked(Forgotten))["rollback"] == "fail"


def test_no_more_instances_are_made_than_are_declared(tmp_path: Path) -> None:
    spec, arguments = "test_check_env:Single", {"folder": str(tmp_path / "taken")}
    report = check_environment(lambda: make(spec, arguments), name="single", rollbacks=40, count=3, spec=spec, arguments=arguments)
    assert report.passed and report.measured is Fidelity.SNAPSHOT
    assert (verdicts(report)["together"], verdicts(report)["second_process"]) == ("skipped", "pass")
    assert not any(tmp_path.iterdir())


def told_as(convert: Callable[[Observation], Observation]) -> type[Environment]:
    """A world whose steps answer in another form."""

    class Told(Lookup):
        def step(self, action: str) -> Observation:
            return convert(super().step(action))

    return Told


def one_step(kind: type[Environment]) -> Observation:
    """The observation of a first step, as a run records it."""
    world = World(kind())
    task = world.environment.tasks("train", 1)[0]
    carry_out(world, Call("reset", task))
    return carry_out(world, Call("step", action=f"open {task.payload['key']}")).observation


@pytest.mark.parametrize(
    "convert",
    [
        lambda seen: Observation(seen.text, int(seen.done), int(seen.success), int(seen.reward)),
        lambda seen: Observation(seen.text, np.bool_(seen.done), np.bool_(seen.success), np.float32(seen.reward)),
        lambda seen: Observation(seen.text, np.int64(seen.done), np.uint8(seen.success), np.int64(seen.reward)),
    ],
)
def test_verdicts_and_rewards_of_other_types_are_read(convert: Callable[[Observation], Observation]) -> None:
    kind = told_as(convert)
    assert repr(one_step(kind)) == repr(one_step(Lookup))
    assert checked(kind).passed


@pytest.mark.parametrize(
    ("convert", "told"),
    [
        (lambda seen: Observation(seen.text, None, seen.success), "True or False as done, found None"),
        (lambda seen: Observation(seen.text, seen.done, 2), "True or False as success, found 2"),
        (lambda seen: Observation(seen.text, seen.done, seen.success, "1.0"), "a number as reward, found '1.0'"),
        (lambda seen: Observation(seen.text, seen.done, seen.success, seen.reward, None), "wanted dict, found None"),
        (lambda seen: Observation(seen.text, seen.done, seen.success, seen.reward, {"at": {1}}), "not made of plain data"),
    ],
)
def test_an_observation_that_a_run_refuses_fails_the_check(convert: Callable[[Observation], Observation], told: str) -> None:
    with pytest.raises(EnvironmentFailure, match="not made of plain data"):
        one_step(told_as(convert))
    report = checked(told_as(convert))
    assert verdicts(report)["text"] == "fail" and told in sentence(report, "text")


@pytest.mark.parametrize(
    "text", ["引き出し\u3000は空です。", "10\u00a0000 pièces", "\U0001f468\u200d\U0001f469 ❤\ufe0f", "می\u200cخواهم"]
)
def test_the_blanks_and_joiners_of_other_scripts_are_printable(text: str) -> None:
    report = checked(told_as(lambda seen: Observation(f"{text} {seen.text}", seen.done, seen.success, seen.reward)))
    assert verdicts(report)["text"] == "pass"


def test_a_second_process_is_over_when_it_ends_whatever_it_has_left_running(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "import subprocess, sys\n"
        "from leafe.worlds.fakes import Lookup\n"
        "helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        f"open({str(tmp_path / 'helpers')!r}, 'a').write(f'{{helper.pid}} ')\n"
        "class Helped(Lookup):\n"
        "    pass\n"
    )
    (tmp_path / "helped_world.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(check_process, "LIMIT", 40)
    spec = "helped_world:Helped"
    try:
        report = check_environment(lambda: make(spec), name=spec, rollbacks=10, count=4, spec=spec)
    finally:
        for helper in (tmp_path / "helpers").read_text().split():
            os.kill(int(helper), signal.SIGKILL)
    assert verdicts(report)["second_process"] == "pass"


def test_the_table_writes_control_characters_out(capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding("text", "fail", "boom \x1b]0;mine\x07 \x1b[2J [red]x")
    Console(width=200).print(check_table(CheckReport("x", Fidelity.NONE, Fidelity.NONE, (finding,), {})))
    assert r"boom \x1b]0;mine\x07 \x1b[2J [red]x" in capsys.readouterr().out
