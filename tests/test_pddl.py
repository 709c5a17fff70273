"""The engine of planning games: PDDL and grammars understood, states as integers, and the habits of the original that a text shows."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.errors import CorruptFile, UserError
from leafe.worlds.household.generator import Recipe, houses
from leafe.worlds.household.house import House
from leafe.worlds.household.texts import game_file
from leafe.worlds.pddl.environment import game_of
from leafe.worlds.pddl.expressions import parse_expression, typed
from leafe.worlds.pddl.formulas import Reader
from leafe.worlds.pddl.game import NOTHING, Game
from leafe.worlds.pddl.gamefile import GameFile, parse_game, read_game, write_game
from leafe.worlds.pddl.grammar import parse_grammar
from leafe.worlds.pddl.names import shown_names
from leafe.worlds.pddl.planner import plan
from leafe.worlds.pddl.symbols import Listing, Text, Use, parse_query, parse_symbols

DOMAIN = """
; A lamp post garden: posts stand in a row, a keeper walks along it.
(define (domain garden)
 (:requirements :adl :typing)
 (:types keeper post thing)
 (:predicates (at ?k - keeper ?p - post) (next ?p - post ?q - post) (lit ?p - post) (on ?t - thing ?p - post)
              (has ?k - keeper ?t - thing) (seen ?p - post) (broken ?p - post))
 (:action walk :parameters (?k - keeper ?p - post ?q - post)
    :precondition (and (at ?k ?p) (or (next ?p ?q) (next ?q ?p) (= ?p ?q)))
    :effect (and (not (at ?k ?p)) (at ?k ?q)))
 (:action look :parameters (?k - keeper ?p - post) :precondition (at ?k ?p) :effect (seen ?p))
 (:action press :parameters (?k - keeper ?p - post)
    :precondition (and (at ?k ?p) (not (broken ?p)))
    :effect (and (when (lit ?p) (not (lit ?p))) (when (not (lit ?p)) (lit ?p))))
 (:action take :parameters (?k - keeper ?p - post ?t - thing)
    :precondition (and (at ?k ?p) (on ?t ?p) (not (exists (?u - thing) (has ?k ?u))))
    :effect (and (not (on ?t ?p)) (has ?k ?t)))
 (:action drop :parameters (?k - keeper ?p - post ?t - thing)
    :precondition (and (at ?k ?p) (has ?k ?t)) :effect (and (on ?t ?p) (not (has ?k ?t))))
 (:action peek :parameters (?k - keeper ?t - thing)
    :precondition (exists (?p - post, ?q - post) (and (at ?k ?p) (on ?t ?p))) :effect (seen ?p0))
 )
""".replace(":effect (seen ?p0)", ":effect (glanced ?t)")
PROBLEM = """
(define (problem one) (:domain garden)
 (:objects k - keeper post_bar_a post_bar_b Post_bar_C - post coin_bar_1 coin_bar_2 - thing)
 (:init (at k post_bar_a) (next post_bar_a post_bar_b) (next post_bar_b post_bar_c) (on coin_bar_1 post_bar_b)
        (on coin_bar_2 post_bar_b) (broken post_bar_a) (= (total-cost) 0))
 (:goal %s))
"""
GRAMMAR = '''
grammar :: """
 {
  "intro": [{"rhs": "  You see [{p.name | at(k:keeper, p:post)}].\\\\n#task#"}],
  "task": [{"rhs": "Task: light them all."}],
  "pile": [{"rhs": "[{t.indefinite + ' ' + t.name | on(t:thing, p:post)}]"}],
  "list_empty": [{"rhs": "nothing"}], "list_separator": [{"rhs": ", "}], "list_last_separator": [{"rhs": ", and "}]
 }
