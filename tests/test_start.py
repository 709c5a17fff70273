"""What a command loads: help comes at once, results and environments are looked at without torch, and the doctor always answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from leafe.config import load_recipe
from leafe.run import RunDirectory

HEAVIEST = ("pydantic", "torch", "transformers", "peft")
HEAVY = ("torch", "transformers", "peft", "tokenizers", "accelerate")
LOADED = """
import sys
from leafe.cli import main
sys.argv = ["leafe", *sys.argv[1:]]
try:
    main()
finally:
    print("loaded:", *sorted(set(sys.modules)))
"""


def started(*arguments: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`leafe ARGUMENTS` in a process of its own, with what it loaded on the last line; modules in `path` come before all others."""
    ahead = [str(path)] if path else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*ahead, *filter(None, sys.path)])}
    command = [sys.executable, "-P", "-c", LOADED, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=path)


def loaded(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The modules that a command loaded."""
    return set(done.stdout.splitlines()[-1].removeprefix("loaded:").split())


def test_help_loads_neither_models_nor_settings_nor_figures() -> None:
    assert not loaded(started("--help")) & {*HEAVY, "pydantic", "numpy", "yaml"}


@pytest.mark.parametrize(
    "command",
    [
        ("envs",),
        ("methods",),
        ("methods", "leafe"),
        ("check-env", "lookup", "--rollbacks", "2", "--tasks", "2"),
        ("play", "lookup"),
        ("compare", "nowhere"),
        ("report", "nowhere"),
        ("export", "nowhere", "trl", "out.jsonl"),
    ],
    ids=lambda command: command[0],
)
def test_commands_that_need_no_model_load_no_library_for_models(command: tuple[str, ...], tmp_path: Path) -> None:
    done = started(*command, path=tmp_path)
    assert not loaded(done) & set(HEAVY)
    assert "Traceback" not in done.stderr


def test_a_run_is_looked_at_without_a_library_for_models(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "run", load_recipe("smoke")).close()
    done = started("report", "run", "--json", path=tmp_path)
    assert not loaded(done) & set(HEAVY) and '"method": "leafe"' in done.stdout


def test_the_process_of_a_world_loads_no_library_for_models() -> None:
    named = "import sys, leafe.envs.world_process, leafe.envs.check_process; print('loaded:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", named], capture_output=True, text=True, check=True)
    assert not loaded(done) & set(HEAVY)


BROKEN = "raise ImportError('libbroken.so: cannot open shared object file')\n"
KILLED = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"


def with_libraries(folder: Path, name: str, source: str) -> Path:
    """A folder whose modules stand before the installed libraries: one is as `source` says, the others are there and do nothing."""
    for library in HEAVIEST:
        (folder / f"{library}.py").write_text(source if library == name else "")
    return folder


@pytest.mark.parametrize("library", HEAVIEST)
def test_the_doctor_answers_where_a_library_cannot_be_imported(library: str, tmp_path: Path) -> None:
    done = started("doctor", path=with_libraries(tmp_path, library, BROKEN))
    assert done.returncode == 1 and not done.stderr
    said = "".join(done.stdout.split())
    assert f"import{library}" in said and "libbroken.so" in said and f"--force-reinstall{library}" in said


def test_a_library_that_takes_its_process_down_is_told(tmp_path: Path) -> None:
    done = started("doctor", path=with_libraries(tmp_path, "torch", KILLED))
    assert "endswithstatus-4" in "".join(done.stdout.split())


def test_another_command_names_the_library_and_the_doctor(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(BROKEN)
    done = started("distill", "nowhere", path=tmp_path)
    assert done.returncode == 1 and "libbroken.so" in done.stderr and "leafe doctor" in done.stderr
    assert "Traceback" not in done.stderr
