"""Passes over the training tasks with a growing memory: attempts that read it, a look back at each, and the lessons that are kept.

    [attempts at `batch` tasks -> a look back at each -> the memory takes in what was learned] until the budget is used up

The budget is that of `explore`, in turns a task; an attempt begins only if a whole one fits into the rest. The attempts of a batch read
the memory as it was before the batch. All answers of the engine and the worlds are journaled, so a killed run is fed the same answers
and ends with the same memory, byte for byte.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field

from leafe.digest import canonical
from leafe.errors import UserError
from leafe.forest.builder import Rules, Start, TreeBuilder
from leafe.forest.driver import Rollout, drive
from leafe.forest.effects import Play
from leafe.forest.faults import check_command, faults_of
from leafe.forest.first_wave import WAVE, FirstWave, forget_failures
from leafe.forest.journal import Journal
from leafe.forest.play import Played, play
from leafe.forest.reflect import reflect
from leafe.forest.store import ForestWriter
from leafe.jsonl import write_text_atomically
from leafe.memory.questions import Questions
from leafe.recall import Remembered, read_memory, write_memory
from leafe.records import BROKEN, Ask, Completion, Tree
from leafe.replies.blocks import one_line
from leafe.run import RunDirectory
from leafe.settings import RunConfig, Settings
from leafe.stages import Made, Policy, Stage

if TYPE_CHECKING:
    from leafe.engines.base import Engine
    from leafe.lab import Lab

EMPTY = "no lesson could be kept; the arm is the model without a memory"


class MemorySettings(Settings):
    """`start` is the folder of a model, such as another run's checkpoint; empty for the run's model. `epochs` is the most passes over the
    training tasks, `batch` the number of tasks that are played before the memory is updated.
    """

    start: str = ""
    epochs: int = Field(5, ge=1)
    batch: int = Field(8, ge=1)


def check_start(config: RunConfig, method: str, start: str) -> None:
    """Raises `UserError` for another model than the run's if a server plays."""
    if start and config.engine.kind != "transformers":
        raise UserError(
            f"{method}.start wants engine.kind=transformers, since a server serves the run's own model only; found"
            f" engine.kind={config.engine.kind}: type model={start}"
        )


def check_memory(config: RunConfig, method: str, start: str) -> None:
    """`check_start`, and raises `UserError` where tasks that are solved were to be left to others."""
    check_start(config, method, start)
    if found := config.explore.stop_when_solved:
        raise UserError(
            f"method {method} plays all tasks alike and leaves none once it is solved; explore.stop_when_solved: wanted 0, found {found};"
            " type explore.stop_when_solved=0"
        )


def measured_start(lab: Lab, run: RunDirectory, model: Path) -> Iterator[Stage]:
    """The arms that the method's arm is compared with: `base`, and `start` if it plays with another model."""
    yield lab.measure(run, "base", Policy(lab.base))
    if model != lab.base:
        yield lab.measure(run, "start", Policy(model))


def adaptation_stage(lab: Lab, run: RunDirectory, name: str, *, settings: MemorySettings, make: Callable[[], Memory]) -> Stage:
    """The stage `explore NAME`, with the initial memory of `make`. Raises `UserError` if the budget holds no whole attempt."""
    turns, horizons = lab.config.explore.turns, [task.horizon for task in lab.experiment.tasks("train")]
    if min(horizons) > turns:
        raise UserError(
            f"method {name} plays whole attempts, and the budget of {turns} turns a task does not hold one of {min(horizons)};"
            f" type explore.turns={max(horizons)} or more"
        )

    def work() -> Made:
        return Adaptation(lab, run, make(), name=name, settings=settings).work()

    return Stage(f"explore {name}", work, verb="explore", forest=name)


@dataclass(frozen=True, slots=True)
class Lesson:
    """The lesson of one attempt: `told` is of the method's type, None if nothing could be read or was learned."""

    tree: TreeBuilder
    played: Played
    told: Any

    @property
    def key(self) -> str:
        """A name of the attempt, unique in a run."""
        return f"{self.tree.task.id}/{self.played.attempt.index}"


class Memory(Protocol):
    """The memory between attempts. It yields its questions to the policy; `questions` counts their cost."""

    questions: Questions

    def rules(self, rules: Rules) -> Rules:
        """The rules with which an attempt reads the present memory."""
        ...

    def look_back(self, builder: TreeBuilder, played: Played) -> Play[Any]:
        """The lesson of an attempt, or None."""
        ...

    def take_in(self, lessons: Sequence[Lesson]) -> Play[None]:
        """Adds the lessons of a batch to the memory."""
        ...

    def items(self) -> Sequence[Remembered]:
        """All items of the memory."""
        ...

    def counts(self) -> dict[str, int]:
        """The counts of its changes, for the record."""
        ...


def experience_of(builder: TreeBuilder, played: Played) -> Play[str | None]:
    """The experience of an ordinary reflection on a failed attempt, for profiles without another question; None after a success."""
    if played.attempt.success:
        return None
    found = yield from reflect(builder, played.attempt.index, played.trajectory, ended=True)
    return one_line(found.text) if found else None


def memory_path(run: RunDirectory, name: str) -> Path:
    """The file of a method's memory."""
    return run.path / "memory" / f"{name}.jsonl"


def remembered(run: RunDirectory, name: str) -> tuple[Remembered, ...]:
    """The memory of a finished stage. Raises `UserError` if it was changed since."""
    return read_memory(run.check(memory_path(run, name)))


