"""ACE: a playbook in the prompt that grows by small changes, and no weights (Agentic Context Engineering, arXiv 2510.04618).

    measure base -> [a batch of attempts that read the playbook -> reflector -> curator -> playbook] until the budget is used up
                 -> measure the same model with the playbook in its prompt

The playbook is a list of bullets, each with an id and with counts of how often it was called helpful or harmful. The generator is the
policy. The reflector reads an attempt, names the bullets that helped or misled, and writes lessons; the curator reads the lessons of a
batch beside the playbook and names what to add, merge or remove. The whole is never rewritten. The three roles, bullets with ids and
counters, changes by deltas, removal of duplicates and several epochs over the training tasks could be checked in descriptions of the paper
and of its code; the limits of five epochs and of five rounds of the reflector could not.

Where this differs from the paper:
1. The budget is counted in turns of the policy; questions to reflector and curator are counted separately, in tokens.
2. `batch` attempts read the same playbook and their lessons are curated together; the paper adapts after every sample.
3. The reflector is asked once, and once more if its answer cannot be read; the paper lets it refine its answer over up to five rounds.
4. The outcome of an attempt is the environment's verdict and last observation; no ground truth is shown.
5. Two texts are duplicates if most of their words are the same; the paper compares embeddings. There are no sections.
6. The curator may merge and remove as well as add; the published one adds only. If the playbook outgrows its limit of tokens, the
   bullet with the lowest count of helpful minus harmful is removed first, of equals the oldest.
7. A profile without the reflector's question, such as `terse`, asks for an ordinary reflection after failures, whose experience is the
   lesson. Every lesson is added where there is no curator's question, where the playbook is empty, and where the curator's answer
   cannot be read. A lesson that is already in the playbook adds one to its bullet's helpful count.
8. The reflector is asked which bullets helped and misled only after an attempt that read some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pydantic import Field

from leafe.errors import UserError
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
    remembered,
)
from leafe.memory.questions import Questions
from leafe.methods.base import Method, Policy, Stage
from leafe.recall import Remembered, likeness
from leafe.replies import ParseFailure
from leafe.replies.blocks import Block, parse_blocks
from leafe.run import RunDirectory
from leafe.settings import RunConfig

if TYPE_CHECKING:
    from leafe.lab import Lab

NAME = "ace"
QUESTIONS = {"ace_reflect": {"turn", "outcome"}, "ace_notes": set[str](), "ace_curate": {"playbook", "lessons"}}
LESSONS = 3  # the most of one attempt
SAME = 0.8  # the share of words from which two bullets are duplicates


class AceSettings(MemorySettings):
    """`tokens` is the most that the playbook may take of every prompt, in tokens; 0 is a quarter of the model's context, 2048 at most.

    `start` is the folder of a model, such as another run's checkpoint; empty for the run's model. `epochs` is the most passes over the
    training tasks, `batch` the number of tasks that are played before the memory is updated.
    """

    tokens: int = Field(0, ge=0)


class Ace(Method):
    """A playbook in the prompt."""

    name = NAME
    summary = "a playbook in the prompt, written by reflector and curator from the policy's own attempts (ACE); no weights"
    Settings = AceSettings

    def stages(self, lab: Lab, run: RunDirectory, settings: AceSettings) -> Iterable[Stage]:
        """As in the drawing above. With `start` that model is measured without the playbook as well."""
        model, needs = lab.start(settings.start), (f"explore {NAME}",)

        def with_playbook() -> Policy:
            return Policy(model, notes=notes_of(remembered(run, NAME), numbered="ace_reflect" in Questions.of(lab, QUESTIONS)))

        yield from measured_start(lab, run, model)
        yield adaptation_stage(lab, run, NAME, settings=settings, make=lambda: Playbook.of(lab, settings))
        yield lab.measure(run, NAME, with_playbook, needs=needs)

    def trains(self, settings: AceSettings) -> bool:
        """Nothing."""
        return False

    def check(self, config: RunConfig, settings: AceSettings) -> None:
        """Raises `UserError` for a `start` other than the model that a server plays, and for settings that have no effect here."""
        check_memory(config, NAME, settings.start)


@dataclass(frozen=True, slots=True)
class Reflected:
    """The reflector's answer about an attempt: lessons, and the ids of bullets that helped and that misled."""

    lessons: tuple[str, ...]
    helpful: tuple[str, ...] = ()
    harmful: tuple[str, ...] = ()


