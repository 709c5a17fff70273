"""Household games as an environment: houses drawn by the generator, played by the engine that plays ALFWorld.

The places of items are hidden; rooms and places are shown, and the items at a place are seen by a player who stands there while its lid is
open. A task's id is the digest of its house and its goal, and its house decides its split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from leafe.digest import digest
from leafe.envs.seeds import split_named
from leafe.errors import UnknownName, UserError
from leafe.records import Task
from leafe.worlds.household.generator import Recipe, houses
from leafe.worlds.household.house import GOALS, PLACES, ROOMS, SPLITS, House, from_payload
from leafe.worlds.household.texts import game_file
from leafe.worlds.pddl.environment import GameEnvironment, game_of
from leafe.worlds.pddl.game import Game

FORMS = (
    "look, inventory, walk to ROOM, go to PLACE, open PLACE, close PLACE, take ITEM from PLACE, put ITEM in PLACE, "
    "wash ITEM in PLACE, warm ITEM in PLACE, chill ITEM in PLACE, switch on ITEM"
)


class Household(GameEnvironment):
    """Find things in a house and bring them where they are wanted, perhaps washed, warm or cold.

    `goals` are some of put, two, wash, warm, chill and light, separated by commas. `skew` is the share of items that lie where their kind
    is usually kept, 0 strews them evenly. With `admissible` every observation ends with the commands that are possible. A
    `lenient` world reads commands without regard to case, articles and a final full stop.
    """

    name = "household"
    about = "find things in generated houses and bring them where they belong; exact snapshots"
    actions_help = f"Commands: {FORMS}."

    def __init__(
        self,
        *,
        rooms: int = 2,
        places: int = 8,
        items: int = 10,
        goals: str = ",".join(GOALS),
        skew: float = 0.8,
        admissible: bool = False,
        lenient: bool = False,
        horizon: int = 30,
    ) -> None:
        super().__init__(horizon=horizon, admissible=admissible, lenient=lenient)
        self._recipe = _checked(Recipe(rooms, places, items, _goals(goals), skew), horizon)

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        """`count` houses of a split, each with a task. See `Environment.tasks`."""
        split = split_named(split)
        if split not in SPLITS:
            raise UnknownName("split", split, SPLITS)
        drawn = houses(self._recipe, split, seed)
        found = [self._task(house) for _, house in zip(range(count), drawn, strict=False)]
        if len(found) < count:
            raise UserError(f"wanted {count} tasks of split {split!r}, found {len(found)} with this recipe; ask for fewer")
        return found

    def _task(self, house: House) -> Task:
        payload = house.payload()
        return Task(f"household-{digest(payload)}", self.name, house.sentence, self._horizon, payload)

    def load(self, task: Task) -> tuple[Game, Sequence[str]]:
        """The house in the task's payload, as a game."""
        try:
            return game_of(game_file(from_payload(task.payload))), ()
        except ValueError as error:
            raise UserError(f"task {task.id!r} holds no house: {error}") from None

    def refusal(self, text: str) -> str:
        """Lists the forms of commands; a command that is not possible here gets the same answer."""
        return f"{text} Commands: {FORMS}."


def _goals(words: str) -> tuple[str, ...]:
    goals = tuple(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    for goal in goals:
        if goal not in GOALS:
            raise UnknownName("goal", goal, GOALS)
    return goals


def _checked(recipe: Recipe, horizon: int) -> Recipe:
    """The recipe. Raises `UserError` for the first value that does not fit."""
    for ok, wish in (
        (bool(recipe.goals), f"at least one goal out of {', '.join(GOALS)}"),
        (1 <= recipe.rooms <= len(ROOMS), f"1 to {len(ROOMS)} rooms"),
        (
            max(2, recipe.rooms) <= recipe.places <= 5 * len(PLACES),
            f"at least two places, one for each room, and at most {5 * len(PLACES)}",
        ),
        (2 <= recipe.items <= 200, "2 to 200 items"),
        (0 <= recipe.skew <= 1, "a skew from 0 to 1"),
        (horizon >= 1, "a horizon of at least 1"),
    ):
        if not ok:
            given = ", ".join(f"{name}={value}" for name, value in [*asdict(recipe).items(), ("horizon", horizon)])
            raise UserError(f"household wants {wish}; found {given}")
    return recipe
