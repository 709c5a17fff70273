"""FLEX: a library of experience at three levels, kept free of repetition by an updater (arXiv 2511.06449), and no weights.

    measure base -> [a batch of attempts, each with the entries that match its task -> lessons -> updater -> library] until the
                    budget is used up -> measure the same model with the library, each attempt with the entries that match its task

Entries are principles, methods or facts, learned from successes (the golden zone) or failures (the warning zone). The updater compares
each new entry with the nearest of its level and zone: it drops duplicates, merges, or adds. The published code has a golden and a warning
zone too, an updater that adds or merges within a zone and adds if its answer cannot be read, and a critic over several rounds; the three
levels are those of summaries of the paper, while the code has methods, rules and trajectories in each memory.

Where this differs from the paper:
1. There is one look back at an attempt. The paper's critic sends the actor back to the same problem several times before anything is
   kept; here the tasks are played up to `epochs` times, within the budget of turns.
2. Entries are found by words (`leafe.recall`): the instruction and the first observation are compared with an entry and with its task.
   The paper lets the actor look things up while it acts; here `recalled` entries of each level and zone are in the first prompt.
3. There is no zone of failures that were corrected later (the code's third). Two entries are duplicates, without a question, if most of
   their words are the same, and are asked about if a third is.
4. `batch` attempts read the same library.
5. A profile without the questions, such as `terse`, asks for an ordinary reflection after failures, whose experience is a fact of the
   warning zone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pydantic import Field

from leafe.forest.builder import Rules, TreeBuilder
from leafe.forest.effects import Play
from leafe.forest.play import Played
from leafe.memory.adaptation import (
    Lesson,
    MemorySettings,
    adaptation_stage,
    check_memory,
    experience_of,
    measured_start,
    memory_path,
)
from leafe.memory.questions import Questions
from leafe.methods.base import Method, Policy, Stage
from leafe.recall import MemoryFile, Recall, Remembered, likeness, renewed, task_key
from leafe.replies import ParseFailure
from leafe.replies.blocks import Block, parse_blocks
from leafe.run import RunDirectory
from leafe.settings import RunConfig

if TYPE_CHECKING:
    from leafe.lab import Lab

NAME = "flex"
QUESTIONS = {"flex_success": {"turn"}, "flex_failure": {"turn"}, "flex_update": {"known", "new"}}
LEVELS = ("principle", "method", "fact")
GOLDEN, WARNING = "golden", "warning"
SAME, NEAR = 0.8, 0.33  # shares of words in common
ASKED_ABOUT = 3  # entries that the updater sees beside a new one


class FlexSettings(MemorySettings):
    """`recalled` is the number of entries of each level and zone in the prompt of an attempt.

    `start` is the folder of a model, such as another run's checkpoint; empty for the run's model. `epochs` is the most passes over the
    training tasks, `batch` the number of tasks that are played before the memory is updated.
    """

    recalled: int = Field(1, ge=1)


class Flex(Method):
    """A library of experience at three levels."""

    name = NAME
    summary = "a library of principles, methods and facts, retrieved by task and put into the prompt (FLEX); no weights"
    Settings = FlexSettings

    def stages(self, lab: Lab, run: RunDirectory, settings: FlexSettings) -> Iterable[Stage]:
        """As in the drawing above. With `start` that model is measured without the library as well."""
        model = lab.start(settings.start)
        policy = Policy(model, memory=MemoryFile(memory_path(run, NAME), settings.recalled))
        yield from measured_start(lab, run, model)
        yield adaptation_stage(
            lab, run, NAME, settings=settings, make=lambda: Library(Questions.of(lab, QUESTIONS), settings.recalled)
        )
        yield lab.measure(run, NAME, policy, needs=(f"explore {NAME}",))

    def trains(self, settings: FlexSettings) -> bool:
        """Nothing."""
        return False

    def check(self, config: RunConfig, settings: FlexSettings) -> None:
        """Raises `UserError` for a `start` other than the model that a server plays, and for settings that have no effect here."""
        check_memory(config, NAME, settings.start)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: its level and its text."""

    level: str
    text: str


def read_entries(reply: str, whole: bool, shown: str = "") -> tuple[Entry, ...]:
    """The entries of an answer, at most one a level. Raises `ParseFailure` for an unreadable one."""
    entries = tuple(Entry(block.name, block.text) for block in parse_blocks(reply, LEVELS, whole=whole, shown=shown))
    for level in LEVELS:
        if sum(entry.level == level for entry in entries) > 1:
            raise ParseFailure(f"there was more than one <{level}>")
    return entries


