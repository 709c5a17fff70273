"""Tables whose rows are made several at a time: each row in a process with its share of the machine, the results as one after another."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import leafe
from test_reproduce import RECIPE, TABLE, Shop, assert_one_sentence, shop, sums

from leafe.config import parse
from leafe.errors import UserError
from leafe.progress import Silent
from leafe.reproduce.jobs import GIB, Share, shares, turns_on_a_gpu
from leafe.reproduce.sharing import LOCK, MADE_OF, Shared
from leafe.run import RunDirectory
from leafe.settings import RunConfig
from leafe.stages import Made, Proof, PutOff

GPUS = ("0", "1", "2", "3")
FILES = ("seed-*/*/eval/*.jsonl", "seed-*/*/round-1/forest.jsonl", "seed-*/*/round-1/examples.jsonl", "table.md")


def config(**engine: object) -> RunConfig:
    return RunConfig.model_validate({"name": "x", "environment": {"name": "sokoban"}, "engine": engine})


def typed(share: Share) -> dict[str, str]:
    return dict(text.split("=") for text in share.overrides)


# The machine is shared out


def test_on_a_processor_cores_and_memory_are_shared_out() -> None:
    found = shares(config(processes=0), 4, (), cores=16, free=64 * GIB)
    assert [share.gpus for share in found] == [None] * 4
    assert typed(found[0]) == {"engine.threads": "4", "engine.processes": "1", "engine.cache_gib": "8.000"}


def test_gpus_are_dealt_out_evenly() -> None:
    assert [share.gpus for share in shares(config(), 2, GPUS, cores=16, free=80 * GIB)] == [("0", "1"), ("2", "3")]
    alone = shares(config(), 4, GPUS, cores=16, free=80 * GIB)
    assert [share.gpus for share in alone] == [("0",), ("1",), ("2",), ("3",)]
    assert typed(alone[0]) == {"engine.threads": "4"}, "a GPU of its own leaves its memory to the engine"


def test_an_engine_on_the_processor_leaves_the_gpus_to_training() -> None:
    found = shares(config(device="cpu", processes=0), 2, GPUS, cores=8, free=64 * GIB)
    assert [share.gpus for share in found] == [("0", "1"), ("2", "3")]
    assert typed(found[0]) == {"engine.threads": "4", "engine.processes": "1", "engine.cache_gib": "16.000"}


def test_a_gpu_with_several_jobs_shares_its_memory() -> None:
    found = shares(config(), 8, ("0", "1"), cores=16, free=80 * GIB)
    assert [share.gpus for share in found] == [("0",), ("1",)] * 4
    assert typed(found[0])["engine.cache_gib"] == "10.000"


def test_jobs_on_one_gpu_are_told_of_the_service_that_lets_them_share_it_unless_it_runs(tmp_path: Path) -> None:
    several, alone = (shares(config(), jobs, ("0", "1"), cores=16, free=80 * GIB) for jobs in (8, 2))
    variables = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}
    advice = turns_on_a_gpu(several, variables)
    assert "4 jobs" in advice and "nvidia-cuda-mps-control" in advice and turns_on_a_gpu(alone, variables) == ""
    (tmp_path / "control").touch()
    assert turns_on_a_gpu(several, variables) == ""


def test_what_was_chosen_stays() -> None:
    chosen = config(threads=3, processes=2, cache_gib=1.5)
    assert {share.overrides for share in shares(chosen, 3, (), cores=16, free=64 * GIB)} == {()}
    assert shares(config(device="cuda:1"), 2, GPUS, cores=8, free=64 * GIB)[0].gpus is None


@pytest.mark.parametrize(
    ("engine", "jobs", "word"),
    [
        ({"kind": "vllm", "tensor_parallel": 2}, 4, "at most --jobs 2"),
        ({"kind": "vllm"}, 8, "at most --jobs 4"),
        ({"kind": "sglang", "tensor_parallel": 8}, 2, "at most --jobs 1"),
    ],
)
def test_a_share_that_is_too_small_is_refused(engine: dict[str, object], jobs: int, word: str) -> None:
    with pytest.raises(UserError, match=word):
        shares(config(**engine), jobs, GPUS, cores=16, free=80 * GIB)


def test_a_server_of_its_own_has_a_share_that_is_large_enough() -> None:
    assert shares(config(kind="vllm", tensor_parallel=2), 2, GPUS, cores=16, free=80 * GIB)[1].gpus == ("2", "3")


def test_no_jobs_are_refused(tmp_path: Path) -> None:
    assert_one_sentence(leafe("reproduce", "table1", "--jobs", "0", "--out", tmp_path / "out"), "--jobs")
    assert not (tmp_path / "out").exists()


# Rows at the same time


ROWS = ("--seeds", "1", "--json", "--rows", "leafe,twin")


TREE = 'method: leafe, forest: "tree, round 1", settings: ["leafe.controls=[]", "leafe.arms=[]"]'
FORESTS = f"""
about: A forest, and the same again.
against: []
rows:
  leafe: {{{TREE}}}
  twin: {{{TREE}}}
