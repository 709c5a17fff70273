"""A household game: rooms, places, items where they lie, and a task; the vocabulary of all houses; and the split of a house.

A house is JSON, so it can be a task's payload, and its text is canonical: the same house drawn twice is the same task. Its split is a
function of rooms, places and items alone, so two tasks in one house are never in two splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from leafe.digest import digest, seed_for

ROOMS = ("kitchen", "bedroom", "study", "hall", "cellar", "workshop")
PLACES = ("shelf", "table", "cabinet", "drawer", "bed", "desk", "sofa", "chest", "basket", "bench", "rack", "crate")
TOOLS = {"wash": "sink", "warm": "stove", "chill": "fridge"}
LIDDED = ("cabinet", "drawer", "chest", "crate", "fridge")
ITEMS = (
    "apple", "book", "bowl", "bread", "brush", "candle", "clock", "coin", "cup", "fork", "key", "lemon",
    "mug", "pen", "plate", "radio", "rope", "scarf", "shirt", "soap", "spoon", "stamp", "towel", "vase",
)  # fmt: skip
LAMP = "lamp"
GOALS = {
    "put": "Put a {item} in a {place}.",
    "two": "Put two of {item} in one {place}.",
    "wash": "Put a washed {item} in a {place}.",
    "warm": "Put a warm {item} in a {place}.",
    "chill": "Put a cold {item} in a {place}.",
    "light": "Carry a {item} to a lit lamp.",
}
# Parts of ten. `pretrain` is for a model's curriculum.
SPLITS = {"pretrain": range(0, 5), "train": range(5, 7), "valid": range(7, 8), "test": range(8, 10)}


@cache
def home_of(item: str, rank: int = 0) -> str:
    """The usual place of items of a kind, `rank` 0 first, then 1: the regularity of skewed houses, which no text tells a player."""
    others = [place for place in PLACES if rank == 0 or place != home_of(item)]
    return others[seed_for("household", "home", item, rank) % len(others)]


@dataclass(frozen=True, slots=True)
class House:
    """Rooms with their places, places with the kinds of the items in them, and the task.

    `rooms` and `places` are in the order of their names; a place is named by its kind and its number among its kind, as a room is.
    """

    rooms: tuple[tuple[str, tuple[str, ...]], ...]
    items: tuple[tuple[str, tuple[str, ...]], ...]  # places that hold something
    goal: str
    item: str
    place: str
    start: str

    @property
    def places(self) -> tuple[str, ...]:
        """Every place."""
        return tuple(place for _, places in self.rooms for place in places)

    @property
    def sentence(self) -> str:
        """The task, in words."""
        return GOALS[self.goal].format(item=self.item, place=self.place)

    def split(self) -> str:
        """The split that this house belongs to, whatever the task in it."""
        part = int(digest(_listed(self.rooms), _listed(self.items)), 16) % 10
        return next(name for name, parts in SPLITS.items() if part in parts)

    def payload(self) -> dict[str, Any]:
        """The house as JSON: the inverse of `from_payload`."""
        task = {"goal": self.goal, "item": self.item, "place": self.place, "start": self.start}
        return {"rooms": _listed(self.rooms), "items": _listed(self.items), **task}


def _listed(pairs: Sequence[tuple[str, tuple[str, ...]]]) -> list[list[Any]]:
    return [[name, list(values)] for name, values in pairs]


def kind_of(name: str) -> str:
    """The kind of a place or a room: its name without the number."""
    return name.rpartition(" ")[0]


def from_payload(payload: Mapping[str, Any]) -> House:
    """The house of a task. Raises `ValueError` when the payload holds none."""
    try:
        rooms = tuple((str(name), tuple(map(str, places))) for name, places in payload["rooms"])
        items = tuple((str(name), tuple(map(str, kinds))) for name, kinds in payload["items"])
        house = House(rooms, items, *(str(payload[key]) for key in ("goal", "item", "place", "start")))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"wanted rooms, items, goal, item, place and start; {type(error).__name__}: {error}") from None
    names = [name for name, _ in rooms] + list(house.places)
    words = [word for name in names for word in name.split(" ")] + [kind for _, kinds in items for kind in kinds]
    if not all(word.isascii() and word.isalnum() for word in [*words, house.item, house.place]):
        raise ValueError("names want to be plain words")
    if len(set(names)) != len(names) or not all(kind_of(name) for name in names):
        raise ValueError("rooms and places want names of their own, such as 'shelf 1'")
    if house.goal not in GOALS or house.start not in dict(rooms) or not {name for name, _ in items} <= set(house.places):
        raise ValueError("the goal, the start or a place of an item is not known")
    return house
