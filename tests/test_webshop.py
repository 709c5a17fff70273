"""WebShop: the reward term by term, goals and splits, pages and clicks, data files that are broken, and a tree that recovers."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from command import leafe
from hypothesis import given, settings
from hypothesis import strategies as st
from players import Hand, grown, scripted

from leafe.distillation.examples import Selection as Drawn
from leafe.distillation.examples import distill
from leafe.errors import CorruptFile, UserError
from leafe.forest.explore import explore
from leafe.prompts import load_prompts
from leafe.records import StopReason, Task
from leafe.worlds.webshop.environment import NO_ACTION, NO_LABEL, NO_SEARCH, WebShop
from leafe.worlds.webshop.fuzzy import token_set_ratio
from leafe.worlds.webshop.goals import goal_of, read_instructions
from leafe.worlds.webshop.json_stream import array_values, object_values
from leafe.worlds.webshop.nouns import by_rules
from leafe.worlds.webshop.products import Product, price_limit, price_of, product
from leafe.worlds.webshop.reward import Goal, judge, options_matched, plain_colour, type_factor

DATA = Path(os.environ.get("LEAFE_DATA", ""), "webshop")
needs_data = pytest.mark.skipif("LEAFE_DATA" not in os.environ, reason="LEAFE_DATA names no folder with webshop/")
TERSE = load_prompts("terse", "webshop")
CORD = "BRST AC Power Cord Outlet Socket Cable Plug Lead for Panasonic SC-HT830V DVD/VCR Combo Home Theater System"
BAR = "Saireed UL Listed 2 Prong Power Cord for JBL Bar 3.1 Bar 2.1 Channel 4K Ultra HD Soundbar"


def entry(**changes: Any) -> dict[str, Any]:
    """A product's entry in the official format."""
    plain = {
        "asin": "A1",
        "name": "Oak Table Lamp",
        "full_description": "It shines.",
        "small_description": ["Bright."],
        "category": "garden",
        "query": "lamps",
        "product_category": "Home › Light › Lamps",
        "pricing": "$20.00",
        "customization_options": {"Color": [{"value": " Red/Blue "}, {"value": "Green"}]},
    }
    return {**plain, **changes}


def made(attributes: list[str] | None = None, **changes: Any) -> Product:
    """A product."""
    return product(entry(**changes), {"attributes": attributes or ["energy efficient", "touch control"]})


def wanted(**changes: Any) -> Goal:
    """A goal for that product."""
    plain: dict[str, Any] = {
        "title": "Oak Table Lamp",
        "query": "lamps",
        "path": "Home › Light › Lamps",
        "attributes": ("energy efficient", "touch control"),
        "options": (("color", "green"), ("size", "large")),
        "price_limit": 30.0,
    }
    return Goal(**{**plain, **changes})


def reward(goal: Goal, bought: Product, price: float = 20.0, **chosen: str) -> float:
    return judge(goal, bought, chosen, price=price, nouns=by_rules).reward


def shop(**settings_: Any) -> tuple[WebShop, Task]:
    """The shop that ships, with its first task begun."""
    environment = WebShop(**settings_)
    task = environment.tasks("train", 1)[0]
    environment.reset(task)
    return environment, task


# The reward: type * (attributes + options + price) / (number of attributes + number of options + 1)


def test_the_right_purchase_earns_one_and_each_miss_a_share() -> None:
    assert reward(wanted(), made(), color="green", size="large") == 1.0
    assert reward(wanted(), made(), color="green", size="small") == 4 / 5
    assert reward(wanted(), made(), color="green") == 4 / 5
    assert reward(wanted(), made()) == 3 / 5
    assert reward(wanted(), made(), price=30.0, color="green", size="large") == 1.0
    assert reward(wanted(), made(), price=30.01, color="green", size="large") == 4 / 5
    assert reward(wanted(), made(["energy efficient"]), color="green", size="large") == 4 / 5
    assert reward(wanted(options=()), made(["nothing"]), price=31.0) == 0.0