def read_update(reply: str, whole: bool, shown: str = "") -> Block:
    """The updater's answer: one block `same`, `merge` or `add`. Raises `ParseFailure` for an unreadable one."""
    blocks = parse_blocks(reply, ("same", "merge", "add"), whole=whole, shown=shown)
    if len(blocks) != 1:
        raise ParseFailure(f"there were {len(blocks)} answers, and one is wanted")
    (block,) = blocks
    if block.name != "add" and len(block.ids) != 1:
        raise ParseFailure(f"the <{block.name}> wants the number of one entry, as m1")
    if block.name == "merge" and not block.text:
        raise ParseFailure("the <merge> had no wording")
    return block


@dataclass
class Library:
    """The entries, oldest first; `recalled` of each level and zone are put into an attempt's prompt."""

    questions: Questions
    recalled: int
    kept: list[Remembered] = field(default_factory=list)
    happened: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("added", "duplicates", "merged", "unknown_ids"), 0))
    _recall: Recall | None = None

    def rules(self, rules: Rules) -> Rules:
        """The rules with the entries that match a task as notes."""
        self._recall = renewed(self._recall, self.kept, self.recalled)
        return replace(rules, recall=self._recall)

    def look_back(self, builder: TreeBuilder, played: Played) -> Play[tuple[Entry, ...] | None]:
        """The entries that an attempt teaches."""
        name = "flex_success" if played.attempt.success else "flex_failure"
        if name in self.questions:
            shown = self.questions.texts[name]
            found: tuple[Entry, ...] | None = yield from self.questions.about(
                builder, played, name, read=lambda reply, whole: read_entries(reply, whole, shown)
            )
            return found
        experience = yield from experience_of(builder, played)
        return (Entry("fact", experience),) if experience else None

    def take_in(self, lessons: Sequence[Lesson]) -> Play[None]:
        """Asks the updater about one new entry after another."""
        for lesson in lessons:
            zone, task = GOLDEN if lesson.played.attempt.success else WARNING, lesson.tree.task
            where = task_key(task, lesson.tree.scene.root)
            for entry in lesson.told:
                group = f"{entry.level}, {zone}"
                new = Remembered(f"m{len(self.kept) + 1}", entry.text, f"{entry.text}\n{where}", group, source=task.id)
                yield from self._take(new, f"{lesson.key}/{entry.level}", where)

    def _take(self, new: Remembered, key: str, where: str) -> Play[None]:
        """Keeps an entry with new content, after a question if another one is near."""
        near = sorted(
            ((likeness(one.text, new.text), one) for one in self.kept if one.group == new.group), key=lambda pair: -pair[0]
        )[:ASKED_ABOUT]
        near = [(share, one) for share, one in near if share >= NEAR]
        if near and near[0][0] >= SAME:
            self._again(near[0][1])
        elif near and "flex_update" in self.questions:
            known, shown = [one for _, one in near], self.questions.texts["flex_update"]
            listed = "\n".join(f"{one.id}: {one.text}" for one in known)
            chosen: Block | None = yield from self.questions.apart(
                key, "flex_update", read=lambda reply, whole: read_update(reply, whole, shown), known=listed, new=new.text
            )
            self.update(new, chosen, where)
        else:
            self._add(new)

    def update(self, new: Remembered, chosen: Block | None, where: str) -> None:
        """Makes the updater's change; if that could not be read, or names no entry of the library, the new entry is added."""
        named = next((one for one in self.kept if chosen and chosen.ids == (one.id,) and one.group == new.group), None)
        if chosen is None or chosen.name == "add":
            text = chosen.text if chosen and chosen.text else new.text
            self._add(replace(new, text=text, key=f"{text}\n{where}"))
        elif named is None:
            self.happened["unknown_ids"] += 1
            self._add(new)
        elif chosen.name == "same":
            self._again(named)
        else:
            merged = replace(named, text=chosen.text, key=f"{chosen.text}\n{where}", helpful=named.helpful + 1)
            self.kept[self.kept.index(named)] = merged
            self.happened["merged"] += 1

    def _add(self, new: Remembered) -> None:
        self.kept.append(new)
        self.happened["added"] += 1

    def _again(self, known: Remembered) -> None:
        """Counts an entry that was learned once more."""
        self.kept[self.kept.index(known)] = replace(known, helpful=known.helpful + 1)
        self.happened["duplicates"] += 1

    def items(self) -> Sequence[Remembered]:
        """The library."""
        return tuple(self.kept)

    def counts(self) -> dict[str, int]:
        """The counts of changes to entries."""
        return dict(self.happened)
