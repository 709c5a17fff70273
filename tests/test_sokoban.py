"""Sokoban: rules, levels, files and the environment, on drawn boards and by properties."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.errors import CorruptFile, UnknownName, UserError
from leafe.records import Task
from leafe.worlds.sokoban.board import ACTIONS, Level, Outcome, State, canonical_text, parse, symmetries
from leafe.worlds.sokoban.boxoban import read_levels, write_levels
from leafe.worlds.sokoban.environment import Sokoban, ample_turns
from leafe.worlds.sokoban.generator import SPLITS, Recipe, levels, scatter, split_of
from leafe.worlds.sokoban.solver import distances, solve

CORNERED = "######\n#__O_#\n#____#\n#_X__#\n#_P__#\n######"


def drawn_level(seed: int, rows: int = 6, columns: int = 6, boxes: int = 1) -> Level:
    """A random level, solvable or not."""
    draw = random.Random(seed)
    while (level := scatter(Recipe(rows, columns, boxes), draw)) is None:
        pass
    return level


boards = st.builds(drawn_level, st.integers(0, 10**9), rows=st.integers(5, 8), columns=st.integers(5, 8), boxes=st.integers(1, 2))
moves = st.lists(st.sampled_from(ACTIONS), max_size=25)


def walked(level: Level, actions: list[str]) -> State:
    """The state after some actions."""
    state = level.start
    for action in actions:
        state, _ = level.move(state, action)
    return state


def board_task(board: str, horizon: int = 15) -> Task:
    """A task for a board of one's own."""
    return Task("board", "sokoban", "Push.", horizon, {"board": board})


@given(boards, moves)
def test_parse_is_the_inverse_of_render_in_every_reached_state(level: Level, actions: list[str]) -> None:
    state = walked(level, actions)
    again = parse(level.render(state))
    assert (again.walls, again.targets, again.start) == (level.walls, level.targets, state)


@given(st.lists(boards, max_size=4))
def test_boxoban_reader_is_the_inverse_of_the_writer(some: list[Level]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "levels.txt")
        path.write_text(write_levels(some))
        assert list(read_levels(path)) == some


@given(boards, moves)
def test_a_move_keeps_boxes_walls_and_targets_where_the_rules_keep_them(level: Level, actions: list[str]) -> None:
    state = level.start
    for action in actions:
        after, outcome = level.move(state, action)
        assert len(after.boxes) == len(state.boxes) and not after.boxes & level.walls
        assert after.player not in level.walls | after.boxes
        assert (after == state) == (outcome in (Outcome.WALL, Outcome.BLOCKED))
        assert (after.boxes != state.boxes) == (outcome in (Outcome.PUSHED, Outcome.ON_TARGET, Outcome.CORNER))
        state = after


@given(boards)
def test_a_level_has_the_same_name_and_split_in_all_eight_symmetries(level: Level) -> None:
    turned = [parse(text) for text in symmetries(level)]
    assert len(turned) == 8
    assert {canonical_text(one) for one in turned} == {canonical_text(level)}
    assert {split_of(one) for one in turned} == {split_of(level)}


@settings(max_examples=40, deadline=None)
@given(st.builds(drawn_level, st.integers(0, 10**9), boxes=st.integers(1, 2)), moves)
def test_solver_is_optimal_in_moves_against_the_distance_table(level: Level, actions: list[str]) -> None:
    table, state = distances(level), level.start
    for action in [*actions[:4], None]:
        answer = solve(level, state)
        assert (None if answer is None else len(answer)) == table.moves.get(state)
        if answer:
            assert level.solved(walked(Level(level.rows, level.columns, level.walls, level.targets, state), answer))
            assert answer[0] in table.best(state)
        if action is None or level.solved(state):
            break
        state, _ = level.move(state, action)


def test_a_box_pushed_into_a_corner_is_called_stuck_and_on_a_target_it_is_not() -> None:
    outcomes = {
        "#####\n#_O_#\n#X__#\n#P__#\n#####": Outcome.CORNER,
        "#####\n#O__#\n#X__#\n#P__#\n#####": Outcome.ON_TARGET,
        "#####\n#O__#\n#_X_#\n#_P_#\n#####": Outcome.PUSHED,  # against a wall and no corner
        "#####\n#XO_#\n#P__#\n#___#\n#####": Outcome.BLOCKED,
    }
    for board, outcome in outcomes.items():
        level = parse(board)
        assert level.move(level.start, "up")[1] is outcome


@settings(max_examples=30, deadline=None)
@given(st.builds(drawn_level, st.integers(0, 10**9)))
def test_a_box_in_a_corner_cell_leaves_every_level_unsolvable(level: Level) -> None:
    for cell in sorted(level.corners - {level.start.player}):
        assert solve(level, State(level.start.player, frozenset({cell}))) is None