def test_an_attribute_may_be_alike_or_stand_in_the_texts() -> None:
    goal = wanted(attributes=("natural ingredients",), options=())
    for attributes, texts, matched in (
        (["made of natural ingredients"], {}, 1),
        (["natural ingredient"], {}, 1),
        (["natural"], {}, 1),  # a set of words within the other is wholly alike
        (["natura"], {}, 0),
        (["none"], {"name": "Lamp of Natural Ingredients"}, 1),
        (["none"], {"small_description": ["a", "All NATURAL ingredients"]}, 1),
        (["none"], {"full_description": "natural ingredients"}, 1),
        (["none"], {"full_description": "natural, ingredients"}, 0),
    ):
        assert judge(goal, made(attributes, **texts), {}, price=1, nouns=by_rules).attributes == matched


def test_options_are_compared_as_the_published_code_does() -> None:
    # A synthetic goal's option is the text of its name and value; any word of it alone is alike.
    assert options_matched([("size", "x-large")], ["large"]) == 1
    assert options_matched([("size", "x-large")], ["small"]) == 0
    # A person's goal is compared by value, colours reduced to the first of the list that the value contains.
    assert options_matched([(None, "dark blue stripes")], ["blue"]) == 1
    assert options_matched([(None, "x-large")], ["large"]) == 1
    assert plain_colour("rosemary") == "rose" and plain_colour("colored") == "red" and plain_colour("size 7") == "size 7"
    # So a value that hides a colour misses its own goal.
    assert options_matched([("style", "wired")], ["wired"]) == 0 and options_matched([(None, "wired")], ["wired"]) == 1


def test_a_products_type_is_judged_by_query_categories_and_nouns() -> None:
    lamp, other = wanted(title="Oak Table Lamp Shade Stand"), {"query": "else", "product_category": "X › Y"}
    assert type_factor(lamp, made(), by_rules) == 1.0
    assert type_factor(lamp, made(name="Lamp", **{**other, "query": " LAMPS "}), by_rules) == 1.0
    assert type_factor(lamp, made(name="Lamp", **{**other, "product_category": "Lamps › Light"}), by_rules) == 1.0
    assert type_factor(lamp, made(name="Lamp", **other), by_rules) == 0.5
    assert type_factor(lamp, made(name="Oak Lamp", **other), by_rules) == 1.0
    assert type_factor(lamp, made(name="Soap"), by_rules) == 0.0
    many = wanted(title=" ".join(f"noun{letter}" for letter in "abcdefghijk"))
    assert type_factor(many, made(name="nouna"), by_rules) == 0.1
    assert type_factor(wanted(title="4 by 4"), made(name="Soap"), by_rules) == 1.0


def test_nouns_by_rules_give_the_title_scores_that_the_original_expects_of_its_tagger() -> None:
    shoe = "adidas Unisex-Adult D.o.n. Issue 2 "
    knob, tweezers = "Rusticware 921ORB Kitchen and Bath Cabinet Knob", "Minkissy 2pcs Stainless Steel Eyebrow Tweezers (Silver)"
    for goal, bought, score in (
        (shoe + "Basketball Shoe", shoe + "Indoor Court Shoe", 0.857),
        (BAR + " Home Theater System Subwoofer", CORD, 0.3125),
        (BAR, CORD, 0.167),
        (knob, tweezers, 0.0),
    ):
        nouns = by_rules(goal)
        assert len(set(nouns) & set(by_rules(bought))) / len(nouns) == pytest.approx(score, abs=1e-3)


@pytest.mark.skipif(find_spec("spacy") is not None, reason="spaCy is installed")
def test_asking_for_spacy_where_it_is_not_is_one_sentence() -> None:
    said = leafe("check-env", "webshop", "nouns=spacy")
    assert said.status == 2 and "pip install spacy" in said.err and "en_core_web_sm" in said.err


texts = st.text(alphabet="abcde red é,.'-(", max_size=30)


