"""A person at an environment: what is shown, going back, and every way in which a game ends."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from players import key_in

from leafe.cli.environments import play
from leafe.envs.base import Environment, Fidelity
from leafe.envs.person import person_plays
from leafe.errors import UserError
from leafe.records import Observation, Task
from leafe.worlds.fakes import Lookup
from leafe.worlds.sokoban.environment import Sokoban


def game(environment: Environment, task: Task, *lines: str) -> list[str]:
    """What is shown, the newline before each turn left out."""
    return [text.strip("\n") for text in person_plays(environment, task, lines)]


def lookup(*lines: str, horizon: int = 3) -> list[str]:
    return game(Lookup(), key_in(3, horizon=horizon), *lines)[2:]


class OneWay(Lookup):
    """Cannot go back."""

    fidelity = Fidelity.NONE


class Trap(Lookup):
    """Ends without success behind the first place, and raises behind the second."""

    def step(self, action: str) -> Observation:
        if action == "open place2":
            raise OSError("the floor gave way")
        return Observation("Locked in.", done=True) if action == "open place1" else super().step(action)


class Drifting(Lookup):
    """Never answers twice the same."""

    steps = 0

    def step(self, action: str) -> Observation:
        self.steps += 1
        return Observation(f"Empty, {self.steps}.")


def test_the_task_and_what_can_be_typed_stand_at_the_top() -> None:
    first, second = game(Sokoban(), Sokoban().tasks("train", 1)[0])
    assert first == (
        "Push every box X onto a target O. 15 turns. Moves: up, down, left, right. "
        "`back N` goes back to turn N, an empty line leaves."
    )
    assert second.startswith("1. ######")


def test_a_solved_game_says_so_and_ends() -> None:
    assert lookup("open place1", " open place3 ", "open place2") == ["2. Empty.", "3. The key!", "Solved in 2 turns."]


def test_an_empty_line_leaves_at_once() -> None:
    assert lookup("open place1", "", "open place3") == ["2. Empty."]


def test_going_back_shows_the_turn_again_and_gives_the_later_ones_back() -> None:
    shown = lookup("open place1", "open place2", "back 2", "open place3")
    assert shown == ["2. Empty.", "3. Empty.", "2. Empty.", "3. The key!", "Solved in 2 turns."]


def test_a_turn_that_is_not_there_is_refused_and_the_game_goes_on() -> None:
    assert lookup("back 2", "back 0", "open place3")[:2] == ["wanted a turn in 1..1, found 2", "wanted a turn in 1..1, found 0"]
    assert lookup("back 2", "open place3")[-1] == "Solved in 1 turn."


def test_what_only_looks_like_going_back_is_an_action() -> None:
    assert lookup("back two")[0].startswith("2. That is no action.")


def test_no_turn_is_taken_beyond_the_last_but_going_back_is_possible() -> None:
    shown = lookup("open place1", "open place2", "open place3", "back 1", "open place3", horizon=2)
    assert shown[2] == "No turns are left."
    assert shown[-1] == "Solved in 1 turn."


def test_an_end_without_success_can_be_gone_back_from() -> None:
    shown = game(Trap(), key_in(3), "open place1", "open place3", "back 1", "open place3")[2:]
    assert shown[:3] == ["2. Locked in.", "That is the end, without success.", "That is the end, without success."]
    assert shown[-1] == "Solved in 1 turn."


def test_where_there_is_no_going_back_it_is_not_offered_and_is_refused() -> None:
    first, _, refused, *rest = game(OneWay(), key_in(3), "back 1", "open place3")
    assert "back" not in first
    assert refused == "lookup cannot go back."
    assert rest[-1] == "Solved in 1 turn."


def test_a_broken_world_ends_the_game_with_the_reason() -> None:
    def ends(environment: Environment, *lines: str) -> Any:
        return game(environment, key_in(3), *lines)[-1]

    assert ends(Trap(), "open place2", "open place3") == "The game is over: lookup: OSError: the floor gave way"
    assert ends(Drifting(), "open place1", "back 2", "open place3").startswith("The game is over: replay diverged at turn 1")


class Lengthy(Lookup):
    """Answers with how many lines it was told."""

    several_lines = True

    def step(self, action: str) -> Observation:
        found = action == "open\n\n  place3"
        return Observation(f"{action.count(chr(10)) + 1} lines.", found, found, float(found))


def test_an_action_of_several_lines_ends_with_a_full_stop_alone_or_with_its_fence() -> None:
    first, *shown = game(Lengthy(), key_in(3), "a", ".", "```python", "b", ".", "```", "back 2", "open\r\n", "", "  place3", ".\n")
    assert "A line with a full stop alone ends what you write." in first
    assert shown[1:] == ["2. 1 lines.", "3. 4 lines.", "2. 1 lines.", "3. 3 lines.", "Solved in 2 turns."]
    assert game(Lengthy(), key_in(3), "a", "b", "")[2:] == ["2. 3 lines."]  # the end of the input ends it too
    assert game(Lengthy(), key_in(3), "", "a")[2:] == []


class Loud(Lookup):
    """Writes control characters, and keeps in `ended` which of its instances were closed."""

    ended: ClassVar[list[str]] = []

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        if split == "valid":
            raise OSError("no such tasks")
        return super().tasks(split, count, seed)

    def reset(self, task: Task) -> Observation:
        super().reset(task)
        return Observation("\x1b[2J\x1b]0;mine\x07Places.\r\n\tOne.\u202e")

    def close(self) -> None:
        self.ended.append("closed")


def test_a_game_shows_control_characters_and_closes_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Loud.ended.clear()
    sys.modules["test_person"] = sys.modules[__name__]
    monkeypatch.setattr(sys, "stdin", io.StringIO("open place1\n\n"))
    play("test_person:Loud", [], "train", 1)
    shown = capsys.readouterr().out
    assert r"\x1b[2J\x1b]0;mine\x07Places." in shown and "\n\tOne.\\u202e\n" in shown and "Empty." in shown
    assert Loud.ended == ["closed"]
    with pytest.raises(UserError):
        play("test_person:Loud", [], "valid", 1)
    assert Loud.ended == ["closed", "closed"]
