"""A teacher for any environment: a careless player plays it, a tutor finds where it went wrong, and play resumes from there.

Everything happens through the environment's contract, rollback included, so lessons look like trees of attempts: episodes
with no advice, episodes that follow one, and reflections on both. The part specific to a world is its `Tutor`; `OracleTutor` needs
nothing but the environment's expert.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from leafe.digest import seed_for
from leafe.envs.base import Environment
from leafe.envs.world import World
from leafe.errors import UserError
from leafe.nano.curriculum import Lesson, Lookback, Move
from leafe.records import Experience, Observation, Task

CHUNK = 64  # tasks asked for at a time
MIDWAY = 0.4  # share of lessons that also reflect before the end


@dataclass(frozen=True, slots=True)
class Situation:
    """The text that the player read before a turn, `advice` included, and for tutors only: the expert's actions and the possible ones."""

    text: str
    advice: str = ""
    best: tuple[str, ...] = ()
    possible: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Past:
    """An episode up to now. There is one situation more than there are actions: the present one."""

    task: Task
    situations: tuple[Situation, ...]
    actions: tuple[str, ...] = ()

    def before(self, turn: int) -> Past:
        """The episode when `turn` (from 1) was about to be taken."""
        return Past(self.task, self.situations[:turn], self.actions[: turn - 1])

    def unadvised(self) -> Past:
        """The same without the advice for the present turn, which a reflection does not read."""
        *earlier, now = self.situations
        return Past(self.task, (*earlier, replace(now, advice="")), self.actions)


class Tutor(Protocol):
    """Knows a world well enough to act badly in it on purpose and to name better actions."""

    oracle: bool  # whether situations need the expert's actions, which may cost a search each

    def habits(self, past: Past) -> dict[str, float]:
        """How often the careless player takes each action now; sums to 1."""
        ...

    def hint(self, past: Past, draw: random.Random) -> str:
        """The best continuation now, in the words of an experience; empty where there is none."""
        ...

    def faults(self, past: Past, draw: random.Random) -> Sequence[Experience]:
        """The faults of the episode, each with what to do instead, the most useful first."""
        ...


class OracleTutor:
    """Knows nothing of a world but its expert: a share `right` of the player's actions is the expert's, the rest any possible one."""

    oracle = True

    def __init__(self, right: float = 0.4, obedience: float = 0.95, ahead: int = 3) -> None:
        self._right, self._obedience, self._ahead = right, obedience, ahead

    def habits(self, past: Past) -> dict[str, float]:
        """See `Tutor.habits`."""
        now = past.situations[-1]
        advised = _followed(past)
        wanted, share = (advised, self._obedience) if advised else (next(iter(now.best), ""), self._right)
        possible = now.possible or now.best
        shares = dict.fromkeys(possible, (1.0 - share if wanted else 1.0) / len(possible)) if possible else {}
        if wanted:
            shares[wanted] = shares.get(wanted, 0.0) + (share if possible else 1.0)
        return shares

    def hint(self, past: Past, draw: random.Random) -> str:
        """See `Tutor.hint`."""
        best = past.situations[-1].best[: self._ahead]
        return f" Do {'; '.join(best)}." if best else ""

    def faults(self, past: Past, draw: random.Random) -> Sequence[Experience]:
        """Every turn after which the expert was no nearer to the end, the earliest first."""
        found = []
        for turn, (action, now, after) in enumerate(zip(past.actions, past.situations, past.situations[1:], strict=False), start=1):
            if now.best and action != now.best[0] and not 0 < len(after.best) < len(now.best):
                found.append(Experience(turn, f"{action} was wrong.{self.hint(past.before(turn), draw)}"))
        return found


def _followed(past: Past) -> str:
    """The action that the last advice names now; empty when it is used up or was left."""
    given = next((index for index in reversed(range(len(past.situations))) if past.situations[index].advice), None)
    if given is None or " Do " not in past.situations[given].advice:
        return ""
    plan = past.situations[given].advice.rpartition(" Do ")[2].removesuffix(".").split("; ")
    taken = past.actions[given:]
    return plan[len(taken)] if len(taken) < len(plan) and list(taken) == plan[: len(taken)] else ""