def read_reflection(reply: str, whole: bool, shown: str = "") -> Reflected:
    """The reflector's answer. Raises `ParseFailure` for an unreadable one."""
    blocks = parse_blocks(reply, ("lesson", "helpful", "harmful"), whole=whole, shown=shown)
    lessons = tuple(block.text for block in blocks if block.name == "lesson" and block.text)
    if len(lessons) > LESSONS:
        raise ParseFailure(f"there were {len(lessons)} lessons, and at most {LESSONS} are wanted")
    named = {name: tuple(one for block in blocks if block.name == name for one in _ids(block)) for name in ("helpful", "harmful")}
    return Reflected(lessons, **named)


def _ids(block: Block) -> tuple[str, ...]:
    words = block.text.replace(",", " ").replace("[", " ").replace("]", " ").lower().split()
    return (*block.ids, *(word for word in words if word[:1] == "b" and word[1:].isdecimal()))


def read_deltas(reply: str, whole: bool, shown: str = "") -> tuple[Block, ...]:
    """The curator's answer: blocks `add`, `merge` and `remove`. Raises `ParseFailure` for one whose form does not allow it."""
    blocks = parse_blocks(reply, ("add", "merge", "remove"), whole=whole, shown=shown)
    for block in blocks:
        ids = _ids(block) if block.name == "remove" else block.ids
        if block.name != "add" and not ids:
            raise ParseFailure(f"a <{block.name}> named no bullet, as b1")
        if block.name != "remove" and not block.text:
            raise ParseFailure(f"a <{block.name}> had no text")
    return blocks


def notes_of(bullets: Sequence[Remembered], *, numbered: bool) -> tuple[str, ...]:
    """The playbook as it is put into a prompt, with ids if the prompt asks about them."""
    return tuple(f"[{one.id}] {one.text}" if numbered else one.text for one in bullets)


