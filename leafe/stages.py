"""The parts of a method: stages that are done once and survive a kill, and the policies that they explore with and measure.

A stage has a name, the stages that it waits for, and its work; the run records which are finished, their results, and which file is
shown as an arm or as a forest. Nothing here knows a method, an engine or a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from leafe.errors import UserError
from leafe.recall import MemoryFile
from leafe.run import RunDirectory

# The commands that do a part of a run, in the order of a first pass.
VERBS = ("explore", "distill", "train", "evaluate")
PROBE = "probe"  # where a run keeps the properties of its server


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy that is explored with or measured: a model, and the content of its prompt beside the task.

    `model` is a checkpoint's folder. `notes` are in the first prompt of every attempt, as a playbook is, followed by the texts that
    `memory` holds for the attempt's task; `prompts` is a profile or a folder of prompts, empty for the run's own.
    """

    model: Path
    notes: tuple[str, ...] = ()
    prompts: str = ""
    memory: MemoryFile | None = None

    def told(self) -> dict[str, Any]:
        """The content of the prompt beside the task, for the record; empty where there is none."""
        recalled = {"file": self.memory.path.name, "count": self.memory.count} if self.memory else {}
        told = {"notes": list(self.notes), "prompts": self.prompts, "memory": recalled}
        return {name: value for name, value in told.items() if value}


@dataclass(frozen=True, slots=True)
class Scored:
    """What a method has the engine that explores score: given texts, and with `top` as many of the most probable tokens at each position.

    `setting` is the name of the setting that chooses `top`.
    """

    top: int = 0
    setting: str = ""


@dataclass(frozen=True, slots=True)
class Made:
    """The result of a stage: `figures` for the record, in JSON, and its `files`, folders too, whose digests are kept.

    With `arm` the first file holds graded attempts that are shown under that name, with `forest` it holds trees.
    """

    figures: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[Path] = ()
    arm: str = ""
    forest: str = ""

    def __post_init__(self) -> None:
        if (self.arm or self.forest) and not self.files:
            raise ValueError("what is shown as an arm or a forest wants its file first in `files`, and there is none")


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a method.

    `work` does it. After a kill it is called again and resumes from its own files; it is not called once the stage is finished.
    `needs` names earlier stages that must be finished before. `verb` is the command that does it apart from `leafe run`, one of `VERBS`;
    without one, only `leafe run` and stages that need it do. A stage that is `asked_only` is left out by `leafe run`. `forest` is the name
    under which its forest will be shown, as far as that is known before; `proof` says what decides its files, and raises `UserError` where
    that is not there yet.
    """

    name: str
    work: Callable[[], Made | None]
    needs: tuple[str, ...] = ()
    verb: str = ""
    asked_only: bool = False
    forest: str = ""
    proof: Callable[[], Proof] | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """The inputs that decide a stage's files: `key` is equal for two only if they make the same, None where that is unknown.

    The first of `files` is what is made; further ones exist before, or may be made beside it. `arm` is the name that it is shown under.
    """

    key: str | None
    files: tuple[Path, ...]
    arm: str = ""


class PutOff(Exception):
    """Ends the work of a stage that another run is doing at the moment: the stage's turn comes again after all others."""


class Once(Protocol):
    """Does the work of a stage, or takes it over from where it was done before."""

    def __call__(self, run: RunDirectory, proof: Callable[[], Proof], work: Callable[[], Made]) -> Made:
        """The result of `work`. Raises `PutOff`, at most once for the same work."""
        ...


def done_here(run: RunDirectory, proof: Callable[[], Proof], work: Callable[[], Made]) -> Made:
    """Does the work, whatever was done elsewhere."""
    return work()