class WorldTeacher:
    """Lessons on the tasks of one split. `longest` bounds the turns of an episode; `retries` is how often each is played again."""

    def __init__(
        self,
        make_environment: Callable[[], Environment],
        tutor: Tutor,
        *,
        longest: int,
        split: str = "pretrain",
        retries: int = 2,
    ) -> None:
        self._make, self._tutor, self._longest, self._split, self._retries = make_environment, tutor, longest, split, retries

    def lessons(self, seed: int) -> Iterator[Lesson]:
        """An endless stream, a function of the seed."""
        draw = random.Random(seed_for("world-teacher", seed))
        world = World(self._make())
        for task in self._tasks(world.environment, draw):
            turns = self._longest if draw.random() < 0.5 else draw.randint(1, self._longest)
            task = replace(task, horizon=turns)
            past = self._play(world, Past(task, (self._situation(world, world.reset(task)),)), draw)
            for retry in range(self._retries + 1):
                yield self._lesson(past, world.observation.success, draw)
                faults = () if world.observation.success else self._tutor.faults(past, draw)
                if not faults or retry == self._retries:
                    break
                chosen = faults[0] if draw.random() < 0.7 else draw.choice(faults)
                world.rollback(chosen.turn)
                *earlier, now = past.before(chosen.turn).situations
                advised = (*earlier, replace(now, advice=chosen.text))
                past = self._play(world, Past(task, advised, past.actions[: chosen.turn - 1]), draw)

    def _tasks(self, environment: Environment, draw: random.Random) -> Iterator[Task]:
        while True:
            tasks = environment.tasks(self._split, CHUNK, draw.getrandbits(31))
            if not tasks:
                raise UserError(f"{environment.name} gives no tasks of the split {self._split!r} to teach on")
            yield from tasks

    def _situation(self, world: World, observation: Observation) -> Situation:
        if not self._tutor.oracle or observation.done:
            return Situation(observation.text)
        environment = world.environment
        return Situation(observation.text, "", tuple(environment.expert()), tuple(environment.example_actions()))

    def _play(self, world: World, past: Past, draw: random.Random) -> Past:
        """Plays carelessly to the horizon or the end."""
        while len(past.actions) < past.task.horizon and not world.observation.done:
            habits = self._tutor.habits(past)
            action = draw.choices(list(habits), list(habits.values()))[0]
            seen = self._situation(world, world.step(action))
            past = Past(past.task, (*past.situations, seen), (*past.actions, action))
        return past

    def _lesson(self, past: Past, solved: bool, draw: random.Random) -> Lesson:
        moves = []
        for turn, (action, after) in enumerate(zip(past.actions, past.situations[1:], strict=True), start=1):
            then = past.before(turn)
            hint = self._tutor.hint(then.unadvised(), draw)
            moves.append(Move(self._tutor.habits(then), action, after.text, hint, then.situations[-1].advice))
        return Lesson(past.task, past.situations[0].text, tuple(moves), tuple(self._lookbacks(past, solved, draw)))

    def _lookbacks(self, past: Past, solved: bool, draw: random.Random) -> Iterator[Lookback]:
        turns = len(past.actions)
        ends = [] if solved else [(turns, turns == past.task.horizon)]
        if turns > 1 and draw.random() < MIDWAY:
            ends.append((draw.randint(1, turns - 1), False))
        for after_turn, ended in ends:
            faults = self._tutor.faults(past.before(after_turn + 1).unadvised(), draw)
            # The first fault twice: going back to the earliest saves most turns.
            named = [*faults[:1], *faults[:1], *draw.sample(faults[1:], min(1, len(faults[1:])))]
            for experience in named:
                yield Lookback(after_turn, ended, experience)
            if not named:
                yield Lookback(after_turn, ended, None)
