"""Seeds as tasks, for other people's worlds that take only a seed: no two splits ever share one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from leafe.digest import digest, seed_for
from leafe.errors import UnknownName
from leafe.records import Task

SPLITS = ("train", "valid", "test")
RANGE = 2**29  # times three splits is below 2**31, which every generator of random numbers takes

OTHER_NAMES = {
    "training": "train",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "development": "valid",
    "testing": "test",
}


def split_named(name: str) -> str:
    """Our name of a split that others call differently, as `validation`; any other name stays as it is."""
    return OTHER_NAMES.get(name.strip().lower(), name)


def split_seed(split: str, number: int, seed: int) -> int:
    """The seed of a split's task: its remainder by three is the split, and the numbers of a draw are consecutive.

    Raises `UnknownName` for an unknown split.
    """
    split = split_named(split)
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    first = seed_for("seeds", seed) % RANGE
    return len(SPLITS) * ((first + number) % RANGE) + SPLITS.index(split)


def seeded_tasks(like: Task, seeds: Sequence[int], identity: Mapping[str, Any]) -> list[Task]:
    """A task for each seed, equal to `like` in all else; `identity` holds what distinguishes the world from others."""
    return [
        Task(f"{like.env}-{digest(identity, seed)}", like.env, like.instruction, like.horizon, {"seed": seed}) for seed in seeds
    ]


def for_too_few(split: str, held: Iterable[str]) -> str:
    """What to type where `split` holds too few tasks; `held` are the splits that hold any."""
    others = [other for other in held if other != split]
    if not others:
        return "ask for fewer"
    there = " or ".join(map(repr, others))
    return f"ask for fewer, or for those of {there}, as with tasks.train_split={others[0]} or tasks.test_split={others[0]}"
