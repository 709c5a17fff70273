"""Work that two rows share is done once: the second takes the files over, on proof that all their inputs are equal.

Rows that are made at the same time wait for each other where they need the same: what only measures is put off first, since the stages
behind it can be done meanwhile. The lock is the system's and ends with its process.

The digest of a stage's inputs is in its entry of `stages.json` as `made_of`; a stage that was taken over names its source run
as `taken_from`. A file is taken over only if it is byte for byte what its run made. Weights become a hard link to the same
file, since they are only ever replaced; the rest is copied.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from leafe.errors import CorruptFile, UserError
from leafe.folders import whole_folder
from leafe.jsonl import told_if_unwritable, write_bytes_atomically
from leafe.progress import Progress
from leafe.run import RunDirectory
from leafe.stages import PROBE, Made, Proof, PutOff

MADE_OF, TAKEN_FROM = "made_of", "taken_from"
LINKED = ".safetensors"
LOCK = "sharing.lock"
PAUSE = 0.5  # seconds between two looks at what another process makes


class Shared:
    """`leafe.stages.Once` among the runs of a folder; a context manager, during which it may hold a lock on one key.

    The lock is kept after the work, since the result can be taken only once the stage was recorded, and that is looked for meanwhile. The
    next call gives it back before it waits for another, so that no two processes wait for each other.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder, self.progress = folder, progress
        self._lock: IO[bytes] | None = None
        self._put_off: set[str] = set()

    def __enter__(self) -> Shared:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._give_back()

    def _give_back(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None

    def _hold(self, key: str) -> bool:
        """Takes the lock of a key, unless another process has it. One file serves all keys, each by a byte of its own.

        Where the file system has no such locks, two rows that need the same at the same time both make it.
        """
        with told_if_unwritable(self.folder / LOCK):
            lock = open(self.folder / LOCK, "ab")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(key[:14], 16))
        except OSError as error:
            lock.close()
            return error.errno not in (errno.EACCES, errno.EAGAIN)
        self._lock = lock
        return True

    def __call__(self, run: RunDirectory, proof: Callable[[], Proof], work: Callable[[], Made]) -> Made:
        """The result of `work`, done here or taken over from another run. Raises `PutOff` once where another process measures the same."""
        self._give_back()
        proved = proof()
        if proved.key is None or not proved.files:
            return work()
        waits = False
        while not (held := self._hold(proved.key)) and not (taken := self._taken(run, proved, proved.key)):
            if proved.arm and proved.key not in self._put_off:
                self._put_off.add(proved.key)
                self.progress.say(f"{proved.files[0].name}: comes last, since another row makes the same now")
                raise PutOff
            if not waits:
                self.progress.say(f"{proved.files[0].name}: waits for another row, which makes the same")
            waits = True
            time.sleep(PAUSE)
        if held and (taken := self._taken(run, proved, proved.key)):
            self._give_back()
        if taken:
            return taken
        made = work()
        return replace(made, figures={**made.figures, MADE_OF: proved.key})

    def _taken(self, run: RunDirectory, proved: Proof, key: str) -> Made | None:
        """What another run made of the same, brought here; None where there is none."""
        target = proved.files[0]
        for donor, stage in self._donors(run, key):
            with suppress(CorruptFile):  # a run that was changed gives nothing
                _take(donor, stage, proved.files)
                if PROBE in donor.stages and PROBE not in run.stages:
                    run.finish_stage(PROBE, donor.stages[PROBE])
                self.progress.say(f"{target.name}: taken over from {stage!r} of {donor.path.name}, which is the same")
                return Made({**donor.stages[stage], TAKEN_FROM: donor.path.name}, proved.files, arm=proved.arm)
        return None

    def _donors(self, run: RunDirectory, key: str) -> Iterator[tuple[RunDirectory, str]]:
        for path in sorted(self.folder.glob("*/stages.json")):
            if path.parent == run.path or key not in path.read_text(encoding="utf-8", errors="replace"):
                continue
            with suppress(UserError):
                donor = RunDirectory.existing(path.parent, read_only=True)
                yield from ((donor, stage) for stage, said in donor.stages.items() if _made_of(said) == key)


def _made_of(said: Any) -> Any:
    return said.get(MADE_OF) if isinstance(said, dict) else None


def _take(donor: RunDirectory, stage: str, targets: Sequence[Path]) -> None:
    """Brings a stage's files, or the folder that it made, to `targets`. Raises `CorruptFile` where one is not as it was made.

    Of a measurement the transcripts come too, where an older version did not leave them out.
    """
    made, target = donor.made_by(stage), targets[0]
    if target.suffix == ".jsonl":
        for file, place in reversed([*zip(made, targets, strict=False)]):  # the first file last: with it the work counts as done
            donor.check(file)
            write_bytes_atomically(place, file.read_bytes())
        return
    source = next(file.parent for file in made if file.name == "config.json")
    donor.check(source)
    with told_if_unwritable(target), whole_folder(target) as folder:
        for file in made:
            if file.is_relative_to(source):
                place = folder / file.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(file, place)


def _link_or_copy(file: Path, place: Path) -> None:
    if file.suffix == LINKED:
        with suppress(OSError):  # another file system, or one without links
            os.link(file, place)
            return
    shutil.copyfile(file, place)
