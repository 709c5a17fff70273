"""The household tutor: a searcher that knows no regularity, and reflections that use only what the episode has shown.

The searcher fetches what it has seen or read about, else looks into a place that it has not looked into yet, each equally likely;
a share of its commands is careless. A reflection never names where things are beyond what the text showed, so it is
learned by reading and not by guessing: items seen, and places not yet tried.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from leafe.nano.world_teacher import Past
from leafe.records import Experience
from leafe.worlds.household.house import LIDDED, kind_of

TRIED = 2  # places that advice names to try
BLAME = " was no use."  # between the command that was wrong and what is known
_WISH = re.compile(r"Put (?:a|two of) (\w+) in (?:a|one) (\w+)\.")
_PLACE = re.compile(r"\w+ \d+")
_CONTENTS = re.compile(r"(\w+ \d+)(?:, open)?: (.*)\.")
_CLOSED = re.compile(r"(\w+ \d+) is closed\.")
_TAKEN = re.compile(r"You take (\w+ \d+)\.")
_PUT = re.compile(r"You put (\w+ \d+) in (\w+ \d+)\.")
_FACT = re.compile(r"(\w+ \d+) in (\w+ \d+)")


@dataclass
class View:
    """The knowledge of a reader of an episode. `contents` has the places that were looked into, as they were last seen."""

    wish: str
    target: str
    wanted: int
    places: tuple[str, ...]
    at: str = ""
    carried: str = ""
    closed: set[str] = field(default_factory=set)
    contents: dict[str, list[str]] = field(default_factory=dict)
    first_seen: dict[str, str] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    tries: tuple[str, ...] = ()

    @property
    def goal(self) -> str:
        """The place that wanted items are brought to."""
        fitting = [place for place in self.places if kind_of(place) == self.target]
        return max(fitting, key=lambda place: sum(kind_of(item) == self.wish for item in self.contents.get(place, ())))

    @property
    def delivered(self) -> set[str]:
        """Wanted items at the goal."""
        return {item for item in self.contents.get(self.goal, ()) if kind_of(item) == self.wish}

    def known(self) -> dict[str, str]:
        """Wanted items that are not yet brought, with the place where they were seen, else where advice puts them."""
        spots = {item: place for item, place in self.told.items() if place not in self.contents}
        spots |= {item: place for place, items in self.contents.items() for item in items}
        return self._pending(spots)

    def learned_later(self, later: View) -> dict[str, str]:
        """`known`, and the items that `later`, the same episode further on, saw for the first time."""
        spots = {item: place for item, place in later.first_seen.items() if item not in self.first_seen}
        told = {item: place for item, place in later.told.items() if place not in later.contents}
        return self._pending(told | spots) | self.known()

    def _pending(self, spots: dict[str, str]) -> dict[str, str]:
        left = {item: place for item, place in spots.items() if kind_of(item) == self.wish and item not in self.delivered}
        return {item: place for item, place in sorted(left.items()) if item != self.carried and place != self.goal}

    def fresh(self) -> list[str]:
        """Places that were not looked into; only those that advice names, while there are any."""
        unseen = [place for place in self.places if place not in self.contents and place != self.goal]
        return [place for place in self.tries if place in unseen] or unseen

    def read(self, action: str, text: str) -> None:
        """Adds one command and its answer."""
        if (put := _PUT.fullmatch(text)) is not None:
            self.contents.setdefault(put[2], []).append(put[1])
            self.carried = ""
        elif (taken := _TAKEN.fullmatch(text)) is not None:
            self.carried = taken[1]
            if taken[1] in self.contents.get(self.at, []):
                self.contents[self.at].remove(taken[1])
        elif (shut := _CLOSED.fullmatch(text)) is not None:
            self.at = shut[1]
            self.closed.add(shut[1])
        elif (shown := _CONTENTS.fullmatch(text)) is not None and shown[1] in self.places:
            self.at = shown[1]
            self.closed.discard(shown[1])
            self.contents[shown[1]] = _PLACE.findall(shown[2])
            for item in self.contents[shown[1]]:
                self.first_seen.setdefault(item, shown[1])

    def hear(self, advice: str) -> None:
        """Adds an experience, taken at its word."""
        _, _, told = advice.rpartition(BLAME)
        self.told |= dict(_FACT.findall(told))
        _, _, tries = told.partition(" Try ")
        self.tries = tuple(_PLACE.findall(tries)) or self.tries

    def ways(self, spots: dict[str, str], fresh: Sequence[str]) -> list[str]:
        """The sensible commands, when wanted items lie at `spots` and `fresh` places may be tried."""
        if self.carried:
            return [self._into(self.goal, f"put {self.carried} in {self.goal}")]
        here = [item for item in self.contents.get(self.at, []) if item in spots and spots[item] == self.at]
        if here and self.at not in self.closed:
            return [f"take {item} from {self.at}" for item in here]
        goals = sorted(set(spots.values())) or list(fresh)
        if self.at in goals and self.at in self.closed:
            return [f"open {self.at}"]
        return [f"go to {place}" for place in goals if place != self.at] or [f"go to {place}" for place in self.places]

    def _into(self, place: str, command: str) -> str:
        if self.at != place:
            return f"go to {place}"
        return f"open {place}" if place in self.closed else command

    def words(self, spots: dict[str, str], fresh: Sequence[str], draw: random.Random) -> str:
        """The advice from this knowledge: what to do with what is at hand, where items are, what to try for the others."""
        said = [f"{item} in {place}." for item, place in spots.items()]
        if self.carried:
            said = [f"Bring {self.carried}.", *said]
        missing = self.wanted - len(self.delivered) - bool(self.carried) - len(spots)
        if missing > 0 and fresh:
            said.append(f"Try {' or '.join(draw.sample(list(fresh), min(TRIED, len(fresh))))}.")
        return "".join(f" {part}" for part in said)


def view_of(past: Past) -> View:
    """The view of an episode so far. Raises `ValueError` when it is no household game of one room that wants things put somewhere."""
    introduction = past.situations[0].text
    wish = _WISH.search(introduction)
    if wish is None or "Doors lead to" in introduction:
        raise ValueError(f"the household tutor wants a game of one room with the goal put or two; found {introduction!r:.200}")
    places = tuple(_PLACE.findall(introduction.partition(": ")[2].partition("\n")[0]))
    view = View(wish[1], wish[2], 2 if "two of" in wish[0] else 1, places)
    for action, situation, after in zip(past.actions, past.situations, past.situations[1:], strict=False):
        if situation.advice:
            view.hear(situation.advice)
        view.read(action, after.text)
    if past.situations[-1].advice:
        view.hear(past.situations[-1].advice)
    return view


class HouseholdTutor:
    """See the module. `careless` is the share of commands without sense, half of it while there is advice."""

    oracle = False

    def __init__(self, careless: float = 0.2) -> None:
        self._careless = careless

    def habits(self, past: Past) -> dict[str, float]:
        """See `Tutor.habits`."""
        view = view_of(past)
        careless = self._careless / 2 if view.told or view.tries else self._careless
        ways, anything = view.ways(view.known(), view.fresh()), _anything(view)
        shares = dict.fromkeys(anything, careless / len(anything))
        for way in ways:
            shares[way] = shares.get(way, 0.0) + (1.0 - careless) / len(ways)
        return shares

    def hint(self, past: Past, draw: random.Random) -> str:
        """See `Tutor.hint`."""
        view = view_of(past)
        return view.words(view.known(), view.fresh(), draw)

    def faults(self, past: Past, draw: random.Random) -> Sequence[Experience]:
        """Every command that a player who knew what the whole episode showed would not have given."""
        end, found = view_of(past), []
        for turn, action in enumerate(past.actions, start=1):
            then = view_of(past.before(turn))
            spots, fresh = then.learned_later(end), end.fresh()
            if action not in then.ways(spots, fresh) and (words := then.words(spots, fresh, draw)):
                found.append(Experience(turn, f"{action}{BLAME}{words}"))
        return found


def _anything(view: View) -> list[str]:
    """Commands of a careless player: any place, and what can be done at the present one."""
    here = [f"open {view.at}"] if kind_of(view.at) in LIDDED else []
    if view.carried and view.at:
        here.append(f"put {view.carried} in {view.at}")
    return [
        *(f"go to {place}" for place in view.places),
        *here,
        *(f"take {item} from {view.at}" for item in view.contents.get(view.at, ())),
    ]
