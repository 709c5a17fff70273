"""ReasoningBank: items of memory from successes and failures, retrieved by task (arXiv 2509.25140), and no weights.

    measure base -> [a batch of attempts, each with the items that match its task -> what worked or went wrong -> new items]
                    until the budget is used up -> measure the same model, each attempt with the items that match its task

An item has a title, a description and a content. Up to three are drawn from each attempt, by one question after a success and another after
a failure; they are added to the bank and never merged, as in the paper and its published code. That code finds the earlier task that
is most like the new one and puts the items learned at it into the prompt.

Where this differs from the paper:
1. Items are found by words, not by embeddings (`leafe.recall`): the instruction and the first observation are compared with those of the
   item's task, and with its title and description. `recalled` items are put into the prompt, from any tasks.
2. Whether an attempt succeeded is the environment's verdict; the paper lets a model judge.
3. `batch` attempts read the same bank; the paper adds after every task. Tasks are played up to `epochs` times, the paper's once.
4. An item that is already in the bank, word for word, is not added again.
5. Its scaling of attempts at test time (MaTTS) is left out, since every arm has the same attempts.
6. A profile without the two questions, such as `terse`, asks for an ordinary reflection after failures, whose experience is the item.
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
from leafe.recall import MemoryFile, Recall, Remembered, renewed, task_key
from leafe.replies import ParseFailure
from leafe.replies.blocks import parse_blocks
from leafe.run import RunDirectory
from leafe.settings import RunConfig

if TYPE_CHECKING:
    from leafe.lab import Lab

NAME = "reasoning_bank"
QUESTIONS = {"bank_success": {"turn"}, "bank_failure": {"turn"}}
PARTS = ("title", "description", "content")
ITEMS = 3  # the most of one attempt


class BankSettings(MemorySettings):
    """`recalled` is the number of items in the prompt of an attempt.

    `start` is the folder of a model, such as another run's checkpoint; empty for the run's model. `epochs` is the most passes over the
    training tasks, `batch` the number of tasks that are played before the memory is updated.
    """

    recalled: int = Field(3, ge=1)


class ReasoningBank(Method):
    """A bank of lessons; those that match its task are in the prompt of an attempt."""

    name = NAME
    summary = "lessons from successes and failures, retrieved by task and put into the prompt (ReasoningBank); no weights"
    Settings = BankSettings

    def stages(self, lab: Lab, run: RunDirectory, settings: BankSettings) -> Iterable[Stage]:
        """As in the drawing above. With `start` that model is measured without the bank as well."""
        model = lab.start(settings.start)
        policy = Policy(model, memory=MemoryFile(memory_path(run, NAME), settings.recalled))
        yield from measured_start(lab, run, model)
        yield adaptation_stage(
            lab, run, NAME, settings=settings, make=lambda: Bank(Questions.of(lab, QUESTIONS), settings.recalled)
        )
        yield lab.measure(run, NAME, policy, needs=(f"explore {NAME}",))

    def trains(self, settings: BankSettings) -> bool:
        """Nothing."""
        return False

    def check(self, config: RunConfig, settings: BankSettings) -> None:
        """Raises `UserError` for a `start` other than the model that a server plays, and for settings that have no effect here."""
        check_memory(config, NAME, settings.start)


@dataclass(frozen=True, slots=True)
class Item:
    """One item of memory."""

    title: str
    description: str
    content: str


def read_items(reply: str, whole: bool, shown: str = "") -> tuple[Item, ...]:
    """The items of an answer, each of which begins with its title. Raises `ParseFailure` for an unreadable answer."""
    items: list[dict[str, str]] = []
    for block in parse_blocks(reply, PARTS, whole=whole, shown=shown):
        if block.name == "title" or not items:
            items.append({})
        if block.name in items[-1]:
            raise ParseFailure(f"an item had two {block.name}s; each wants a <title> of its own")
        items[-1][block.name] = block.text
    if not whole and len(items) > 1 and "content" not in items[-1]:
        items.pop()  # the one that the reply was cut in
    if len(items) > ITEMS:
        raise ParseFailure(f"there were {len(items)} items, and at most {ITEMS} are wanted")
    for item in items:
        if lacking := [part for part in ("title", "content") if not item.get(part)]:
            raise ParseFailure(f"an item had no <{lacking[0]}>")
    return tuple(Item(item["title"], item.get("description", ""), item["content"]) for item in items)


@dataclass
class Bank:
    """The items, oldest first; `recalled` of them are put into an attempt's prompt."""

    questions: Questions
    recalled: int
    kept: list[Remembered] = field(default_factory=list)
    happened: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("added", "duplicates"), 0))
    _recall: Recall | None = None

    def rules(self, rules: Rules) -> Rules:
        """The rules with the items that match a task as notes."""
        self._recall = renewed(self._recall, self.kept, self.recalled)
        return replace(rules, recall=self._recall)

    def look_back(self, builder: TreeBuilder, played: Played) -> Play[tuple[Item, ...] | None]:
        """Asks what worked, or what went wrong."""
        name = "bank_success" if played.attempt.success else "bank_failure"
        if name in self.questions:
            shown = self.questions.texts[name]
            found: tuple[Item, ...] | None = yield from self.questions.about(
                builder, played, name, read=lambda reply, whole: read_items(reply, whole, shown)
            )
            return found
        experience = yield from experience_of(builder, played)
        return (Item("", "", experience),) if experience else None

    def take_in(self, lessons: Sequence[Lesson]) -> Play[None]:
        """Adds every item that is new."""
        for lesson in lessons:
            for item in lesson.told:
                self.add(item, source=lesson.tree.task.id, task=task_key(lesson.tree.task, lesson.tree.scene.root))
        return
        yield from ()

    def add(self, item: Item, *, source: str, task: str) -> None:
        """Adds an item that was learned at a task, unless the bank has it already."""
        text = f"{item.title}: {item.content}" if item.title else item.content
        if any(one.text == text for one in self.kept):
            self.happened["duplicates"] += 1
            return
        key = "\n".join(filter(None, (task, item.title, item.description)))
        self.happened["added"] += 1
        self.kept.append(Remembered(f"m{len(self.kept) + 1}", text, key, source=source))

    def items(self) -> Sequence[Remembered]:
        """The bank."""
        return tuple(self.kept)

    def counts(self) -> dict[str, int]:
        """The counts of changes to items."""
        return dict(self.happened)
