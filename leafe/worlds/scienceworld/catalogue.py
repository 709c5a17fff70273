"""Facts about ScienceWorld that need no simulator: its thirty tasks, their splits, their limits and the simplifications.

The variations of a task are numbered; its first half is for training, the third quarter for development, the rest for tests, as the
simulator itself divides them. Counts are those of version 1.2. Nothing here knows Java.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from leafe.digest import seed_for
from leafe.envs.seeds import split_named
from leafe.errors import UnknownName, UserError
from leafe.records import Task


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the thirty tasks: its official number and name, how many variations it has, and the turns that it is given.

    The turns are those of published agents (ETO, and its successors for the tasks that it leaves out). They are limits of ours: the
    simulator's own count leaves out whatever takes no time in its world.
    """

    number: str
    name: str
    variations: int
    turns: int


KINDS = (
    Kind("1-1", "boil", 30, 100),
    Kind("1-2", "melt", 30, 80),
    Kind("1-3", "freeze", 30, 80),
    Kind("1-4", "change-the-state-of-matter-of", 30, 80),
    Kind("2-1", "use-thermometer", 540, 30),
    Kind("2-2", "measure-melting-point-known-substance", 436, 120),
    Kind("2-3", "measure-melting-point-unknown-substance", 300, 120),
    Kind("3-1", "power-component", 20, 20),
    Kind("3-2", "power-component-renewable-vs-nonrenewable-energy", 20, 30),
    Kind("3-3", "test-conductivity", 900, 30),
    Kind("3-4", "test-conductivity-of-unknown-substances", 600, 30),
    Kind("4-1", "find-living-thing", 300, 15),
    Kind("4-2", "find-non-living-thing", 300, 15),
    Kind("4-3", "find-plant", 300, 15),
    Kind("4-4", "find-animal", 300, 15),
    Kind("5-1", "grow-plant", 126, 30),
    Kind("5-2", "grow-fruit", 126, 60),
    Kind("6-1", "chemistry-mix", 32, 60),
    Kind("6-2", "chemistry-mix-paint-secondary-color", 36, 15),
    Kind("6-3", "chemistry-mix-paint-tertiary-color", 36, 30),
    Kind("7-1", "lifespan-longest-lived", 125, 10),
    Kind("7-2", "lifespan-shortest-lived", 125, 10),
    Kind("7-3", "lifespan-longest-lived-then-shortest-lived", 125, 12),
    Kind("8-1", "identify-life-stages-1", 14, 30),
    Kind("8-2", "identify-life-stages-2", 10, 30),
    Kind("9-1", "inclined-plane-determine-angle", 168, 40),
    Kind("9-2", "inclined-plane-friction-named-surfaces", 1386, 40),
    Kind("9-3", "inclined-plane-friction-unnamed-surfaces", 162, 40),
    Kind("10-1", "mendelian-genetics-known-plant", 120, 50),
    Kind("10-2", "mendelian-genetics-unknown-plant", 480, 50),
)
_BY_NAME = {name: kind for kind in KINDS for name in (kind.name, kind.number)}
SIMPLIFICATIONS = ("noElectricalAction", "openContainers", "openDoors", "selfWateringFlowerPots", "teleportAction")
SPLITS = ("train", "dev", "test")
ALIASES = {"valid": "dev"}


@dataclass(frozen=True, slots=True)
class Spec:
    """The simulator's input: a task's name, the number of a variation, and the simplifications as it wants them written."""

    kind: str
    variation: int
    simplifications: str

    @property
    def id(self) -> str:
        """The task's id: `scienceworld-boil-3-easy`."""
        return "-".join(["scienceworld", self.kind, str(self.variation), *filter(None, [self.simplifications.replace(",", "+")])])


def spec_of(task: Task) -> Spec:
    """The variation that a task names. Raises `UserError` when it does not exist."""
    given = (task.payload.get("task"), task.payload.get("variation"), task.payload.get("simplifications"))
    kind = next((kind for kind in KINDS if kind.name == given[0]), None)
    if kind is None or not isinstance(given[1], int) or not 0 <= given[1] < kind.variations or not isinstance(given[2], str):
        raise UserError(
            f"task {task.id!r} names no variation of a ScienceWorld task; found {dict(task.payload)!r:.120}; draw the tasks anew"
        )
    return Spec(kind.name, given[1], checked_simplifications(given[2]))


def checked_simplifications(text: str) -> str:
    """The simplifications in one order; empty for none. Raises `UserError` for names that do not go together."""
    words = sorted({word.strip() for word in text.split(",") if word.strip()} - {"none"})
    for word in words:
        if word != "easy" and word not in SIMPLIFICATIONS:
            raise UnknownName("simplification", word, ("easy", "none", *SIMPLIFICATIONS))
    if "easy" in words and len(words) > 1:
        raise UserError(f"scienceworld wants simplifications=easy alone or a list without it; found {text!r}")
    return ",".join(words)


def chosen_kinds(types: str | None, simplifications: str) -> tuple[Kind, ...]:
    """The tasks of a list of names or official numbers, separated by commas; without a list all that the simplifications allow."""
    if types is None:
        return tuple(kind for kind in KINDS if not _needs_electricity(kind, simplifications))
    words = [word.strip() for word in types.split(",") if word.strip()]
    for word in words:
        if word not in _BY_NAME:
            raise UnknownName("ScienceWorld task", word, (kind.name for kind in KINDS))
    wanted = tuple(kind for kind in KINDS if kind in [_BY_NAME[word] for word in words])
    if not wanted:
        raise UserError(f"scienceworld wants types as names or numbers of tasks, like boil,1-2; found {types!r}")
    barred = next((kind.name for kind in wanted if _needs_electricity(kind, simplifications)), None)
    if barred:
        raise UserError(
            f"scienceworld's {barred} cannot be solved with noElectricalAction; leave one of them out (easy leaves it out itself)"
        )
    return wanted


def _needs_electricity(kind: Kind, simplifications: str) -> bool:
    return "noElectricalAction" in simplifications and ("power-component" in kind.name or "conductivity" in kind.name)


def variations(kind: Kind, split: str) -> range:
    """The official variations of a split. Raises `UnknownName` for an unknown split."""
    name = ALIASES.get(split_named(split), split_named(split))
    if name not in SPLITS:
        raise UnknownName("split", split, (*SPLITS, *ALIASES))
    quarter = kind.variations // 4
    bounds = {"train": (0, 2 * quarter), "dev": (2 * quarter, 3 * quarter), "test": (3 * quarter, kind.variations)}
    return range(*bounds[name])


def drawn(kinds: Sequence[Kind], split: str, seed: int) -> Iterator[tuple[Kind, int]]:
    """Every variation of a split in a seeded order that takes one of each task in turn, so that few tasks are still of many kinds."""
    draw = random.Random(seed_for("scienceworld", ALIASES.get(split_named(split), split_named(split)), seed))
    piles = [(kind, draw.sample(range_of, len(range_of))) for kind in kinds for range_of in [variations(kind, split)]]
    draw.shuffle(piles)
    for turn in range(max(len(pile) for _, pile in piles)):
        yield from ((kind, pile[turn]) for kind, pile in piles if turn < len(pile))
