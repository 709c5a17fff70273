"""The truth of reflections in household games: the facts ("mug 1 in shelf 1") and the places to try that a forest's reflections state.

    python benchmarks/reflection_truth.py RUN_DIR/round-1/forest.jsonl [--json]

A fact is shown if the episode under reflection showed that item at that place (or an earlier advice in it stated that), and true if the
item is at that place in the house. A place to try is fresh if the episode did not look into it. The copy is the text that the bundled
model writes before its judgement: the turn that it names, word for word.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

from leafe.forest.store import read_forest
from leafe.nano.household_tutor import BLAME
from leafe.records import Reflection, Tree, Turn
from leafe.worlds.household.house import from_payload

FACT = re.compile(r"(\w+ \d+) in (\w+ \d+)")
PLACE = re.compile(r"\w+ \d+")


def walk_of(tree: Tree, reflection: Reflection) -> tuple[Turn, ...]:
    """The turns that the reflection read."""
    return tree.trajectory(tree.attempts[reflection.attempt].leaf)[: reflection.after_turn]


def item_places(tree: Tree) -> set[tuple[str, str]]:
    """The place of every item at the start, by names as a player reads them."""
    numbers: Counter[str] = Counter()
    found = set()
    for place, kinds in from_payload(tree.task.payload).items:
        for kind in kinds:
            numbers[kind] += 1
            found.add((f"{kind} {numbers[kind]}", place))
    return found


def shows(text: str, item: str, place: str) -> bool:
    """Whether an observation shows an item at a place."""
    return text == f"You put {item} in {place}." or (
        text.startswith((f"{place}:", f"{place}, open:")) and item in PLACE.findall(text)
    )


def judge(tree: Tree, reflection: Reflection, counts: Counter[str]) -> None:
    """Adds one reflection to the counts."""
    counts["reflections"] += 1
    if reflection.experience is None:
        return
    counts["named a turn"] += 1
    trajectory, said = walk_of(tree, reflection), reflection.experience.text
    turn = reflection.experience.turn
    before = tree.root.text if turn == 1 else trajectory[turn - 2].observation.text
    counts["copied it exactly"] += f"{turn}: {before}\n" in reflection.replies[-1].text
    blamed, _, told = said.partition(BLAME)
    counts["blamed what was done then"] += blamed == trajectory[turn - 1].action
    texts = [one.observation.text for one in trajectory]
    heard = {fact for one in trajectory if one.experience for fact in FACT.findall(one.experience.partition(BLAME)[2])}
    for item, place in FACT.findall(told):
        counts["facts"] += 1
        counts["facts shown"] += any(shows(text, item, place) for text in texts) or (item, place) in heard
        counts["facts true"] += (item, place) in item_places(tree)
    for place in PLACE.findall(told.partition(" Try ")[2]):
        counts["tries"] += 1
        counts["tries fresh"] += not any(text.startswith((f"{place}:", f"{place}, open:")) for text in texts)


def main() -> None:
    """Prints counts and shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("forest", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    for tree in read_forest(args.forest):
        for reflection in tree.reflections:
            judge(tree, reflection, counts)
    wholes = {
        "named a turn": "reflections",
        "copied it exactly": "named a turn",
        "blamed what was done then": "named a turn",
        "facts shown": "facts",
        "facts true": "facts",
        "tries fresh": "tries",
    }
    shares = {name: counts[name] / counts[whole] for name, whole in wholes.items() if counts[whole]}
    if args.json:
        json.dump({"counts": counts, "shares": shares}, sys.stdout, indent=1)
        return
    for name, share in shares.items():
        print(f"{name}: {100 * share:.1f} % of {counts[wholes[name]]}")


if __name__ == "__main__":
    main()