@given(texts, texts)
def test_likeness_of_texts_is_a_share_of_a_hundred_and_complete_for_equals(first: str, second: str) -> None:
    assert 0 <= token_set_ratio(first, second) <= 100
    words = first.encode("ascii", "ignore").decode().translate(dict.fromkeys(map(ord, ",.'-("), " ")).split()
    assert token_set_ratio(first, first) == (100 if words else 0)


@given(
    st.lists(texts, max_size=3),
    st.dictionaries(texts, texts, max_size=3),
    st.dictionaries(texts, texts, max_size=3),
    st.floats(0, 50),
)
def test_a_reward_lies_between_zero_and_one(
    attributes: list[str], options: dict[str, str], chosen: dict[str, str], price: float
) -> None:
    goal = wanted(attributes=tuple(attributes), options=tuple(options.items()))
    found = judge(goal, made(["red abc"]), chosen, price=price, nouns=by_rules)
    assert 0.0 <= found.reward <= 1.0
    assert found.attributes <= len(attributes) and found.options <= len(options)


# Products, prices and goals


def test_a_product_is_read_as_the_original_reads_it() -> None:
    lamp = made(pricing="$1,020.50 to $2,000.00", small_description="one", full_description=None, query=" Lamps ")
    assert lamp.options == (("color", ("red | blue", "green")),)
    assert (lamp.price_tag, lamp.prices) == ("$1020.5 to $2000.0", (1020.5, 2000.0))
    assert (lamp.bullets, lamp.description, lamp.query) == (("one",), "", "lamps")
    plain = product(entry(pricing="", customization_options="", small_description=[]), None)
    assert (plain.price_tag, plain.prices, plain.options, plain.bullets) == ("$100.0", (100.0,), (), ())
    assert plain.attributes == ("DUMMY_ATTR",)


@given(st.floats(0, 2000), st.integers(0, 10**6))
def test_a_price_limit_is_one_of_the_next_levels(price: float, seed: int) -> None:
    limit = price_limit(price, seed)
    assert limit == price_limit(price, seed) and limit > price
    assert limit == 1_000_000 if price >= 980 else limit % 10 == 0 and limit - price <= 40


@given(st.integers(0, 10**6))
def test_a_price_is_drawn_from_its_range_by_the_seed(seed: int) -> None:
    ranged = made(pricing="$10.00 to $20.00")
    assert 10 <= price_of(ranged, seed) <= 20 and price_of(ranged, seed) == price_of(ranged, seed)
    assert price_of(made(), seed) == 20.0


def ids(environment: WebShop, split: str, seed: int = 0) -> list[str]:
    """Every task of a split."""
    return [task.id for task in environment._goals.tasks(split, seed)]


@pytest.mark.parametrize("by", ["goal", "product"])
def test_splits_share_no_goal_and_hold_all_of_them(by: str) -> None:
    environment = WebShop(split_by=by)
    splits = {split: ids(environment, split) for split in ("train", "valid", "test")}
    every = [task for split in splits.values() for task in split]
    assert len(set(every)) == len(every) == len(environment._goals)
    if by == "goal":
        assert (len(splits["test"]), len(splits["valid"])) == (500, 1000)
    assert all(set(ids(environment, split, seed=9)) == set(found) for split, found in splits.items())


def test_split_by_product_no_product_stands_in_two_splits() -> None:
    environment = WebShop(split_by="product")
    found = {split: {task.payload["asin"] for task in environment._goals.tasks(split, 0)} for split in ("train", "valid", "test")}
    assert not found["train"] & found["test"] and not found["train"] & found["valid"] and not found["valid"] & found["test"]
    assert all(found.values())


def test_a_goals_instruction_says_what_is_asked_for() -> None:
    environment, task = shop()
    goal = goal_of(task, environment._catalogue.product(environment._catalogue.number(task.payload["asin"]) or 0))
    assert all(attribute in task.instruction for attribute in goal.attributes)
    assert all(f"{name}: {value}" in task.instruction for name, value in goal.options)
    assert task.instruction.endswith(f"price lower than {goal.price_limit:.2f} dollars")


