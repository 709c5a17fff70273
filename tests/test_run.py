"""Run directories: who may work on one, what a resume accepts, and that a kill leaves nothing half-written."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from leafe.config import load_recipe, parse
from leafe.errors import CorruptFile, RunConflict, UserError
from leafe.folders import next_free, settle_folder, whole_folder
from leafe.jsonl import Appender
from leafe.run import RunDirectory
from leafe.settings import RunConfig


def config(*overrides: str) -> RunConfig:
    return parse("name: trial\nenvironment: {name: sokoban}", "trial", overrides)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "trial"


def test_a_new_run_keeps_its_configuration_and_is_not_done(path: Path) -> None:
    with RunDirectory.open(path, config("seed=7")) as run:
        assert not run.done and run.stages == {}
    with RunDirectory.existing(path) as run:
        assert run.config == config("seed=7")


def test_the_written_configuration_can_be_used_as_a_recipe(path: Path) -> None:
    RunDirectory.open(path, config("seed=7")).close()
    assert load_recipe(str(path / "config.yaml")) == config("seed=7")


def test_a_second_process_on_one_directory_is_refused_and_told_who_holds_it(path: Path) -> None:
    with RunDirectory.open(path, config()):
        for start in (partial(RunDirectory.open, path, config()), partial(RunDirectory.existing, path)):
            with pytest.raises(RunConflict, match=r"in use by process \d+ on .*; wait for it"):
                start()
    RunDirectory.open(path, config()).close()


def test_a_reader_may_look_at_a_run_in_progress_and_change_nothing(path: Path) -> None:
    with RunDirectory.open(path, config()) as run:
        run.finish_stage("explore", {"turns": 3})
        with RunDirectory.existing(path, read_only=True) as reader:
            assert reader.stages == {"explore": {"turns": 3}}
            assert not reader.evaluation("base").parent.exists()
            with pytest.raises(RuntimeError, match="opened for reading"):
                reader.finish_stage("train")


def begun(path: Path) -> None:
    """A run in which something was done."""
    with RunDirectory.open(path, config()) as run:
        run.forest().write_text('{"schema":"leafe.forest/1"}\n{')


def test_a_refused_start_does_not_keep_the_directory(path: Path) -> None:
    begun(path)
    with pytest.raises(RunConflict):
        RunDirectory.open(path, config("seed=2"))
    RunDirectory.open(path, config()).close()


def test_resuming_under_another_configuration_is_refused_naming_the_fields_and_what_to_type(path: Path) -> None:
    begun(path)
    with pytest.raises(RunConflict) as caught:
        RunDirectory.open(path, config("seed=2", "train.epochs=3"))
    assert "(seed: 1 -> 2; train.epochs: 6.0 -> 3.0)" in str(caught.value)
    assert f"type leafe run {path}/config.yaml --out {path}" in str(caught.value)
    with RunDirectory.existing(path) as run:
        assert run.config == config()


def test_a_run_in_which_nothing_was_done_takes_other_settings(path: Path) -> None:
    with RunDirectory.open(path, config()) as run:
        run.finish_stage("probe", {"model": "another"})  # a server that was looked at
        run.checkpoint("leafe")  # a folder, and nothing in it
        run.journal().write_text('{"schema":"leafe.journal/1"}\n')
    with RunDirectory.open(path, config("seed=2")) as run:
        assert run.config.seed == 2 and run.stages == {}
    with RunDirectory.existing(path) as run:
        assert run.config.seed == 2 and run.stages == {} and not run.has_work


def test_the_directory_of_a_table_is_told_from_a_run(path: Path) -> None:
    RunDirectory.open(path / "seed-1" / "base", config()).close()
    with pytest.raises(UserError, match=r"is the directory of a table, and no run; its runs are .*seed-1/base and those beside it"):
        RunDirectory.existing(path)


def test_resuming_on_another_machine_is_accepted_and_kept(path: Path) -> None:
    RunDirectory.open(path, config()).close()
    with RunDirectory.open(path, config("engine.threads=3")) as run:
        assert run.config.engine.threads == 3
    with RunDirectory.existing(path) as run:
        assert run.config.engine.threads == 3


@pytest.mark.parametrize(
    "spoil", [lambda text: "", lambda text: text[:200], lambda text: text.replace("seed: 1", "seed: 2"), lambda text: "\0"]
)
def test_a_configuration_that_was_edited_or_torn_is_refused(path: Path, spoil: object) -> None:
    assert callable(spoil)
    RunDirectory.open(path, config()).close()
    file = path / "config.yaml"
    file.write_text(spoil(file.read_text()))
    for start in (partial(RunDirectory.open, path, config()), partial(RunDirectory.existing, path)):
        with pytest.raises(CorruptFile, match=r"config\.yaml is not as leafe wrote it"):
            start()


def test_a_configuration_that_is_no_text_is_refused(path: Path) -> None:
    RunDirectory.open(path, config()).close()
    (path / "config.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(CorruptFile):
        RunDirectory.existing(path)


def test_stages_that_cannot_be_read_are_refused_and_the_directory_is_let_go(path: Path) -> None:
    RunDirectory.open(path, config()).close()
    (path / "stages.json").write_text('{"explore": ')
    with pytest.raises(CorruptFile, match=r"stages\.json"):
        RunDirectory.open(path, config())
    (path / "stages.json").unlink()
    RunDirectory.open(path, config()).close()


def test_a_directory_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(UserError, match="holds files that are no run"):
        RunDirectory.open(tmp_path, config())
    with pytest.raises(UserError, match="is no run directory"):
        RunDirectory.existing(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trial").write_text("")
    with pytest.raises(UserError, match="cannot make the directory"):
        RunDirectory.open(tmp_path / "trial", config())
    with pytest.raises(UserError, match="cannot make the directory"):
        next_free(tmp_path / "trial", "quickstart")


def test_a_finished_stage_is_remembered_with_what_it_gave(path: Path) -> None:
    with RunDirectory.open(path, config()) as run:
        run.finish_stage("explore", {"turns": 3})
        run.finish_stage("distill")
    with RunDirectory.open(path, config()) as run:
        assert list(run.stages.items()) == [("explore", {"turns": 3}), ("distill", None)]


def test_every_artefact_has_a_place_of_its_own_and_its_folder_is_there(path: Path) -> None:
    with RunDirectory.open(path, config()) as run:
        places = [
            run.forest(),
            run.forest(2),
            run.journal(),
            run.examples(),
            run.forest("independent"),
            run.journal("independent"),
            run.examples("independent"),
            run.checkpoint("leafe"),
            run.evaluation("leafe"),
            run.report,
        ]
    assert len(set(places)) == len(places)
    assert all(place.parent.is_dir() and path in place.parents for place in places)


def test_runs_without_a_directory_are_numbered_onwards(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert next_free(runs, "quickstart").name == "quickstart-001"
    assert next_free(runs, "quickstart").name == "quickstart-002"
    (runs / "quickstart-041").mkdir()
    (runs / "quickstart-mine").mkdir()
    (runs / "quickstart-mine-099").mkdir()
    assert next_free(runs, "quickstart").name == "quickstart-042"
    assert next_free(runs, "smoke").name == "smoke-001"


def test_two_that_ask_at_once_never_get_the_same_number(tmp_path: Path) -> None:
    given: list[Path] = []
    threads = [threading.Thread(target=lambda: given.extend(next_free(tmp_path, "trial") for _ in range(10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(given)) == len(given) == 40


def test_a_numbered_directory_can_be_started_in(tmp_path: Path) -> None:
    RunDirectory.open(next_free(tmp_path, "trial"), config()).close()


def test_a_folder_takes_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "checkpoints" / "leafe"
    with whole_folder(target) as folder:
        (folder / "weights").write_text("first")
        assert not target.exists()
    with pytest.raises(KeyboardInterrupt), whole_folder(target) as folder:
        (folder / "weights").write_text("half")
        raise KeyboardInterrupt
    assert (target / "weights").read_text() == "first"
    with whole_folder(target) as folder:
        (folder / "weights").write_text("second")
    assert (target / "weights").read_text() == "second"
    assert [entry.name for entry in target.parent.iterdir()] == ["leafe"]


WORKER = """
import resource, signal, sys
from pathlib import Path
from leafe.config import parse
from leafe.folders import whole_folder
from leafe.run import RunDirectory

