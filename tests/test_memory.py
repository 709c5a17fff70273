"""Memories in the prompt: what replies mean, how playbook, bank and library change, what a task is told, and kills on the way."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import leafe
from hypothesis import given, settings
from hypothesis import strategies as st
from players import FULL, Hand, key_in, rules, steady

from leafe.chat import Notes, act_messages, question_messages
from leafe.config import parse
from leafe.engines.base import Engine
from leafe.engines.scripted import ScriptedEngine
from leafe.errors import CorruptFile, EngineError, RunConflict, UserError
from leafe.evaluation.outcomes import read_outcomes
from leafe.experiment import Experiment
from leafe.forest.builder import Start, TreeBuilder
from leafe.forest.play import Played, once, play
from leafe.forest.store import read_forest
from leafe.lab import Lab, run_recipe, stages_of
from leafe.memory.adaptation import Lesson
from leafe.memory.questions import Asked, Questions
from leafe.methods.ace import AceSettings, Playbook, Reflected, read_deltas, read_reflection
from leafe.methods.flex import Entry, Library, read_entries, read_update
from leafe.methods.reasoning_bank import Bank, Item, read_items
from leafe.preflight import Meter
from leafe.progress import Silent
from leafe.prompts import load_questions
from leafe.recall import MemoryFile, Recall, Remembered, likeness, read_memory, terms, write_memory
from leafe.records import Ask, Attempt, Observation, Sampling, StopReason, Task
from leafe.replies import ParseFailure
from leafe.replies.blocks import Block, parse_blocks
from leafe.run import RunDirectory
from leafe.worlds.fakes import Lookup

# Replies


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<lesson>Open place2 first.</lesson>", [("lesson", "Open place2 first.", ())]),
        ("<think>hm <lesson>no</lesson></think>\n< LESSON >a\n b</lesson>", [("lesson", "a b", ())]),
        ("```\n<lesson>**left**</lesson>\n```", [("lesson", "left", ())]),
        ("As a <lesson> I say:\n<lesson>two</lesson>", [("lesson", "two", ())]),
        ("<lesson>one\n<lesson>two", [("lesson", "one", ()), ("lesson", "two", ())]),
        ("<lesson>one\n<remove>b3</remove>", [("lesson", "one", ()), ("remove", "", ("b3",))]),
        ("so: <lesson>to the end", [("lesson", "to the end", ())]),
        ("<remove>B3, b4 and b3</remove>", [("remove", "", ("b3", "b4"))]),
        ('<remove id="b7"/>', [("remove", "", ("b7",))]),
        ("<merge>[b1] b2: Say it once.</merge>", [("merge", "Say it once.", ("b1", "b2"))]),
        ('<merge ids="b1, b2">Say it: once.</merge>', [("merge", "Say it: once.", ("b1", "b2"))]),
        ("<lesson>At b2: go on.</lesson>", [("lesson", "At b2: go on.", ())]),
        ("<lesson>None.</lesson>", []),
        ("nothing: <none/>", []),
        ("None.", []),
    ],
)
def test_a_reply_in_blocks_is_read_where_it_says_one_thing(reply: str, expected: list[tuple[str, str, tuple[str, ...]]]) -> None:
    names = ("lesson", "merge", "remove")
    assert [(block.name, block.text, block.ids) for block in parse_blocks(reply, names)] == expected


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("Open the second.", "there was no <lesson>...</lesson>"),
        ("<lesson></lesson>", "a <lesson> was empty"),
        ("<lesson>...</lesson>", "a <lesson> was empty|only stands for"),
        ("<lesson>" + "long " * 200 + "</lesson>", "999 characters long, and at most 600"),
        ("<lesson>Look into the drawers.</lesson>", "taken from the question, word for word"),
        ("x" * 200_001, "200,001 characters"),
    ],
)
def test_a_reply_that_says_nothing_certain_is_refused_with_what_was_wrong(reply: str, words: str) -> None:
    with pytest.raises(ParseFailure, match=words):
        parse_blocks(reply, ("lesson",), shown="as <lesson>Look into the drawers.</lesson>")


def test_a_block_that_a_cut_left_open_is_no_answer() -> None:
    assert [one.text for one in parse_blocks("<lesson>a b</lesson><lesson>c", ("lesson",), whole=False)] == ["a b"]
    with pytest.raises(ParseFailure, match="cut before"):
        parse_blocks("<lesson>c", ("lesson",), whole=False)


READERS: list[Callable[[str, bool], Any]] = [read_reflection, read_deltas, read_items, read_entries, read_update]
PIECES = (
    "<lesson>",
    "</lesson>",
    "<add>",
    "<merge>b1",
    "</merge>",
    "<same/>",
    "<title>",
    "<content>",
    "<fact>",
    "b2",
    ": ",
    "<",
    "x",
    "\n",
)


@settings(max_examples=60)
@given(pieces=st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=12), whole=st.booleans())
def test_whatever_a_policy_writes_is_read_or_refused(pieces: list[str], whole: bool) -> None:
    for read in READERS:
        try:
            read("".join(pieces), whole)
        except ParseFailure as failure:
            assert "\n" not in str(failure) and len(str(failure)) < 300


QUESTIONS = {
    "ace_reflect": (read_reflection, "success"),
    "ace_curate": (read_deltas, "add"),
    "bank_success": (read_items, "title"),
    "bank_failure": (read_items, "title"),
    "flex_success": (read_entries, "fact"),
    "flex_failure": (read_entries, "fact"),
    "flex_update": (read_update, "add"),
}
PLACES = {"turn", "outcome", "playbook", "lessons", "known", "new", "problem"}
TEXTS = load_questions("full", "lookup", dict.fromkeys((*QUESTIONS, "ace_notes", "memory_again"), PLACES))


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_of_a_memory_shows_no_answer_and_is_none_when_it_is_repeated(name: str) -> None:
    # Small models repeat a worked lesson word for word instead of looking back.
    read: Callable[..., Any] = QUESTIONS[name][0]
    assert not re.search(r"<(\w+)>(?!none<|\.\.\.<)[^<]+</\1>", TEXTS[name])
    with pytest.raises(ParseFailure):
        read(TEXTS[name], True, TEXTS[name])


def test_a_form_may_be_left_open_in_part_and_is_no_answer_as_a_whole() -> None:
    form = "<principle>{}</principle>\n<method>{}</method>\n<fact>{}</fact>"
    assert read_entries(form.format("Look first.", "...", "…"), True, TEXTS["flex_success"]) == (Entry("principle", "Look first."),)
    with pytest.raises(ParseFailure, match=r"'\.\.\.' only stands for a <principle>"):
        read_entries(form.format("...", "...", "..."), True, TEXTS["flex_success"])


def test_a_sentence_of_the_question_is_no_lesson() -> None:
    copied = "Draw them from what happened in these turns."
    with pytest.raises(ParseFailure, match="taken from the question"):
        read_reflection(f"<lesson>{copied}</lesson>", True, TEXTS["ace_reflect"])


def book_of(*bullets: str) -> Playbook:
    book = playbook(10_000)
    for text in bullets:
        book.change([Block("add", text)])
    return book


@pytest.mark.parametrize(
    ("bullets", "answer", "kept", "questions"),
    [
        ([], "", ["open the near place"], 0),  # there is nothing to curate yet
        (["far ones last"], "<remove>b1</remove><add>near ones first</add>", ["near ones first"], 1),
        (["far ones last"], "<add>none</add>", ["far ones last"], 1),
        (["far ones last"], "I would rather not say.", ["far ones last", "open the near place"], 2),
    ],
)
def test_lessons_are_curated_once_there_is_a_playbook_and_kept_where_the_curator_says_nothing(
    bullets: list[str], answer: str, kept: list[str], questions: int
) -> None:
    book, hand, task = book_of(*bullets), Hand(Lookup(), lambda ask: answer), key_in(1)
    builder = TreeBuilder(task, rules())
    played = Hand(Lookup(), steady("open place2", "")).finish(play(builder, Start()))
    hand.finish(book.take_in([Lesson(builder, played, Reflected(("open the near place",)))]))
    assert [one.text for one in book.items()] == kept and len(hand.asks) == questions


def test_the_reflector_is_asked_about_bullets_only_after_an_attempt_that_read_some() -> None:
    for bullets, asked in (([], False), (["far ones last"], True)):
        book, hand = book_of(*bullets), Hand(Lookup(), lambda ask: "<lesson>go on</lesson><helpful>b1</helpful>")
        builder = TreeBuilder(key_in(1), rules())
        played = Hand(Lookup(), steady("open place2", "")).finish(play(builder, Start()))
        found = hand.finish(book.look_back(builder, played))
        assert found == Reflected(("go on",), ("b1",)) and ("<helpful>" in hand.asks[-1].messages[-1].content) == asked


# What a task is told

SINK = Remembered("m1", "look in the sink", "wash a mug")
STOVE = Remembered("m2", "light it first", "warm an egg")


def test_what_shares_words_with_the_task_is_told_and_the_rarer_word_counts_more() -> None:
    recall = Recall([SINK, STOVE, Remembered("m3", "later", "wash a mug")], 1)
    assert recall(Task("t", "house", "wash a cup", 8), Observation("")) == ("later",)  # of equals the one learned later
    assert recall(Task("t", "house", "a cold egg", 8), Observation("")) == ("light it first",)
    assert recall(Task("t", "house", "nothing alike", 8), Observation("")) == ()
    # By hand: N = 2, "egg" in one of two texts of three words each, so idf = ln(1 + 1.5 / 1.5) = ln 2, and tf / (tf + k1) x (k1 + 1) = 1.
    assert Recall([SINK, STOVE], 2)._score(1, ["egg"]) == pytest.approx(0.6931471805599453)


def test_boards_are_compared_row_by_row() -> None:
    assert "#_O_#" in terms("#####\n#_O_#\n#P__#") and "you see it." not in terms("You see it.")
    boards = [Remembered("m1", "left", "Push.\n###\n#_O#"), Remembered("m2", "right", "Push.\n###\n#O_#")]
    assert Recall(boards, 1)(Task("t", "sokoban", "Push.", 4), Observation("###\n#_O#")) == ("left",)
    assert (
        likeness("go left now", "Go left, now!") == 1.0
        and likeness("", "") == 1.0
        and likeness("a b", "b c") == pytest.approx(1 / 3)
    )


def test_the_best_of_every_group_are_told() -> None:
    items = [
        Remembered("m1", "p", "egg", "principle"),
        Remembered("m2", "f", "egg", "fact"),
        Remembered("m3", "g", "egg egg", "fact"),
    ]
    assert Recall(items, 1)(Task("t", "house", "egg", 4), Observation("")) == ("p", "g")


def test_a_memory_is_the_same_when_it_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "bank.jsonl"
    write_memory(path, [SINK, Remembered("m9", "é\n", helpful=2)])
    assert read_memory(path) == (SINK, Remembered("m9", "é\n", helpful=2))
    assert MemoryFile(path, 1).recall()(Task("t", "house", "a mug", 4), Observation("")) == ("look in the sink",)
    path.write_text(path.read_text() + '{"id":3}\n')
    with pytest.raises(CorruptFile, match="line 4 is no remembered text"):
        read_memory(path)


def test_notes_of_a_task_stand_below_its_first_observation_at_every_turn_and_question() -> None:
    told = Recall([Remembered("m1", "place3 first", "key"), Remembered("m2", "no", "zebra")], 2)
    hand = Hand(Lookup(), lambda ask: "<action>open place1</action>")
    builder = TreeBuilder(key_in(2), rules(FULL, notes=("always",), recall=told))
    tree = hand.finish(once(builder))
    note = "What was learned from other tasks, and may help here:\n- always\n- place3 first"
    firsts = [
        next(one.content for one in ask.messages if "Turn 1." in one.content and "example" not in one.content) for ask in hand.asks
    ]
    assert len(firsts) == 3 and all(first.endswith(note) for first in firsts)
    asked = question_messages(builder.scene, tree.turns, "\n\nWhy?", ended=True, notes=builder.notes)
    assert any(one.content.endswith(note) for one in asked) and asked[-1].content.endswith("\n\nWhy?")
    both = act_messages(builder.scene, (), Notes(feedback=("not there",), notes=("always",)))[-1].content
    assert both.index("- always") < both.index("Earlier tries at this task failed") < both.index("- not there")


# Playbook, bank and library


def asking(texts: dict[str, str] = TEXTS) -> Questions:
    return Questions(texts, Sampling(), 0, Asked())


def playbook(limit: int = 1000, texts: dict[str, str] = TEXTS) -> Playbook:
    return Playbook(asking(texts), len, limit)


def test_a_playbook_changes_as_worked_out_by_hand() -> None:
    book = playbook()
    book.change([Block("add", "open what is closed"), Block("add", "wash it"), Block("add", "Open what is closed!")], source="t1")
    book.bullets[1] = Remembered("b2", "wash it", source="t1", helpful=2, harmful=1)
    book.change([Block("add", "look up"), Block("merge", "open and wash", ("b2", "b1", "b9")), Block("remove", "", ("b3", "b8"))])
    assert book.items() == (Remembered("b1", "open and wash", source="t1", helpful=3, harmful=1),)
    assert book.counts() == {
        "added": 3, "duplicates": 1, "merged": 1, "removed": 1, "dropped": 0, "unknown_ids": 2, "tokens": len("- [b1] open and wash\n"),
    }  # fmt: skip
    book.change([Block("add", "new")])
    assert [one.id for one in book.items()] == ["b1", "b4"]


def test_what_a_curator_adds_names_all_tasks_whose_lessons_it_read() -> None:
    book = book_of("look down")
    played = Played(Attempt(0, 0, StopReason.FAILURE, False, 0.0, None), ())
    lessons = [Lesson(TreeBuilder(key_in(n), rules()), played, Reflected((f"lesson {n}",))) for n in (1, 2, 2)]
    hand = Hand(Lookup(), lambda ask: "<add>look up</add><add>go left</add>")
    hand.finish(book.take_in(lessons))
    assert [one.source for one in book.items()][1:] == ["lookup-1-0, lookup-2-0"] * 2


def test_a_playbook_that_outgrows_its_limit_loses_what_helped_least_and_is_oldest() -> None:
    book = playbook(limit=3 * len("- [b1] rule x\n"))
    for number, name in enumerate("xyz"):
        book.change([Block("add", f"rule {name}")])
        book.bullets[-1] = Remembered(f"b{number + 1}", f"rule {name}", helpful=(1, 0, 0)[number])
    book.change([Block("add", "rule w")])
    assert [one.id for one in book.items()] == ["b1", "b3", "b4"] and book.counts()["dropped"] == 1


IDS = st.lists(st.sampled_from(["b1", "b2", "b3", "b4", "b7"]), min_size=1, max_size=3).map(tuple)
DELTAS = st.one_of(
    st.builds(Block, st.just("add"), st.sampled_from(["a b c", "d e f", "g h", "i j k l", "a b d"])),
    st.builds(Block, st.just("merge"), st.sampled_from(["m n", "a b c d"]), IDS),
    st.builds(Block, st.just("remove"), st.just(""), IDS),
)


@settings(max_examples=60)
@given(deltas=st.lists(DELTAS, max_size=12), limit=st.integers(0, 60))
def test_a_playbook_keeps_its_limit_and_never_uses_an_id_twice(deltas: list[Block], limit: int) -> None:
    book, seen = playbook(limit), dict[str, int]()
    for delta in deltas:
        book.change([delta])
        ids = [one.id for one in book.items()]
        assert len(set(ids)) == len(ids) and book.tokens() <= limit
        for one in ids:
            assert seen.setdefault(one, book.named) and int(one[1:]) <= book.named
    assert book.counts()["added"] == book.named


def test_items_of_an_answer_are_read_in_their_three_parts() -> None:
    reply = (
        "<title>Search</title><description>where</description><content>Open all.</content><title>Go</title><content>Far.</content>"
    )
    assert read_items(reply, True) == (Item("Search", "where", "Open all."), Item("Go", "", "Far."))
    assert read_items(f"{reply}<title>Cut</title><content>He", False) == read_items(reply, True)
    for wrong, words in {
        "<title>a</title>": "no <content>",
        "<content>a</content>": "no <title>",
        "<title>a</title><content>b</content><content>c</content>": "two contents",
        "<title>a</title><content>b</content>" * 4: "4 items",
    }.items():
        with pytest.raises(ParseFailure, match=words):
            read_items(wrong, True)


def test_a_bank_adds_what_is_new_and_finds_it_by_the_task_it_is_from() -> None:
    bank = Bank(asking(), 1)
    for _ in range(2):
        bank.add(Item("Wash", "mugs", "Use the sink."), source="t1", task="wash the mug\nYou see a sink.")
    bank.add(Item("", "", "Light it."), source="t2", task="warm the egg\nYou see a stove.")
    assert [one.text for one in bank.items()] == ["Wash: Use the sink.", "Light it."] and bank.counts() == {
        "added": 2,
        "duplicates": 1,
    }
    told = bank.rules(rules()).recall
    assert told and told(Task("t", "house", "warm the cup", 4), Observation("You see a stove.")) == ("Light it.",)


@pytest.mark.parametrize(
    ("reply", "texts", "counts"),
    [
        ("<same>m1</same>", ["open the near place"], {"duplicates": 1}),
        ("<merge>m1: open near places</merge>", ["open near places"], {"merged": 1}),
        ("<add>far ones last</add>", ["open the near place", "far ones last"], {"added": 2}),
        ("<same>m7</same>", ["open the near place", "open the far place"], {"added": 2, "unknown_ids": 1}),
    ],
)
def test_the_updater_drops_merges_or_adds(reply: str, texts: list[str], counts: dict[str, int]) -> None:
    library = Library(asking(), 1)
    library._add(Remembered("m1", "open the near place", "", "fact, warning"))
    library.update(Remembered("m2", "open the far place", "", "fact, warning"), read_update(reply, True), "")
    assert [one.text for one in library.items()] == texts
    assert library.counts() == {**dict.fromkeys(("added", "duplicates", "merged", "unknown_ids"), 0), "added": 1, **counts}


# Whole runs, with scripts for models

RECIPE = """
name: memories
environment: {name: lookup, args: {places: 3, horizon: 2}}
tasks: {train: 5, test: 2}
prompts: full
explore: {turns: 5}
sampling: {act: {max_tokens: 200}, reflect: {max_tokens: 900}}
evaluate: {samples: 2, resamples: 10}
"""
METHODS = ("ace", "reasoning_bank", "flex")
SPENT = ("turns", "prompt_tokens", "sampled_tokens", "reflection_tokens")


def roles(ask: Ask) -> str:
    """Opens the place that the notes name, else the first; looks back in the words that each question asks for."""
    said = ask.messages[-1].content
    if ask.purpose == "act":
        named = re.findall(r"Try place(\d)", "".join(one.content for one in ask.messages if not one.sampled))
        turn = sum(one.sampled for one in ask.messages)
        return f"<action>open place{named[-1] if named and not turn else turn + 1}</action>"
    number = ask.seed % 3 + 1
    if "could not be read" not in said and ask.seed % 4 == 0:
        return "I would rather not say."
    if "keep a playbook" in said:
        known = re.findall(r"\[(b\d+)\]", said)
        merge = f"<merge>{known[0]} {known[1]}: Try place{number} again.</merge>" if len(known) > 1 else ""
        return f"{merge}<add>Try place{number} before others, says number {ask.seed % 7}.</add>"
    if "keep a library" in said:
        return f"<merge>{re.findall(r'^(m[0-9]+):', said, re.MULTILINE)[0]}: Try place{number}, it pays.</merge>"
    if "<lesson>" in said:
        return f"<lesson>Try place{number} first.</lesson><helpful>b1</helpful><harmful>b2</harmful>"
    if "<title>" in said:
        return f"<title>Key {ask.seed % 5}</title><description>the key</description><content>Try place{number} first.</content>"
    if "<principle>" in said:
        return f"<principle>Try place{number} soon.</principle><fact>The key is not in place{ask.seed % 9}.</fact>"
    return "<turn>1</turn><experience>Try place2.</experience>"


def experiment(base: Path, method: str, *overrides: str, fails: int | None = None, heard: list[Ask] | None = None) -> Experiment:
    def engine(folder: Path) -> Engine:
        made = ScriptedEngine(roles, fail_after=fails)
        made.asks = made.asks if heard is None else heard
        return made

    batch = [f"{method}.batch=2"] if method in METHODS else []
    config = parse(RECIPE, "memories", [f"method={method}", f"model={base}", *batch, *overrides])
    return Experiment(config, base, engine, lambda: Lookup(places=3, horizon=2), Silent())


def run(path: Path, made: Experiment) -> RunDirectory:
    with RunDirectory.open(path, made.config) as directory:
        run_recipe(made, directory)
        return directory


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("base")
    found = {}
    for method in METHODS:
        found[method] = tmp_path_factory.mktemp(method) / "run"
        run(found[method], experiment(base, method))
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_memory_is_built_within_the_budget_and_what_it_cost_is_told(method: str, wholes: dict[str, Path]) -> None:
    with RunDirectory.existing(wholes[method], read_only=True) as directory:
        figures, trees = directory.stages[f"explore {method}"], list(read_forest(directory.forest(method)))
        assert list(directory.arms()) == ["base", method] and list(directory.forests()) == [method]
    kept = read_memory(wholes[method] / "memory" / f"{method}.jsonl")
    assert len(kept) == figures["kept"] > 0 and len({one.id for one in kept}) == len(kept)
    assert {name: figures[name] for name in SPENT[:3]} == {
        name: sum(getattr(tree.spend, name) for tree in trees) for name in SPENT[:3]
    }
    assert all(tree.spend.turns <= 5 for tree in trees) and 0 < figures["turns"] <= 5 * 5
    assert all(len([turn for turn in tree.turns if turn.attempt == one.index]) in (1, 2) for tree in trees for one in tree.attempts)
    assert figures["reflection_tokens"] > 0 and 0 <= figures["unread"] < figures["questions"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("requests", [9, 24])
def test_a_run_that_breaks_on_the_way_ends_with_the_same_memory(
    method: str, requests: int, wholes: dict[str, Path], tmp_path: Path
) -> None:
    path, whole = tmp_path / "run", wholes[method]
    base = Path(RunDirectory.existing(whole, read_only=True).config.model)
    with pytest.raises(EngineError):
        run(path, experiment(base, method, fails=requests))
    assert f"explore {method}" not in RunDirectory.existing(path, read_only=True).stages
    run(path, experiment(base, method))
    for name in (f"memory/{method}.jsonl", f"memory/{method}.figures.json", f"controls/{method}.jsonl"):
        assert (path / name).read_bytes() == (whole / name).read_bytes()
    assert set(read_outcomes(path / "eval" / f"{method}.jsonl")) == set(read_outcomes(whole / "eval" / f"{method}.jsonl"))
    assert not list(path.glob("controls/*.journal.jsonl"))


class Breaks(Lookup):
    """A `Lookup` that breaks at the first of its actions, one for each item of `left`; `seen` are the tasks that were played."""

    def __init__(self, left: Iterator[int], seen: set[str]) -> None:
        super().__init__(places=3, horizon=2)
        self.left, self.seen = left, seen

    def reset(self, task: Task) -> Observation:
        """As `Lookup`."""
        self.seen.add(task.id)
        return super().reset(task)

    def step(self, action: str) -> Observation:
        """As `Lookup`, or a crash."""
        if next(self.left, None) is not None:
            raise OSError("the server went away")
        return super().step(action)


@pytest.mark.parametrize("batch", [1, 2, 12])
def test_a_world_stops_a_stage_only_where_it_breaks_at_all_of_the_first_eight_tasks(batch: int, tmp_path: Path) -> None:
    made = experiment(tmp_path, "ace", f"ace.batch={batch}", "tasks.train=12")

    def explored(breaks: int, name: str) -> tuple[set[str], list[Attempt]]:
        seen, left = set[str](), iter(range(breaks))
        here = replace(made, make_environment=lambda: Breaks(left, seen))
        with RunDirectory.open(tmp_path / name, here.config) as directory:
            (stage,) = [one for one in stages_of(here, directory) if one.verb == "explore"]
            try:
                stage.work()
            except UserError as error:
                assert re.match(r"every attempt so far \(\d+\) broke, .*check-env lookup", str(error))
                return seen, []
            return seen, [one for tree in read_forest(directory.forest("ace")) for one in tree.attempts]

    for breaks in (1, 7):
        assert sum(one.error is not None for one in explored(breaks, f"{breaks}")[1]) == breaks
    seen, attempts = explored(99, "broken")
    assert not attempts and len(seen) == max(8, batch)
    assert not any(one.error for one in explored(0, "broken")[1])


@pytest.mark.parametrize("lost", ["memory/flex.jsonl", "memory/flex.figures.json", "controls/flex.jsonl"])
def test_a_stage_is_repeated_once_a_file_and_the_entries_from_it_on_are_deleted(
    lost: str, wholes: dict[str, Path], tmp_path: Path
) -> None:
    whole, path, names = wholes["flex"], tmp_path / "run", ("memory/flex.jsonl", "controls/flex.jsonl", "eval/flex.jsonl")
    shutil.copytree(whole, path)
    stages = json.loads((path / "stages.json").read_text())
    kept = {name: stages[name] for name in list(stages)[: list(stages).index("explore flex")]}
    (path / "stages.json").write_text(json.dumps(kept))
    (path / lost).unlink()
    heard: list[Ask] = []
    run(path, experiment(Path(RunDirectory.existing(path, read_only=True).config.model), "flex", heard=heard))
    assert any(ask.purpose == "reflect" for ask in heard)
    assert [(path / name).read_bytes() for name in names] == [(whole / name).read_bytes() for name in names]


def test_the_playbook_is_told_at_every_measured_turn_and_the_bank_by_task(wholes: dict[str, Path], tmp_path: Path) -> None:
    for method in ("ace", "reasoning_bank"):
        base = Path(RunDirectory.existing(wholes[method], read_only=True).config.model)
        heard: list[Ask] = []
        run(tmp_path / method, experiment(base, method, heard=heard))
        kept = [one.text for one in read_memory(wholes[method] / "memory" / f"{method}.jsonl")]
        first = "".join(one.content for one in heard[-1].messages)
        told = [text for text in kept if text in first]
        assert told == kept if method == "ace" else len(told) == min(3, len(kept))
        assert all(one.reflection_tokens == 0 for one in read_outcomes(wholes[method] / "eval" / f"{method}.jsonl"))


def test_a_memory_that_was_changed_by_hand_is_not_measured(tmp_path: Path) -> None:
    made, path = experiment(tmp_path, "reasoning_bank"), tmp_path / "run"
    with RunDirectory.open(path, made.config) as directory:
        _, explore, measure = stages_of(made, directory)
        result = explore.work()
        directory.finish_stage(explore.name, dict(result.figures), files=result.files, forest=result.forest)
        memory = path / "memory" / "reasoning_bank.jsonl"
        memory.write_text(memory.read_text().replace("place", "palace"))
        with pytest.raises((RunConflict, UserError), match="memory"):
            measure.work()


def test_a_profile_without_the_questions_asks_for_ordinary_reflections(tmp_path: Path) -> None:
    def terse(ask: Ask) -> str:
        return "turn 1: open place3" if ask.purpose == "reflect" else "open place1"

    for method in METHODS:
        made = experiment(tmp_path, method, "prompts=terse")
        made = replace(made, load_engine=lambda folder: ScriptedEngine(terse))
        figures = run(tmp_path / method, made).stages[f"explore {method}"]
        (kept,) = {one.text for one in read_memory(tmp_path / method / "memory" / f"{method}.jsonl")}
        assert kept == "open place3" and figures["unread"] == 0 and figures["duplicates"] == figures["questions"] - 1


def test_a_budget_that_holds_no_whole_attempt_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    made = experiment(tmp_path, "ace", "explore.turns=1")
    with RunDirectory.open(tmp_path / "run", made.config) as directory, pytest.raises(UserError, match=r"type explore\.turns=2"):
        run_recipe(made, directory)


@pytest.mark.parametrize("method", METHODS)
def test_a_memory_is_refused_where_solved_tasks_are_to_leave_their_turns_to_others(method: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"method {method} plays .* wanted 0, found 2; type explore\.stop_when_solved=0$"):
        experiment(tmp_path, method, "explore.stop_when_solved=2")


@pytest.mark.parametrize("method", [*METHODS, "ga_rollback"])
def test_a_model_to_start_from_is_measured_without_the_memory_too_and_refused_where_there_is_none(
    method: str, tmp_path: Path
) -> None:
    made = experiment(tmp_path, method, f"{method}.start={tmp_path / 'nowhere'}")
    with RunDirectory.open(tmp_path / "run", made.config) as directory:
        with pytest.raises(UserError, match=rf"{method}\.start: no checkpoint in .*nowhere"):
            stages_of(made, directory)
        (tmp_path / "nowhere").mkdir()
        (tmp_path / "nowhere" / "config.json").write_text("{}")
        assert [one.name for one in stages_of(made, directory) if one.verb == "evaluate"] == [
            f"evaluate {arm}" for arm in ("base", "start", method)
        ]
    server = ["engine.kind=openai", "engine.base_url=http://localhost:1/v1"]
    with pytest.raises(UserError, match=rf"{method}\.start wants engine\.kind=transformers.*type model="):
        parse(RECIPE, "memories", [f"method={method}", f"{method}.start={tmp_path}", *server])


def test_a_memory_of_a_whole_run_is_json_that_names_where_each_text_is_from(wholes: dict[str, Path]) -> None:
    lines: Sequence[dict[str, Any]] = [
        json.loads(one) for one in (wholes["flex"] / "memory" / "flex.jsonl").read_text().splitlines()
    ]
    assert lines[0] == {"schema": "leafe.memory/1"}
    assert {one["group"] for one in lines[1:]} <= {
        f"{level}, {zone}" for level in ("principle", "fact") for zone in ("golden", "warning")
    }
    assert all(one["source"].startswith("lookup-") for one in lines[1:])


def test_a_playbook_takes_a_part_of_the_context_at_most(tmp_path: Path) -> None:
    def limit(context: int, *overrides: str) -> int:
        made = experiment(tmp_path, "ace", *overrides)
        measured = replace(made, load_meter=lambda: Meter(lambda messages: 0, len, context))
        own = made.config.own
        assert isinstance(own, AceSettings)
        return Playbook.of(Lab(measured), own).limit

    assert (limit(1000), limit(100_000), limit(0), limit(1000, "ace.tokens=500")) == (250, 2048, 2048, 500)
    with pytest.raises(UserError, match=r"at most half of the model's context of 1000 tokens, found 501"):
        limit(1000, "ace.tokens=501")


@pytest.mark.parametrize("method", ["ace", "ga_rollback"])
def test_a_real_model_goes_through_the_real_command_line(method: str, tmp_path: Path) -> None:
    world = "environment.args={rows: 5, columns: 5, min_length: 2, max_length: 3, horizon: 3}"
    few = ("tasks.train=2", "tasks.test=1", "explore.turns=6", "evaluate.samples=1", "evaluate.resamples=10", "engine.threads=1")
    own = ("ga_rollback.wait=1",) if method == "ga_rollback" else (f"{method}.batch=1",)
    said = leafe("run", "smoke", f"method={method}", world, *few, *own, "--out", tmp_path / "run")
    assert said.status == 0 and method in said.out, said
    stages = json.loads((tmp_path / "run" / "stages.json").read_text())
    figures = stages.get(f"explore {method}", stages[f"evaluate {method}"])
    assert 0 < figures["turns"] <= 12 and (method == "ga_rollback" or figures["attempts"] >= 4)
