"""WebShop as an environment: search, look at products, choose options and buy; the paper's reward ends the episode.

An episode ends with a purchase and with nothing else; success is a reward of 1. The state is a frozen record, so snapshots are exact and
cost nothing. A search is taken on every page, as in the original; its keywords `<r>`, `<a>`, `<c>` and `<q>`, of which the first draws
products at random, are plain words here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from leafe.envs.base import FrozenStateEnvironment
from leafe.errors import UserError
from leafe.records import Observation, Task
from leafe.worlds.commands import without_article, without_stop
from leafe.worlds.webshop import pages
from leafe.worlds.webshop.catalogue import Catalogue, files_of, open_catalogue
from leafe.worlds.webshop.goals import Choice, Goals, goal_of
from leafe.worlds.webshop.nouns import nouns_by
from leafe.worlds.webshop.pages import WINDOW, Visit, labels
from leafe.worlds.webshop.products import Product, price_of
from leafe.worlds.webshop.reward import Goal, Judgement, judge

NO_ACTION = "That is no action: write search[keywords] or click[label]."
NO_SEARCH = "Nothing can be clicked here: write search[keywords]."
NO_LABEL = "There is no such label here: write click[label] with one that stands on this page, or search[keywords]."


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An episode's whole state: the goal, the shopper's page, and the last observation once something is bought."""

    task: Task
    goal: Goal
    visit: Visit
    final: Observation | None = None