@dataclass
class Playbook:
    """The bullets, oldest first, and the counts of changes. `count` returns the tokens of a text, `limit` is the most for all."""

    questions: Questions
    count: Callable[[str], int]
    limit: int
    bullets: list[Remembered] = field(default_factory=list)
    named: int = 0  # ids are never used twice
    happened: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("added", "duplicates", "merged", "removed", "dropped", "unknown_ids"), 0)
    )

    @classmethod
    def of(cls, lab: Lab, settings: AceSettings) -> Playbook:
        """An empty playbook for a run, with the limit from its settings and the model's context."""
        questions = Questions.of(lab, QUESTIONS)
        meter = lab.experiment.load_meter()
        context = meter.context if meter else 0
        if context and settings.tokens > context // 2:
            raise UserError(f"ace.tokens: wanted at most half of the model's context of {context} tokens, found {settings.tokens}")
        room = settings.tokens or min(2048, context // 4 or 2048)
        # Without a tokenizer, a token is assumed to have at least three bytes.
        return cls(questions, meter.text if meter else lambda text: -(-len(text.encode()) // 3), room)

    def rules(self, rules: Rules) -> Rules:
        """The rules with the whole playbook as notes."""
        return replace(rules, notes=(*rules.notes, *self.notes()))

    def notes(self) -> tuple[str, ...]:
        """The playbook as it is put into a prompt."""
        return notes_of(self.bullets, numbered="ace_reflect" in self.questions)

    def look_back(self, builder: TreeBuilder, played: Played) -> Play[Reflected | None]:
        """Asks the reflector."""
        if "ace_reflect" in self.questions:
            shown = self.questions.texts["ace_reflect"]
            also = "ace_notes" if self.bullets else ""  # those of before the batch, which its attempts have read
            found: Reflected | None = yield from self.questions.about(
                builder, played, "ace_reflect", read=lambda reply, whole: read_reflection(reply, whole, shown), also=also
            )
            return found
        experience = yield from experience_of(builder, played)
        return Reflected((experience,)) if experience else None

    def take_in(self, lessons: Sequence[Lesson]) -> Play[None]:
        """Updates the counts, asks the curator and makes its changes; where none can be had every lesson is added."""
        self._count(lessons)
        told = [(lesson.tree.task.id, text) for lesson in lessons for text in lesson.told.lessons]
        deltas = (yield from self._curated(lessons[0].key, [text for _, text in told])) if told else ()
        if deltas is not None:
            self.change(deltas, source=", ".join(dict.fromkeys(task for task, _ in told)))
            return
        for task, text in told:
            self.change([Block("add", text)], source=task)

    def _curated(self, key: str, lessons: Sequence[str]) -> Play[tuple[Block, ...] | None]:
        """The curator's changes; None if it is not asked, or its answer cannot be read."""
        if not self.bullets or "ace_curate" not in self.questions:
            return None
        rows = [f"[{one.id}] {one.text} ({one.helpful} helpful, {one.harmful} harmful)" for one in self.bullets]
        shown, book, listed = self.questions.texts["ace_curate"], "\n".join(rows), "\n".join(f"- {text}" for text in lessons)
        deltas: tuple[Block, ...] | None = yield from self.questions.apart(
            key, "ace_curate", read=lambda reply, whole: read_deltas(reply, whole, shown), playbook=book, lessons=listed
        )
        return deltas

    def change(self, deltas: Sequence[Block], *, source: str = "") -> None:
        """Makes changes one by one, then cuts the playbook to its limit. Changes that name no bullet are skipped and counted."""
        for delta in deltas:
            ids = _ids(delta) if delta.name == "remove" else delta.ids
            known = [one for one in self.bullets if one.id in ids]
            self.happened["unknown_ids"] += sum(all(one.id != wanted for one in known) for wanted in ids if delta.name != "add")
            if delta.name == "add":
                self._add(delta.text, source)
            elif delta.name == "merge" and known:
                self._merge(known, delta.text)
            else:
                self.happened["removed"] += len(known)
                self.bullets = [one for one in self.bullets if one not in known]
        while self.bullets and self.tokens() > self.limit:
            least = min(self.bullets, key=lambda one: one.helpful - one.harmful)  # of equals the first, which is the oldest
            self.bullets.remove(least)
            self.happened["dropped"] += 1

    def tokens(self) -> int:
        """The tokens of the playbook in a prompt, its marks and line ends included."""
        return sum(self.count(f"- {note}\n") for note in self.notes())

    def items(self) -> Sequence[Remembered]:
        """The bullets."""
        return tuple(self.bullets)

    def counts(self) -> dict[str, int]:
        """The counts of changes to bullets, and the tokens that they take now."""
        return {**self.happened, "tokens": self.tokens()}

    def _count(self, lessons: Sequence[Lesson]) -> None:
        known = {one.id for one in self.bullets}
        for lesson in lessons:
            for name in ("helpful", "harmful"):
                ids = set(getattr(lesson.told, name))
                self.happened["unknown_ids"] += len(ids - known)
                self.bullets = [replace(one, **{name: getattr(one, name) + 1}) if one.id in ids else one for one in self.bullets]

    def _add(self, text: str, source: str) -> None:
        for number, one in enumerate(self.bullets):
            if likeness(one.text, text) >= SAME:
                self.bullets[number] = replace(one, helpful=one.helpful + 1)
                self.happened["duplicates"] += 1
                return
        self.named += 1
        self.bullets.append(Remembered(f"b{self.named}", text, source=source))
        self.happened["added"] += 1

    def _merge(self, known: Sequence[Remembered], text: str) -> None:
        """Gives the text and all their counts to the first of them."""
        first, totals = known[0], [sum(getattr(one, name) for one in known) for name in ("helpful", "harmful")]
        merged = replace(first, text=text, helpful=totals[0], harmful=totals[1])
        self.bullets = [merged if one is first else one for one in self.bullets if one is first or one not in known]
        self.happened["merged"] += len(known) - 1
