"""From a run directory to its page: reads the files that exist, leaves out what is not measured yet, and writes one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from leafe.evaluation.compare import Comparison
from leafe.jsonl import write_text_atomically
from leafe.records import Tree
from leafe.results import (
    BASE,
    alarms_of,
    arms_of,
    comparison_of,
    ends_of,
    exploration_of,
    faults_named,
    flags_of,
    notice_of,
    rows_of,
    transcripts_of,
)
from leafe.run import RunDirectory
from leafe.settings import RunConfig
from leafe.viewer.page import PageContent, render_page
from leafe.viewer.recoveries import recoveries

SHOWN_TREES = 6
COSTS = {
    "prompt_tokens",
    "sampled_tokens",
    "reflection_tokens",
    "question_tokens",
    "replayed_steps",
    "rollbacks",
}  # which the JSON has


def write_report(run: RunDirectory) -> Path:
    """Writes `report.html` of a run and returns its path."""
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
        recoveries=recoveries(arms, {arm.name: transcripts_of(run, arm.name) for arm in arms}, BASE),
        alarms=(*flags_of(run), *alarms_of(faults_named(rows, arms), run.config), *ends_of(run)),
        notes=tuple((stage, _told(result)) for stage, result in run.stages.items() if result is not None),
    )
    write_text_atomically(run.report, render_page(content))
    return run.report


def telling(trees: Sequence[Tree]) -> list[Tree]:
    """A few trees that show the method: first those where a branch corrected a failed first attempt, then any with a branch."""

    def rank(tree: Tree) -> tuple[int, str]:
        branched = [attempt for attempt in tree.attempts if attempt.turn is not None]
        mended = not tree.attempts[0].success and any(attempt.success for attempt in branched)
        return (0 if mended else 1 if branched else 2, tree.task.id)

    return sorted((tree for tree in trees if tree.attempts), key=rank)[:SHOWN_TREES]


def _told(result: object) -> str:
    """A stage's result, in its own sentences where it has some."""
    if isinstance(result, dict) and "lines" in result:
        return "; ".join(map(str, result["lines"]))
    return str({name: value for name, value in result.items() if name not in COSTS} if isinstance(result, dict) else result)


def _settings(config: RunConfig) -> Iterator[tuple[str, str]]:
    """The configuration as dotted names and texts."""

    def trajectory(value: object, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                yield from trajectory(item, f"{path}.{key}" if path else str(key))
        else:
            yield path, str(value)

    yield from trajectory(config.model_dump(mode="json"), "")
