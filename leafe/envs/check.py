"""Proves what an environment declares: `leafe check-env NAME`.

Episodes are replayed in the same instance, in another one and in another process; random turns are reached again and played on from;
every observation is compared by its digest. A snapshot is compared with a replay, on the recorded actions and on new ones. A pass covers
the tasks and turns that were drawn and no others; times and memory are never verdicts.
"""

from __future__ import annotations

import math
import random
import tracemalloc
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from leafe.digest import digest, seed_for
from leafe.envs.alarm import ENDS_MORE
from leafe.envs.base import Environment, Fidelity
from leafe.envs.check_findings import CheckReport, Failed, Finding, Outcome, Skipped, Verdict
from leafe.envs.check_play import NO_ACTIONS, Episode, Recorder
from leafe.envs.check_process import ask_another_process
from leafe.envs.check_tasks import check_payload, check_splits, check_tasks, copied
from leafe.envs.check_worlds import (
    ExpertTrial,
    advice_on_placement,
    check_actions,
    check_any_text,
    check_fewest_turns,
    check_reseed,
    check_together,
)
from leafe.envs.differences import difference, shown
from leafe.envs.settled import settled
from leafe.envs.wording import complaint
from leafe.envs.world import World, observation_digest
from leafe.errors import EpisodeError, ReplayDiverged, UserError
from leafe.records import Observation, Task, decode, encode

__all__ = ["CheckReport", "Finding", "check_environment"]
FIRST_AGAIN = ("first", "again")


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

    The registry makes the same environment in another process from `spec` and `arguments`; without a spec that check is skipped. Nothing
    that a made environment raises is raised here: it becomes a finding. After a failure of the first two checks, which give the others
    their tasks and episodes, the others are left out. Only a `UserError` of `tasks` is raised: the person's input cannot be used then,
    which is no finding about the environment.
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
    if left := inspection.unclosed:
        findings.append(Finding("close", "fail", f"close() fails, so what a world holds may outlive it; a run goes on: {left[0]}"))
    return CheckReport(name, inspection.fidelity, inspection.measured, tuple(findings), figures)


def _find(name: str, check: Callable[[], Outcome]) -> Finding:
    try:
        sentence, figures = check()
    except Skipped as reason:
        return Finding(name, "skipped", str(reason))
    except Failed as reason:
        return Finding(name, "fail", str(reason))
    except ENDS_MORE:
        raise
    except BaseException as error:  # this command reports whatever a foreign environment raises
        if name == "tasks" and isinstance(error, UserError):
            raise
        return Finding(name, "fail", f"raised {type(error).__name__}: {error}")
    return Finding(name, "pass", sentence, figures)


