"""The part of `leafe check-env` that plays on from recorded episodes: the expert in any state, two worlds at a time, effective actions."""

from __future__ import annotations

import random
from collections.abc import Sequence

from leafe.envs.base import Environment, Fidelity, Placement
from leafe.envs.check_findings import Failed, Outcome, Skipped
from leafe.envs.check_play import NO_ACTIONS, Episode, Recorder
from leafe.envs.differences import difference
from leafe.envs.settled import fewest_turns
from leafe.envs.world import World, observation_digest
from leafe.errors import EpisodeError, UserError
from leafe.records import Observation, Task

EARLY = len(NO_ACTIONS)  # turns in which tried actions are compared with text that is no action
SOME = 4  # tasks for the more expensive checks
SLOW, QUICK = 0.005, 0.0005  # seconds a step: from the first on, a world should not be called in line; below the second it may be


def check_actions(world: World, episodes: Sequence[Episode]) -> Outcome:
    """At least one tried action is answered differently from text that is no action."""
    if world.environment.free_text:
        return "takes every text for an action", {}
    nothing = "nothing that was tried changed anything; give example_actions()"
    tried = {action for episode in episodes for action in episode.actions} - set(NO_ACTIONS)
    if not tried:
        raise Failed(f"{nothing}, or expert(): without them only text that is no action can be tried")
    for task in list(dict.fromkeys(episode.task.id for episode in episodes))[:SOME]:
        own = [episode for episode in episodes if episode.task.id == task]
        told = {
            _told(action, seen)
            for episode in own
            for action, seen in zip(episode.actions[:EARLY], episode.observations[1:], strict=False)
        }
        if told - _nonsense(world, own[0].task):
            return f"{len(tried)} different actions were tried, and some did something", {"actions": len(tried)}
    example = f"{sorted(tried)[0]!r:.60} is answered as {NO_ACTIONS[2]!r} is"
    raise Failed(f"{nothing} that fit the state: {example}")


def _nonsense(world: World, task: Task) -> set[tuple[str, bool, bool, float]]:
    """The answers to text that is no action, in the first turns of a task."""
    told: set[tuple[str, bool, bool, float]] = set()
    world.reset(task)
    for text in NO_ACTIONS:
        try:
            told.add(_told(text, world.step(text)))
        except EpisodeError:
            return told
    return told


def _told(action: str, seen: Observation) -> tuple[str, bool, bool, float]:
    """The compared parts of an answer, with the action left out where the text repeats it."""
    text = seen.text.replace(action.strip(), "") if action.strip() else seen.text
    return text, seen.done, seen.success, seen.reward


def check_together(world: World, other: World, episodes: Sequence[Episode]) -> Outcome:
    """Two instances in one process, called in turn, each show what they showed alone."""
    environment = world.environment
    if environment.placement is Placement.PROCESS or environment.instances == 1:
        raise Skipped("two of it are never in one process")
    played = [episode for episode in episodes if episode.actions]
    for number, first in enumerate(played):
        second = next((one for one in _from(played, number + 1) if one.task.id != first.task.id), played[number - 1])
        _in_turn((world, first), (other, second))
    return f"{len(played)} pairs of episodes, played in turn in two instances, were as they were alone", {"pairs": len(played)}


def check_reseed(world: World, other: World, episodes: Sequence[Episode]) -> Outcome:
    """After `reseed` equal seeds show the same, and rollbacks into what was drawn anew go on as it did.

    The finding notes where `reseed` never changed anything. The instances play one after the other, since they may share a process's state.
    """
    changed, played = 0, [episode for episode in episodes if len(episode.actions) > 1]
    for number, episode in enumerate(played):
        turn = number % (len(episode.actions) - 1)
        shown_here = _drawn_anew(world, episode, turn, seed=number)
        if world.fidelity is not Fidelity.NONE:
            _go_back_across(world, episode, turn, shown_here)
        shown_there = _drawn_anew(other, episode, turn, seed=number)
        for place, (seen, again) in enumerate(zip(shown_here, shown_there, strict=False)):
            if observation_digest(seen) != observation_digest(again):
                what = difference(seen, again, ("one", "the other"))
                raise Failed(f"after reseed({number}) two instances differ, {episode.task.id} at turn {place}: {what}")
        changed += any(observation_digest(seen) != mark for seen, mark in zip(shown_here, episode.digests, strict=False))
    note = "" if changed else ", and it was not seen to change anything"
    return f"{len(played)} episodes that draw anew on the way are the same again{note}", {"changed": changed}