def test_goals_that_people_wrote_are_tasks_too() -> None:
    environment = WebShop(goals="human", split_by="product")
    (task,) = environment.tasks("train", 1)
    environment.reset(task)
    assert [environment.step(action) for action in environment.expert()][-1].reward == 1.0
    assert all(name is None for name, _ in task.payload["options"])


# Playing


def test_the_pages_say_what_the_original_says() -> None:
    environment, task = shop(price_seed=3)
    start = f"WebShop [SEP] Instruction: [SEP] {task.instruction} [SEP] Search"
    assert environment.reset(task).text == start
    head = f"Instruction: [SEP] {task.instruction} [SEP] Back to Search [SEP] "
    results = environment.step("search[Plastic]").text
    assert results.startswith(head + "Page 1 (Total results: ") and ") [SEP] Next > [SEP] LF" in results
    codes = [part for part in results.split(" [SEP] ") if part.startswith("LF")]
    assert len(codes) == 10
    second = environment.step("click[Next >]").text
    assert second.startswith(head + "Page 2 (Total results: ") and " [SEP] < Prev [SEP] Next > [SEP] LF" in second
    assert environment.step("click[< Prev]").text == results
    item = environment.step(f"click[{codes[0]}]").text
    assert item.startswith(head + "< Prev [SEP] ") and " [SEP] size [SEP] " in item
    assert item.endswith(" [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now")
    assert environment.step("click[description]").text.startswith(head + "< Prev [SEP] ")
    assert environment.step("click[< Prev]").text == item
    assert environment.step("click[reviews]").text == head + "< Prev [SEP] No reviews found"
    assert environment.step("click[back to search]").text == start


def test_options_are_forgotten_when_a_shopper_leaves_the_product() -> None:
    environment, _ = shop()
    plan = list(environment.expert())
    asin, options, buy = next(one for one in plan if one.startswith("click[lf")), plan[2:-1], plan[-1]
    for action in (plan[0], asin, *options, "click[features]", "click[< prev]"):
        environment.step(action)
    kept = environment.snapshot()
    assert environment.step(buy).success
    environment.restore(kept)
    for action in ("click[< prev]", asin, buy):
        last = environment.step(action)
    assert last.done and not last.success and 0 < last.reward < 1


def test_text_that_is_no_action_is_told_what_would_be_one() -> None:
    environment, task = shop()
    start = environment.reset(task).text
    assert environment.step("click[buy now]").text == f"{NO_SEARCH} [SEP] {start}"
    assert environment.step("search[ ]").text == f"{NO_SEARCH} [SEP] {start}"
    for text in ("look around", "Search[x]", "search x", "buy[it]", "search[]"):
        assert environment.step(text).text == f"{NO_ACTION} [SEP] {start}"
    page = environment.step("search[lamp]").text
    assert environment.step("click[red]").text == f"{NO_LABEL} [SEP] {page}"
    assert environment.step("search[the]").text.endswith("Page 1 (Total results: 0) [SEP] Next >")


def test_a_lenient_shop_reads_verbs_and_labels_written_otherwise_and_answers_the_same() -> None:
    strict, lenient = WebShop(), WebShop(lenient=True)
    for task in strict.tasks("train", 5):
        assert strict.reset(task) == lenient.reset(task)
        actions = list(strict.expert())
        said = [re.sub(r"click\[(.*)\]", r"Click [the \1.].", action).replace("search", "SEARCH") for action in actions]
        assert strict.step(said[0]).info == {"outcome": "INVALID"} and len(said) > 2
        answers = [lenient.step(action) for action in said]
        assert answers == [strict.step(action) for action in actions] and answers[-1].success