def check_stages(stages: Iterable[object], method: str) -> tuple[Stage, ...]:
    """The stages of a method.

    Raises `UserError` for an object that is no stage, a repeated name, and a need that is no earlier stage.
    """
    checked: dict[str, Stage] = {}
    for stage in stages:
        if not isinstance(stage, Stage):
            raise UserError(f"the method {method!r} wants stages of the class leafe.stages.Stage, found {stage!r:.80}")
        if not stage.name or stage.name in checked:
            raise UserError(f"the method {method!r} wants stages with a name each and each name once, found {stage.name!r:.80}")
        if stage.name == PROBE:
            raise UserError(f"the method {method!r} has a stage {PROBE!r}, which is kept for servers; give it another name")
        if missing := [need for need in stage.needs if need not in checked]:
            raise UserError(
                f"the stage {stage.name!r:.80} of the method {method!r} needs {missing[0]!r:.80}, which is none before it"
            )
        if stage.verb not in ("", *VERBS):
            raise UserError(
                f"the stage {stage.name!r:.80} of the method {method!r} wants a verb of {', '.join(VERBS)}, found {stage.verb!r:.80}"
            )
        checked[stage.name] = stage
    if not checked:
        raise UserError(f"the method {method!r} has no stages, and a run wants one at least")
    return tuple(checked.values())


def needed(stages: Sequence[Stage], stage: Stage) -> list[Stage]:
    """The stages that a stage needs, directly or through others, in their order."""
    wanted = set(stage.needs)
    for other in reversed(stages):
        if other.name in wanted:
            wanted.update(other.needs)
    return [other for other in stages if other.name in wanted]


def of_verb(stages: Sequence[Stage], verb: str) -> list[Stage]:
    """The stages of a command: those of its verb that need no later verb's, such as the first round alone for `explore`.

    Training includes the stages that it needs.
    """
    own: dict[str, Stage] = {}
    for stage in stages:
        before = needed(stages, stage)
        if stage.verb != verb or any(_rank(other) > VERBS.index(verb) for other in before):
            continue
        if verb == "train":
            own |= {other.name: other for other in before}
        own[stage.name] = stage
    return [stage for stage in stages if stage.name in own]


def _rank(stage: Stage) -> int:
    return VERBS.index(stage.verb) if stage.verb else -1


def carry_out(stages: Sequence[Stage], run: RunDirectory, chosen: Iterable[Stage]) -> None:
    """Does the chosen stages that are not finished yet, in their order; those that are put off, and what needs them, come last.

    Raises `UserError` where a stage that they need is not finished.
    """
    by_name, last = {stage.name: stage for stage in stages}, dict[str, Stage]()
    for stage in chosen:
        if stage.name in run.stages:
            continue
        if last.keys() & set(stage.needs):
            last[stage.name] = stage
            continue
        for need in stage.needs:
            if need not in run.stages:
                raise UserError(
                    f"the stage {need!r} of {run.path} is not finished yet; type: {command_for(by_name[need], run.path)}"
                )
        try:
            _do(stage, run)
        except PutOff:
            last[stage.name] = stage
    if last:
        carry_out(stages, run, last.values())


def _do(stage: Stage, run: RunDirectory) -> None:
    made = stage.work() or Made()
    if not isinstance(made, Made):
        raise UserError(f"the stage {stage.name!r} wants to return leafe.stages.Made or nothing, and returned {made!r:.80}")
    run.finish_stage(stage.name, dict(made.figures) or None, files=made.files, arm=made.arm, forest=made.forest)


def command_for(stage: Stage, run: Path) -> str:
    """The command that does a stage of a run."""
    return f"leafe {stage.verb} {run}" if stage.verb else f"leafe run {run / 'config.yaml'} --out {run}"


def all_of(stages: Sequence[Stage]) -> Iterator[Stage]:
    """The stages of `leafe run`."""
    return (stage for stage in stages if not stage.asked_only)


def finished(run: RunDirectory, stage: str, command: str) -> None:
    """Raises `UserError` with the command to type when an earlier stage is not finished."""
    if stage not in run.stages:
        raise UserError(f"the stage {stage!r} of {run.path} is not finished yet; type: {command} {run.path}")


def made(path: Path, command: str, run: RunDirectory) -> Path:
    """A file that an earlier stage should have made, as it left it. Raises `UserError` with the command that makes it."""
    run.check(path)
    if not path.exists():
        raise UserError(f"{path} does not exist yet; type: {command} {run.path}")
    return path
