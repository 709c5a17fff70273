"""ScienceWorld as an environment: elementary science in a house of ten rooms, in text, in the original simulator.

Success is a score of 100 and nothing else: an episode is also over once the wrong thing was focused on, which the simulator scores below
zero. Observations are the simulator's own words. There is no snapshot; going back is loading the task again and taking the same actions,
which the simulator answers with the same words because of the flags in `java`. Turns are not counted here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from leafe.envs.base import Environment, Fidelity
from leafe.errors import ReplayDiverged, UserError
from leafe.records import Observation, Task
from leafe.worlds.commands import without_stop
from leafe.worlds.scienceworld.catalogue import Spec, checked_simplifications, chosen_kinds, drawn, spec_of
from leafe.worlds.scienceworld.java import Options, needs
from leafe.worlds.scienceworld.pool import Pool
from leafe.worlds.scienceworld.simulator import Answer, Simulator

WON = 100
TOLD_AT_ONCE = 50
LEAST_HEAP = 128  # MiB, with which every task can be played; some of the simulator's own solutions want 256
POOL = Pool(Simulator)
# Cached answers of simulators: the goal of a variation, by the task's name and its number, and the simulator's own solutions.
_TOLD: dict[tuple[str, int], str] = {}
_SOLVED: dict[Spec, tuple[str, ...]] = {}


@dataclass
class Episode:
    """The loaded task and the simulator's answers: to the reset, then to each action."""

    spec: Spec
    actions: list[str] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    final: Observation | None = None


