"""The part of `leafe check-env` that looks at tasks: the same for the same arguments, unchanged by play, and in one split only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations

from leafe.digest import canonical
from leafe.envs.alarm import ENDS_MORE
from leafe.envs.base import Environment
from leafe.envs.check_findings import Failed, Outcome, Skipped
from leafe.records import Task, decode, encode

SPLITS = ("train", "valid", "test")  # kept apart by convention; other names may be second names of these
DRAWN = 32  # tasks of each split, where it has as many


def copied(tasks: Sequence[Task]) -> list[Task]:
    """The tasks written to JSON and read back, so that they share nothing with the originals."""
    return [decode(Task, json.loads(canonical(encode(task)))) for task in tasks]


def check_tasks(drawn: Sequence[Sequence[Task]], name: str, count: int) -> Outcome:
    """The tasks are equal in all three draws, well formed, and unchanged by a conversion to JSON and back."""
    tasks = drawn[0]
    for task, copy in zip(tasks, copied(tasks), strict=True):
        if copy != task:
            raise Failed(f"task {task.id!r} changes when written to JSON and read back; use strings, numbers, lists and dicts")
        if task.env != name or task.horizon < 1 or not task.instruction:
            raise Failed(f"a task wants env {name!r}, a horizon of at least 1 and an instruction; found {task!r:.200}")
    distinct = len({task.id for task in tasks})
    if len(tasks) != count or distinct != count:
        raise Failed(f"wanted {count} tasks with ids of their own; found {len(tasks)} with {distinct} ids")
    for again in drawn[1:]:
        if again != tasks:
            pairs = zip(tasks, again, strict=False)
            first = next((f"; first: {one!r:.120} and {other!r:.120}" for one, other in pairs if one != other), "")
            raise Failed(f"the same split, count and seed gave other tasks the second time{first}")
    return f"{count} tasks are the same each time they are drawn", {"tasks": count}


def check_payload(tasks: Sequence[Task], kept: Sequence[Task]) -> Outcome:
    """Play left the tasks as they were."""
    changed = [(now, before) for now, before in zip(tasks, kept, strict=True) if now != before]
    if changed:
        now, before = changed[0]
        keys = [key for key in {**before.payload, **now.payload} if before.payload.get(key) != now.payload.get(key)]
        what = f"payload[{keys[0]!r}] was {before.payload.get(keys[0])!r:.80} and is {now.payload.get(keys[0])!r:.80}"
        raise Failed(f"reset or step changes the task that it was given: {what}; copy what is changed, as with copy.deepcopy")
    return f"{len(tasks)} tasks are as they were before they were played", {}


def check_splits(environment: Environment, split: str, seed: int) -> Outcome:
    """No task is in two splits, by its id or by its content."""
    found = {name: _drawn(environment, name, seed) for name in SPLITS}
    pairs = list(combinations(SPLITS, 2))
    if split not in SPLITS and split != "train":
        found[split] = _drawn(environment, split, seed)
        pairs.append(("train", split))
    compared = [(one, other) for one, other in pairs if found[one] and found[other]]
    if not compared:
        raise Skipped(f"has no two of the splits {', '.join(SPLITS)}")
    for one, other in compared:
        _check_apart({one: found[one], other: found[other]})
    few = [pair for pair in compared if {_content(task, pair[0]) for task in found[pair[0]]} & _contents(found, pair[1])]
    names = " and ".join(sorted({name for pair in compared for name in pair}))
    note = f"; the content of tasks recurs, also in {few[0][0]} and {few[0][1]}, so little is held out" if few else ""
    return f"no task is in two of the splits {names}{note}", {"recurring": len(few)}


def _drawn(environment: Environment, split: str, seed: int) -> Sequence[Task]:
    """Up to `DRAWN` tasks of a split, none where there is no such split."""
    count = DRAWN
    while count:
        try:
            return list(environment.tasks(split, count, seed))
        except ENDS_MORE:
            raise
        except BaseException:  # an unknown split or too few tasks: each foreign class raises its own error for these
            count //= 2
    return []


def _content(task: Task, split: str) -> str:
    """A task's content, without its own name and its split's."""
    own = {key: value for key, value in encode(task.payload).items() if value not in (task.id, split)}
    return canonical([task.instruction, own])


def _contents(found: dict[str, Sequence[Task]], split: str) -> set[str]:
    return {_content(task, split) for task in found[split]}


def _check_apart(splits: dict[str, Sequence[Task]]) -> None:
    (one, first), (other, second) = splits.items()
    shared = sorted({task.id for task in first} & {task.id for task in second})
    if shared:
        raise Failed(f"{_both(one, other, len(shared))}, first: {shared[0]}; what is measured would have been trained on")
    contents = {_content(task, one): task.id for task in first}
    again = [task for task in second if _content(task, other) in contents]
    # A world of few tasks repeats them within a split too; nothing can be held out there, and the sentence says so.
    if again and len(contents) == len(first):
        twin = contents[_content(again[0], other)]
        raise Failed(f"{_both(one, other, len(again))} under two ids, first: {twin} and {again[0].id}; draw them apart")


def _both(one: str, other: str, count: int) -> str:
    return f"{count} task{'s are' if count > 1 else ' is'} both in {one!r} and in {other!r}"
