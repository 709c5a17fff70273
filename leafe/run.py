"""A run directory: the place of every file, the finished stages, and the lock of the one process that works on it.

    config.yaml          every setting, under a line with the digest of the text
    round-1/             forest.jsonl, journal.jsonl, examples.jsonl of the first round
    controls/            the same for each forest with a name, as NAME.jsonl, NAME.journal.jsonl, NAME.examples.jsonl
    checkpoints/ARM/     eval/ARM.jsonl     report.html
    stages.json          each finished stage's result and its files' digests, in the order in which they finished
    DONE                 written last

Whole files and whole folders appear by a rename, so anything under its own name is complete; `jsonl` protects JSON lines.
This file knows no method and computes nothing. Arms and forests are found in `stages.json`, and on the disk where
forests still grow.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from leafe.config import dump, parse
from leafe.differing import differing_fields
from leafe.digest import text_digest
from leafe.errors import DamagedRun, RunConflict, UserError
from leafe.folders import make_folder, settle_folder
from leafe.jsonl import write_text_atomically
from leafe.manifest import change, files_of, given, is_whole, manifest_of, sealed
from leafe.settings import RunConfig
from leafe.shown import ARM, FOREST, arms, check_name, forests

HEADER = "# A leafe run; the digest of the lines below is "
LOGS = "server"  # the folder for the output of a server that a run starts
ANEW = "restore it, or start anew with its recipe in another directory"
IDLE = {"lock", "config.yaml", "stages.json", LOGS}  # what a run holds before anything is done in it


def check_checkpoint(folder: Path) -> Path:
    """`folder`, a model's. Raises `DamagedRun` where a run trained it and it is not as that run left it."""
    place = folder.resolve()
    root = place.parent.parent
    if (root / "stages.json").is_file():
        _check(root, _read_stages(root / "stages.json"), place.relative_to(root).as_posix())
    return folder