class _Inspection:
    """Two instances of one environment, or one that stands for both, the episodes played in them, and a check for each promise."""

    def __init__(self, make: Callable[[], Environment], seed: int, split: str, count: int) -> None:
        self._make, self._world = make, World(make())
        self._other = self._world if self._world.environment.instances == 1 else World(make())
        self._seed, self._split, self._count = seed, split, count
        self._draw = random.Random(seed_for("check-env", seed))
        self._recorder = Recorder(self._world, self._draw)
        self._tasks: list[Task] = []
        self._kept: list[Task] = []  # copies of the tasks as drawn, because play may change the originals
        self._exact = False
        self.verdicts: dict[str, Verdict] = {}
        self.unclosed: list[str] = []
        self.fidelity = self._world.fidelity
        self.measured = Fidelity.NONE

    def checks(self, rollbacks: int, spec: str | None, arguments: Mapping[str, Any]) -> list[tuple[str, Callable[[], Outcome]]]:
        """Every check in its order; later ones use what earlier ones found."""
        kind = type(self._world.environment)
        draws, bounds = kind.reseed is not Environment.reseed, kind.fewest_turns is not Environment.fewest_turns
        return [
            ("tasks", self._check_tasks),
            ("splits", lambda: check_splits(self._world.environment, self._split, self._seed)),
            ("episodes", self._check_episodes),
            ("payload", lambda: check_payload(self._tasks, self._kept)),
            ("actions", lambda: check_actions(self._world, self._recorder.episodes)),
            ("reset", self._check_reset),
            ("text", self._check_text),
            ("replay", self._check_replay),
            ("expert", lambda: ExpertTrial(self._world, self._recorder, self._draw, exact=self._exact).outcome()),
            *([("fewest_turns", lambda: check_fewest_turns(self._world, self._recorder.episodes))] if bounds else []),
            ("together", self._check_together),
            ("second_process", lambda: self._check_second_process(spec, arguments)),
            ("rollback", lambda: self._check_rollback(rollbacks)),
            *([("reseed", self._check_reseed)] if draws else []),
            ("after_end", self._check_after_end),
            ("invalid_action", self._check_invalid_action),
            ("placement", lambda: advice_on_placement(self._world.environment, self._recorder)),
            ("fidelity", self._check_fidelity),
        ]

    def close(self) -> None:
        """Closes the instances, and keeps in `unclosed` what they raise."""
        for world in dict.fromkeys((self._world, self._other)):
            try:
                world.close()
            except EpisodeError as error:
                self.unclosed.append(str(error))

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
            return figures  # the findings report what it raises
        finally:
            tracemalloc.stop()
        return figures | {"episode_bytes": held, "episode_peak_bytes": peak, "episode_turns": len(episode.actions)}

    def _longest(self) -> Episode:
        return max(self._recorder.episodes, key=lambda episode: len(episode.actions))

    def _check_tasks(self) -> Outcome:
        """The same tasks twice and in another instance."""
        places = [self._world.environment, self._world.environment, self._other.environment]
        drawn = [list(place.tasks(self._split, self._count, self._seed)) for place in places]
        outcome = check_tasks(drawn, places[0].name, self._count)
        self._tasks, self._kept = drawn[0], copied(drawn[0])
        return outcome

    def _check_episodes(self) -> Outcome:
        """Tasks can be played at all."""
        self._recorder.record(self._tasks)
        episodes = self._recorder.episodes
        turns = sum(len(episode.actions) for episode in episodes)
        if not turns:
            raise Failed("no action could be taken; every episode ended at its reset")
        return f"{len(episodes)} episodes with {turns} turns were played", {"episodes": len(episodes), "turns": turns}

    def _check_reset(self) -> Outcome:
        """The first observation of a task is the same whatever was played before, and in another instance."""
        starts = {episode.task.id: episode.observations[0] for episode in self._recorder.episodes}
        for task in self._draw.sample(self._tasks, len(self._tasks)):
            for world in (self._world, self._other, self._world):
                if observation_digest(seen := world.reset(task)) != observation_digest(starts[task.id]):
                    what = f"task {task.id!r} starts otherwise when it is reset again: {difference(starts[task.id], seen, FIRST_AGAIN)}"
                    raise Skipped(f"declares 'none', and {what}") if self.fidelity is Fidelity.NONE else Failed(what)
        return f"{len(self._tasks)} tasks start with the same observation every time", {}

    def _check_text(self) -> Outcome:
        """Observations are printable text, and the rest of them is JSON."""
        improper = self._recorder.improper
        if improper:
            raise Failed(f"{len(improper)} observations are not as they should be; first: {improper[0]}")
        wordless = next(filter(None, (complaint(episode.observations[0].text) for episode in self._recorder.episodes)), "")
        return "every observation is printable text and JSON" + (f"; but {wordless}" if wordless else ""), {}

    def _check_replay(self) -> Outcome:
        """Reset and the same actions give the same observations, in both instances."""
        failures, done = [], 2 * len(self._recorder.episodes)
        for episode in self._recorder.episodes:
            for world in (self._world, self._other):
                try:
                    self._recorder.timed("replay", world.repeat, episode.task, episode.actions, episode.observations)
                except EpisodeError as error:
                    failures.append(f"{episode.task.id}: {error}")
        self._exact = not failures
        if failures and self.fidelity is Fidelity.NONE:
            raise Skipped(f"declares 'none', and {len(failures)} of {done} replays differ indeed")
        if failures:
            raise Failed(f"{len(failures)} of {done} replays differ; first: {failures[0]}")
        return f"{done} replays gave the recorded observations", {"replays": done}

    def _check_reseed(self) -> Outcome:
        """After `reseed`, equal seeds give equal observations."""
        if not self._exact:
            raise Skipped("replays differ already without it")
        return check_reseed(self._world, self._other, self._recorder.episodes)

    def _check_together(self) -> Outcome:
        """Two instances used in turn behave as each does alone."""
        if not self._exact:
            raise Skipped("replays differ already in one instance alone")
        return check_together(self._world, self._other, self._recorder.episodes)

    def _check_second_process(self, spec: str | None, arguments: Mapping[str, Any]) -> Outcome:
        """The same tasks and observations in a fresh process with another hash seed."""
        if spec is None:
            raise Skipped("give the environment by name or as module:Class to have it made in another process")
        episodes = [] if self.fidelity is Fidelity.NONE else self._recorder.episodes
        numbers = {task.id: number for number, task in enumerate(self._kept)}
        played = [{"task": numbers[one.task.id], "actions": one.actions, "digests": one.digests} for one in episodes]
        draw = {"split": self._split, "count": self._count, "seed": self._seed}
        response = self._ask_elsewhere({"spec": spec, "arguments": arguments, "episodes": played, **draw})
        if response["tasks"] != digest([encode(task) for task in self._kept]):
            raise Failed("another process draws other tasks; a builtin hash(), the order of a set or an unseeded draw does that")
        differing = [(episode, found) for episode, found in zip(episodes, response["episodes"], strict=True) if found]
        if differing:
            episode, found = differing[0]
            what = difference(episode.observations[found["turn"]], decode(Observation, found["seen"]), ("here", "there"))
            first = f"first: {episode.task.id} ({episode.kind}) after {found['turn']} turns: {what}"
            raise Failed(f"{len(differing)} of {len(episodes)} episodes differ in another process; {first}")
        return f"a second process gives the same tasks and the same {len(episodes)} episodes", {"episodes": len(episodes)}

    def _ask_elsewhere(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Asks a second process; where no third instance may exist, those here are closed meanwhile, and made anew."""
        if not 0 < self._world.environment.instances < 3:
            return ask_another_process(request)
        self.close()
        try:
            return ask_another_process(request)
        finally:
            for world in dict.fromkeys((self._world, self._other)):
                world.environment = settled(self._make())

    def _check_rollback(self, rollbacks: int) -> Outcome:
        """Random turns are reached again, and playing on gives the recorded observations; half of the time after a detour."""
        if self.fidelity is Fidelity.NONE:
            raise Skipped("declares 'none': exploration falls back to fresh attempts")
        played = [episode for episode in self._recorder.episodes if episode.actions]
        failures, done = [], 0
        for episode in played:
            live = self._stand(episode)
            for _ in range(math.ceil(rollbacks / len(played))):
                turn, detour, done = self._draw.randint(1, len(live)), done % 2 == 1, done + 1
                try:
                    live = self._go_back(episode, live, turn, detour=detour)
                except EpisodeError as error:
                    failures.append(f"{episode.task.id}, back to turn {turn}: {error}")
                    live = self._stand(episode)
        if failures:
            raise Failed(f"{len(failures)} of {done} rollbacks went wrong; first: {failures[0]}")
        against = "; snapshots agree with replays" if self.fidelity is Fidelity.SNAPSHOT else ""
        return f"{done} rollbacks reached their turn and went on as recorded{against}", {"rollbacks": done}

    def _stand(self, episode: Episode) -> list[tuple[str, Observation]]:
        """Plays an episode without comparing; returns its actions with their new observations."""
        self._world.reset(episode.task)
        for action in episode.actions:
            self._world.step(action)
        return list(zip(self._world.actions, self._world.observations[1:], strict=True))

    def _go_back(
        self, episode: Episode, live: list[tuple[str, Observation]], turn: int, *, detour: bool
    ) -> list[tuple[str, Observation]]:
        """One rollback, played on to the end of the episode; returns it as it stands then, and raises what went wrong."""
        world, taken = self._world, []
        self._recorder.timed("rollback", world.rollback, turn)
        if detour:
            for _ in range(self._draw.randint(1, 3)):
                if not world.observation.done:
                    action = self._recorder.any_action()
                    taken.append((action, world.step(action)))
            world.rollback(turn)
        for action, showed in live[turn - 1 :]:
            _step_alike(world, action, showed)
        if not taken or self.fidelity is not Fidelity.SNAPSHOT:
            return live
        # In the same instance, since a second one may share its process's state, or may not exist.
        try:
            actions, showed_before = zip(*live[: turn - 1], *taken, strict=True)
            world.repeat(episode.task, actions, (world.observations[0], *showed_before))
        except ReplayDiverged as error:
            raise EpisodeError(f"new actions show something else after a restored snapshot than after a replay: {error}") from error
        return self._stand(episode)

    def _check_after_end(self) -> Outcome:
        """An ended episode stays ended, whatever is done in it."""
        ended = sum(episode.done for episode in self._recorder.episodes)
        if not ended:
            raise Skipped("no episode came to an end of the environment's own")
        if self._recorder.went_on:
            raise Failed(f"an ended episode goes on: {self._recorder.went_on[0]}")
        return f"{ended} ended episodes stayed ended", {"ended": ended}

    def _check_invalid_action(self) -> Outcome:
        """Text that is no action is answered, ends nothing and changes nothing."""
        if self._world.environment.free_text:
            return check_any_text(self._world, self._longest().task)
        self._say_nonsense(self._longest(), 0)
        played = [episode for episode in self._recorder.episodes if episode.actions]
        for episode in sorted(played, key=lambda one: one.kind != "expert")[:4]:  # its middle is most likely a state of its own
            self._say_nonsense(episode, len(episode.actions) // 2)
        for episode in self._draw.sample(played, min(3, len(played))):
            self._say_nonsense(episode, self._draw.randrange(len(episode.actions)))
        return f"{len(NO_ACTIONS)} texts that are no actions were answered" + (" and changed nothing" if self._exact else ""), {}

    def _say_nonsense(self, episode: Episode, turn: int) -> None:
        """Plays an episode, with text that is no action after `turn` turns of it."""
        world, before, after = self._world, episode.actions[:turn], episode.actions[turn:]
        world.reset(episode.task)
        for action in before if self._exact else ():
            world.step(action)
        self._recorder.improper.clear()
        for text in NO_ACTIONS:
            answer = world.step(text)
            self._recorder.see(answer)
            if answer.done:
                mend = "where that is a rule of the environment's own, set free_text = True, for then every text is an action"
                raise Failed(f"the text {text[:40]!r}, which is no action, ended the episode with {shown(answer)}; {mend}")
        if self._recorder.improper:
            raise Failed(f"the answer to text that is no action: {self._recorder.improper[0]}")
        for action, seen in zip(after, episode.observations[turn + 1 :], strict=True) if self._exact else ():
            _step_alike(world, action, seen)

    def _check_fidelity(self) -> Outcome:
        """Compares the declared fidelity with the observed one."""
        if self._exact and self.verdicts["second_process"] != "fail":
            snapshots = self.fidelity is Fidelity.SNAPSHOT and self.verdicts["rollback"] == "pass"
            self.measured = Fidelity.SNAPSHOT if snapshots else Fidelity.REPLAY
        best_first = list(Fidelity)
        if best_first.index(self.measured) > best_first.index(self.fidelity):
            found = f"keeps no more than '{self.measured}'; see replay, second_process and rollback"
            raise Failed(f"declares '{self.fidelity}' and {found}")
        hint = " and keeps it" if self.measured is self.fidelity else f", and '{self.measured}' held on every episode here"
        return f"declares '{self.fidelity}'{hint}", {}


def _step_alike(world: World, action: str, wanted: Observation) -> None:
    """One step that must give `wanted`."""
    found = world.step(action)
    if observation_digest(found) != observation_digest(wanted):
        what = difference(wanted, found, ("recorded", "now"))
        raise EpisodeError(f"playing on, turn {world.turn - 1} ({action!r:.60}) differs: {what}")