run = RunDirectory.open(Path(sys.argv[1]), parse("name: trial\\nenvironment: {name: sokoban}", "trial"))
run.finish_stage("explore", 3)
with whole_folder(run.checkpoint("leafe")) as folder:
    (folder / "weights").write_text("whole")
# From here on the system kills this process in the middle of any write that goes beyond 10000 bytes of a file.
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
if sys.argv[2] == "stages":
    run.finish_stage("train", "x" * 50_000)
with whole_folder(run.checkpoint("leafe")) as folder:
    (folder / "weights").write_text("x" * 50_000)
"""


@pytest.mark.parametrize("writing", ["stages", "checkpoint"])
def test_a_process_killed_in_the_middle_of_a_write_leaves_what_was_there_and_no_lock(path: Path, writing: str) -> None:
    worker = subprocess.run([sys.executable, "-c", WORKER, str(path), writing], capture_output=True, check=False)
    assert worker.returncode == -signal.SIGXFSZ, worker.stderr
    with RunDirectory.open(path, config()) as run:
        assert run.stages == {"explore": 3}
        assert (run.checkpoint("leafe") / "weights").read_text() == "whole"
        with whole_folder(run.checkpoint("leafe")) as folder:
            (folder / "weights").write_text("anew")
        run.finish_stage("train")
    assert [entry.name for entry in (path / "checkpoints").iterdir()] == ["leafe"]


@pytest.mark.parametrize("name", ["lock", "config.yaml.tmp", "stages.json.tmp", "DONE.tmp", "round-1/forest.jsonl"])
def test_a_link_in_a_run_directory_never_overwrites_what_it_leads_to(tmp_path: Path, path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("not a line of ours")
    (path / name).parent.mkdir(parents=True)
    (path / name).symlink_to(precious)
    try:
        with RunDirectory.open(path, config()) as run:
            run.finish_stage("explore", 3)
            with Appender(run.forest(), "leafe.test/1") as lines:
                lines.append({"a": 1})
            run.finish()
    except UserError as refused:
        assert "symbolic link" in str(refused) or "no run" in str(refused)
    assert precious.read_text() == "not a line of ours"


def test_another_file_that_is_named_lock_is_not_emptied(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "lock").write_text("the combination is 7-7-7")
    with pytest.raises(UserError, match="no lock of leafe's"):
        RunDirectory.open(path, config())
    assert (path / "lock").read_text() == "the combination is 7-7-7"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_refuses_locks_is_told_as_that(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=f"refuses locks .{os.strerror(number)}.*another file system with --out") as told:
        RunDirectory.open(path, config())
    assert not isinstance(told.value, RunConflict)


def replace_and_end_after(target: Path, calls: int) -> None:
    """Replaces a folder in a process that ends, as if it were killed, before it changes the disk for the time after `calls`."""
    left = calls

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return call(*arguments, **keywords)

        return wrapped

    for name in ("rename", "mkdir", "rmdir", "unlink", "fsync"):
        setattr(os, name, counted(getattr(os, name)))
    with whole_folder(target) as folder:
        (folder / "weights").write_text("new")


def test_a_folder_that_is_replaced_is_never_lost_whichever_step_is_the_last(tmp_path: Path) -> None:
    ends = set()
    for calls in range(12):
        target = tmp_path / str(calls) / "leafe"
        with whole_folder(target) as folder:
            (folder / "weights").write_text("old")
        if (child := os.fork()) == 0:
            try:
                replace_and_end_after(target, calls)
            finally:
                os._exit(0)
        ends.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        copies = [file.read_text() for file in target.parent.rglob("weights")]
        assert "old" in copies or "new" in copies
        settle_folder(target)
        assert (target / "weights").read_text() in ("old", "new")
        with whole_folder(target) as folder:
            (folder / "weights").write_text("last")
        assert [entry.name for entry in target.parent.iterdir()] == ["leafe"] and (target / "weights").read_text() == "last"
    assert ends == {0, 9}


def test_a_folder_that_is_a_link_is_replaced_and_what_it_leads_to_is_left(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").write_text("precious")
    for name in ("leafe", ".leafe.partial", ".leafe.old"):
        (tmp_path / name).symlink_to(elsewhere)
    with whole_folder(tmp_path / "leafe") as folder:
        (folder / "weights").write_text("new")
    assert (tmp_path / "leafe" / "weights").read_text() == "new" and not (tmp_path / "leafe").is_symlink()
    assert (elsewhere / "weights").read_text() == "precious"