"""


@pytest.fixture(
    scope="module",
    params=[pytest.param(TABLE, marks=pytest.mark.slow, id="arms"), pytest.param(FORESTS, marks=pytest.mark.slow, id="forests")],
)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, Shop]:
    """A table whose rows were made one after another, and the same with two at a time."""
    alone, together = (shop(tmp_path_factory.mktemp(name), request.param) for name in ("alone", "together"))
    together.recipe.write_text(RECIPE.replace("engine: {slots: 16, cache_gib: 0.2, threads: 1}", "engine: {processes: 0}"))
    for made, more in ((alone, ()), (together, ("--jobs", "2"))):
        said = made(*ROWS, *more)
        assert said.status == 0, said
        assert json.loads(said.out) == json.loads((made.out / "table.json").read_text())
    return alone, together


def test_the_results_are_those_of_one_row_after_another(both: tuple[Shop, Shop]) -> None:
    alone, together = both
    found = sums(together.out, *FILES)
    trained = [path.parent.parent for path in together.out.glob("seed-1/*/round-1/examples.jsonl")]
    assert found == sums(alone.out, *FILES) and len(found) == 1 + 2 * (7 if trained else 3)


def test_shared_work_is_done_once(both: tuple[Shop, Shop]) -> None:
    _, together = both
    made = [json.loads((together.out / "seed-1" / row / "stages.json").read_text()) for row in ("leafe", "twin")]
    for stage in ("evaluate base", "explore round 1", "train leafe"):
        if entries := [json.dumps(found[stage]) for found in made if stage in found]:
            assert sum("taken_from" in entry for entry in entries) == len(entries) - 1, stage
    assert all("explore round 1" in found for found in made)


def test_a_table_that_is_done_is_left_alone(both: tuple[Shop, Shop]) -> None:
    _, together = both
    before = {path: path.stat().st_mtime_ns for path in together.out.glob("seed-1/*/stages.json")}
    assert together(*ROWS, "--jobs", "2").status == 0
    assert {path: path.stat().st_mtime_ns for path in together.out.glob("seed-1/*/stages.json")} == before


HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX, 1, int(sys.argv[2])); print(); sys.stdin.read()"
)


def test_what_another_row_measures_now_comes_last(tmp_path: Path) -> None:
    key, done = "5ca1ab1e" * 4, Made({"successes": 1})
    command = [sys.executable, "-c", HOLD, str(tmp_path / LOCK), str(int(key[:14], 16))]
    settings = parse("name: trial\nenvironment: {name: lookup}", "trial")
    with RunDirectory.open(tmp_path / "row", settings) as run, Shared(tmp_path, Silent()) as shared:
        proof = Proof(key, (run.evaluation("base"),), "base")
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdin and other.stdout and other.stdout.readline()
            with pytest.raises(PutOff):
                shared(run, lambda: proof, lambda: done)
            other.stdin.close()
        made = shared(run, lambda: proof, lambda: done)
        assert (made.figures["successes"], made.figures[MADE_OF]) == (1, key)


@pytest.mark.slow
def test_a_finished_row_waits_for_the_row_that_it_starts_from(tmp_path: Path) -> None:
    made = shop(tmp_path / "again")
    assert made("--seeds", "1", "--json", "--rows", "again").status == 0
    before = sums(made.out, *FILES)
    shutil.rmtree(made.out / "seed-1" / "leafe")
    said = made("--seeds", "1", "--json", "--rows", "again", "--jobs", "2")
    assert (said.status, sums(made.out, *FILES)) == (0, before), said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_all_processes_end_with_the_command_and_it_goes_on(tmp_path: Path, number: signal.Signals, both: tuple[Shop, Shop]) -> None:
    made = shop(tmp_path / "ended", both[0].table.read_text())
    command = [
        sys.executable,
        "-m",
        "leafe.cli",
        "reproduce",
        str(made.table),
        "--recipe",
        str(made.recipe),
        "--out",
        str(made.out),
    ]
    process = subprocess.Popen([*command, *ROWS, "--jobs", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(made.out.glob("seed-1/*/stages.json")):
        assert process.poll() is None
        time.sleep(0.05)
    workers = [int(name) for name in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.send_signal(number)
    process.wait(60)
    for _ in range(600):
        if not any(Path(f"/proc/{worker}").exists() for worker in workers):
            break
        time.sleep(0.05)
    else:
        raise AssertionError(f"{workers} are still there")
    assert not list(made.out.glob("seed-1/*/DONE"))
    assert made(*ROWS, "--jobs", "2").status == 0
    assert sums(made.out, *FILES) == sums(both[0].out, *FILES)


@pytest.mark.slow
def test_a_row_that_does_not_end_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    said = shop(
        tmp_path / "lost",
        """
about: One that finds nothing to learn from, and what would start from it.
against: []
rows:
  none: {method: leafe, settings: ["leafe.controls=[]", "leafe.arms=[leafe]", distill.success_share=0.0, explore.max_attempts=1]}
  after: {start: none}
  base: {}
""",
    )("--seeds", "1", "--jobs", "2")
    assert said.status == 2 and "none, seed 1" in said.err
    assert "after, seed 1: it starts from none, which did not end" in " ".join(said.out.split())
    assert "base" in said.out and os.path.exists(tmp_path / "lost" / "out" / "seed-1" / "base" / "DONE")