class RunDirectory:
    """One run on the disk; a context manager that holds the directory for this process until it is closed.

    Made by `open` for a run, by `existing` for a command on an existing run.
    """

    def __init__(self, path: Path, config: RunConfig, lock: IO[str] | None) -> None:
        self.path, self.config, self._lock = path, config, lock
        self._stages = _read_stages(path / "stages.json")

    @classmethod
    def open(cls, path: Path, config: RunConfig, *, moved: bool = False) -> RunDirectory:
        """Starts a run in a new or empty directory, or resumes the one that is there. With `moved` its model may have another name since.

        A run in which nothing was done yet takes other settings. Raises `RunConflict` when another process holds it or its configuration
        differs in more than the machine's settings,
        `DamagedRun` when its configuration cannot be read, `UserError` when the directory holds something else.
        """
        make_folder(path)
        if not (path / "config.yaml").exists() and any(entry.name not in {"lock", "config.yaml.tmp"} for entry in path.iterdir()):
            raise UserError(f"{path} holds files that are no run; give another directory, as --out {path / 'run'}")
        lock = _acquire(path)
        try:
            run = cls(path, config, lock)
            run._settle_config(moved)
            return run
        except BaseException:
            lock.close()
            raise

    @classmethod
    def existing(cls, path: Path, *, read_only: bool = False) -> RunDirectory:
        """The run in a directory, with the configuration that it was started with. A reader may open it while another process works."""
        if not (path / "config.yaml").is_file():
            if runs := sorted(path.glob("seed-*/*/config.yaml")):
                raise UserError(
                    f"{path} is the directory of a table, and no run; its runs are {runs[0].parent} and those beside it"
                )
            raise UserError(f"{path} is no run directory: it has no config.yaml; start a run there: leafe run RECIPE --out {path}")
        lock = None if read_only else _acquire(path)
        try:
            return cls(path, _read_config(path / "config.yaml"), lock)
        except BaseException:
            if lock:
                lock.close()
            raise

    def forest(self, place: int | str = 1) -> Path:
        """The trees of a round, or of a forest with a name of its own, one a line."""
        return self._of_place(place, "forest.jsonl", ".jsonl")

    def journal(self, place: int | str = 1) -> Path:
        """The effects of a forest's exploration, for resuming."""
        return self._of_place(place, "journal.jsonl", ".journal.jsonl")

    def examples(self, place: int | str = 1) -> Path:
        """The training examples from a forest."""
        return self._of_place(place, "examples.jsonl", ".examples.jsonl")

    def checkpoint(self, arm: str) -> Path:
        """An arm's trained model; write it with `whole_folder`."""
        path = self._in("checkpoints", check_name("arm", arm))
        if self._lock:
            settle_folder(path)
        return path

    def training(self, arm: str) -> Path:
        """The state of an arm's training that is under way."""
        return self.path / "checkpoints" / f".{check_name('arm', arm)}.state"

    def evaluation(self, arm: str, beside: str = "") -> Path:
        """An arm's graded attempts, or a file beside them, as `shown.WATCHED` names one."""
        return self._in("eval", f"{check_name('arm', arm)}{beside}.jsonl")

    def arms(self) -> dict[str, Path]:
        """The arms that are measured to their end, with their graded attempts, first measured first."""
        return arms(self.path, self._stages)

    def forests(self) -> dict[str, Path]:
        """The existing forests, grown or growing, by the names that they are shown under."""
        return forests(self.path, self._stages)

    @property
    def report(self) -> Path:
        """The page that shows the run."""
        return self.path / "report.html"

    @property
    def stages(self) -> Mapping[str, Any]:
        """Each finished stage's result, first finished first."""
        return {stage: given(entry) for stage, entry in self._stages.items()}

    def finish_stage(self, stage: str, result: Any = None, *, files: Sequence[Path] = (), arm: str = "", forest: str = "") -> None:
        """Records that a stage is finished, and its result in JSON; a resumed run skips it. `files` are what it made, folders too.

        With `arm` or `forest` the first file is shown under that name.
        """
        self._require_lock()
        names = list(self._stages)
        before = names[: names.index(stage)] if stage in names else names
        about = {
            kind: [check_name(kind, name), files[0].relative_to(self.path).as_posix()]
            for kind, name in ((ARM, arm), (FOREST, forest))
            if name
        }
        self._write_stages({**self._stages, stage: sealed(stage, result, manifest_of(self.path, files), before, shown=about)})

    def made_by(self, stage: str) -> tuple[Path, ...]:
        """The files that a finished stage made, as far as its entry names them."""
        return tuple(self.path / name for name in files_of(self._stages.get(stage)))

    def check(self, path: Path) -> Path:
        """`path`, which is a file or a folder of files that a finished stage made. Raises `DamagedRun` where one is not as it was left.

        Every byte of them is read. Files that no stage names are not checked, such as those of older runs.
        """
        if path.is_relative_to(self.path):
            _check(self.path, self._stages, path.relative_to(self.path).as_posix())
        return path

    @property
    def has_work(self) -> bool:
        """Whether anything was done here: a stage that made a file, or a file of a stage that is under way."""
        others = (entry for entry in self.path.iterdir() if entry.name not in IDLE)
        return any(map(files_of, self._stages.values())) or any(map(_has_work, others))

    @property
    def done(self) -> bool:
        """Whether the run is complete."""
        return (self.path / "DONE").exists()

    def finish(self) -> None:
        """Writes `DONE`; the last thing that a run does."""
        write_text_atomically(self.path / "DONE", self.config.digest + "\n")

    def close(self) -> None:
        """Releases the directory."""
        if self._lock:
            self._lock.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _of_place(self, place: int | str, in_round: str, ending: str) -> Path:
        if isinstance(place, int):
            return self._in(f"round-{place}", in_round)
        return self._in("controls", check_name("forest", place) + ending)

    def _in(self, folder: str, name: str) -> Path:
        if self._lock:
            make_folder(self.path / folder)
            if (self.path / folder / name).is_symlink() and not (self.path / folder / name).is_dir():
                raise UserError(
                    f"{self.path / folder / name} is a symbolic link, and what it leads to could be overwritten; remove it"
                )
        return self.path / folder / name

    def _require_lock(self) -> None:
        if not self._lock or self._lock.closed:
            raise RuntimeError(f"{self.path} was opened for reading or is closed")

    def _settle_config(self, moved: bool) -> None:
        target, config = self.path / "config.yaml", self.config
        if target.exists():
            before = _read_config(target)
            differing = differing_fields(before.model_copy(update={"model": config.model}) if moved else before, config)
            if differing and self.has_work:
                again = f"leafe run {target} --out {self.path}"
                raise RunConflict(
                    f"{self.path} was started with other settings ({'; '.join(differing)}); to go on with its own type {again},"
                    " else give another --out"
                )
            if differing and self._stages:
                self._write_stages({})  # of a server or a checkpoint that was looked at
        body = dump(config)
        text = HEADER + text_digest(body) + "\n" + body
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            write_text_atomically(target, text)

    def _write_stages(self, stages: dict[str, Any]) -> None:
        self._require_lock()
        write_text_atomically(self.path / "stages.json", json.dumps(stages, indent=1, ensure_ascii=False) + "\n")
        self._stages = stages