def test_a_lenient_shop_guesses_no_label() -> None:
    environment = WebShop(lenient=True)
    environment.reset(environment.tasks("train", 1)[0])
    page = environment.step("Search[the lamp]").text
    for text in ("click[search the]", "click[the]", "click[.]", "click[please next >]", "press[next >]", "click next >"):
        assert environment.step(text).info == {"outcome": "INVALID"}
    assert environment.step("CLICK[Back to Search]").text != page


def test_nothing_changes_after_a_purchase() -> None:
    environment, _ = shop()
    last = [environment.step(action) for action in environment.expert()][-1]
    assert last.success and last.done and "Your score (min 0.0, max 1.0) [SEP] 1" in last.text
    assert last.info["terms"]["kind"] == 1.0
    assert all(environment.step(action) == last for action in ("search[lamp]", "click[back to search]", "nonsense"))
    assert environment.expert() == ()


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=25))
@settings(max_examples=40)
def test_a_snapshot_brings_back_every_page_that_follows(picks: list[int]) -> None:
    environment, _ = shop()
    kept, seen = [environment.snapshot()], []
    for pick in picks:
        actions = list(environment.example_actions())
        seen.append((actions[pick % len(actions)], environment.step(actions[pick % len(actions)])))
        kept.append(environment.snapshot())
    for turn in range(len(seen), -1, -1):
        environment.restore(kept[turn])
        assert [environment.step(action) for action, _ in seen[turn:]] == [observation for _, observation in seen[turn:]]


def won(environment: WebShop, tasks: list[Task]) -> int:
    """How many of the tasks the expert ends with the full reward."""
    count = 0
    for task in tasks:
        environment.reset(task)
        answers = [environment.step(action) for action in environment.expert()]
        assert not answers or answers[-1].reward == 1.0
        count += bool(answers)
    return count


def test_labels_may_have_brackets_and_breaks_of_lines_and_options_be_plain_texts(tmp_path: Path) -> None:
    values = [
        {"value": "[2 pack] red"},
        {"value": "red]"},
        {"value": "[blue"},
        {"value": "dark\r\n green"},
        "a [b] c [d]",
        "two\u2028lines",
    ]
    entry_ = entry(customization_options={"Colour\nname": values, "size": "one size"})
    (tmp_path / "items_shuffle.json").write_bytes(b"\xef\xbb\xbf " + json.dumps([entry_]).encode())
    told = {"A1": {"attributes": "bright", "instruction": "Find a lamp.", "instruction_attributes": "bright, oak"}}
    (tmp_path / "items_ins_v2.json").write_text(json.dumps(told))
    environment = WebShop(data=str(tmp_path), split_by="product")
    split = next(name for name in ("train", "valid", "test") if len(environment._goals._splits[name]))
    tasks = list(environment.tasks(split, len(values)))
    assert won(environment, tasks) == len(values) and tasks[0].payload["attributes"] == ["bright", "oak"]
    environment.reset(tasks[0])
    environment.step("search[oak lamp]")
    environment.step("click[a1]")
    labels = [action for action in environment.example_actions() if action.startswith("click")]
    wished = ["[2 pack] red", "red]", "[blue", "dark green", "a [b] c [d]", "two lines", "one size"]
    assert [action for action in labels if action.startswith(tuple(f"click[{label}" for label in wished))] == [
        f"click[{label}]" for label in wished
    ]
    page = environment.step(f"click[{wished[0]}]")
    assert "Colour\nname" not in page.text and page.info == {"outcome": "ITEM"} and "dark green" in page.text
    assert environment.step("click[[2 pack] blue]").text.startswith(NO_LABEL)
    assert environment.step("search[oak] click[a1]").text.startswith(NO_ACTION)
    assert environment.step("search[[oak] lamp]").info == {"outcome": "RESULTS"}


def test_goals_that_people_wrote_may_give_one_text_for_a_list(tmp_path: Path) -> None:
    written = {"instruction": "a lamp", "instruction_attributes": "bright", "instruction_options": "green"}
    (tmp_path / "human.json").write_text("\ufeff" + json.dumps({"A1": [written]}))
    assert read_instructions(tmp_path / "human.json") == {
        "A1": [{"instruction": "a lamp", "instruction_attributes": ["bright"], "instruction_options": ["green"]}]
    }