""";
action walk { template :: "walk to {q}"; feedback :: "#walked#";
  grammar :: """{"walked": [
      {"condition": "lit(q:post)", "rhs": "{q.name} is lit: [{t.indefinite + ' ' + t.name | on(t:thing, q:post)}]."},
      {"rhs": "{q.name} is dark."}
  ]}"""; }
action look { template :: "look"; feedback :: "#pile# here. Others: [{o.name | next(p:post, o:post)}]"; }
# A comment, and an action that no domain has.
action fly { template :: "fly"; feedback :: "#nowhere#"; }
action press { template :: "press"; feedback :: "Click. [{t.name | not_on(t:thing, p:post)}]"; }
action take { template :: "take {t}"; feedback :: "{t.name} from {p.name or p.id}"; }
action drop { template :: "drop {t}"; feedback :: "Dropped."; }
action peek { template :: "peek at {t}"; feedback :: "Shiny."; }
'''
ALL_LIT = "(forall (?p - post) (or (broken ?p) (lit ?p)))"


def garden(goal: str = ALL_LIT) -> Game:
    """The small game above."""
    return Game(GameFile(DOMAIN, PROBLEM % goal, GRAMMAR))


def played(game: Game, *commands: str) -> tuple[int, str]:
    """The state after some commands, and the last answer."""
    state, text = game.start, ""
    for command in commands:
        assert command in game.commands(state), (command, sorted(game.commands(state)))
        state, text = game.step(state, command)
    return state, text


# Reading


def test_expressions_nest_lower_case_and_drop_comments() -> None:
    assert parse_expression("(A (b ?C?d) ; nothing\n e)") == ("a", ("b", "?c", "?d"), "e")
    assert typed(("?a", "?b", "-", "room", "?c")) == [("?a", "room"), ("?b", "room"), ("?c", "object")]


@pytest.mark.parametrize("text", ["", "(a", "a)", "(a) (b)", "word", "(a))"])
def test_parentheses_that_do_not_pair_up_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"parenthes|wanted one list"):
        parse_expression(text)


def test_a_condition_is_taken_apart_into_alternatives_and_its_denial_follows_de_morgan() -> None:
    reader = Reader({"post": ["a", "b"]})
    either = parse_expression("(or (p ?x) (and (q ?x) (not (r ?x))))")
    assert [len(one.literals) for one in reader.condition(either)] == [1, 2]
    denied = [{(literal.predicate, literal.positive) for literal in one.literals} for one in reader.condition(("not", either))]
    assert denied == [{("p", False), ("q", False)}, {("p", False), ("r", True)}]
    [everywhere] = reader.condition(parse_expression("(forall (?x - post) (p ?x))"))
    assert [literal.terms for literal in everywhere.literals] == [("a",), ("b",)]
    nowhere = reader.condition(parse_expression("(not (exists (?x - post) (p ?x)))"))
    assert [(literal.terms, literal.positive) for literal in nowhere[0].literals] == [(("a",), False), (("b",), False)]


def test_two_quantifiers_of_one_name_bring_two_variables() -> None:
    [alternative] = Reader().condition(parse_expression("(and (exists (?x - a) (p ?x)) (exists (?x - a) (q ?x)))"))
    assert len({name for name, _ in alternative.variables}) == 2
    [shadowed] = Reader().condition(parse_expression("(exists (?x - a) (and (p ?x) (exists (?x - a) (q ?x))))"))
    assert shadowed.literals[0].terms != shadowed.literals[1].terms


def test_symbols_are_read_as_the_original_reads_them() -> None:
    assert parse_symbols(" \n lead, \n #a b# tail") == (Text("lead, \n "), Use("a b"), Text(" tail"))
    assert parse_symbols("one; two") == (Text("one"),)  # reading stops, and what was read stays
    assert parse_symbols('say "hi" twice\\n') == (Text("say "), Text("hi"), Text(" twice\n"))
    assert parse_symbols("// aside\nheard") == (Text("heard"),)
    [listing] = parse_symbols("[{o.name | on(o:thing, p:post) & lit(p:post)}]")
    assert isinstance(listing, Listing) and listing.each.query == parse_query("on(o:thing,p:post)&lit(p:post)")
    assert parse_symbols("") == ()


@pytest.mark.parametrize("text", ["{o.name()}", "{open('x')}", "{o.__class__}", "{1 + o.name}", "{o.name | on}", "{o.name +}"])
def test_expressions_in_a_grammar_can_do_nothing_but_join_names(text: str) -> None:
    with pytest.raises(ValueError, match=r"expression|condition"):
        parse_symbols(text)


def test_of_a_rule_given_twice_the_later_counts() -> None:
    grammar = parse_grammar('grammar :: """{"a": [{"rhs": "x"}]}""";  # so\n grammar :: """{"a": [{"rhs": "y"}]}""";')
    assert grammar.rules["a"][0].symbols == (Text("y"),)


@pytest.mark.parametrize(
    "text",
    [
        "verse",
        'grammar :: """{"a" """;',
        'grammar :: """[]""";',
        'action a { template "x" }',
        "action a {",
        "?",
        'grammar :: """{"a": [{}]}""";',
    ],
)
def test_a_grammar_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"grammar|rule"):
        parse_grammar(text)


def test_names_are_numbered_backwards_within_a_kind() -> None:
    names = shown_names(["mug_bar_1", "mug_bar_2", "sink_bar_1_bar_sinkbasin", "agent"])
    assert names == {"mug_bar_1": "mug 2", "mug_bar_2": "mug 1", "sink_bar_1_bar_sinkbasin": "sinkbasin 1", "agent": "agent "}


# Playing


def test_admissible_commands_are_what_the_conditions_allow() -> None:
    game = garden()
    assert set(game.commands(game.start)) == {"walk to post 2", "look"}  # not to post 3, where the keeper is; post 3 is broken
    state, _ = played(game, "walk to post 2")
    assert set(game.commands(state)) == {"walk to post 1", "walk to post 3", "look", "press", "take coin 1", "take coin 2"}


def test_a_type_with_a_comma_is_a_type_that_nothing_has() -> None:
    game = garden()
    state, _ = played(game, "walk to post 2")
    assert not any(command.startswith("peek") for command in game.commands(state))


def test_what_nothing_reads_is_no_part_of_a_state() -> None:
    game = garden()
    assert played(game, "look")[0] == game.start
    assert played(game, "walk to post 2", "walk to post 3")[0] == game.start


def test_conditional_effects_look_at_the_state_before() -> None:
    game = garden()
    dark, _ = played(game, "walk to post 2")
    lit, _ = played(game, "walk to post 2", "press")
    again, _ = played(game, "walk to post 2", "press", "press")
    assert dark == again != lit


def test_texts_list_answers_in_order_and_say_nothing_where_there_is_none() -> None:
    game = garden()
    assert game.tell("intro") == "You see post 3.\nTask: light them all."
    assert played(game, "walk to post 2", "look")[1] == "a coin 2, and a coin 1 here. Others: post 1"
    assert played(game, "walk to post 2", "take coin 2")[1] == "coin 2 from post 2"
    assert (
        played(game, "walk to post 2", "press", "walk to post 1", "walk to post 2")[1] == "post 2 is lit: a coin 2, and a coin 1."
    )
    assert played(game, "look")[1] == "nothing here. Others: post 2"


def test_a_denial_is_a_fact_only_after_something_became_false() -> None:
    game = garden()
    assert played(game, "walk to post 2", "press")[1] == "Click. nothing"
    assert played(game, "walk to post 2", "take coin 1", "press")[1] == "Click. coin 1"
    assert played(game, "walk to post 2", "take coin 1", "drop coin 1", "press")[1] == "Click. nothing"


@pytest.mark.parametrize("command", ["walk to post 1", "LOOK", "", "take coin 1", "look around"])
def test_what_is_not_admissible_changes_nothing(command: str) -> None:
    game = garden()
    assert game.step(game.start, command) == (game.start, NOTHING)
    assert game.step(game.start, "  look \n")[1] != NOTHING


def test_a_goal_may_hold_for_all_and_for_none() -> None:
    game = garden()
    assert not game.won(game.start)
    assert game.won(played(game, "walk to post 2", "press", "walk to post 1", "press")[0])
    bare = garden("(not (exists (?t - thing ?p - post) (on ?t ?p)))")
    assert not bare.won(bare.start)
    apart = garden("(exists (?t - thing ?u - thing ?p - post ?q - post) (and (not (= ?p ?q)) (on ?t ?p) (on ?u ?q)))")
    assert apart.won(played(apart, "walk to post 2", "take coin 1", "walk to post 1", "drop coin 1")[0])


def test_the_planner_finds_the_shortest_plan_or_says_that_there_is_none() -> None:
    assert plan(garden(), garden().start) is not None
    assert len(plan(garden(), garden().start) or []) == 4
    done = garden("(at k post_bar_a)")
    assert plan(done, done.start) == []
    never = garden("(has k post_bar_a)")
    assert plan(never, never.start) is None


# Houses as games to draw from


def drawn_house(seed: int, rooms: int = 1, places: int = 3, items: int = 3) -> House:
    """A small house."""
    goals = ("put", "two", "wash", "light")
    return next(houses(Recipe(rooms, places, items, goals, 0.5), random.Random(seed).choice(["pretrain", "test"]), seed))


small_houses = st.builds(
    drawn_house, st.integers(0, 10**6), rooms=st.integers(1, 2), places=st.integers(2, 4), items=st.integers(2, 3)
)


def distance(game: Game, longest: int) -> int | None:
    """The length of the shortest solution, by looking at every state."""
    seen, layer = {game.start}, [game.start]
    for depth in range(longest + 1):
        if any(map(game.won, layer)):
            return depth
        following = {game.step(state, command)[0] for state in layer for command in game.commands(state)} - seen
        seen |= following
        layer = sorted(following)
    return None


@settings(max_examples=12)
@given(small_houses)
def test_a_plan_is_as_short_as_any_in_small_houses(house: House) -> None:
    game = Game(game_file(house))
    found = plan(game, game.start)
    assert found is not None
    if len(found) <= 6:
        assert distance(game, len(found)) == len(found)


def wander(game: Game, seed: int, turns: int = 30) -> list[int]:
    """The states of a random walk."""
    draw, states = random.Random(seed), [game.start]
    for _ in range(turns):
        states.append(game.step(states[-1], draw.choice(sorted(game.commands(states[-1]))))[0])
    return states


@settings(max_examples=25)
@given(small_houses, st.integers(0, 10**6))
def test_every_item_is_at_one_place_or_in_the_hand(house: House, seed: int) -> None:
    game = Game(game_file(house))
    for state in wander(game, seed):
        facts = [fact for _, fact in game.facts.holding(state)]
        where = [fact[1] if fact[0] == "lies" else fact[2] for fact in facts if fact[0] in ("lies", "carries")]
        assert sorted(where) == sorted(game.facts.objects_of("item"))
        assert sum(fact[0] == "standing" for fact in facts) == 1
        assert sum(fact[0] == "busy" for fact in facts) == sum(fact[0] == "carries" for fact in facts) <= 1


@settings(max_examples=15)
@given(small_houses, st.integers(0, 10**6))
def test_a_state_offers_and_answers_the_same_whatever_was_played_before(house: House, seed: int) -> None:
    walked, fresh = Game(game_file(house)), Game(game_file(house))
    draw, commands = random.Random(seed), []
    state = walked.start
    for _ in range(20):
        commands.append(draw.choice(sorted(walked.commands(state))))
        state, _ = walked.step(state, commands[-1])
    for game in (walked, fresh):
        game.commands(game.start)
    ours, theirs = walked.start, fresh.start
    for command in commands:
        (ours, said), (theirs, told) = walked.step(ours, command), fresh.step(theirs, command)
        assert said == told and sorted(walked.commands(ours)) == sorted(fresh.commands(theirs))


# Files


@given(st.text(), st.text(), st.text(), st.lists(st.text()), st.sampled_from([True, False, None]))
def test_reading_is_the_inverse_of_writing(
    domain: str, problem: str, grammar: str, commands: list[str], solvable: bool | None
) -> None:
    game = GameFile(domain, problem, grammar, tuple(commands), solvable)
    assert parse_game(write_game(game), "here") == game


def test_files_that_are_no_games_are_told_in_one_sentence(tmp_path: Path) -> None:
    whole = write_game(GameFile(DOMAIN, PROBLEM % ALL_LIT, GRAMMAR))
    for name, text in {
        "cut": whole[:-200],
        "list": "[]",
        "lacks": '{"pddl_domain": ""}',
        "walk": whole.replace("[]}", '"x"}'),
    }.items():
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(CorruptFile, match=f"{name} is no .*fetch the game file again"):
            read_game(path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptFile, match="bytes is no text"):
        read_game(tmp_path / "bytes")
    with pytest.raises(UserError, match=r"cannot read the game .*absent"):
        read_game(tmp_path / "absent")


def cut(text: str, seed: int) -> str:
    """A text with a piece missing."""
    draw = random.Random(seed)
    start = draw.randrange(len(text))
    return text[:start] + text[start + draw.choice([1, 20, 200, len(text)]) :]


SPOILS: list[Callable[[GameFile, int], GameFile]] = [
    lambda game, seed: replace(game, domain=cut(game.domain, seed)),
    lambda game, seed: replace(game, problem=cut(game.problem, seed)),
    lambda game, seed: replace(game, grammar=cut(game.grammar, seed)),
]


@settings(max_examples=150, derandomize=True)
@given(st.sampled_from(SPOILS), st.integers(0, 10**6))
def test_texts_with_a_piece_missing_are_played_or_refused_as_no_game(spoil: Callable[[GameFile, int], GameFile], seed: int) -> None:
    spoiled = spoil(GameFile(DOMAIN, PROBLEM % ALL_LIT, GRAMMAR), seed)
    try:
        game = game_of(spoiled)
    except ValueError as error:
        assert str(error)
        return
    assert isinstance(game.won(game.start), bool)


def test_a_game_file_is_plain_json() -> None:
    data = json.loads(write_game(GameFile("d", "p", "g", ("look",), True)))
    assert data == {"pddl_domain": "d", "pddl_problem": "p", "grammar": "g", "walkthrough": ["look"], "solvable": True}