class Adaptation:
    """The stage `explore NAME`; its forest and its memory have the method's name as well."""

    def __init__(self, lab: Lab, run: RunDirectory, memory: Memory, *, name: str, settings: MemorySettings) -> None:
        self.lab, self.run, self.settings, self.memory, self.name = lab, run, settings, memory, name
        self.experiment, self.stage = lab.experiment, f"explore {name}"
        self.tasks = self.experiment.tasks("train")
        self.rules = self.experiment.rules(self.experiment.explore_seed(1))
        self.builders = {task.id: TreeBuilder(task, self.rules) for task in self.tasks}

    def work(self) -> Made:
        """Plays the tasks, from the point at which a killed run ended; keeps the memory and the trees."""
        model = self.lab.start(self.settings.start)
        self.experiment.keep_logs_of(self.run)
        if model == self.experiment.base:
            self.experiment.keep_server(self.run)
        self.run.check(model)
        journal, forest, memory = self.run.journal(self.name), self.run.forest(self.name), memory_path(self.run, self.name)
        told = memory.with_suffix(".figures.json")  # written last, so that nothing is played twice after a kill
        if not all(file.exists() for file in (forest, memory, told)):
            told.unlink(missing_ok=True)
            self.experiment.with_engine(model, lambda engine: self._go_over(engine, journal))
            trees = [builder.tree(self.name) for builder in self.builders.values()]
            forest.unlink(missing_ok=True)
            writer = ForestWriter(forest)
            for tree in trees:
                writer.add(tree)
            writer.close()
            memory.parent.mkdir(exist_ok=True)
            write_memory(memory, self.memory.items())
            write_text_atomically(told, canonical(self._figures(trees)) + "\n")
            self.experiment.sound_alarms(self.stage, faults_of(trees))
        journal.unlink(missing_ok=True)
        figures = json.loads(told.read_bytes())
        self.experiment.progress.say(
            f"{self.stage}: {figures['solved']} of {figures['tasks']} tasks solved, {figures['kept']} texts kept"
        )
        return Made(figures, [forest, memory, told], forest=self.name)

    async def _go_over(self, engine: Engine, path: Path) -> None:
        """Plays every epoch, batch by batch. Raises `UserError` when every attempt at the first tasks broke; none of these is kept then."""
        journal = Journal(path)
        first = [one.task.id for one in islice(chain.from_iterable(self._batches()), WAVE)]
        wave: FirstWave[Lesson] = FirstWave(first, check_command(self.experiment.config))
        budget = len(self.tasks) * self.rules.turns
        try:
            with self.experiment.progress.stage(self.stage, budget, "turns") as gauge:

                def noticed(ask: Ask, completion: Completion) -> None:
                    gauge.advance(ask.purpose == "act")

                runtime = self.experiment.runtime(engine, journal=journal, noticed=noticed)
                for number, chosen in enumerate(self._batches()):
                    rollouts = [Rollout(f"{number}/{one.task.id}", one.task, self._one(one)) for one in chosen]
                    lessons = {}
                    async with aclosing(drive(rollouts, runtime, concurrency=engine.concurrency)) as finished:
                        async for rollout, lesson in finished:
                            wave.through(rollout.task.id, lesson.tree.attempts, lesson)
                            lessons[rollout.key] = lesson
                    taught = [lesson for one in rollouts if (lesson := lessons[one.key]).told is not None]
                    keeping = Rollout(str(number), chosen[0].task, self.memory.take_in(taught))
                    async for _ in drive([keeping], runtime, concurrency=1):
                        pass
        finally:
            journal.close()
            if wave.failed:
                forget_failures(path)

    def _batches(self) -> Iterator[list[TreeBuilder]]:
        """The trees to continue, each epoch in a new order, as long as whole attempts fit into their budgets."""
        for epoch in range(self.settings.epochs):
            order = list(self.builders.values())
            random.Random(self.lab.seed(self.name, "order", epoch)).shuffle(order)
            open_ones = [one for one in order if one.spend.turns + one.task.horizon <= self.rules.turns and not one.exhausted()]
            for first in range(0, len(open_ones), self.settings.batch):
                yield open_ones[first : first + self.settings.batch]

    def _one(self, builder: TreeBuilder) -> Play[Lesson]:
        """One attempt with the present memory, and the look back at it."""
        builder.rules = self.memory.rules(self.rules)
        played = yield from play(builder, Start())
        useful = played.attempt.stop not in BROKEN and bool(played.trajectory)
        told = (yield from self.memory.look_back(builder, played)) if useful else None
        return Lesson(builder, played, told)

    def _figures(self, trees: Sequence[Tree]) -> dict[str, Any]:
        spends, asked = [tree.spend for tree in trees], self.memory.questions.asked
        attempts = [attempt for tree in trees for attempt in tree.attempts]
        reflections = [reflection for tree in trees for reflection in tree.reflections]
        figures = {
            "tasks": len(trees),
            "solved": sum(any(attempt.success for attempt in tree.attempts) for tree in trees),
            "attempts": len(attempts),
            **{name: sum(getattr(spend, name) for spend in spends) for name in ("turns", "prompt_tokens", "sampled_tokens")},
            "reflection_tokens": sum(spend.reflection_tokens for spend in spends) + asked.tokens,
            "question_tokens": sum(spend.question_tokens for spend in spends) + asked.prompt_tokens,
            "questions": len(reflections) + asked.questions,
            "unread": sum(reflection.unread for reflection in reflections) + asked.unread,
            **self.memory.counts(),
            "kept": len(self.memory.items()),
        }
        return figures if figures["kept"] else {**figures, "note": EMPTY}
