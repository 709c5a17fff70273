"""What a command loads: help comes at once, results and environments are looked at without torch, and the doctor always answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
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


SEVERAL = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from leafe.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv, out, err, status = ["leafe", *words], io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
    heavy = sorted(set(%r) & set(sys.modules))
    print(json.dumps([status, out.getvalue(), err.getvalue(), heavy]))
"""


def each(commands: Iterable[tuple[str, ...]], folder: Path) -> Iterator[tuple[tuple[str, ...], int, str, str, list[str]]]:
    """Each command with its status, output, errors and the heavy modules that are loaded by then; one process carries them out in turn."""
    commands = list(commands)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-c", SEVERAL % (HEAVY,), json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=folder)
    for words, line in zip(commands, done.stdout.splitlines(), strict=True):
        yield (words, *json.loads(line))


def loaded(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The modules that a command loaded."""
    return set(done.stdout.splitlines()[-1].removeprefix("loaded:").split())


def test_help_loads_neither_models_nor_settings_nor_figures() -> None:
    assert not loaded(started("--help")) & {*HEAVY, "pydantic", "numpy", "yaml"}


def test_commands_that_need_no_model_load_no_library_for_models(tmp_path: Path) -> None:
    commands = [
        ("envs",),
        ("methods",),
        ("methods", "leafe"),
        ("check-env", "lookup", "--rollbacks", "2", "--tasks", "2"),
        ("play", "lookup"),
        ("compare", "nowhere"),
        ("report", "nowhere"),
        ("export", "nowhere", "trl", "out.jsonl"),
    ]
    for command, status, _, err, heavy in each(commands, tmp_path):
        assert not heavy and status == (2 if "nowhere" in command else 0) and "Traceback" not in err, command


REFUSED = {
    ("run", "smoek"): "'smoke'",
    ("run", "smoke", "explore.trns=3"): "explore.turns",
    ("run", "smoke", "model=./nowhere"): "./nowhere",
    ("run", "smoke", "model=hollow"): "safetensors",
    ("run", "smoke", "environment.args={rooms: 2}"): "'rooms'",
    ("explore", "smoke", "tasks.test_split=exam"): "'exam'",
    ("evaluate", "nano", "--env", "sokobam"): "'sokoban'",
    ("diagnose", "smoke", "--tasks", "3"): "--env",
    ("train", "nowhere"): "nowhere",
    ("reproduce", "tabel1"): "'table1'",
    ("run", "smoke", "prompts=curt", "--out", "full"): "curt",
    ("run", "smoke", "--out", "full"): "full",
}


def test_what_cannot_be_done_is_refused_before_a_library_for_models_is_loaded(tmp_path: Path) -> None:
    for folder, name, text in (("hollow", "config.json", '{"model_type": "llama"}'), ("full", "diary.txt", "")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    before = sorted(tmp_path.rglob("*"))
    for command, status, _, err, heavy in each(REFUSED, tmp_path):
        assert not heavy, command
        assert status == 2 and REFUSED[command] in err and err.count("\n") == 1, (command, err)
    assert sorted(tmp_path.rglob("*")) == before


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
    done = started("diagnose", "smoke", path=tmp_path)
    assert done.returncode == 1 and "libbroken.so" in done.stderr and "leafe doctor" in done.stderr
    assert "Traceback" not in done.stderr
