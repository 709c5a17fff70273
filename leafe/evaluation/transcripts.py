"""The transcripts of watched attempts, one a line in `eval/ARM.watched.jsonl`: what the policy read and wrote, so that it can be scored.

A transcript is written before its attempt's outcome. One without an outcome is of an attempt that was lost, by a kill or by a file that
was deleted, and that is played again: it is dropped before further ones are written.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from leafe.encoding import OMITTED
from leafe.jsonl import Appender, read_records, write_lines
from leafe.records import Tree, encode

SCHEMA = "leafe.watched/1"


@dataclass(frozen=True, slots=True)
class Transcript:
    """A plain attempt that did not break, as a tree of one trajectory. `notes` are all that were in its prompts, recalled ones included."""

    sample: int
    tree: Tree
    notes: tuple[str, ...] = field(default=(), metadata=OMITTED)

    @property
    def key(self) -> tuple[str, int]:
        """The attempt's task and sample."""
        return self.tree.task.id, self.sample


class TranscriptWriter(Appender):
    """Appends transcripts to a file. Opening one drops those of attempts that are not among the `outcomes`, tasks with samples."""

    def __init__(self, path: Path, outcomes: Collection[tuple[str, int]]) -> None:
        there = read_transcripts(path) if path.exists() else ()
        kept = [one for one in there if one.key in outcomes]
        if len(kept) < len(there):
            write_lines(path, SCHEMA, map(encode, kept))
        super().__init__(path, SCHEMA)

    def add(self, transcript: Transcript) -> None:
        """Writes one transcript."""
        self.append(encode(transcript))


def read_transcripts(path: Path) -> tuple[Transcript, ...]:
    """The transcripts of a file, by task and sample. Raises `CorruptFile` with the line's number for a line that is none."""
    return tuple(
        sorted(read_records(path, SCHEMA, Transcript, what="transcript", mend="remove that line"), key=lambda one: one.key)
    )
