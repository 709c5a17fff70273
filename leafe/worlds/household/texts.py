"""A house as a game file: our domain and grammar, and a PDDL problem that says where everything is.

The file is of the same kind as ALFWorld's, so the original engine plays it too. Identifiers are chosen so that both engines show a
place or an item by its own name and number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from leafe.worlds.household.house import LAMP, LIDDED, TOOLS, House, kind_of
from leafe.worlds.pddl.gamefile import GameFile

_HERE = Path(__file__).parent
_DONE = {"wash": "washed", "warm": "warmed", "chill": "chilled"}
_DOES = {"sink": "washes", "stove": "warms", "fridge": "chills"}


@cache
def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def game_file(house: House, walkthrough: tuple[str, ...] = ()) -> GameFile:
    """The game of a house."""
    problem, grammar = _problem(house), _text("grammar.txt").replace('TASK"', f'{house.sentence}"')
    return GameFile(_text("domain.pddl"), problem, grammar, walkthrough, solvable=True)


def _problem(house: House) -> str:
    ids = _identifiers([name for name, _ in house.rooms] + list(house.places))
    things = list(_things(house))
    item_ids = _identifiers(name for name, _ in things)
    kinds = sorted({kind_of(name) for name in house.places} | {kind_of(name) for name, _ in things} | {house.item, house.place})
    objects = {"you": "person"} | {f"kind_{kind}": "sort" for kind in kinds}
    objects |= {ids[room]: "room" for room, _ in house.rooms} | {ids[place]: "place" for place in house.places}
    objects |= {f"at_{one}": "spot" for one in ids.values()} | dict.fromkeys(item_ids.values(), "item")
    facts = [f"(standing you at_{ids[house.start]})", *_walls(house, ids)]
    for name, place in things:
        kind, one = kind_of(name), item_ids[name]
        facts += [f"(sortof {one} kind_{kind})", f"(lies {one} {ids[place]})"]
        facts.append(f"(lamp {one})" if kind == LAMP else f"(portable {one})")
    listed = "\n  ".join(f"{name} - {kind}" for name, kind in objects.items())
    stated = "\n  ".join(facts)
    return (
        f"(define (problem house)\n (:domain household)\n (:objects\n  {listed})\n"
        f" (:init\n  {stated})\n (:goal\n  {_goal(house)}))\n"
    )


def _identifiers(names: Iterable[str]) -> dict[str, str]:
    """An identifier for each name. Players see the identifiers of a kind numbered backwards, so they count down."""
    known = list(names)
    totals = Counter(kind_of(name) for name in known)
    return {name: f"{kind_of(name)}_bar_{totals[kind_of(name)] - int(name.rpartition(' ')[2]):03d}" for name in known}


def _things(house: House) -> Iterator[tuple[str, str]]:
    """Every item's name with its place."""
    numbers: Counter[str] = Counter()
    for place, kinds in house.items:
        for kind in kinds:
            numbers[kind] += 1
            yield f"{kind} {numbers[kind]}", place


def _walls(house: House, ids: dict[str, str]) -> Iterator[str]:
    for room, places in house.rooms:
        yield f"(door {ids[room]} at_{ids[room]}) (within at_{ids[room]} {ids[room]})"
        for other, _ in house.rooms:
            if other != room:
                yield f"(joined {ids[room]} {ids[other]})"
        for place in places:
            one, kind = ids[place], kind_of(place)
            yield f"(front {one} at_{one}) (within at_{one} {ids[room]}) (inside {one} {ids[room]}) (kindof {one} kind_{kind})"
            if kind in LIDDED:
                yield f"(lidded {one})"
            if kind in TOOLS.values():
                yield f"({_DOES[kind]} {one})"


def _goal(house: House) -> str:
    item, place = f"kind_{house.item}", f"kind_{house.place}"
    if house.goal == "light":
        lamp = "(exists (?l - item ?p - place ?s - spot ?w - person) (and (lit ?l) (lies ?l ?p) (front ?p ?s) (standing ?w ?s)))"
        return f"(and {lamp} (exists (?i - item ?w - person) (and (sortof ?i {item}) (carries ?w ?i))))"
    if house.goal == "two":
        both = f"(sortof ?i {item}) (sortof ?j {item}) (not (= ?i ?j)) (lies ?i ?p) (lies ?j ?p)"
        return f"(exists (?p - place ?i - item ?j - item) (and (kindof ?p {place}) {both}))"
    extra = f" ({_DONE[house.goal]} ?i)" if house.goal in _DONE else ""
    return f"(exists (?p - place ?i - item) (and (kindof ?p {place}) (sortof ?i {item}) (lies ?i ?p){extra}))"
