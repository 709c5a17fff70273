"""Training started by hand and by a launcher: what a shell has lying about never makes it wait, and `torchrun` shares its steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer

from leafe.distillation.store import write_examples
from leafe.group import LAUNCHERS, MEETING, by_hand, launched
from leafe.records import Example, Message
from leafe.settings import TrainSettings
from leafe.training.sft import TrainReport, fine_tune

TOKENIZER = tiny_tokenizer()
PLAN = TrainSettings(epochs=1, learning_rate=1e-3, batch_size=4)
STRAY: dict[str, dict[str, str]] = {
    "a local rank": {"LOCAL_RANK": "0"},
    "another local rank": {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"},
    "a world": {"WORLD_SIZE": "2", "RANK": "1"},
    "a world in words": {"WORLD_SIZE": "two", "RANK": "", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
    "a job of MPI": {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "2", "PMI_SIZE": "8"},
    "an address": {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234", "TORCHELASTIC_RUN_ID": "old"},
}
WHOLE = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29511"}


def lessons(count: int = 8) -> list[Example]:
    ids = (*TOKENIZER.encode("go left", add_special_tokens=False), TOKENIZER.eos_token_id)
    asked = [(Message("user", f"the door is closed {number}"),) for number in range(count)]
    return [
        Example(f"e{number}", "rehearsal", f"t{number % 3}", 0, f"turn{number}", messages, "go left", ids)
        for number, messages in enumerate(asked)
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clean(base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    """What training is where nothing lies about."""
    return fine_tune(base, lessons(), tmp_path_factory.mktemp("clean"), PLAN, seed=1)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name in MEETING or name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("name", STRAY)
def test_what_a_shell_has_lying_about_changes_nothing_in_a_training(
    name: str, base: Path, clean: TrainReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in STRAY[name].items():
        monkeypatch.setenv(variable, value)
    before = dict(os.environ)
    assert not launched()
    assert fine_tune(base, lessons(), tmp_path, PLAN, seed=1) == clean
    assert {variable: os.environ.get(variable) for variable in before} == before


def test_a_caller_that_is_alone_waits_for_nobody_though_a_whole_launcher_lies_about(
    base: Path, clean: TrainReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in WHOLE.items():
        monkeypatch.setenv(variable, value)
    assert launched()
    with by_hand():
        assert not launched() and not set(WHOLE) & set(os.environ)
    assert fine_tune(base, lessons(), tmp_path, PLAN, seed=1, alone=True) == clean


SCRIPT = """
import json, os, sys
from pathlib import Path
from leafe.distillation.store import read_examples
from leafe.settings import TrainSettings
from leafe.group import launched
from leafe.training.sft import fine_tune

base, examples, out = map(Path, sys.argv[1:])
plan = TrainSettings(epochs=1, learning_rate=1e-3, batch_size=4)
report = fine_tune(base, list(read_examples(examples)), out, plan, seed=1)
rank = os.environ["RANK"]
(out.parent / f"said-{rank}.json").write_text(json.dumps([launched(), report.loss, report.steps]))
"""


@pytest.mark.slow
def test_the_processes_of_torchrun_share_every_step(base: Path, clean: TrainReport, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    write_examples(tmp_path / "examples.jsonl", lessons())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "script.py")]
    inputs = [str(base), str(tmp_path / "examples.jsonl"), str(tmp_path / "out")]
    ended = subprocess.run([*command, *inputs], capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    for rank in (0, 1):
        is_launched, loss, steps = json.loads((tmp_path / f"said-{rank}.json").read_text())
        assert is_launched and steps == clean.steps and loss == pytest.approx(clean.loss, rel=1e-5)
    assert (tmp_path / "out" / "model.safetensors").is_file()