def _drawn_anew(world: World, episode: Episode, turn: int, *, seed: int) -> tuple[Observation, ...]:
    """Plays an episode with another seed from its action number `turn` on, counted from 0; the observations, the reset's first."""
    world.reset(episode.task)
    for place, action in enumerate(episode.actions):
        if world.step(action, seed if place == turn else None).done:
            break
    return world.observations


def _go_back_across(world: World, episode: Episode, turn: int, drawn_anew: Sequence[Observation]) -> None:
    """Rollbacks to the turns after a reseed, each played on; then to before it, where the task's own draws go on."""
    actions, last = world.actions, world.turn
    before = episode.observations[: len(drawn_anew)]
    places = sorted({turn + 2, (turn + 2 + last) // 2, last}, reverse=True)
    for back, wanted in [*((place, drawn_anew) for place in places), (turn + 1, before)]:
        where = f"{episode.task.id}, reseed before turn {turn + 1}, back to turn {back}"
        try:
            world.rollback(back)
            for place in range(back, len(wanted)):
                found = world.step(actions[place - 1])
                if observation_digest(found) != observation_digest(wanted[place]):
                    what = difference(wanted[place], found, ("before", "after the rollback"))
                    mend = "a snapshot holds the generator's state, as getstate() gives it, since no seed of the task tells it then"
                    raise Failed(f"{where}: turn {place} goes on otherwise: {what}; {mend}")
        except EpisodeError as error:
            raise Failed(f"{where}: {error}") from error


def _from(episodes: Sequence[Episode], number: int) -> Sequence[Episode]:
    return [*episodes[number % len(episodes) :], *episodes[: number % len(episodes)]]


def _in_turn(*places: tuple[World, Episode]) -> None:
    """Plays two episodes turn by turn, the second a turn behind, and compares."""
    for tick in range(max(len(episode.observations) for _, episode in places) + 1):
        for behind, (world, episode) in enumerate(places):
            turn = tick - behind
            if not 0 <= turn < len(episode.observations):
                continue
            seen = world.step(episode.actions[turn - 1]) if turn else world.reset(episode.task)
            if observation_digest(seen) != episode.digests[turn]:
                what = difference(episode.observations[turn], seen, ("alone", "beside another"))
                mend = "keep state on self, and draw from a generator of the instance's own, as random.Random(seed)"
                raise Failed(
                    f"two instances in one process disturb each other, {episode.task.id} after {turn} turns: {what}; {mend}, "
                    "or set placement = Placement.PROCESS"
                )


def check_fewest_turns(world: World, episodes: Sequence[Episode]) -> Outcome:
    """No task was solved in fewer turns than it is said to take."""
    known = 0
    for episode in episodes:
        try:
            least = fewest_turns(world.environment, episode.task)
        except UserError as error:
            raise Failed(str(error)) from error
        known += least is not None
        if least is not None and episode.success and len(episode.actions) < least:
            raise Failed(f"{episode.task.id} is said to take at least {least} turns, and was solved in {len(episode.actions)}")
    return f"no task was solved in fewer turns than fewest_turns() says, which is known in {known} of {len(episodes)} episodes", {
        "known": known
    }


class ExpertTrial:
    """Asks the expert of a world at its start, on the way and off it."""

    def __init__(self, world: World, recorder: Recorder, draw: random.Random, *, exact: bool) -> None:
        self._world, self._recorder, self._draw, self._exact = world, recorder, draw, exact

    def outcome(self) -> Outcome:
        """Whether the plans of `expert` solve the task, wherever it is asked."""
        played = [episode for episode in self._recorder.episodes if episode.kind == "expert"]
        if not played:
            raise Skipped("expert() knows no solution, and need not")
        lost = [episode for episode in played if not episode.success]
        if lost:
            raise Failed(f"{len(lost)} of {len(played)} expert episodes do not end in success; first: {lost[0].task.id}")
        asked = 0
        if self._exact:  # where luck decides, a plan may fail
            for episode in played[:SOME]:
                self._asked_on_the_way(episode)
                self._followed(episode.task)
                asked += sum(self._off_the_way(episode.task) for _ in range(2))
        late = sum(len(episode.actions) > episode.task.horizon for episode in played)
        note = f"; {late} of them take more turns than the task's horizon" if late else ""
        elsewhere = f", and {asked} plans from other states do" if asked else ""
        return f"all {len(played)} expert episodes end in success{elsewhere}{note}", {"solved": len(played), "beyond_horizon": late}

    def _asked_on_the_way(self, episode: Episode) -> None:
        """Asking changes nothing, and asking twice gives the same answer."""
        world, stops = self._world, self._draw.sample(range(len(episode.actions)), min(3, len(episode.actions)))
        world.reset(episode.task)
        for turn, action in enumerate(episode.actions):
            if turn in stops and list(world.environment.expert()) != list(world.environment.expert()):
                raise Failed(f"expert() answers differently when it is asked twice, {episode.task.id} after {turn} turns")
            if observation_digest(seen := world.step(action)) != episode.digests[turn + 1]:
                what = difference(episode.observations[turn + 1], seen, ("unasked", "asked"))
                raise Failed(f"asking expert() changes the episode, {episode.task.id} at turn {turn + 1}: {what}")

    def _followed(self, task: Task) -> None:
        """The expert, asked anew at every turn, reaches success."""
        self._world.reset(task)
        plan = self._plan()
        limit = 2 * len(plan) + 10
        for _ in range(limit):
            if not plan or self._world.observation.done:
                break
            self._world.step(plan[0])
            plan = self._plan()
        else:
            raise Failed(f"expert(), asked anew at every turn, wanders: {limit} turns without success in {task.id}")
        if self._world.observation.done and not self._world.observation.success:
            raise Failed(f"expert(), asked anew at every turn, ends {task.id} without success after {self._world.turn - 1} turns")

    def _off_the_way(self, task: Task) -> int:
        """A plan for the state after some other actions leads to success; returns how many plans were tried."""
        self._world.reset(task)
        for _ in range(self._draw.randint(1, 4)):
            if not self._world.observation.done:
                self._world.step(self._recorder.any_action())
        if self._world.observation.done or not (plan := self._plan()):
            return 0
        before = self._world.actions
        for action in plan:
            if not self._world.observation.done:
                self._world.step(action)
        if not self._world.observation.success:
            way = ", ".join(repr(action)[:40] for action in before)
            raise Failed(f"expert() is asked for a way from the present state: after {way} its plan does not solve {task.id}")
        return 1

    def _plan(self) -> list[str]:
        return list(self._world.environment.expert())


def check_any_text(world: World, task: Task) -> Outcome:
    """The effect of meaningless text where every text is an action: reported, never a failure."""
    ended = raised = 0
    for text in NO_ACTIONS:
        world.reset(task)
        try:
            ended += world.step(text).done
        except EpisodeError:
            raised += 1
    notes = (
        f"{ended} of {len(NO_ACTIONS)} that mean nothing end an episode, by the environment's own rules" if ended else "",
        f"{raised} of {len(NO_ACTIONS)} raise, which costs an attempt each" if raised else "",
    )
    raise Skipped("; ".join(filter(None, ("takes every text for an action", *notes))))


def advice_on_placement(environment: Environment, recorder: Recorder) -> Outcome:
    """The best placement for its calls, by the times of the played steps. Never a failure: times are no verdict."""
    spent = recorder.seconds["step"]
    step, share = sum(spent) / len(spent), min(1.0, recorder.step_work / max(sum(spent), 1e-9))
    now = environment.placement
    better = now
    if step >= SLOW and (now is Placement.INLINE or (now is Placement.THREAD and share > 0.5)):
        better = Placement.PROCESS if share > 0.5 else Placement.THREAD
    measured = f"a step takes {1000 * step:.3g} ms, {share:.0%} of it computing"
    figures = {"step_seconds": step, "computing": share, "advice": better.value}
    if better is not now:
        return f"{measured}: set placement = {str(better)!r}, or every other task waits for it", figures
    note = ""
    if now is not Placement.INLINE and step < QUICK:
        note = "; 'inline' would be quicker, unless it crashes or keeps state for the whole process"
    return f"{measured}: placement {str(now)!r} is right{note}", figures