def test_splits_share_no_level_up_to_symmetry() -> None:
    names = {split: {canonical_text(level) for level, _ in islice(levels(Recipe(), split, 0), 60)} for split in SPLITS}
    for one in names:
        assert len(names[one]) == 60
        assert not any(names[one] & names[other] for other in names if other != one)


def test_drawn_levels_have_the_wanted_band_of_lengths() -> None:
    for task in Sokoban(min_length=6, max_length=9).tasks("valid", 10):
        level = parse(task.payload["board"])
        answer = solve(level)
        assert answer is not None and len(answer) == task.payload["length"] and 6 <= len(answer) <= 9


def test_two_processes_with_other_hash_seeds_draw_the_same_tasks() -> None:
    code = (
        "from leafe.worlds.sokoban.environment import Sokoban\n"
        "import sys\n"
        "sys.stdout.write(repr([t for s in ('train', 'test') for t in Sokoban(boxes=2, max_length=40).tasks(s, 5, 3)]))"
    )
    root = str(Path(__file__).parent.parent)
    drawn = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
            encoding="utf-8",
        ).stdout
        for seed in ("1", "2")
    ]
    assert drawn[0] == drawn[1] and drawn[0].count("Task(") == 10


def test_the_expert_solves_every_task_in_its_optimal_length() -> None:
    environment = Sokoban()
    for task in environment.tasks("train", 10):
        environment.reset(task)
        answers = [environment.step(action) for action in list(environment.expert())]
        assert len(answers) == task.payload["length"]
        assert [answer.done for answer in answers] == [False] * (len(answers) - 1) + [True]
        assert answers[-1].success and answers[-1].reward == 1.0 and sum(answer.reward for answer in answers) == 1.0
        assert environment.expert() == []


def test_observations_are_the_board_and_then_what_happened_above_the_board() -> None:
    environment = Sokoban()
    assert environment.reset(board_task(CORNERED)).text == CORNERED
    answer = environment.step(" Up ")
    assert answer.text == "You pushed the box.\n######\n#__O_#\n#_X__#\n#_P__#\n#____#\n######"
    assert answer.info == {"outcome": "PUSHED"}


def test_text_that_is_no_move_changes_nothing_and_is_told_the_moves() -> None:
    environment = Sokoban()
    environment.reset(board_task(CORNERED))
    answer = environment.step("go north")
    assert answer.text == "That is no move. Moves: up, down, left, right.\n" + CORNERED
    assert (answer.done, answer.success, answer.reward) == (False, False, 0.0)


def test_a_lenient_world_reads_a_move_with_a_full_stop_too() -> None:
    answers = []
    for environment, action in ((Sokoban(), "up"), (Sokoban(lenient=True), "Up."), (Sokoban(), "Up.")):
        environment.reset(board_task(CORNERED))
        answers.append(environment.step(action))
    assert answers[0] == answers[1] != answers[2] and answers[2].info == {"outcome": "INVALID"}


def test_nothing_changes_after_the_end() -> None:
    environment = Sokoban()
    environment.reset(board_task("#####\n#O__#\n#X__#\n#P__#\n#####"))
    last = environment.step("up")
    assert last.success and all(environment.step(action) == last for action in (*ACTIONS, "nonsense"))


def test_deadlock_feedback_is_off_by_default_and_stays_once_a_level_is_spoiled() -> None:
    spoil = ["left", "up", "right", "down", "up"]  # pushes the box against the right wall's side and walks on
    texts = {}
    for on in (False, True):
        environment = Sokoban(deadlock_feedback=on)
        environment.reset(board_task("######\n#O___#\n#____#\n#_X__#\n#_P__#\n######"))
        texts[on] = [environment.step(action).text for action in ["left", "up", "right", "right", *spoil]]
    warned = ["A box can no longer reach a target." in text.split("\n")[0] for text in texts[True]]
    assert not any("no longer" in text for text in texts[False])
    assert warned == [False, False, False, True] + [True] * len(spoil)
    assert [text.replace(" A box can no longer reach a target.", "") for text in texts[True]] == texts[False]


@pytest.mark.slow
def test_more_levels_than_there_are_are_refused() -> None:
    with pytest.raises(UserError, match="wanted 5000 tasks of split 'test', found"):
        Sokoban(rows=4, columns=4, min_length=1).tasks("test", 5000)


def test_a_wish_that_no_level_can_meet_is_one_sentence() -> None:
    with pytest.raises(UnknownName, match="did you mean 'test'"):
        Sokoban().tasks("tset", 1)
    with pytest.raises(UserError, match="at least one box"):
        Sokoban(boxes=0)
    with pytest.raises(UserError, match="holds no Sokoban board"):
        Sokoban().reset(Task("x", "sokoban", "Push.", 3, {}))


