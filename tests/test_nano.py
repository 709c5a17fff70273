"""The bundled model's tokenizer and curriculum: what it is trained on is what it reads in use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from leafe.chat import Notes, Scene, act_messages, reflect_messages
from leafe.distillation.pack import PackedRow
from leafe.engines.tokens import ChatTokenizer
from leafe.nano.build import Plan, Shape, build
from leafe.nano.curriculum import DRILL, Curriculum, Lesson, Lookback, Move, Stage, Writer, batches
from leafe.nano.sokoban_teacher import INSTRUCTION, PLAN, SokobanTeacher
from leafe.nano.tokenizer import END, ROLES, build_tokenizer
from leafe.nano.worlds import SOKOBAN, world
from leafe.prompts import load_prompts
from leafe.records import Completion, Message, Observation, Turn
from leafe.replies import parse_reflection, render_reflection
from leafe.worlds.sokoban.board import ACTIONS, State, parse
from leafe.worlds.sokoban.environment import Sokoban
from leafe.worlds.sokoban.generator import Recipe, levels
from leafe.worlds.sokoban.solver import distances

PROMPTS = load_prompts("terse", "sokoban")
LESSONS = tuple(islice(SokobanTeacher(longest=8).lessons(3), 40))
TOKENIZER = build_tokenizer(Writer.corpus(PROMPTS, LESSONS), 512)
CHAT = ChatTokenizer(TOKENIZER)


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=300)
def test_any_text_comes_back_as_it_was_in_its_composed_form(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text), clean_up_tokenization_spaces=False) == normalize("NFC", text)


@given(st.text("#_XO√PS\n", max_size=60))
@settings(max_examples=200)
def test_a_cell_inside_the_walls_is_one_token_whatever_its_neighbours(cells: str) -> None:
    texts = [TOKENIZER.decode([token]) for token in TOKENIZER.encode(cells)]
    assert all(len(text) == 1 or set(text) <= {"#", "\n"} for text in texts)


def test_a_saved_tokenizer_is_loaded_as_it_was_built(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    chat = ChatTokenizer(loaded)
    for lesson in LESSONS[:10]:
        for messages in prompts_of(lesson):
            assert chat.prompt_ids(messages) == CHAT.prompt_ids(messages)


def test_the_same_place_of_every_board_stands_at_the_same_distance() -> None:
    boards = [TOKENIZER.encode(lesson.start) for lesson in LESSONS]
    assert len({len(board) for board in boards}) == 1


def turn_of(number: int, move: Move, advice: str | None = None) -> Turn:
    """A move of a lesson as a turn that the policy took."""
    parent = f"t{number - 1}" if number > 1 else None
    return Turn(f"t{number}", parent, number, 0, move.action, True, Completion(move.action), Observation(move.observation), advice)


def walk_of(moves: tuple[Move, ...]) -> list[Turn]:
    return [turn_of(number, move) for number, move in enumerate(moves, start=1)]


def scene_of(lesson: Lesson) -> Scene:
    return Scene(PROMPTS, lesson.task, Observation(lesson.start))


def followed(lesson: Lesson, lookback: Lookback) -> Iterator[tuple[tuple[Message, ...], Move]]:
    """Each prompt that is read while advice is followed, as chat renders it, with the move that is taught there."""
    assert lookback.experience is not None
    told = lookback.experience
    trajectory = walk_of(lesson.moves)[: told.turn - 1]
    for offset, move in enumerate(lookback.followed):
        notes = Notes(told.text if offset == 0 else None)
        yield act_messages(scene_of(lesson), trajectory, notes), move
        trajectory.append(turn_of(told.turn + offset, move, told.text if offset == 0 else None))


def path(row: PackedRow, place: int) -> tuple[int, ...]:
    return tuple(row.ids[key] for key in range(place + 1) if place < row.end[key])


def taught(row: PackedRow) -> dict[tuple[int, ...], dict[int, float]]:
    """What is wanted after each prefix: token to weight."""
    found: dict[tuple[int, ...], dict[int, float]] = {}
    for at, target, weight in zip(row.term_at, row.term_target, row.term_weight, strict=True):
        found.setdefault(path(row, at), {})[target] = weight
    return found


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text, add_special_tokens=False))


def drills_of(lesson: Lesson) -> Iterator[tuple[Message, ...]]:
    """The prompts of the question that only lessons ask."""
    for number, move in enumerate(lesson.moves):
        if move.plan:
            *before, last = act_messages(scene_of(lesson), walk_of(lesson.moves)[:number])
            yield (*before, replace(last, content=last.content + DRILL))


def prompts_of(lesson: Lesson) -> Iterator[tuple[Message, ...]]:
    """Every prompt of use that a lesson teaches an answer to."""
    trajectory = walk_of(lesson.moves)
    for number in range(len(trajectory)):
        yield act_messages(scene_of(lesson), trajectory[:number])
    for lookback in lesson.lookbacks:
        yield reflect_messages(scene_of(lesson), trajectory[: lookback.after_turn], ended=lookback.ended)
        if lookback.experience is not None:
            yield from (messages for messages, _ in followed(lesson, lookback))


def test_the_prompts_that_are_trained_on_are_those_of_use_token_for_token() -> None:
    begin = TOKENIZER.convert_tokens_to_ids("<|assistant|>")
    assert {lookback.ended for lesson in LESSONS for lookback in lesson.lookbacks} == {True, False}
    assert any(len(lookback.followed) > 1 for lesson in LESSONS for lookback in lesson.lookbacks)
    for lesson in LESSONS:
        terms = taught(Writer(TOKENIZER, PROMPTS).row(lesson))
        wanted = {tuple(CHAT.prompt_ids(messages)) for messages in (*prompts_of(lesson), *drills_of(lesson))}
        assert {prefix for prefix in terms if prefix[-1] == begin} == wanted


def test_acting_is_taught_as_the_players_habits_and_then_the_end_of_the_message() -> None:
    end = TOKENIZER.convert_tokens_to_ids(END)
    for lesson in LESSONS:
        terms = taught(Writer(TOKENIZER, PROMPTS).row(lesson))
        for number, move in enumerate(lesson.moves):
            prompt = tuple(CHAT.prompt_ids(act_messages(scene_of(lesson), walk_of(lesson.moves)[:number])))
            firsts = {ids_of(action)[0]: share for action, share in move.habits.items()}
            assert terms[prompt] == pytest.approx(firsts)
            assert end in terms[prompt + ids_of(move.action)]


def test_reflecting_is_taught_as_the_reply_that_the_parser_reads_back() -> None:
    for lesson in LESSONS:
        terms = taught(Writer(TOKENIZER, PROMPTS).row(lesson))
        for lookback in lesson.lookbacks:
            trajectory = walk_of(lesson.moves)[: lookback.after_turn]
            reply = render_reflection(PROMPTS.form, lookback.experience)
            if lookback.experience is not None:  # the situation is copied before it is judged
                turn = lookback.experience.turn
                seen = lesson.start if turn == 1 else lesson.moves[turn - 2].observation
                reply = f"{turn}: {seen}\n{reply}"
            assert parse_reflection(PROMPTS.form, reply, lookback.after_turn) == lookback.experience
            prefix = tuple(CHAT.prompt_ids(reflect_messages(scene_of(lesson), trajectory, ended=lookback.ended)))
            for token in (*ids_of(reply), TOKENIZER.convert_tokens_to_ids(END)):
                assert token in terms[prefix]
                prefix += (token,)


FLOOR = str.maketrans("XO√PS", "_____")


def state_in(text: str) -> State:
    """The state that an observation shows."""
    board = text[text.index("#") :]
    return parse(board).start


def test_habits_are_shares_of_all_moves() -> None:
    moves = [move for lesson in LESSONS for move in lesson.moves]
    moves += [move for lesson in LESSONS for lookback in lesson.lookbacks for move in lookback.followed]
    for move in moves:
        assert set(move.habits) == set(ACTIONS)
        assert min(move.habits.values()) >= 0 and sum(move.habits.values()) == pytest.approx(1.0)


def test_advice_names_a_turn_that_was_not_among_the_best_and_gives_a_shortest_way_on() -> None:
    checked = 0
    for lesson in LESSONS:
        level = parse(lesson.start)
        table = distances(level)
        states = [state_in(text) for text in (lesson.start, *(move.observation for move in lesson.moves))]
        for lookback in lesson.lookbacks:
            if lookback.experience is None:
                continue
            turn, said = lookback.experience.turn, lookback.experience.text
            state, plan = states[turn - 1], said.rpartition("Go ")[2].rstrip(".").split()
            assert lesson.moves[turn - 1].action not in table.best(state)
            assert said.startswith(f"{lesson.moves[turn - 1].action} was wrong: ")
            assert len(plan) == min(PLAN, table.moves[state])
            for action in plan:
                assert action in table.best(state)
                state, _ = level.move(state, action)
            checked += 1
    assert checked > 20


def seen_at(lesson: Lesson, turn: int) -> str:
    """What stands before the player at a turn."""
    return lesson.start if turn == 1 else lesson.moves[turn - 2].observation


def test_a_reflection_can_copy_any_turn_that_is_named_to_it() -> None:
    for lesson in LESSONS[:20]:
        terms = taught(Writer(TOKENIZER, PROMPTS).row(lesson))
        for lookback in lesson.lookbacks:
            trajectory = walk_of(lesson.moves)[: lookback.after_turn]
            asked = CHAT.prompt_ids(reflect_messages(scene_of(lesson), trajectory, ended=lookback.ended))
            for turn in range(1, lookback.after_turn + 1):
                header, copy = ids_of(f"{turn}:"), ids_of(f"{turn}: {seen_at(lesson, turn)}\n")
                for place in range(len(header) + 1, len(copy)):
                    assert copy[place] in terms[(*asked, *copy[:place])]


def test_a_jumbled_episode_shows_other_boards_and_advises_truly_on_each() -> None:
    lessons, checked = list(islice(SokobanTeacher(longest=8, jumbled=1.0).lessons(3), 30)), 0
    for lesson in lessons[10:]:
        for lookback in lesson.lookbacks:
            if lookback.experience is None:
                continue
            board = seen_at(lesson, lookback.experience.turn)
            level = parse(board[board.index("#") :])
            (first, *_) = lookback.experience.text.rpartition("Go ")[2].rstrip(".").split()
            assert first in distances(level).best(level.start)
            checked += 1
    assert checked > 20
    walls = [{seen_at(lesson, turn).translate(FLOOR) for turn in range(1, len(lesson.moves) + 1)} for lesson in lessons[10:]]
    assert sum(len(rooms) > 1 for rooms in walls) > 10


def test_lessons_are_what_the_environment_would_show() -> None:
    environment = Sokoban()
    for lesson in LESSONS:
        task = replace(lesson.task, payload={"board": lesson.start})
        assert task.instruction == environment.tasks("train", 1)[0].instruction == INSTRUCTION
        assert environment.reset(task).text == lesson.start
        for move in lesson.moves:
            assert environment.step(move.action).text == move.observation


def test_boards_of_the_curriculum_are_of_a_split_of_their_own() -> None:
    drawn = [level.render(level.start) for level, _ in islice(levels(Recipe(), "pretrain", 0), 200)]
    measured = {task.payload["board"] for split in ("train", "valid", "test") for task in Sokoban().tasks(split, 100)}
    assert not measured & set(drawn)


def test_the_same_seed_gives_the_same_lessons() -> None:
    again = tuple(islice(SokobanTeacher(longest=8).lessons(3), 10))
    other = tuple(islice(SokobanTeacher(longest=8).lessons(4), 10))
    assert again == LESSONS[:10] != other


def test_a_batch_is_as_large_as_its_size_with_padding_lets_it_be() -> None:
    rows = [Writer(TOKENIZER, PROMPTS).row(lesson) for lesson in LESSONS]
    groups = list(batches(iter(rows), 2000))
    drawn = [row for group in groups for row in group]
    assert drawn == rows[: len(drawn)] and len(drawn) > 30  # a stream has no last batch: what is left waits for more
    assert all(len(group) == 1 or len(group) * max(len(row.ids) for row in group) <= 2000 for group in groups)
    for group, after in pairwise(groups):
        assert (len(group) + 1) * max(len(row.ids) for row in [*group, after[0]]) > 2000


SMALL = Shape(hidden=32, layers=2, heads=2, inner=48, vocabulary=400, context=512)


def short_episodes(*stages: Stage) -> Curriculum:
    return Curriculum("sokoban", stages, plain_teacher)


def quick(*stages: Stage) -> Curriculum:
    """Lessons of a world that costs nothing to play."""
    return replace(world("lookup", {"places": 3, "horizon": 2}, split="train").curriculum, stages=stages)


def plain_teacher(stage: Stage) -> SokobanTeacher:
    return SokobanTeacher(longest=stage.longest)


@pytest.mark.parametrize(
    ("steps", "stages"), [pytest.param(1, SOKOBAN.stages, marks=pytest.mark.slow), (4, (Stage(0.5, 2), Stage(0.5, 3)))]
)
def test_a_build_gives_a_checkpoint_that_any_tool_loads(tmp_path: Path, steps: int, stages: tuple[Stage, ...]) -> None:
    told: list[str] = []
    plan = Plan(steps=steps, tokens=1024, shape=SMALL)
    build(short_episodes(*stages), tmp_path, plan, told.append)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.hidden_size == 32 and model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("".join(ROLES))) == list(ROLES)
    assert ChatTokenizer(tokenizer).piecewise
    assert told[0].startswith(f"step 1/{steps} loss ")


def test_steps_are_taken_however_few_there_are(tmp_path: Path) -> None:
    found = []
    for steps in (1, 2):
        plan = Plan(steps=steps, tokens=512, shape=SMALL)
        build(quick(Stage(0.3, 2), Stage(0.3, 2), Stage(0.4, 2)), tmp_path / str(steps), plan)
        found.append((tmp_path / str(steps) / "model.safetensors").read_bytes())
    assert found[0] != found[1]


@pytest.mark.slow
def test_two_processes_build_one_checkpoint(tmp_path: Path) -> None:
    plan = Plan(steps=2, tokens=512, processes=2, shape=SMALL)
    build(quick(Stage(1.0, 2)), tmp_path, plan, print)  # of the package alone: a process loads the modules of what it is given
    AutoModelForCausalLM.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "build.json").read_text())["steps_done"] == 2