class WebShop(FrozenStateEnvironment[Snapshot]):
    """Buy what the instruction asks for in a shop that is searched with words and read page by page.

    `data` is the path of WebShop's `items_shuffle` file or of the folder that holds it, with `items_ins_v2` and `items_human_ins` beside
    it unless `attributes` and `instructions` name them; without `data` it is a small catalogue that ships. `goals` are synthetic or human,
    `split_by` goal or product. `nouns` are found by rules or by spacy. `index` is a folder to keep a large catalogue's index in. A
    `lenient` shop reads verbs without regard to case, and labels without regard to articles and a final full stop.
    """

    name = "webshop"
    about = "buy what an instruction asks for in a shop; a small catalogue ships, official files by path; exact snapshots"
    actions_help = "Actions: search[keywords], click[label]."

    def __init__(
        self,
        *,
        data: str | None = None,
        attributes: str | None = None,
        instructions: str | None = None,
        goals: str = "synthetic",
        split_by: str = "goal",
        price_seed: int = 0,
        nouns: str = "rules",
        index: str | None = None,
        lenient: bool = False,
        horizon: int = 15,
    ) -> None:
        if horizon < 1:
            raise UserError(f"webshop wants a horizon of at least 1; found {horizon}")
        folder = Path(index).expanduser().resolve() if index is not None else None
        self._nouns, self._lenient = nouns_by(nouns), lenient
        self._choice = Choice(goals, split_by, price_seed, horizon)
        self._catalogue: Catalogue = open_catalogue(files_of(data, attributes, instructions), folder)
        self._goals = Goals(self._catalogue, self._choice)

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        """`count` goals of a split. See `Environment.tasks`."""
        found: dict[str, Task] = {}
        for task in self._goals.tasks(split, seed):
            if len(found) == count:
                break
            found.setdefault(task.id, task)
        if len(found) < count:
            raise UserError(
                f"wanted {count} tasks of split {split!r}, found {len(found)} among {len(self._goals)} goals; ask for fewer"
            )
        return list(found.values())

    def reset(self, task: Task) -> Observation:
        """Shows the search page. Raises `UserError` when the task's product is not in this catalogue."""
        number = self._catalogue.number(str(task.payload.get("asin")))
        if number is None:
            raise UserError(
                f"task {task.id!r} wants a product that is not in {self._catalogue.files.products}; give its catalogue: data=PATH"
            )
        self._now = Snapshot(task, goal_of(task, self._catalogue.product(number)), Visit())
        return Observation(self._page(self._now))

    def step(self, action: str) -> Observation:
        """Searches or clicks. After a purchase nothing changes any more and the last observation is repeated."""
        now = self._present()
        if now.final is not None:
            return now.final
        verb, words = _parsed(action)
        verb = verb.strip().lower() if self._lenient else verb
        if verb == "search" and words and _nested(words):
            return self._go(replace(now, visit=Visit("results", keywords=words)))
        clickable = self._labels(now.visit)
        words = _meant(words, clickable) if self._lenient else words
        if verb == "click" and words in clickable:
            return self._click(now, *clickable[words])
        known = verb == "click" or (verb == "search" and _nested(words))
        trouble = NO_ACTION if not known else NO_LABEL if clickable else NO_SEARCH
        return Observation(trouble + pages.SEPARATOR + self._page(now), info={"outcome": "INVALID"})

    def _click(self, now: Snapshot, kind: str, value: str) -> Observation:
        """Follows a label of the present page."""
        visit = now.visit
        if kind == "product":
            visit = replace(visit, kind="item", product=self._catalogue.number(value), chosen=())
        elif kind != "button":
            visit = replace(visit, chosen=tuple({**dict(visit.chosen), kind.removeprefix("option "): value}.items()))
        elif value == pages.BUY:
            return self._buy(now)
        elif value == pages.BACK:
            visit = Visit()
        elif value in pages.SUB_PAGES:
            visit = replace(visit, kind="sub", sub=value)
        elif visit.kind == "sub":
            visit = replace(visit, kind="item", sub="")
        elif visit.kind == "item":
            visit = Visit("results", visit.keywords, visit.number)
        else:
            visit = replace(visit, number=visit.number + (1 if value == pages.NEXT else -1))
        return self._go(replace(now, visit=visit))

    def _go(self, now: Snapshot) -> Observation:
        self._now = now
        return Observation(self._page(now), info={"outcome": now.visit.kind.upper()})

    def _buy(self, now: Snapshot) -> Observation:
        assert now.visit.product is not None, "only a product's page has the button"
        product, chosen = self._catalogue.product(now.visit.product), dict(now.visit.chosen)
        found = self._judge(now, product, chosen)
        terms = {"kind": found.kind, "attributes": found.attributes, "options": found.options, "price": found.price}
        text = pages.final_page(product, chosen, found.reward)
        final = Observation(text, True, found.reward == 1.0, found.reward, {"outcome": "BOUGHT", "terms": terms})
        self._now = replace(now, final=final)
        return final

    def _judge(self, now: Snapshot, product: Product, chosen: Mapping[str, str]) -> Judgement:
        price = price_of(product, int(now.task.payload.get("price_seed", self._choice.price_seed)))
        return judge(now.goal, product, chosen, price=price, nouns=self._nouns)

    def _page(self, now: Snapshot) -> str:
        visit, instruction = now.visit, now.task.instruction
        if visit.kind == "search":
            return pages.search_page(instruction)
        products = self._products(visit)
        if visit.kind == "results":
            return pages.results_page(instruction, visit, products, len(self._catalogue.search(visit.keywords)))
        if visit.kind == "item":
            return pages.item_page(instruction, products[0])
        return pages.sub_page(instruction, products[0], visit.sub)

    def _products(self, visit: Visit) -> list[Product]:
        """The products that a page is about."""
        if visit.product is not None:
            return [self._catalogue.product(visit.product)]
        found = self._catalogue.search(visit.keywords) if visit.kind == "results" else ()
        return [self._catalogue.product(number) for number in found[(visit.number - 1) * WINDOW : visit.number * WINDOW]]

    def _labels(self, visit: Visit) -> dict[str, tuple[str, str]]:
        return labels(visit, self._products(visit))

    def expert(self) -> Sequence[str]:
        """Finds the goal's product, chooses its options and buys it; empty where that does not give the full reward."""
        now = self._present()
        number = self._catalogue.number(str(now.task.payload["asin"]))
        if now.final is not None or number is None:
            return ()
        product, visit = self._catalogue.product(number), now.visit
        there = visit.kind == "item" and visit.product == number
        chosen = dict(visit.chosen) if there else {}
        clicks = _option_clicks(now.goal, product, chosen)
        way = [] if there else self._way_to(number, product, visit)
        if way is None or self._judge(now, product, chosen).reward != 1.0:
            return ()
        return [*way, *clicks, "click[buy now]"]

    def _way_to(self, number: int, product: Product, visit: Visit) -> list[str] | None:
        """Actions that open the product's page; None when no search finds it."""
        if visit.kind == "results" and product.asin in {one.asin for one in self._products(visit)}:
            return [f"click[{product.asin.lower()}]"]
        for text in (product.title, f"{product.title} {product.description[:300]}", f"{product.title} {product.query}"):
            words = " ".join(re.sub(r"[\[\]]", " ", pages.printable(text)).lower().split())
            found = self._catalogue.search(words) if words else ()
            if number in found:
                turns = ["click[next >]"] * (found.index(number) // WINDOW)
                return [f"search[{words}]", *turns, f"click[{product.asin.lower()}]"]
        return None

    def example_actions(self) -> Sequence[str]:
        """Searches for the kind of product and for the first words of the instruction, and every label."""
        now = self._present()
        words = re.sub(r"[\[\]]", " ", pages.printable(now.task.instruction)).split()
        searches = [f"search[{now.goal.query or 'gift'}]", f"search[{' '.join(words[:8])}]"]
        return [*searches, *(f"click[{label}]" for label in self._labels(now.visit))]


def _parsed(action: str) -> tuple[str, str]:
    """The text before the first bracket, and the text from there up to the last one: a label may have brackets of its own."""
    verb, _, rest = action.strip().partition("[")
    words, _, _ = rest.rpartition("]")
    return (verb, words.strip().lower()) if verb and words and "\n" not in action.strip() else ("", "")


def _nested(words: str) -> bool:
    """Whether every bracket closes one that was opened, so that two actions in a line are not one search."""
    depth = 0
    for character in words:
        depth += (character == "[") - (character == "]")
        if depth < 0:
            return False
    return depth == 0


def _meant(words: str, clickable: Mapping[str, object]) -> str:
    """The label that words mean: they may have an article before them and a full stop behind them."""
    plain = without_stop(words)
    return next((label for label in (words, plain, without_article(plain)) if label in clickable), words)


def _option_clicks(goal: Goal, product: Product, chosen: dict[str, str]) -> list[str]:
    """Clicks that choose what the goal asks for and `chosen` lacks; `chosen` is updated by them."""
    clickable = labels(Visit("item", product=0), [product])
    clicks = []
    for name, value in goal.options:
        label = pages.label_of(value)
        kind, own = clickable.get(label, ("button", ""))
        if kind != "button" and chosen.get(kind.removeprefix("option ")) != own and name in (None, kind.removeprefix("option ")):
            chosen[kind.removeprefix("option ")] = own
            clicks.append(f"click[{label}]")
    return clicks