def test_level_files_in_split_folders_never_leave_their_split(tmp_path: Path) -> None:
    for split, seed in (("train", 1), ("test", 2)):
        (tmp_path / split).mkdir()
        some = [level for level, _ in islice(levels(Recipe(), "pretrain", seed), 6)]
        (tmp_path / split / "000.txt").write_text(write_levels(some))
    train = {task.id for task in Sokoban(levels=str(tmp_path)).tasks("train", 6)}
    test = {task.id for task in Sokoban(levels=str(tmp_path)).tasks("test", 6)}
    assert len(train) == len(test) == 6 and not train & test
    assert {task.id for task in Sokoban(levels=str(tmp_path / "test")).tasks("test", 6)} == test
    with pytest.raises(UserError, match="found 0"):
        Sokoban(levels=str(tmp_path / "test" / "000.txt")).tasks("train", 1)


def test_level_files_without_split_folders_are_split_by_content(tmp_path: Path) -> None:
    some = [level for split in SPLITS for level, _ in islice(levels(Recipe(), split, 0), 3)]
    (tmp_path / "mine.txt").write_text(write_levels(some))
    for split in SPLITS:
        tasks = Sokoban(levels=str(tmp_path / "mine.txt")).tasks(split, 3, seed=7)
        assert {split_of(parse(task.payload["board"])) for task in tasks} == {split}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "  \t\n"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "; levels of mine\n; two of them\n\n" + text,
        lambda text: text.replace("\n#", "\n; in between\n#", 3),
        lambda text: text.replace("#\n", "#  ; a row\n"),
        lambda text: text.replace("; 0\n", "; 0\n; easy\nTitle: One\n").replace("; 1\n", "Author: Nobody\n;1\n"),
        lambda text: re.sub(r"; \d+", "; a level", text),
        lambda text: re.sub(r"; \d+\n", "", "; no headers but this one\n" + text),
        lambda text: text.replace("\n\n", "\n"),
        lambda text: text.replace("; 0\n", "; 0\n\n"),
    ],
)
def test_level_files_are_read_with_marks_blanks_and_comments(spoil: Callable[[str], str], tmp_path: Path) -> None:
    some = [level for level, _ in islice(levels(Recipe(), "train", 1), 3)]
    (tmp_path / "levels.txt").write_bytes(spoil(write_levels(some)).encode())
    assert list(read_levels(tmp_path / "levels.txt")) == some


def test_the_horizon_of_levels_from_files_goes_by_the_level_unless_it_is_given(tmp_path: Path) -> None:
    some = [level for level, _ in islice(levels(Recipe(boxes=2, rows=8, columns=8, min_length=16, max_length=60), "train", 1), 4)]
    (tmp_path / "levels.txt").write_text(write_levels(some))
    tasks = Sokoban(levels=str(tmp_path)).tasks("train", 4)
    for task in tasks:
        answer = solve(parse(task.payload["board"]))
        assert answer and len(answer) <= task.horizon <= 12 * len(answer)
        assert 1 <= (Sokoban().fewest_turns(task) or 0) <= len(answer)
    assert {task.horizon for task in Sokoban(levels=str(tmp_path), horizon=9).tasks("train", 4)} == {9}
    assert [task.horizon for task in Sokoban().tasks("train", 2)] == [15, 15]


def test_broken_level_files_are_named_in_one_sentence(tmp_path: Path) -> None:
    symbol = "; 0\n#####\n#@$?#\n#####\n"
    broken = {"rows.txt": "; 0\n####\n#@ #\n", "symbol.txt": symbol, "head.txt": "#####\n", "bytes.txt": "; \xff"}
    for name, text in broken.items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        with pytest.raises(CorruptFile, match=name):
            Sokoban(levels=str(tmp_path / name)).tasks("train", 1)
    with pytest.raises(UserError, match="no level file at"):
        Sokoban(levels=str(tmp_path / "absent")).tasks("train", 1)


@pytest.mark.slow
@pytest.mark.skipif("LEAFE_DATA" not in os.environ, reason="LEAFE_DATA names no folder with boxoban/")
def test_the_first_published_test_levels_are_read_and_solved() -> None:
    path = Path(os.environ["LEAFE_DATA"], "boxoban", "unfiltered", "test", "000.txt")
    every = list(read_levels(path))
    assert len(every) == 1000 and write_levels(every).strip() == path.read_text().strip()
    for level in every[:10]:
        answer = solve(level)
        assert answer and level.solved(walked(level, answer)) and 15 < len(answer) <= ample_turns(level)
