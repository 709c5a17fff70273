"""Work that two rows share is done once: the second takes the files over, on proof that all their inputs are equal.

The digest of a stage's inputs is in its entry of `stages.json` as `made_of`; a stage that was taken over names its source run
as `taken_from`. A file is taken over only if it is byte for byte what its run made. Weights become a hard link to the same
file, since they are only ever replaced; the rest is copied.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leafe.errors import CorruptFile, UserError
from leafe.jsonl import told_if_unwritable, write_bytes_atomically
from leafe.progress import Progress
from leafe.run import RunDirectory, whole_folder
from leafe.stages import PROBE, Made, Proof

MADE_OF, TAKEN_FROM = "made_of", "taken_from"
LINKED = ".safetensors"


@dataclass(frozen=True)
class Shared:
    """`leafe.stages.Once` among the runs of a folder."""

    folder: Path
    progress: Progress

    def __call__(self, run: RunDirectory, proof: Callable[[], Proof], work: Callable[[], Made]) -> Made:
        """The result of `work`, done here or taken over from another run."""
        proved = proof()
        if proved.key is None or not proved.files:
            return work()
        target = proved.files[0]
        for donor, stage in self._donors(run, proved.key):
            with suppress(CorruptFile):  # a run that was changed gives nothing
                _take(donor, stage, target)
                if PROBE in donor.stages and PROBE not in run.stages:
                    run.finish_stage(PROBE, donor.stages[PROBE])
                self.progress.say(f"{target.name}: taken over from {stage!r} of {donor.path.name}, which is the same")
                return Made({**donor.stages[stage], TAKEN_FROM: donor.path.name}, proved.files, arm=proved.arm)
        made = work()
        return replace(made, figures={**made.figures, MADE_OF: proved.key})

    def _donors(self, run: RunDirectory, key: str) -> Iterator[tuple[RunDirectory, str]]:
        for path in sorted(self.folder.glob("*/stages.json")):
            if path.parent == run.path or key not in path.read_text(encoding="utf-8", errors="replace"):
                continue
            with suppress(UserError):
                donor = RunDirectory.existing(path.parent, read_only=True)
                yield from ((donor, stage) for stage, said in donor.stages.items() if _made_of(said) == key)


def _made_of(said: Any) -> Any:
    return said.get(MADE_OF) if isinstance(said, dict) else None


def _take(donor: RunDirectory, stage: str, target: Path) -> None:
    """Brings a stage's first file, or the folder that it made, to `target`. Raises `CorruptFile` where it is not as it was made."""
    made = donor.made_by(stage)
    if target.suffix == ".jsonl":
        donor.check(made[0])
        write_bytes_atomically(target, made[0].read_bytes())
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