class ScienceWorld(Environment):
    """Thirty tasks of elementary science. Splits are the official ones: `train`, `dev` (also `valid`), `test`.

    `simplifications` are `easy`, `none` or a list separated by commas; `types` keeps some tasks, by name or number; `horizon` replaces the
    tasks' own limits. With `objects` every observation ends with what can be named in an action. `simulators` is how many Java processes
    there may be at once, for however many episodes, and `heap` how many MiB of heap each may take. `deterministic=false` leaves out the
    flags that make a replay exact: only to see what happens without them. The simulator itself reads actions without regard to case and
    articles; `lenient` leaves out a final full stop too.
    """

    name = "scienceworld"
    about = "elementary science in the original simulator (extra scienceworld, and Java); exact replay"
    fidelity = Fidelity.REPLAY
    actions_help = "Type help for the actions, objects for what can be named, task for what is wanted."

    def __init__(
        self,
        *,
        simplifications: str = "easy",
        types: str | None = None,
        horizon: int | None = None,
        objects: bool = False,
        simulators: int = 8,
        heap: int = 256,
        deterministic: bool = True,
        lenient: bool = False,
    ) -> None:
        for name, value, least in (("horizon", horizon, 1), ("simulators", simulators, 1), ("heap", heap, LEAST_HEAP)):
            if value is not None and value < least:
                raise UserError(f"scienceworld wants a {name} of at least {least}; found {value}")
        self._simplifications = checked_simplifications(simplifications)
        self._kinds = chosen_kinds(types, self._simplifications)
        self._horizon, self._objects, self._most = horizon, objects, simulators
        self._options, self._lenient = Options(deterministic, heap), lenient
        self._episode: Episode | None = None
        needs()

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        """`count` variations of a split, one of each task in turn. See `Environment.tasks`."""
        chosen = [pair for _, pair in zip(range(count), drawn(self._kinds, split, seed), strict=False)]
        if len(chosen) < count:
            raise UserError(
                f"wanted {count} tasks of split {split!r}, found {len(chosen)} among {len(self._kinds)} kinds; ask for fewer"
            )
        self._be_told([(kind.name, variation) for kind, variation in chosen])
        return [self._task(Spec(kind.name, number, self._simplifications), self._horizon or kind.turns) for kind, number in chosen]

    def _task(self, spec: Spec, horizon: int) -> Task:
        payload = {"task": spec.kind, "variation": spec.variation, "simplifications": spec.simplifications}
        return Task(spec.id, self.name, _TOLD[spec.kind, spec.variation], horizon, payload)

    def _be_told(self, wanted: Sequence[tuple[str, int]]) -> None:
        """Fetches the goals of variations that are not known yet."""
        unknown = sorted(set(wanted) - _TOLD.keys())
        if not unknown:
            return
        asking = object()  # not this environment, whose episode may go on
        with POOL.lent(asking, self._options, self._most) as (simulator, _):
            for kind in sorted({kind for kind, _ in unknown}):
                numbers = [number for other, number in unknown if other == kind]
                for some in (numbers[start : start + TOLD_AT_ONCE] for start in range(0, len(numbers), TOLD_AT_ONCE)):
                    told = simulator.descriptions(kind, some)
                    _TOLD.update(((kind, number), text) for number, text in zip(some, told, strict=True))
        POOL.leave(asking)

    def reset(self, task: Task) -> Observation:
        """Loads the task and looks around."""
        self._episode = None
        spec = spec_of(task)
        with POOL.lent(self, self._options, self._most) as (simulator, _):
            answer = simulator.load(spec)
            self._episode = Episode(spec, answers=[answer])
            return self._shown(simulator, answer)

    def step(self, action: str) -> Observation:
        """Takes one action. After the end the last observation is repeated."""
        episode = self._present()
        if episode.final is not None:
            return episode.final
        with self._simulator(episode) as simulator:
            taken = without_stop(action) if self._lenient else action.strip()
            answer = simulator.step(taken)
            episode.actions.append(taken)
            episode.answers.append(answer)
            return self._shown(simulator, answer)

    def _shown(self, simulator: Simulator, answer: Answer) -> Observation:
        success = answer.score == WON
        done = success or answer.completed or answer.score < 0
        text = f"{answer.text}\nObjects: {', '.join(simulator.objects())}." if self._objects and not done else answer.text
        observation = Observation(text, done, success, answer.score / WON, {"score": answer.score})
        if done:
            self._present().final = observation
        return observation

    @contextmanager
    def _simulator(self, episode: Episode) -> Iterator[Simulator]:
        """A simulator in the episode's state: its own, or another that is brought there and compared on the way."""
        with POOL.lent(self, self._options, self._most) as (simulator, mine):
            if not mine:
                _lead(simulator, episode)
            yield simulator

    def _present(self) -> Episode:
        if self._episode is None:
            raise RuntimeError("no episode: call reset first")
        return self._episode

    def expert(self) -> Sequence[str]:
        """The simulator's own solution, at the start of an episode only, where it holds; seldom the shortest."""
        episode = self._present()
        if episode.actions or episode.final:
            return ()
        if episode.spec not in _SOLVED:
            with self._simulator(episode) as simulator:
                _SOLVED[episode.spec] = _solution(simulator, episode.spec)
                simulator.load(episode.spec)
        return _SOLVED[episode.spec]

    def example_actions(self) -> Sequence[str]:
        """Every action that the simulator would take now, up to some thousands; asking takes longer than a step."""
        episode = self._present()
        if episode.final is not None:
            return ()
        with self._simulator(episode) as simulator:
            return simulator.valid_actions()

    def close(self) -> None:
        """Releases the simulator for other environments."""
        self._episode = None
        POOL.leave(self)


def _solution(simulator: Simulator, spec: Spec) -> tuple[str, ...]:
    """The simulator's own solution up to where all is done. It is played, because in some variations it loses; empty there."""
    path = simulator.gold_path(spec)
    simulator.load(spec)
    for turn, action in enumerate(path, start=1):
        if simulator.step(action).score == WON:
            return path[:turn]
    return ()


def _lead(simulator: Simulator, episode: Episode) -> None:
    """Brings another simulator to the episode's state. Raises `ReplayDiverged` at the first answer that differs."""
    for turn, recorded in enumerate(episode.answers):
        found = simulator.step(episode.actions[turn - 1]) if turn else simulator.load(episode.spec)
        if found != recorded:
            raise ReplayDiverged(
                f"another simulator answers turn {turn} of {episode.spec.id} with {found!r:.160}, not {recorded!r:.160}"
            )