def test_an_action_is_read_in_time_that_grows_with_its_length_alone() -> None:
    environment, _ = shop()
    start = process_time()
    for text in ("[" * 200_000, "]" * 200_000, "search[" + "[]" * 100_000, "click" * 40_000 + "]"):
        environment.step(text)
    assert process_time() - start < 10


def test_the_expert_earns_the_full_reward_on_the_shop_that_ships() -> None:
    environment = WebShop()
    assert won(environment, list(environment.tasks("train", 300))) == 300


@needs_data
def test_the_expert_earns_the_full_reward_on_the_published_test_goals() -> None:
    environment = WebShop(data=str(DATA))
    assert len(environment._goals) == 6910
    assert won(environment, list(environment.tasks("test", 300))) >= 285


@needs_data
def test_an_expert_that_gives_up_has_a_goal_that_no_option_of_its_product_can_meet() -> None:
    environment, given_up = WebShop(data=str(DATA)), 0
    for task in islice(environment._goals.tasks("train", 0), 1500):
        environment.reset(task)
        if environment.expert():
            continue
        bought = environment._catalogue.product(environment._catalogue.number(task.payload["asin"]) or 0)
        values = [value for _, values in bought.options for value in values]
        assert any(not options_matched([option], values) for option in goal_of(task, bought).options)
        given_up += 1
    assert given_up < 150


@needs_data
def test_check_env_passes_on_the_published_catalogue() -> None:
    said = leafe("check-env", "webshop", f"data={DATA}", "--json")
    report = json.loads(said.out)
    assert said.status == 0, said.out
    assert {finding["verdict"] for finding in report["findings"]} == {"pass"}


# A tree


def test_a_wrong_purchase_is_reflected_on_rolled_back_and_mended() -> None:
    environment, task = shop()
    search, click, *rest = environment.expert()
    advice = f"the cheap one lacks what was asked for; open {click[6:-1]} and choose the options first"
    environment.step(search)
    wrong = next(action for action in environment.example_actions() if action.startswith("click[lf") and action != click)
    policy = scripted(search, wrong, "click[buy now]", f"turn 2: {advice}", click, *rest)
    tree = grown(explore, Hand(WebShop(), policy), task, prompts=TERSE, max_attempts=2)
    assert [attempt.stop for attempt in tree.attempts] == [StopReason.FAILURE, StopReason.SUCCESS]
    assert (tree.attempts[1].parent, tree.attempts[1].turn, tree.attempts[1].experience) == (0, 2, advice)
    assert tree.attempts[0].reward < 1.0 == tree.attempts[1].reward
    assert tree.spend.rollbacks == 1 and tree.spend.replayed_steps == 1
    (example,) = [one for one in distill([tree], TERSE, Drawn(qualify="success")) if one.kind == "counterfactual"]
    assert example.target == click
    prompt = "".join(message.content for message in example.messages)
    assert (
        advice not in prompt and task.instruction in prompt and [one.content for one in example.messages if one.sampled] == [search]
    )


@pytest.mark.parametrize("profile", ["full", "terse"])
def test_prompts_name_the_task_once_and_the_horizon(profile: str) -> None:
    prompts = load_prompts(profile, "webshop")
    assert "{instruction}" not in prompts.first and "{horizon}" in prompts.first
    assert profile == "terse" or (all(part in prompts.system for part in ("search[", "click[", "<action>")))


# Files