def _check(root: Path, stages: Mapping[str, Any], name: str) -> None:
    """Refuses a file, or a folder of files, of a run that is not as the stage that made it left it."""
    for stage, entry in stages.items():
        for file, before in files_of(entry).items():
            reason = change(root / file, before) if file == name or file.startswith(f"{name}/") else ""
            if reason:
                fault = f"{root / file} is not as the stage {stage!r} left it: {reason}"
                raise DamagedRun(root, fault, f"restore it, or start anew: leafe run {root / 'config.yaml'} --out ANOTHER")


def _has_work(path: Path) -> bool:
    """Whether a file or a folder holds more than the first line of JSON lines, which names their schema."""
    if path.is_dir():
        return any(map(_has_work, path.iterdir()))
    if path.suffix != ".jsonl":
        return path.suffix != ".tmp"
    with path.open("rb") as lines:
        return bool(lines.readline() and lines.readline())


def _acquire(path: Path) -> IO[str]:
    """The lock is the system's and ends with the process; the text in the file is for the message only."""
    try:
        lock = open(path / "lock", "a+", encoding="utf-8", errors="replace", opener=_never_through_a_link)
    except OSError as error:
        if (path / "lock").is_symlink():
            raise UserError(f"{path / 'lock'} is a symbolic link, and what it leads to could be overwritten; remove it") from None
        raise UserError(f"cannot write in {path}: {error.strerror}; give another directory with --out") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        words = _words_of(lock)
    except OSError as error:
        holder = _words_of(lock).strip() or "another process"
        lock.close()
        if not isinstance(error, BlockingIOError):
            raise UserError(
                f"the file system of {path} refuses locks ({error.strerror}), and without one two processes could write to the same run; "
                "give a directory on another file system with --out"
            ) from None
        raise RunConflict(f"{path} is in use by {holder}; wait for it, or give another directory with --out") from None
    if words and not words.startswith("process "):
        lock.close()
        raise UserError(
            f"{path / 'lock'} is no lock of leafe's and would be overwritten; move it, or give another directory with --out"
        )
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return lock


def _never_through_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _words_of(lock: IO[str]) -> str:
    lock.seek(0)
    return lock.read(200)


def _read_config(path: Path) -> RunConfig:
    try:
        header, _, body = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedRun(path.parent, f"cannot read {path}: {error}", ANEW) from None
    if header != HEADER + text_digest(body):
        raise DamagedRun(path.parent, f"{path} is not as leafe wrote it", ANEW)
    try:
        return parse(body, str(path), whole=True)
    except UserError as error:
        raise DamagedRun(
            path.parent, f"{path} is of another version of leafe, or of a method whose package is not here: {error}", ANEW
        ) from None


def _read_stages(path: Path) -> dict[str, Any]:
    try:
        stages = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (ValueError, RecursionError):
        stages = None
    if not isinstance(stages, dict):
        raise DamagedRun(path.parent, f"{path} is not a JSON object", "delete it, and finished stages are redone from their files")
    names = list(stages)
    for number, (stage, entry) in enumerate(stages.items()):
        if not is_whole(stage, entry, names[:number]):
            mend = f"restore it, or take out {stage!r} and all below it, which are then redone from their files"
            raise DamagedRun(path.parent, f"{path} is not as leafe wrote it from {stage!r} on", mend)
    return stages
