"""`leafe new-env` writes a world that keeps what it declares, with a test that passes, and never writes over anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import leafe
from test_cli import assert_one_sentence


def test_what_is_written_passes_its_own_test_and_can_be_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    said = leafe("new-env", "my_maze")
    assert said.status == 0 and "leafe check-env my_maze:MyMaze" in said.out
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "pytest", "-q", "test_my_maze.py"]
    tested = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout
    played = leafe("play", "my_maze:MyMaze", stdin="guess 500\nguess left\n")
    assert "It is " in played.out and "That is no action." in played.out
    assert len((tmp_path / "my_maze.py").read_text().partition("class ")[2].splitlines()) < 30
    assert_one_sentence(leafe("new-env", "my_maze"), "my_maze.py is there already; give another name")


@pytest.mark.parametrize("name", ["my-maze", "class", "9lives", "Maze", "", "a/b", "..", "json", "leafe", "_"])
def test_a_name_that_cannot_be_is_one_sentence_and_nothing_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = leafe("new-env", name)
    if said.status == 0:
        assert name == "_" and (tmp_path / "_.py").exists()
        return
    assert_one_sentence(said, "give another name" if name in ("json", "leafe") else "wanted a name")
    assert not list(tmp_path.iterdir())