@given(st.lists(st.dictionaries(texts, texts, max_size=4), max_size=6), st.booleans(), st.sampled_from([None, 1]))
def test_values_read_one_at_a_time_stand_at_their_bytes(values: list[dict[str, str]], escaped: bool, indent: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "some.json")
        path.write_text(json.dumps(values, ensure_ascii=escaped, indent=indent), encoding="utf-8")
        data, found = path.read_bytes(), list(array_values(path))
        assert [placed.value for placed in found] == values
        assert [json.loads(data[placed.start : placed.start + placed.length]) for placed in found] == values
        path.write_text(
            json.dumps({str(number): value for number, value in enumerate(values)}, ensure_ascii=escaped), encoding="utf-8"
        )
        data, pairs = path.read_bytes(), list(object_values(path))
        assert [(int(key), placed.value) for key, placed in pairs] == list(enumerate(values))
        assert [json.loads(data[placed.start : placed.start + placed.length]) for _, placed in pairs] == values


def damaged(folder: Path, products: str, attributes: str = "{}", instructions: str = "{}") -> str:
    """A folder of data files."""
    for name, text in (("items_shuffle", products), ("items_ins_v2", attributes), ("items_human_ins", instructions)):
        (folder / f"{name}.json").write_bytes(text.encode("latin-1"))
    return str(folder)


PRODUCTS = json.dumps([entry()])
BROKEN: dict[str, tuple[Callable[[Path], str], str]] = {
    "no list": (lambda folder: damaged(folder, "{}"), "items_shuffle.json is broken at byte 0: wanted a list"),
    "cut off": (lambda folder: damaged(folder, PRODUCTS[:-20]), "wanted a JSON value"),
    "no comma": (lambda folder: damaged(folder, "[{} {}]"), "holds no product at byte 1"),
    "no product": (lambda folder: damaged(folder, '[{"a": 1}]'), "holds no product at byte 1: wanted a product with asin and name"),
    "empty": (lambda folder: damaged(folder, "[]"), "holds no product at all"),
    "bytes": (lambda folder: damaged(folder, '["\xff"]'), "wanted UTF-8 text"),
    "attributes": (lambda folder: damaged(folder, PRODUCTS, '{"A1": 3}'), "holds no attributes for 'A1'"),
    "attributes cut off": (lambda folder: damaged(folder, PRODUCTS, '{"A1": {'), "items_ins_v2.json is broken"),
    "few goals": (lambda folder: damaged(folder, PRODUCTS), "split by product: split_by=product"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_data_are_one_sentence_and_status_two(name: str, tmp_path: Path) -> None:
    spoil, sentence = BROKEN[name]
    said = leafe("check-env", "webshop", f"data={spoil(tmp_path)}")
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert sentence in said.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("data=/nowhere/at/all",), "no catalogue at /nowhere/at/all; give WebShop's items_shuffle file"),
        (("attributes=/nowhere.json",), "no attribute file at /nowhere.json"),
        (("goals=human", "instructions=/nowhere.json"), "cannot read /nowhere.json"),
        (("goals=robot",), "unknown goals 'robot'"),
        (("split_by=colour",), "unknown way to split 'colour'"),
        (("nouns=nouns",), "unknown way to find nouns 'nouns'"),
        (("horizon=0",), "a horizon of at least 1"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_status_two(arguments: tuple[str, ...], sentence: str) -> None:
    said = leafe("check-env", "webshop", *arguments)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert sentence in said.err


def test_broken_instructions_and_ambiguous_folders_are_named(tmp_path: Path) -> None:
    for text in ("[]", '{"A1": [{"instruction": 3}]}', "{"):
        with pytest.raises(CorruptFile, match="items_human_ins"):
            WebShop(data=damaged(tmp_path, PRODUCTS, instructions=text), goals="human", split_by="product")
    (tmp_path / "items_shuffle_1000.json").write_text("[]")
    with pytest.raises(UserError, match=r"items_shuffle\.json, items_shuffle_1000\.json"):
        WebShop(data=str(tmp_path))
    with pytest.raises(UserError, match="wants a product that is not in"):
        WebShop().reset(Task("x", "webshop", "Buy.", 3, {"asin": "B000000000"}))


def test_too_many_tasks_are_asked_for_in_vain() -> None:
    with pytest.raises(UserError, match="wanted 501 tasks of split 'test', found 500"):
        WebShop().tasks("test", 501)
