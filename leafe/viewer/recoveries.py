"""Held-out attempts that were set back and succeeded nevertheless, without any advice, each beside the base's attempt at the same task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from leafe.evaluation.outcomes import ArmOutcomes
from leafe.evaluation.transcripts import Transcript
from leafe.viewer.attempts import attempt_alone
from leafe.viewer.markup import Markup, tag

MOST = 4
Transcripts = Mapping[tuple[str, int], Transcript]


@dataclass(frozen=True, slots=True)
class Recovery:
    """An attempt of an arm with the turn that set it back, and the base's with the same task and sample, if it is known."""

    arm: str
    own: Transcript
    setback: int
    base: Transcript | None = None
    base_setback: int = 0


def recoveries(arms: Sequence[ArmOutcomes], transcripts: Mapping[str, Transcripts], base: str) -> tuple[Recovery, ...]:
    """A few recoveries of the first arm that has some, one a task: those where the base failed first, then the earliest setbacks."""
    setbacks = {arm.name: {(one.task, one.sample): one.setback or 0 for one in arm.counted} for arm in arms}
    theirs = transcripts.get(base, {})
    for arm in (one for one in arms if one.name != base):
        own = transcripts.get(arm.name, {})
        keys = [(one.task, one.sample) for one in arm.counted if one.success and one.setback and (one.task, one.sample) in own]
        failed = {key: key in theirs and not theirs[key].tree.attempts[-1].success for key in keys}
        keys.sort(key=lambda key: (not failed[key], setbacks[arm.name][key], key))
        first = {task: (task, sample) for task, sample in reversed(keys)}
        chosen = sorted(first.values(), key=keys.index)[:MOST]
        if chosen:
            return tuple(
                Recovery(arm.name, own[key], setbacks[arm.name][key], theirs.get(key), setbacks.get(base, {}).get(key, 0))
                for key in chosen
            )
    return ()


def recoveries_section(found: Sequence[Recovery]) -> Iterator[Markup]:
    """The section of a page; nothing without a recovery."""
    if not found:
        return
    words = (
        f"Held-out tasks in which {found[0].arm} was set back and solved the task nevertheless, without any advice, beside the base's"
        " attempt of the same number. A setback is the first turn without an action, or after which the expert's solution is longer"
        " than before or there is none. Most tasks are not like these: how many are is told by figures, not by examples."
    )
    shown = (_recovery(one) for one in found)
    yield tag("section", tag("h2", "Recoveries"), tag("p", words, class_="soft"), *shown, id="recoveries")


def _recovery(one: Recovery) -> Markup:
    sides = [(one.arm, one.own, one.setback), *([("base", one.base, one.base_setback)] if one.base else [])]
    return tag(
        "section",
        tag("h3", one.own.tree.task.id),
        *(
            attempt_alone(transcript.tree, f"{name}, sample {transcript.sample}", {setback: "✗ set back here"}, opened=not number)
            for number, (name, transcript, setback) in enumerate(sides)
        ),
        class_="task",
    )
