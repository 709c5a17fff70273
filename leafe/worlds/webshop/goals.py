"""Goals and their splits: every one is a task, the same in every process.

Synthetic goals are a product's instruction with each combination of its options; human goals are written by people. Their order is the
original's, which shuffles the list once with the seed 233. Split by goal, as published: the first 500 are test, the next 1,000 valid, the
rest train; the same product is then in several splits. Split by product, none does: a tenth of the products are for test, a tenth for
valid. In the original prices come from an unseeded draw, so its goals differ from process to process; here they do not.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from leafe.digest import digest, seed_for
from leafe.envs.seeds import split_named
from leafe.errors import CorruptFile, UnknownName, UserError
from leafe.records import Task
from leafe.worlds.webshop.catalogue import Catalogue
from leafe.worlds.webshop.postings import Array
from leafe.worlds.webshop.products import NO_LIMIT, Product, listed, price_limit, price_of
from leafe.worlds.webshop.reward import Goal

SPLITS = ("train", "valid", "test")
KINDS = ("synthetic", "human")
WAYS = ("goal", "product")
ORDER_SEED = 233
TESTED, VALID = 500, 1500  # where the published cut divides the shuffled list


@dataclass(frozen=True, slots=True)
class Choice:
    """Which goals: `kind` synthetic or human, `split_by` goal or product, and the seed of the prices."""

    kind: str
    split_by: str
    price_seed: int
    horizon: int


class Goals:
    """All goals of a catalogue as pairs of a product's number and a number among its goals."""

    def __init__(self, catalogue: Catalogue, choice: Choice) -> None:
        for what, name, known in (("goals", choice.kind, KINDS), ("way to split", choice.split_by, WAYS)):
            if name not in known:
                raise UnknownName(what, name, known)
        self._catalogue, self._choice = catalogue, choice
        self._written: dict[str, list[dict[str, Any]]] = {}
        if choice.kind == "human":
            self._written = read_instructions(catalogue.files.instructions)
            counts = np.zeros(len(catalogue), np.int32)
            for asin, entries in self._written.items():
                if (number := catalogue.number(asin)) is not None:
                    counts[number] = len(entries)
        else:
            counts = catalogue.tables.goals
        self._counts = counts
        if choice.split_by == "goal" and len(self) <= VALID:
            wish = f"the published cut wants more than {VALID} goals"
            raise UserError(f"{wish}, found {len(self)} {choice.kind} ones; split by product: split_by=product")

    def __len__(self) -> int:
        return int(self._counts.sum(dtype=np.int64))

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """The tasks of a split in an order that the seed draws. Two goals that say the same give the same task."""
        split = split_named(split)
        if split not in SPLITS:
            raise UnknownName("split", split, SPLITS)
        order = self._splits[split].tolist()
        random.Random(seed_for("webshop tasks", seed, split)).shuffle(order)
        products = np.repeat(np.arange(len(self._counts), dtype=np.int32), self._counts)
        first = np.cumsum(self._counts, dtype=np.int64) - self._counts
        for place in order:
            number = int(products[place])
            yield self._task(number, int(place - first[number]))

    @cached_property
    def _splits(self) -> dict[str, Array]:
        """The places of each split's goals in the list of all."""
        if self._choice.split_by == "product":
            tenths = np.array([seed_for("webshop product", asin.decode()) % 10 for asin in self._catalogue.tables.asins], np.int8)
            among = np.repeat(tenths, self._counts)
            parts = {"test": among == 0, "valid": among == 1, "train": among > 1}
            return {split: np.flatnonzero(chosen) for split, chosen in parts.items()}
        order = list(range(len(self)))
        random.Random(ORDER_SEED).shuffle(order)
        shuffled = np.array(order, np.int32)
        return {"test": shuffled[:TESTED], "valid": shuffled[TESTED:VALID], "train": shuffled[VALID:]}

    def _task(self, number: int, index: int) -> Task:
        product, seed = self._catalogue.product(number), self._choice.price_seed
        price = price_of(product, seed)
        if self._choice.kind == "human":
            entry = self._written[product.asin][index]
            limit = price_limit(price, seed, product.asin, index)
            options: list[list[str | None]] = [[None, value] for value in entry["instruction_options"]]
            text = entry["instruction"].strip(".")
        else:
            found = self._catalogue.attributes(number)
            assert found is not None, "a product without attributes has no goals"
            entry, limit = found, price_limit(price, seed, product.asin)
            options = [[name, value] for name, value in combination(product, index)]
            chosen = ", and ".join(f"{name}: {value}" for name, value in options)
            text = entry["instruction"] + (f" with {chosen}" if chosen else "")
        text += f", and price lower than {limit:.2f} dollars" if limit < NO_LIMIT else ""
        payload = {
            "asin": product.asin,
            "attributes": listed(entry["instruction_attributes"]),
            "options": options,
            "price_limit": limit,
            "price_seed": seed,
        }
        return Task(f"webshop-{digest(text, payload)}", "webshop", text, self._choice.horizon, payload)


def combination(product: Product, index: int) -> list[tuple[str, str]]:
    """The options of a product's goal: names in alphabetical order, the last one's values changing first."""
    chosen = []
    for name, values in sorted(product.options, reverse=True):
        index, at = divmod(index, len(values))
        chosen.append((name, values[at]))
    return chosen[::-1]


def goal_of(task: Task, product: Product) -> Goal:
    """The goal that a task's payload describes. Raises `UserError` when it describes none."""
    held = task.payload
    try:
        options = tuple((name, str(value)) for name, value in held["options"])
        attributes = tuple(map(str, held["attributes"]))
        return Goal(product.title, product.query, product.path, attributes, options, float(held["price_limit"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"task {task.id!r} holds no WebShop goal: {error!r}; make tasks with `tasks`") from None


def read_instructions(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The goals that people wrote, by asin; those without attributes are left out, as in the original.

    Raises `UserError` or `CorruptFile` when the file cannot be read as that.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name WebShop's items_human_ins file: instructions=PATH") from None
    except ValueError as error:
        raise CorruptFile(f"{path} is no JSON ({error}); fetch WebShop's items_human_ins file anew") from None
    if not isinstance(found, dict) or not all(_is_written(entries) for entries in found.values()):
        raise CorruptFile(f"{path} is no file of instructions by product; fetch WebShop's items_human_ins file anew")
    return {asin: [_as_lists(entry) for entry in entries if entry["instruction_attributes"]] for asin, entries in found.items()}


def _as_lists(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry whose attributes and options may be given as one text each."""
    options = entry["instruction_options"]
    attributes = listed(entry["instruction_attributes"])
    return entry | {
        "instruction_attributes": attributes,
        "instruction_options": [options] if isinstance(options, str) and options else list(options),
    }


def _is_written(entries: Any) -> bool:
    def whole(entry: Any) -> bool:
        lists = ("instruction_attributes", "instruction_options")
        return (
            isinstance(entry, dict)
            and isinstance(entry.get("instruction"), str)
            and all(_is_texts(entry.get(name)) for name in lists)
        )

    return isinstance(entries, list) and all(map(whole, entries))


def _is_texts(value: Sequence[Any] | None) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))
