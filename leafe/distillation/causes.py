"""Why a forest gave no example: the first cause, found by counting, and its fix.

A setting is named only where changing it would help. Nothing is read or printed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

from leafe.errors import UserError
from leafe.forest.faults import Faults, alarms, check_command, faults_of, on_reflections
from leafe.records import BROKEN, Tree
from leafe.settings import RunConfig

NOTHING = "there is no example to train on"


def refuse_weightless(config: RunConfig, *, on_successes: str = "") -> None:
    """Raises `UserError` for settings under which no example can have a weight, whatever is explored.

    `on_successes` is an arm that is trained on successes alone, if there is one.
    """
    wanted = config.distill
    idle = "distill.success_share" if not wanted.success_share else "distill.beta"
    if wanted.success_share and wanted.beta:
        return
    if on_successes:
        raise UserError(
            f"{idle}=0 leaves the arm {on_successes}, which is trained on successes alone, nothing to learn from: raise it, or leave the"
            " arm out"
        )
    if not wanted.branches_per_task:
        raise UserError(f"distill.branches_per_task=0 and {idle}=0 leave nothing to learn from: raise one of them")


def why_no_example(trees: Sequence[Tree], config: RunConfig) -> str:
    """One sentence: the cause, then the alarms beside it."""
    faults = faults_of(trees)
    cause = next(_of_everything(faults, config), "")
    if cause:
        return cause
    return "; ".join(dict.fromkeys((_of_successes(trees, config), _of_branches(trees, faults, config), *alarms(faults, config))))


def _of_everything(faults: Faults, config: RunConfig) -> Iterator[str]:
    """Faults of every reply or every attempt, which explain all the rest."""
    if not faults.attempts:
        yield "no attempt was made"
    if faults.broken == 1:
        yield f"the world broke in every attempt, most often by `{faults.error}`; type: {check_command(config)}"
    if 1 in (faults.cut, faults.no_action, faults.out_of_room):
        yield "; ".join(alarms(faults, config))


def _of_successes(trees: Sequence[Tree], config: RunConfig) -> str:
    """Why nothing is rehearsed."""
    successes = sum(attempt.success for tree in trees for attempt in tree.attempts)
    if not successes:
        return "no attempt succeeded"
    if not config.distill.success_share:
        return f"distill.success_share=0 rehearses none of the {successes:,} successes: raise it"
    return "no turn of the successes that were drawn held an action that was not already in its prompt"


def _of_branches(trees: Sequence[Tree], faults: Faults, config: RunConfig) -> str:
    """Why no branch is learned from."""
    branches = [attempt for tree in trees for attempt, _ in tree.revisions() if attempt.stop not in BROKEN]
    if not config.distill.branches_per_task:
        return "distill.branches_per_task=0 learns from no branch: raise it"
    if branches and config.distill.qualify == "any":
        return "no branch began with an action that was not in its advice word for word"
    if branches:
        found = "succeeded" if config.distill.qualify == "success" else "improved on its parent"
        return f"no branch {found}: explore with a larger budget, as explore.turns={2 * config.explore.turns}, or set distill.qualify=any"
    return _of_reflections(trees, faults, config)


def _of_reflections(trees: Sequence[Tree], faults: Faults, config: RunConfig) -> str:
    """Why there is no branch."""
    reflections = list(chain.from_iterable(tree.reflections for tree in trees))
    if not reflections:
        return _of_no_reflection(trees, config)
    if 1 in (faults.unread, faults.no_room):
        return "; ".join(on_reflections(faults, config))
    named = sum(one.experience is not None for one in reflections)
    if named:
        return f"the budget ended before a branch was begun: raise explore.turns, which is {config.explore.turns}"
    silent = len(reflections) - sum(one.unread or one.no_room for one in reflections)
    rest = f", the other {len(reflections) - silent:,} could not be read" if silent < len(reflections) else ""
    return f"{silent:,} of {len(reflections):,} reflections found nothing to do better{rest}"


def _of_no_reflection(trees: Sequence[Tree], config: RunConfig) -> str:
    """Why there was no reflection."""
    if not config.explore.max_depth or config.explore.max_attempts == 1:
        name = "max_depth" if not config.explore.max_depth else "max_attempts"
        return f"explore.{name}={getattr(config.explore, name)} leaves no branch to reflect for: raise it"
    ends = Counter(attempt.stop.value for tree in trees for attempt in tree.attempts)
    end, count = ends.most_common(1)[0]
    return f"no attempt was reflected on; {count:,} of {ends.total():,} ended by {end}"
