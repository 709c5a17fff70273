"""Seeded houses: rooms and places drawn, items strewn over them, and a task that is not done yet and can be.

With `skew` above 0 that share of the items lies where its kind is usually kept, with 0 anything lies anywhere; no text says which. A
house belongs to one split whatever the seed and the task (`House.split`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from leafe.digest import seed_for
from leafe.worlds.household.house import GOALS, ITEMS, LAMP, LIDDED, PLACES, ROOMS, TOOLS, House, home_of, kind_of

FIRST_HOME = 0.7  # of the items that lie at home, so many lie at the first of their kind's two homes


@dataclass(frozen=True)
class Recipe:
    """The wanted houses. `places` are those that may hold anything; sink, stove and fridge come on top where a goal needs them."""

    rooms: int = 2
    places: int = 8
    items: int = 10
    goals: tuple[str, ...] = tuple(GOALS)
    skew: float = 0.8


def scatter(recipe: Recipe, draw: random.Random) -> House | None:
    """One random house; None when the draw left no task in it."""
    goal, item = draw.choice(recipe.goals), draw.choice(ITEMS)
    rooms = _furnished(recipe, draw)
    places = [place for room in rooms.values() for place in room if kind_of(place) not in TOOLS.values()]
    wanted = 2 if goal == "two" else 1
    others = [kind for kind in ITEMS if kind != item]
    kinds = [item] * wanted + draw.choices(others, k=max(0, recipe.items - wanted))
    lying: dict[str, list[str]] = {}
    for kind in kinds:
        lying.setdefault(_spot_for(kind, places, recipe.skew, draw), []).append(kind)
    if "light" in recipe.goals:
        free = [place for place in places if kind_of(place) not in LIDDED]
        if not free:
            return None
        lying.setdefault(draw.choice(free), []).append(LAMP)
    targets = sorted({kind_of(place) for place in places} - {kind_of(place) for place, held in lying.items() if item in held})
    if not targets:
        return None
    start, target = draw.choice(sorted(rooms)), draw.choice(targets)
    items = tuple((place, tuple(sorted(lying[place]))) for place in sorted(lying))
    return House(tuple((name, tuple(sorted(rooms[name]))) for name in sorted(rooms)), items, goal, item, target, start)


def _furnished(recipe: Recipe, draw: random.Random) -> dict[str, list[str]]:
    """Rooms with their places: each kind of place once before any comes twice, each room one place before any has two."""
    whole, part = divmod(recipe.places, len(PLACES))
    kinds = list(PLACES) * whole + draw.sample(PLACES, part)
    kinds += [TOOLS[goal] for goal in recipe.goals if goal in TOOLS]
    draw.shuffle(kinds)
    names = [f"{kind} 1" for kind in draw.sample(ROOMS, recipe.rooms)]
    rooms: dict[str, list[str]] = {name: [] for name in names}
    numbers: Counter[str] = Counter()
    for number, kind in enumerate(kinds):
        numbers[kind] += 1
        room = names[number] if number < len(names) else draw.choice(names)
        rooms[room].append(f"{kind} {numbers[kind]}")
    return rooms


def _spot_for(kind: str, places: list[str], skew: float, draw: random.Random) -> str:
    if draw.random() < skew:
        home = home_of(kind, 0 if draw.random() < FIRST_HOME else 1)
        at_home = [place for place in places if kind_of(place) == home]
        if at_home:
            return draw.choice(at_home)
    return draw.choice(places)


def houses(recipe: Recipe, split: str, seed: int, patience: int = 2_000) -> Iterator[House]:
    """Distinct houses of a split. Small recipes hold few: after `patience` draws in a row without a new one they count as used up."""
    draw = random.Random(seed_for("household", seed, split))
    seen: set[House] = set()
    idle = 0
    while (idle := idle + 1) <= patience:
        house = scatter(recipe, draw)
        if house is not None and house not in seen and house.split() == split:
            seen.add(house)
            idle = 0
            yield house
