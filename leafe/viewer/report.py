"""From a run directory to its page: reads what is there, leaves out what is not measured yet, and writes one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from leafe.evaluation.compare import Comparison, compare
from leafe.evaluation.outcomes import ArmOutcomes, read_outcomes
from leafe.evaluation.passk import Resampling
from leafe.forest.faults import Faults, alarms
from leafe.forest.store import read_forest
from leafe.jsonl import write_text_atomically
from leafe.records import Tree
from leafe.run import RunDirectory
from leafe.settings import RunConfig
from leafe.viewer.page import ExplorationRow, PageContent, exploration_row, render_page

SHOWN_TREES = 6
BASE = "base"


def arms_of(run: RunDirectory) -> list[ArmOutcomes]:
    """The arms that a run has measured completely, first measured first."""
    config, found = run.config, []
    for arm, path in run.arms().items():
        if path.exists() or run.check(path).exists():
            outcomes = read_outcomes(path)
            run.check(path)
            found.append(ArmOutcomes(arm, outcomes, str(run.path), tasks=config.tasks.test, samples=config.evaluate.samples))
    return found


def comparison_of(run: RunDirectory) -> Comparison:
    """The arms of a run side by side, each beside its base where one was measured."""
    settings, arms = run.config.evaluate, arms_of(run)
    base = BASE if any(arm.name == BASE for arm in arms) else None
    return compare(arms, base=base, how=Resampling(settings.resamples, settings.confidence))


def exploration_of(run: RunDirectory) -> list[tuple[str, Sequence[Tree]]]:
    """The forests of a run, by name."""
    return [(name, _trees(run, path)) for name, path in run.forests().items() if path.exists() or run.check(path).exists()]


def _trees(run: RunDirectory, path: Path) -> list[Tree]:
    """The trees of a forest that is as it was left. A line that cannot be read is named, which says more than that something changed."""
    trees = list(read_forest(path))
    run.check(path)
    return trees


def rows_of(forests: Sequence[tuple[str, Sequence[Tree]]]) -> list[ExplorationRow]:
    """One row of counts an explorer."""
    return [exploration_row(name, trees) for name, trees in forests]


def notice_of(run: RunDirectory) -> str:
    """What the exploration of a run noted, empty where there is nothing."""
    return next((note for _, note in _notes_of(run, "explore ")), "")


def _notes_of(run: RunDirectory, kind: str) -> Iterator[tuple[str, str]]:
    """The stages of a kind that left a note, with it."""
    for stage, result in run.stages.items():
        if stage.startswith(kind) and isinstance(result, dict) and "note" in result:
            yield stage, str(result["note"])


def faults_named(rows: Sequence[ExplorationRow], arms: Sequence[ArmOutcomes]) -> list[tuple[str, Faults]]:
    """What came to nothing, for every explorer and every arm."""
    return [*((row.name, row.faults) for row in rows), *((arm.name, arm.faults) for arm in arms)]


def alarms_of(named: Sequence[tuple[str, Faults]], config: RunConfig) -> tuple[str, ...]:
    """What is so frequent in explorers and arms that their figures mean little, each sentence once behind the names that it is about."""
    names: dict[str, list[str]] = {}
    for name, faults in named:
        for sentence in alarms(faults, config):
            names.setdefault(sentence, []).append(name)
    return tuple(f"{'; '.join(owners)}: {sentence}" for sentence, owners in names.items())


def ends_of(run: RunDirectory) -> tuple[str, ...]:
    """Why a run found nothing to train on, where it did not."""
    return tuple(f"{stage}: {note}" for stage, note in _notes_of(run, "distil "))


def flags_of(run: RunDirectory) -> tuple[str, ...]:
    """What has to stand beside figures that came from a server, a sentence each."""
    found = run.stages.get("probe")
    return tuple(map(str, found["flags"])) if isinstance(found, dict) and "flags" in found else ()


def write_report(run: RunDirectory) -> Path:
    """Writes `report.html` of a run and returns where it is."""
    forests, arms = exploration_of(run), arms_of(run)
    rows, trees = rows_of(forests), forests[0][1] if forests else []
    content = PageContent(
        run=run.config.name,
        config=dict(_settings(run.config)),
        comparison=comparison_of(run) if arms else Comparison(()),
        exploration=tuple(rows),
        trees=tuple(telling(trees)),
        tree_count=len(trees),
        notice=notice_of(run),
        alarms=(*flags_of(run), *alarms_of(faults_named(rows, arms), run.config), *ends_of(run)),
        notes=tuple((stage, _told(result)) for stage, result in run.stages.items() if result is not None),
    )
    write_text_atomically(run.report, render_page(content))
    return run.report


def telling(trees: Sequence[Tree]) -> list[Tree]:
    """A few trees that show the method: first those where a failed first attempt was mended by a branch, then any with a branch."""

    def rank(tree: Tree) -> tuple[int, str]:
        branched = [attempt for attempt in tree.attempts if attempt.turn is not None]
        mended = not tree.attempts[0].success and any(attempt.success for attempt in branched)
        return (0 if mended else 1 if branched else 2, tree.task.id)

    return sorted((tree for tree in trees if tree.attempts), key=rank)[:SHOWN_TREES]


def _told(result: object) -> str:
    """What a stage gave, in its own sentences where it has some."""
    return "; ".join(map(str, result["lines"])) if isinstance(result, dict) and "lines" in result else str(result)


def _settings(config: RunConfig) -> Iterator[tuple[str, str]]:
    """The configuration as dotted names and texts."""

    def walk(value: object, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                yield from walk(item, f"{path}.{key}" if path else str(key))
        else:
            yield path, str(value)

    yield from walk(config.model_dump(mode="json"), "")
