"""Files that are whole or refused: what a stage left is proved before it is used, and a disk that is full takes nothing back."""

from __future__ import annotations

import errno
import json
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from test_stages import experiment, hopeless, stubborn
from tiny import tiny_model, tiny_tokenizer

from leafe.compose import bench_of
from leafe.distillation.store import export, read_examples
from leafe.errors import CorruptFile, Unwritable, UserError, is_full
from leafe.evaluation.outcomes import read_outcomes
from leafe.experiment import Experiment
from leafe.forest.store import read_forest
from leafe.jsonl import Appender, read_lines, write_text_atomically
from leafe.lab import run_recipe, run_stage
from leafe.progress import Silent
from leafe.run import RunDirectory
from leafe.viewer.report import write_report

SCHEMA = "trial/1"
NUMBERS = [{"number": number, "text": "x" * number} for number in range(60)]


@contextmanager
def room(size: int) -> Iterator[None]:
    """Files of this process may have so many bytes; what goes beyond is taken as far as there is room, and then refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class ShortFile:
    """A file that takes at most `most` bytes a call, and none once it holds `full` bytes."""

    def __init__(self, file: object, most: int, full: int) -> None:
        self._file, self.most, self.full = file, most, full

    def write(self, data: memoryview) -> int:
        left = self.full - self._file.tell()  # type: ignore[attr-defined]
        if left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self._file.write(data[: min(self.most, left)]))  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def __enter__(self) -> ShortFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()  # type: ignore[attr-defined]


class ShortAppender(Appender):
    """Appends to such a file."""

    most, full = 7, 10**9

    def _opened(self) -> object:
        return ShortFile(super()._opened(), self.most, self.full)


def kept(path: Path) -> list[int]:
    return [line["number"] for line in read_lines(path, SCHEMA)]


def test_lines_that_the_system_takes_in_pieces_are_whole(tmp_path: Path) -> None:
    with ShortAppender(tmp_path / "a", SCHEMA) as lines:
        for number in NUMBERS:
            lines.append(number)
    assert list(read_lines(tmp_path / "a", SCHEMA)) == NUMBERS


@pytest.mark.parametrize("full", [30, 55, 56, 57, 100, 700, 1500])
def test_a_line_that_does_not_fit_is_taken_back_and_the_next_one_stands_alone(tmp_path: Path, full: int) -> None:
    path = tmp_path / "a"
    lines = ShortAppender(path, SCHEMA)
    lines._file.full = full  # type: ignore[attr-defined]
    done = []
    for number in NUMBERS:
        try:
            lines.append(number)
            done.append(number["number"])
        except Unwritable as refused:
            assert "No space left on device; make room and type the same command again" in str(refused)
            lines._file.full += 40  # type: ignore[attr-defined]  # a little room is made meanwhile
    lines.close()
    assert kept(path) == done and path.read_bytes().endswith(b"\n") and 0 < len(done) < len(NUMBERS)


@pytest.mark.parametrize("size", [40, 200, 1000])
def test_a_disk_that_is_full_for_a_moment_leaves_lines_that_are_read_and_gone_on_with(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    with Appender(path, SCHEMA) as lines:
        with room(size), pytest.raises(Unwritable):
            for number in NUMBERS:
                lines.append(number)
        there = kept(path)
        lines.append({"number": 1000})
    with Appender(path, SCHEMA) as lines:
        lines.append({"number": 1001})
    assert kept(path) == [*there, 1000, 1001] and there == list(range(len(there)))


def test_a_whole_file_that_does_not_fit_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "a", "old")
    with room(1000), pytest.raises(Unwritable, match=r"cannot write .*a: File too large; make room"):
        write_text_atomically(tmp_path / "a", "x" * 2000)
    assert (tmp_path / "a").read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_is_known_in_the_words_of_other_libraries() -> None:
    assert is_full(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert is_full(shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]))
    assert not is_full(RuntimeError("os error 2")) and not is_full(OSError(errno.ENOENT, "No such file"))


# A whole run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def here(base: Path) -> Experiment:
    return experiment(base, {"base": stubborn, "leafe": hopeless, "independent": hopeless}, "controls=[independent]", *SETTINGS)


SETTINGS = ("arms=[leafe, independent]", "distill.success_share=1.0")


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(base, tmp_path_factory.mktemp("runs") / "run")


def finished_run(base: Path, path: Path) -> Path:
    """A run of everything that there is, with a page."""
    with RunDirectory.open(path, here(base).config) as run:
        run_recipe(here(base), run)
        write_report(run)
        run.finish()
    return path


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("size", [300, 700, 2_000, 6_000, 20_000, 60_000])
def test_a_run_on_a_full_disk_is_one_sentence_and_ends_as_if_there_had_been_room(
    base: Path, finished: Path, tmp_path: Path, size: int
) -> None:
    def going() -> None:
        with RunDirectory.open(tmp_path / "run", here(base).config) as run:
            run_recipe(here(base), run)

    with room(size), pytest.raises(Unwritable, match="make room and type the same command again"):
        going()
    going()
    for name in (
        "round-1/forest.jsonl",
        "round-1/examples.jsonl",
        "eval/base.jsonl",
        "eval/leafe.jsonl",
        "eval/base.watched.jsonl",
        "eval/leafe.watched.jsonl",
        "controls/independent.jsonl",
    ):
        assert sorted((tmp_path / "run" / name).read_bytes().splitlines()) == sorted((finished / name).read_bytes().splitlines())
    assert [entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir() if entry.name.startswith(".")] == []


Next = Callable[[Path, Experiment], object]


def reported(path: Path, experiment: Experiment) -> object:
    with RunDirectory.existing(path) as run:
        return write_report(run).read_text()


def reopened(path: Path, stage: str) -> RunDirectory:
    """A run whose user wants a stage done anew: its entry and all below it are taken out, and `DONE`."""
    file = path / "stages.json"
    stages = json.loads(file.read_text())
    names = list(stages)
    file.write_text(json.dumps({name: stages[name] for name in names[: names.index(stage)]}))
    (path / "DONE").unlink(missing_ok=True)
    return RunDirectory.existing(path)


def distilled(path: Path, experiment: Experiment) -> object:
    with reopened(path, "distil round 1") as run:
        run_stage(experiment, run, "distil round 1")
        return run.examples(1).read_bytes()


def trained(path: Path, experiment: Experiment) -> object:
    with reopened(path, "train leafe") as run:
        return run_stage(experiment, run, "train leafe")


def measured(path: Path, experiment: Experiment, arm: str = "leafe") -> object:
    with reopened(path, f"evaluate {arm}") as run:
        run.evaluation(arm).unlink()
        return run_stage(experiment, run, f"evaluate {arm}")


@pytest.mark.parametrize(
    ("name", "following"),
    [
        ("round-1/forest.jsonl", reported),
        ("round-1/forest.jsonl", distilled),
        ("controls/independent.jsonl", reported),
        ("round-1/examples.jsonl", trained),
        ("eval/base.jsonl", reported),
        ("eval/leafe.jsonl", reported),
        ("checkpoints/leafe/tokenizer.json", measured),
        ("checkpoints/leafe/model.safetensors", measured),
        ("checkpoints/leafe/config.json", measured),
    ],
)
@pytest.mark.parametrize("harm", ["lines", "flip", "empty", "gone"])
def test_a_finished_file_that_was_changed_is_refused_by_name_before_it_is_used(
    base: Path, copy: Path, name: str, following: Next, harm: str
) -> None:
    file = copy / name
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    harmed = {
        "lines": b"".join(lines[: max(1, len(lines) // 2)]) if len(lines) > 1 else content[:-1],
        "flip": content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :],
        "empty": b"",
    }
    file.unlink() if harm == "gone" else file.write_bytes(harmed[harm])
    with pytest.raises(
        CorruptFile, match=rf"{name} (is not as the stage '.*' left it: .*; restore it, or start anew: leafe run|line \d+ is no)"
    ):
        following(copy, here(base))


def test_what_was_lost_is_told_in_lines(copy: Path, base: Path) -> None:
    file = copy / "round-1" / "forest.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-2]))
    with pytest.raises(CorruptFile, match=f"it has {len(lines) - 2} lines and had {len(lines)};"):
        reported(copy, here(base))


def user_of(file: Path) -> Next:
    """The next command that uses a file of a run."""
    if file.parent.parent.name == "checkpoints":
        return partial(measured, arm=file.parent.name)
    return {"forest.jsonl": distilled, "examples.jsonl": trained}.get(file.name, reported)


def flips(finished: Path, folder: Path, experiment: Experiment, *, count: int, seed: int) -> Iterator[tuple[Path, str]]:
    """Flips one bit at a time in copies of a run; yields the file and what the next command said, empty where nothing came of it.

    Raises `AssertionError` where something came of it and nothing was said.
    """
    names = sorted(file.relative_to(finished) for file in finished.rglob("*") if file.is_file() and file.name != "report.html")
    draw = random.Random(seed)
    page = reported(Path(shutil.copytree(finished, folder / "whole")), experiment)
    for number in range(count):
        run = Path(shutil.copytree(finished, folder / f"{number}"))
        file = run / names[number % len(names)]
        content = bytearray(file.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        following, said = user_of(file), ""
        try:
            found = following(run, experiment)
            assert following is reported and found == page, f"{file} is used though a bit of it changed"
        except UserError as refused:
            said = str(refused)
            assert file.name in said
        shutil.rmtree(run)
        yield names[number % len(names)], said


def test_one_flipped_bit_anywhere_in_a_finished_run_is_told_or_changes_nothing(base: Path, finished: Path, tmp_path: Path) -> None:
    silent = {name.as_posix() for name, said in flips(finished, tmp_path, here(base), count=40, seed=7) if not said}
    # Whether there is a `DONE` counts and not what it holds; a lock is held and not read; no command reads these examples, and
    # transcripts are read by tables alone.
    unread = {"DONE", "lock", "controls/independent.examples.jsonl"}
    assert silent <= unread | {f"eval/{arm}.watched.jsonl" for arm in ("base", "leafe", "independent")}


def test_a_checkpoint_that_another_recipe_starts_from_is_proved_as_well(base: Path, copy: Path) -> None:
    folder = copy / "checkpoints" / "leafe"
    config = here(base).config.model_copy(update={"model": str(folder)})
    assert bench_of(config, Silent()).base == folder
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptFile, match=r"model\.safetensors is not as the stage 'train leafe' left it"):
        bench_of(config, Silent())


def test_stages_that_were_edited_are_refused_from_there_on(copy: Path, base: Path) -> None:
    file = copy / "stages.json"
    stages = json.loads(file.read_text())
    stages["explore round 1"]["solved"] += 1
    file.write_text(json.dumps(stages))
    with pytest.raises(CorruptFile, match=r"stages\.json is not as leafe wrote it from 'explore round 1' on"):
        reported(copy, here(base))


def test_runs_of_versions_that_kept_no_digests_are_read_as_they_were(copy: Path, base: Path) -> None:
    page = reported(copy, here(base))
    file = copy / "stages.json"
    stages = json.loads(file.read_text())
    old = {
        stage: {name: value for name, value in given.items() if name not in ("files", "digest")} for stage, given in stages.items()
    }
    file.write_text(json.dumps(old))
    forest = copy / "round-1" / "forest.jsonl"
    assert reported(copy, here(base)) == page
    assert list(read_forest(forest)) and list(read_examples(copy / "round-1" / "examples.jsonl"))
    assert read_outcomes(copy / "eval" / "leafe.jsonl")


def test_an_export_that_does_not_fit_leaves_no_file(copy: Path, tmp_path: Path) -> None:
    examples = list(read_examples(copy / "round-1" / "examples.jsonl"))
    with room(100), pytest.raises(Unwritable):
        export(examples, "trl", tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("out*"))
