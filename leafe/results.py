"""The figures that a run shows: its arms, its forests, their comparison, and the sentences beside them.

All of it is read from the run's own record and files, whatever its method, and every file is proved before it is used. Nothing is
written or printed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leafe.evaluation.compare import Comparison, compare
from leafe.evaluation.outcomes import ArmOutcomes, read_outcomes
from leafe.evaluation.passk import Resampling
from leafe.evaluation.pooled import own_attempts
from leafe.evaluation.transcripts import Transcript, read_transcripts
from leafe.forest.faults import Faults, alarms, faults_of
from leafe.forest.store import read_forest
from leafe.records import Tree, encode
from leafe.run import RunDirectory
from leafe.settings import RunConfig
from leafe.shown import WATCHED
from leafe.stages import PROBE

BASE = "base"  # the arm that training starts from


@dataclass(frozen=True, slots=True)
class ExplorationRow:
    """The yield and the cost of one explorer. `successes` are attempts; `unparsed` reflections were answered and cannot be read."""

    name: str
    tasks: int = 0
    solved: int = 0
    attempts: int = 0
    successes: int = 0
    turns: int = 0
    tokens: int = 0
    replayed_steps: int = 0
    reflections: int = 0
    unparsed: int = 0
    broken: Mapping[str, int] = field(default_factory=dict)
    faults: Faults = Faults()


def exploration_row(name: str, trees: Sequence[Tree]) -> ExplorationRow:
    """Counts over one explorer's trees; tokens are all that were read or written, those of reflections included.

    The actions of an environment's expert are no attempt of the policy's, nor are single steps aside from them.
    """
    played = [own_attempts(tree) for tree in trees]
    attempts = [attempt for some in played for attempt in some]
    reflections = [reflection for tree in trees for reflection in tree.reflections]
    spends = [tree.spend for tree in trees]
    return ExplorationRow(
        name=name,
        tasks=len(trees),
        solved=sum(any(attempt.success for attempt in some) for some in played),
        attempts=len(attempts),
        successes=sum(attempt.success for attempt in attempts),
        turns=sum(spend.turns for spend in spends),
        tokens=sum(one.prompt_tokens + one.sampled_tokens + one.question_tokens + one.reflection_tokens for one in spends),
        replayed_steps=sum(spend.replayed_steps for spend in spends),
        reflections=len(reflections),
        unparsed=sum(reflection.unread for reflection in reflections),
        broken=faults_of(trees).errors,
        faults=faults_of(trees),
    )


def arms_of(run: RunDirectory) -> list[ArmOutcomes]:
    """The arms that a run has measured completely, the base first, then in the order in which they were measured."""
    config, found = run.config, []
    for arm, path in sorted(run.arms().items(), key=lambda named: named[0] != BASE):
        if path.exists() or run.check(path).exists():
            outcomes = read_outcomes(path)
            run.check(path)
            found.append(ArmOutcomes(arm, outcomes, str(run.path), tasks=config.tasks.test, samples=config.evaluate.samples))
    return found


def transcripts_of(run: RunDirectory, arm: str) -> dict[tuple[str, int], Transcript]:
    """The transcripts of an arm's watched attempts, by task and sample. Raises `CorruptFile` where they are not as they were left."""
    path = run.evaluation(arm, WATCHED)
    if path not in run.made_by(f"evaluate {arm}"):
        return {}
    return {one.key: one for one in read_transcripts(run.check(path))}


def comparison_of(run: RunDirectory) -> Comparison:
    """The arms of a run side by side, each beside its base where one was measured."""
    settings, arms = run.config.evaluate, arms_of(run)
    base = BASE if any(arm.name == BASE for arm in arms) else None
    return compare(arms, base=base, how=Resampling(settings.resamples, settings.confidence))


def exploration_of(run: RunDirectory) -> list[tuple[str, Sequence[Tree]]]:
    """The forests of a run, by name."""
    return [(name, _trees(run, path)) for name, path in run.forests().items() if path.exists() or run.check(path).exists()]


def _trees(run: RunDirectory, path: Path) -> list[Tree]:
    """The trees of a forest that is as it was left. A line that cannot be read is named, which tells more than a changed digest."""
    trees = list(read_forest(path))
    run.check(path)
    return trees


def rows_of(forests: Sequence[tuple[str, Sequence[Tree]]]) -> list[ExplorationRow]:
    """One row of counts an explorer."""
    return [exploration_row(name, trees) for name, trees in forests]


def notice_of(run: RunDirectory) -> str:
    """The note of a run's exploration, empty where there is none."""
    return next((note for _, note in _notes_of(run, "explore ")), "")


def _notes_of(run: RunDirectory, kind: str) -> Iterator[tuple[str, str]]:
    """The stages of a kind that left a note, with the note."""
    for stage, result in run.stages.items():
        if stage.startswith(kind) and isinstance(result, dict) and "note" in result:
            yield stage, str(result["note"])


def faults_named(rows: Sequence[ExplorationRow], arms: Sequence[ArmOutcomes]) -> list[tuple[str, Faults]]:
    """The faults of every explorer and every arm."""
    return [*((row.name, row.faults) for row in rows), *((arm.name, arm.faults) for arm in arms)]


def alarms_of(named: Sequence[tuple[str, Faults]], config: RunConfig) -> tuple[str, ...]:
    """Faults so frequent that figures mean little, each sentence once behind the names that it is about."""
    names: dict[str, list[str]] = {}
    for name, faults in named:
        for sentence in alarms(faults, config):
            names.setdefault(sentence, []).append(name)
    return tuple(f"{'; '.join(owners)}: {sentence}" for sentence, owners in names.items())


def ends_of(run: RunDirectory) -> tuple[str, ...]:
    """Why a run found nothing to train on, where it did not."""
    return tuple(f"{stage}: {note}" for stage, note in _notes_of(run, "distil "))


def flags_of(run: RunDirectory) -> tuple[str, ...]:
    """The caveats on figures that came from a server, a sentence each."""
    found = run.stages.get(PROBE)
    return tuple(map(str, found["flags"])) if isinstance(found, dict) and "flags" in found else ()


def as_json(run: RunDirectory) -> dict[str, Any]:
    """All figures that a run shows, as JSON; the arms are as `leafe compare --json` has them."""
    rows, arms = rows_of(exploration_of(run)), arms_of(run)
    comparison = comparison_of(run) if arms else Comparison(())
    return {
        "run": run.config.name,
        "method": run.config.method,
        "done": run.done,
        "exploration": [encode(row) for row in rows],
        **comparison.as_json(),
        "stages": dict(run.stages),
        "alarms": [*flags_of(run), *alarms_of(faults_named(rows, arms), run.config), *ends_of(run)],
    }
