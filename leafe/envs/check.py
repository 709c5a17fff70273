"""Proves what an environment declares: `leafe check-env NAME`.

Episodes are taken again in the same instance, in another one and in a process of its own; random turns are reached again and played
on from; every observation is compared by its digest. A snapshot is held against a replay in a second instance, on the recorded
actions and on new ones. A pass covers the tasks and turns that were drawn and no others; times and memory are never verdicts.
"""

from __future__ import annotations

import json
import math
import random
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from leafe.digest import canonical, digest, seed_for
from leafe.envs.base import Environment, Fidelity
from leafe.envs.check_play import NO_ACTIONS, Episode, Recorder
from leafe.envs.check_process import ask_another_process
from leafe.envs.world import World, observation_digest
from leafe.errors import EpisodeError, UserError
from leafe.records import Task, decode, encode

Verdict = Literal["pass", "fail", "skipped"]
Outcome = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its verdict, one sentence, and the figures behind it."""

    name: str
    verdict: Verdict
    sentence: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All findings about one environment. `measured` is the best fidelity seen to hold; `figures` are seconds and bytes."""

    name: str
    declared: Fidelity
    measured: Fidelity
    findings: tuple[Finding, ...]
    figures: Mapping[str, float]

    @property
    def passed(self) -> bool:
        """Whether no check failed. A skipped check is no failure."""
        return all(finding.verdict != "fail" for finding in self.findings)


class _Failed(Exception):
    """A check's failure, in one sentence."""


class _Skipped(Exception):
    """Why a check was not made, in one sentence."""


def check_environment(
    make: Callable[[], Environment],
    *,
    name: str,
    rollbacks: int = 200,
    seed: int = 0,
    split: str = "train",
    count: int = 8,
    spec: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> CheckReport:
    """Checks an environment on `count` tasks of a split, with at least `rollbacks` rollbacks.

    `spec` and `arguments` are what the registry makes the same environment from in another process; without a spec that check is
    skipped. Nothing that a made environment raises is raised here: it becomes a finding. After a failure of the first two checks,
    which give the others their tasks and episodes, the others are left out. What is raised is a `UserError` of `tasks`:
    then what the person typed cannot be used, which says nothing about the environment.
    """
    inspection = _Inspection(make, seed, split, count)
    findings: list[Finding] = []
    for title, check in inspection.checks(rollbacks, spec, arguments or {}):
        findings.append(_find(title, check))
        inspection.verdicts[title] = findings[-1].verdict
        if findings[-1].verdict == "fail" and title in ("tasks", "episodes"):
            break
    figures = inspection.figures()
    inspection.close()
    return CheckReport(name, inspection.fidelity, inspection.measured, tuple(findings), figures)


def _find(name: str, check: Callable[[], Outcome]) -> Finding:
    try:
        sentence, figures = check()
    except _Skipped as reason:
        return Finding(name, "skipped", str(reason))
    except _Failed as reason:
        return Finding(name, "fail", str(reason))
    except Exception as error:  # whatever a foreign environment raises is what this command is there to tell
        if name == "tasks" and isinstance(error, UserError):
            raise
        return Finding(name, "fail", f"raised {type(error).__name__}: {error}")
    return Finding(name, "pass", sentence, figures)


class _Inspection:
    """Two instances of one environment, the episodes played in them, and a check for each promise."""

    def __init__(self, make: Callable[[], Environment], seed: int, split: str, count: int) -> None:
        self._world, self._other = World(make()), World(make())
        self._seed, self._split, self._count = seed, split, count
        self._draw = random.Random(seed_for("check-env", seed))
        self._recorder = Recorder(self._world, self._draw)
        self._tasks: list[Task] = []
        self._exact = False
        self.verdicts: dict[str, Verdict] = {}
        self.fidelity = self._world.fidelity
        self.measured = Fidelity.NONE

    def checks(self, rollbacks: int, spec: str | None, arguments: Mapping[str, Any]) -> list[tuple[str, Callable[[], Outcome]]]:
        """Every check in its order; later ones use what earlier ones found."""
        return [
            ("tasks", self._check_tasks),
            ("episodes", self._check_episodes),
            ("reset", self._check_reset),
            ("text", self._check_text),
            ("expert", self._check_expert),
            ("replay", self._check_replay),
            ("second_process", lambda: self._check_second_process(spec, arguments)),
            ("rollback", lambda: self._check_rollback(rollbacks)),
            ("after_end", self._check_after_end),
            ("invalid_action", self._check_invalid_action),
            ("fidelity", self._check_fidelity),
        ]

    def close(self) -> None:
        """Closes both instances."""
        self._world.close()
        self._other.close()

    def figures(self) -> dict[str, float]:
        """Median seconds of each kind of call, and Python's own memory of one episode; a simulator's memory is not in it."""
        figures = {f"{kind}_seconds": median(values) for kind, values in self._recorder.seconds.items() if values}
        if not self._recorder.episodes or self.verdicts.get("episodes") == "fail":
            return figures
        episode = self._longest()
        tracemalloc.start()
        try:
            self._stand(episode)
            held, peak = tracemalloc.get_traced_memory()
        except EpisodeError:
            return figures  # the findings tell what it raises
        finally:
            tracemalloc.stop()
        return figures | {"episode_bytes": held, "episode_peak_bytes": peak, "episode_turns": len(episode.actions)}

    def _longest(self) -> Episode:
        return max(self._recorder.episodes, key=lambda episode: len(episode.actions))

    def _check_tasks(self) -> Outcome:
        """The same tasks twice and in another instance, well formed, and the same after a way through JSON."""
        places = [self._world.environment, self._world.environment, self._other.environment]
        drawn = [list(place.tasks(self._split, self._count, self._seed)) for place in places]
        self._tasks, name = drawn[0], places[0].name
        for task in self._tasks:
            if decode(Task, json.loads(canonical(encode(task)))) != task:
                raise _Failed(f"task {task.id!r} is another one after a way through JSON; use strings, numbers, lists and dicts")
            if task.env != name or task.horizon < 1 or not task.instruction:
                raise _Failed(f"a task wants env {name!r}, a horizon of at least 1 and an instruction; found {task!r:.200}")
        distinct = len({task.id for task in self._tasks})
        if len(self._tasks) != self._count or distinct != self._count:
            raise _Failed(f"wanted {self._count} tasks with ids of their own; found {len(self._tasks)} with {distinct} ids")
        if drawn[1] != drawn[0] or drawn[2] != drawn[0]:
            raise _Failed("the same split, count and seed gave other tasks the second time")
        return f"{self._count} tasks of split {self._split!r} are the same twice and in two instances", {"tasks": self._count}

    def _check_episodes(self) -> Outcome:
        """Tasks can be played at all."""
        self._recorder.record(self._tasks)
        episodes = self._recorder.episodes
        turns = sum(len(episode.actions) for episode in episodes)
        if not turns:
            raise _Failed("no action could be taken; every episode ended at its reset")
        return f"{len(episodes)} episodes with {turns} turns were played", {"episodes": len(episodes), "turns": turns}

    def _check_reset(self) -> Outcome:
        """The first observation of a task is the same whatever was played before, and in another instance."""
        starts = {episode.task.id: episode.digests[0] for episode in self._recorder.episodes}
        for task in self._draw.sample(self._tasks, len(self._tasks)):
            for world in (self._world, self._other, self._world):
                if observation_digest(world.reset(task)) != starts[task.id]:
                    what = f"task {task.id!r} starts with another observation when it is reset again"
                    raise _Skipped(f"declares 'none', and {what}") if self.fidelity is Fidelity.NONE else _Failed(what)
        return f"{len(self._tasks)} tasks start with the same observation every time", {}

    def _check_text(self) -> Outcome:
        """Observations are printable text, and the rest of them is JSON."""
        improper = self._recorder.improper
        if improper:
            raise _Failed(f"{len(improper)} observations are not as they should be; first: {improper[0]}")
        return "every observation is printable text and JSON", {}

    def _check_expert(self) -> Outcome:
        """What `expert` says solves the task."""
        played = [episode for episode in self._recorder.episodes if episode.kind == "expert"]
        if not played:
            raise _Skipped("expert() knows no solution, and need not")
        lost = [episode for episode in played if not episode.success]
        if lost:
            raise _Failed(f"{len(lost)} of {len(played)} expert episodes do not end in success; first: {lost[0].task.id}")
        late = sum(len(episode.actions) > episode.task.horizon for episode in played)
        note = f"; {late} of them take more turns than the task's horizon" if late else ""
        return f"all {len(played)} expert episodes end in success{note}", {"solved": len(played), "beyond_horizon": late}

    def _check_replay(self) -> Outcome:
        """Reset and the same actions give the same observations, in both instances."""
        failures, done = [], 2 * len(self._recorder.episodes)
        for episode in self._recorder.episodes:
            for world in (self._world, self._other):
                try:
                    self._recorder.timed("replay", world.replay, episode.actions, episode.digests, task=episode.task)
                except EpisodeError as error:
                    failures.append(f"{episode.task.id}: {error}")
        self._exact = not failures
        if failures and self.fidelity is Fidelity.NONE:
            raise _Skipped(f"declares 'none', and {len(failures)} of {done} replays differ indeed")
        if failures:
            raise _Failed(f"{len(failures)} of {done} replays differ; first: {failures[0]}")
        return f"{done} replays gave the recorded observations", {"replays": done}

    def _check_second_process(self, spec: str | None, arguments: Mapping[str, Any]) -> Outcome:
        """The same tasks and observations in a fresh process with another hash seed."""
        if spec is None:
            raise _Skipped("give the environment by name or as module:Class to have it made in another process")
        episodes = [] if self.fidelity is Fidelity.NONE else self._recorder.episodes
        played = [{"task": self._tasks.index(episode.task), "actions": episode.actions} for episode in episodes]
        draw = {"split": self._split, "count": self._count, "seed": self._seed}
        response = ask_another_process({"spec": spec, "arguments": arguments, "episodes": played, **draw})
        if response["tasks"] != digest([encode(task) for task in self._tasks]):
            raise _Failed("another process draws other tasks; a builtin hash(), the order of a set or an unseeded draw does that")
        marks = zip(episodes, response["episodes"], strict=True)
        differing = [episode for episode, found in marks if tuple(found) != episode.digests]
        if differing:
            first = f"first: {differing[0].task.id} ({differing[0].kind})"
            raise _Failed(f"{len(differing)} of {len(episodes)} episodes give other observations in another process; {first}")
        return f"a second process gives the same tasks and the same {len(episodes)} episodes", {"episodes": len(episodes)}

    def _check_rollback(self, rollbacks: int) -> Outcome:
        """Random turns are reached again, and playing on from there gives what it gave; half of the time after a detour."""
        if self.fidelity is Fidelity.NONE:
            raise _Skipped("declares 'none': exploration falls back to fresh attempts")
        played = [episode for episode in self._recorder.episodes if episode.actions]
        failures, done = [], 0
        for episode in played:
            live = self._stand(episode)
            for _ in range(math.ceil(rollbacks / len(played))):
                turn, detour, done = self._draw.randint(1, len(live)), done % 2 == 1, done + 1
                try:
                    self._go_back(episode.task, live, turn, detour=detour)
                except EpisodeError as error:
                    failures.append(f"{episode.task.id}, back to turn {turn}: {error}")
                    live = self._stand(episode)
        if failures:
            raise _Failed(f"{len(failures)} of {done} rollbacks went wrong; first: {failures[0]}")
        against = "; snapshots agree with replays" if self.fidelity is Fidelity.SNAPSHOT else ""
        return f"{done} rollbacks reached their turn and went on as recorded{against}", {"rollbacks": done}

    def _stand(self, episode: Episode) -> list[tuple[str, str]]:
        """Plays an episode without comparing; its actions and the digests that they gave this time."""
        self._world.reset(episode.task)
        for action in episode.actions:
            self._world.step(action)
        return list(zip(self._world.actions, self._world.digests[1:], strict=True))

    def _go_back(self, task: Task, live: Sequence[tuple[str, str]], turn: int, *, detour: bool) -> None:
        """One rollback, played on to the end of the episode; raises what went wrong."""
        world, before = self._world, [action for action, _ in live[: turn - 1]]
        marks = world.digests[:turn]
        follower = self._other if self.fidelity is Fidelity.SNAPSHOT else None
        self._recorder.timed("rollback", world.rollback, turn)
        if detour:
            if follower:
                follower.replay(before, marks, task=task)
            for _ in range(self._draw.randint(1, 3)):
                if not world.observation.done:
                    _step_alike(world, self._recorder.any_action(), follower)
            world.rollback(turn)
        if follower:
            follower.replay(before, marks, task=task)
        for action, mark in live[turn - 1 :]:
            _step_alike(world, action, follower, mark)

    def _check_after_end(self) -> Outcome:
        """An ended episode stays ended, whatever is done in it."""
        ended = sum(episode.done for episode in self._recorder.episodes)
        if not ended:
            raise _Skipped("no episode came to an end of the environment's own")
        if self._recorder.went_on:
            raise _Failed(f"an ended episode goes on: {self._recorder.went_on[0]}")
        return f"{ended} ended episodes stayed ended", {"ended": ended}

    def _check_invalid_action(self) -> Outcome:
        """Text that is no action is answered, ends nothing and changes nothing."""
        if self._world.environment.free_text:
            raise _Skipped("takes every text for an action")
        episode = self._longest()
        self._world.reset(episode.task)
        self._recorder.improper.clear()
        for text in NO_ACTIONS:
            answer = self._world.step(text)
            self._recorder.see(answer)
            if answer.done:
                raise _Failed(f"the text {text[:40]!r}, which is no action, ended the episode")
        if self._recorder.improper:
            raise _Failed(f"the answer to text that is no action: {self._recorder.improper[0]}")
        if self._exact:
            for action, mark in zip(episode.actions, episode.digests[1:], strict=True):
                _step_alike(self._world, action, None, mark)
        return f"{len(NO_ACTIONS)} texts that are no actions were answered" + (" and changed nothing" if self._exact else ""), {}

    def _check_fidelity(self) -> Outcome:
        """What was declared against what was seen."""
        if self._exact and self.verdicts["second_process"] != "fail":
            snapshots = self.fidelity is Fidelity.SNAPSHOT and self.verdicts["rollback"] == "pass"
            self.measured = Fidelity.SNAPSHOT if snapshots else Fidelity.REPLAY
        best_first = list(Fidelity)
        if best_first.index(self.measured) > best_first.index(self.fidelity):
            found = f"keeps no more than '{self.measured}'; see replay, second_process and rollback"
            raise _Failed(f"declares '{self.fidelity}' and {found}")
        hint = " and keeps it" if self.measured is self.fidelity else f", and '{self.measured}' held on every episode here"
        return f"declares '{self.fidelity}'{hint}", {}


def _step_alike(world: World, action: str, follower: World | None, mark: str | None = None) -> None:
    """One step that must give the recorded digest (unless None) and, in the follower, the same observation."""
    found = world.step(action)
    if mark is not None and observation_digest(found) != mark:
        raise EpisodeError(f"playing on, turn {world.turn - 1} ({action!r:.60}) gave another observation: {found.text[:160]!r}")
    if follower is None:
        return
    followed = follower.step(action)
    if observation_digest(found) != observation_digest(followed):
        texts = f"{found.text[:120]!r} and {followed.text[:120]!r}"
        raise EpisodeError(f"playing on at turn {world.turn - 1}, snapshot and replay differ: {texts}")
