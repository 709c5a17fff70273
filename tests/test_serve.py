"""Servers that a run starts itself: the command, what becomes of the process, its log, restarts, and engines on it.

The program is `fake_vllm.py`, which is started through the same door as vLLM.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lifeline import gone
from tiny import tiny_tokenizer

from leafe.engines import serve, serve_log
from leafe.engines.openai import OpenAIEngine
from leafe.engines.openai_http import Waiting
from leafe.engines.serve import OwnServer
from leafe.engines.serve_command import ServeCommand
from leafe.engines.serve_engine import ServedEngine
from leafe.engines.serve_log import HALF, LONGEST_LINE, ServerLog, telling
from leafe.engines.serve_process import ServerProcess
from leafe.engines.serve_programs import PROGRAMS, SGLANG, Program
from leafe.errors import EngineError, UserError
from leafe.records import Ask, Completion, Message, Sampling

FAKE = str(Path(__file__).with_name("fake_vllm.py"))
COMMAND = ServeCommand(command=(sys.executable, FAKE), dtype="float32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer().save_pretrained(folder)
    return folder


class Plan:
    """What the fake program does at each start, and what its starts left behind."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, patch
        patch.setattr(tempfile, "tempdir", str(folder))  # where logs go that have no run directory
        self(*[{}])

    def __call__(self, *starts: dict[str, Any]) -> None:
        self._patch.setenv("FAKE_VLLM", json.dumps({"folder": str(self.folder), "starts": starts}))

    @property
    def starts(self) -> list[dict[str, Any]]:
        path = self.folder / "starts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait(self, count: int) -> None:
        until = time.monotonic() + 60
        while len(self.starts) < count and time.monotonic() < until:
            time.sleep(0.02)

    @property
    def left(self) -> list[int]:
        """Processes of any start that are still there."""
        return [pid for start in self.starts for pid in (start["keeper"], *start["pids"]) if not gone(pid, 15)]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    return Plan(tmp_path, monkeypatch)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def server(told: list[str]) -> Iterator[OwnServer]:
    own = OwnServer(COMMAND, patience=60, restarts=2, told=told.append)
    yield own
    own.free()


def engine_on(own: OwnServer, model: Path, *, retries: int = 9) -> ServedEngine:
    async def connect(lost: Callable[[], str]) -> OpenAIEngine:
        await own.start(model, "policy")
        waiting = Waiting(timeout=30, retries=retries, patience=60, pause=0.05)
        return OpenAIEngine(own.base_url, own.name, api_key=own.key, waiting=waiting, lost=lost)

    return ServedEngine(own, connect, concurrency=4)


def asked(count: int) -> list[Ask]:
    return [Ask((Message("user", f"turn {number}"),), Sampling(1.0, 1.0, 24), seed=number) for number in range(count)]


async def answers(engine: ServedEngine, asks: list[Ask]) -> list[Completion]:
    try:
        return await asyncio.gather(*map(engine.generate, asks))
    finally:
        await engine.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


# The command


def test_the_program_is_beside_this_python_or_on_the_path_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    with pytest.raises(UserError, match=r"pip install vllm==0\.30\.0.*engine\.command=\["):
        ServeCommand().program()
    for place in ("path", "bin"):
        (tmp_path / place).mkdir()
        for name in ("vllm", "python3.11"):
            (tmp_path / place / name).write_text("#!/bin/sh\n")
            (tmp_path / place / name).chmod(0o755)
        assert ServeCommand().program() == (str(tmp_path / place / "vllm"), "serve")
    python = str(tmp_path / "bin" / "python3.11")
    assert ServeCommand((python,)).program() == (python, "-m", "vllm.entrypoints.openai.api_server")
    assert ServeCommand((python, "mine.py")).program() == (python, "mine.py")
    assert ServeCommand(("vllm",)).program() == (str(tmp_path / "path" / "vllm"), "serve")
    (tmp_path / "bin" / "vllm").chmod(0o644)
    with pytest.raises(UserError, match="chmod"):
        ServeCommand((str(tmp_path / "bin" / "vllm"),)).program()
    with pytest.raises(UserError, match="no program that can be run"):
        ServeCommand(("vlm",)).program()


def test_the_recipe_s_settings_stand_in_the_command_and_nothing_else_listens(tmp_path: Path) -> None:
    how = ServeCommand(
        (sys.executable, "x", "serve"), ("--max-num-seqs", "8"), "bfloat16", 4096, tensor_parallel=2, memory_share=0.5
    )
    line = how.line(tmp_path, "policy", 7)
    pairs = dict(pairwise(line))
    assert line[:4] == [sys.executable, "x", "serve", str(tmp_path)] and line[-2:] == ["--max-num-seqs", "8"]
    assert (pairs["--host"], pairs["--port"], pairs["--max-model-len"]) == ("127.0.0.1", "7", "4096")
    assert (pairs["--tensor-parallel-size"], pairs["--gpu-memory-utilization"], pairs["--dtype"]) == ("2", "0.5", "bfloat16")
    assert "--max-model-len" not in COMMAND.line(tmp_path, "policy", 7) and "--model" in COMMAND.line(tmp_path, "policy", 7)


def test_the_same_settings_are_told_to_sglang_in_its_own_words_and_the_key_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match=r"engine.kind=sglang starts the program sglang, .*engine\.command=\[sglang-env/bin/sglang\]"
    ):
        ServeCommand(server=SGLANG).program()
    assert ServeCommand((sys.executable,), server=SGLANG).program()[1:] == ("-m", "sglang.launch_server")
    how = ServeCommand((sys.executable, "x", "serve"), ("--dp-size", "2"), "bfloat16", 4096, tensor_parallel=2, server=SGLANG)
    pairs = dict(pairwise(how.line(tmp_path, "policy", 7, tmp_path / "key.yaml")))
    assert (pairs["--model-path"], pairs["--served-model-name"]) == (str(tmp_path), "policy")
    assert (pairs["--context-length"], pairs["--tp-size"], pairs["--mem-fraction-static"]) == ("4096", "2", "0.9")
    assert (pairs["--host"], pairs["--config"], pairs["--dp-size"]) == ("127.0.0.1", str(tmp_path / "key.yaml"), "2")


def test_a_server_of_sglang_is_started_asked_and_ended(plan: Plan, told: list[str], model: Path, tmp_path: Path) -> None:
    own = OwnServer(ServeCommand((sys.executable, FAKE), dtype="float32", server=SGLANG), patience=60, told=told.append)
    found = run(answers(engine_on(own, model), asked(3)))
    assert all(completion.text for completion in found) and own.version == "SGLang 0.5.3"
    assert own.key not in " ".join(plan.starts[0]["line"]) and plan.starts[0]["key"] == own.key
    assert not list(tmp_path.glob("*.yaml")) and any("SGLang 0.5.3" in line for line in told)
    own.free()
    assert plan.left == []


@pytest.mark.parametrize(("program", "option"), [(program, option) for program in PROGRAMS.values() for option in program.ours])
def test_options_that_are_set_already_are_refused_however_they_are_written(program: Program, option: str) -> None:
    written = [option, f"{option}=1", option.replace("-", "_").replace("__", "--", 1), *([option[:-1]] if len(option) > 6 else [])]
    for argument in written:
        if argument.startswith("-"):
            with pytest.raises(UserError, match="is set by leafe itself"):
                ServeCommand(arguments=("--enforce-eager", argument), server=program)


@pytest.mark.parametrize("arguments", [("serve",), ("--seed\n",), ("--seed\0", "1"), ("",)])
def test_arguments_that_no_command_line_can_hold_are_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"engine\.arguments"):
        ServeCommand(arguments=arguments)
    assert ServeCommand(arguments=("--enforce-eager", "--max-num-seqs", "64", "--hf-overrides.rope_theta", "1")).arguments


# The log


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("INFO 11-26 14:00:00 [a.py:1] loading\nvllm serve: error: unrecognized arguments: --foo", "vllm serve: error: unrec"),
        (
            "(EngineCore pid=3) ERROR 11-26 14:00:00 [core.py:8] Traceback (most recent call last):\n"
            "(EngineCore pid=3) ERROR 11-26 14:00:00 [core.py:8] ValueError: Free memory on device (2.1/79.1 GiB) on startup is less\n"
            '(APIServer pid=1)   File "x.py", line 1\n'
            "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
            "ValueError: Free memory on device (2.1/79.1 GiB) on startup is less",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\nbye", "torch.OutOfMemoryError: CUDA out of memory."),
        (
            "(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig\n"
            "(APIServer pid=1)   Value error, Total number of attention heads (9) must be divisible by tensor parallel size (2)."
            " [type=value_error]\n"
            "(APIServer pid=1)     For further information visit https://errors.pydantic.dev/2.12/v/value_error",
            "Value error, Total number of attention heads (9) must be divisible by tensor parallel size (2).",
        ),
        ("RuntimeError: Engine core initialization failed. See root cause above.", "RuntimeError: Engine core"),
        ("Segmentation fault\n", "Segmentation fault"),
        ("", ""),
    ],
)
def test_the_line_that_says_why_a_server_died_is_found(said: str, wanted: str) -> None:
    found = telling(said.split("\n"))
    assert found.startswith(wanted) and len(found) < 700 and "[type=" not in found


@settings(max_examples=25)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=30), st.integers(20, 400))
def test_a_log_keeps_its_beginning_and_its_end_within_its_bounds(lines: list[str], half: int) -> None:
    before, serve_log.HALF = serve_log.HALF, half
    reading, writing = os.pipe()
    try:
        log = ServerLog(os.fdopen(reading, "rb"), "no such text")
        with os.fdopen(writing, "wb") as file:
            file.write("".join(f"{number} {line.encode().hex()}\n" for number, line in enumerate(lines)).encode())
        log.finish(30)
        kept, bare = log.lines, [line for line in log.lines if not line.startswith("...")]
        numbers = [int(line.partition(" ")[0]) for line in bare]
        assert sum(len(line) + 1 for line in bare) <= 2 * half and numbers == sorted(numbers)
        assert kept == bare if len(numbers) == len(lines) else f"... {len(lines) - len(numbers)} lines" in "".join(kept)
    finally:
        serve_log.HALF = before


def test_a_log_file_is_bounded_and_holds_no_key(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    log = ServerLog(os.fdopen(reading, "rb"), "hunter2")
    with os.fdopen(writing, "wb") as file:
        file.write(b"the key is hunter2\n")
        file.flush()
        log.keep_in(tmp_path / "server" / "server-001.log")
        largest = 0
        for number in range(400):
            file.write(b"hunter2 \xff " * 4000 + b"%d\n" % number)
            file.flush()
            largest = max(largest, (tmp_path / "server" / "server-001.log").stat().st_size)
        file.write(b"the last")
    log.finish(30)
    text = (tmp_path / "server" / "server-001.log").read_text()
    assert largest <= 3 * HALF and text.startswith("the key is ***\n") and text.endswith("the last\n") and "hunter2" not in text


def test_a_key_that_a_long_line_would_cut_in_two_is_not_shown() -> None:
    key = "hunter2hunter2"
    for before in range(LONGEST_LINE - len(key) - 2, LONGEST_LINE + 2):
        reading, writing = os.pipe()
        log = ServerLog(os.fdopen(reading, "rb"), key)
        with os.fdopen(writing, "wb") as file:
            file.write(b"x" * before + key.encode() + b"y" * 20000 + b"\nnext\n")
        log.finish(30)
        assert "hunter2" not in "".join(log.lines) and log.lines[1:] == ["next"]


# The process


def test_a_server_that_is_deaf_is_killed_and_so_is_what_it_started(plan: Plan, model: Path) -> None:
    plan({"deaf": True})
    surroundings = {**os.environ, "VLLM_API_KEY": "hunter2"}
    endings = ((signal.SIGINT, 0.2), (signal.SIGTERM, 0.2), (signal.SIGKILL, 10.0))
    process = ServerProcess(COMMAND.line(model, "policy", 1), surroundings, secret="hunter2", endings=endings)
    while not any("key ***" in line for line in process.log.lines):
        assert not process.ended
        time.sleep(0.02)
    process.stop()
    assert process.ended and not plan.left


def test_a_program_that_the_system_cannot_run_is_told(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "vllm").write_bytes(b"\x7fELF and no more")
    (tmp_path / "vllm").chmod(0o755)
    own = OwnServer(ServeCommand((str(tmp_path / "vllm"),)))
    with pytest.raises(EngineError, match="cannot be run: Exec format error"):
        run(own.start(tmp_path, "policy"))


# Starting


def test_a_server_is_waited_for_and_tells_its_version_and_how_it_is_going(
    plan: Plan, model: Path, server: OwnServer, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan({"slow": 0.6})
    monkeypatch.setattr(serve, "TELL_EVERY", 0.2)
    server.keep_logs_in(plan.folder / "logs")
    run(server.start(model, "policy"))
    assert server.version == "vLLM 0.30.0" and "the server is ready after" in told[-1]
    assert any("loading for" in line for line in told) and any(f"127.0.0.1:{plan.starts[0]['port']}" in line for line in told)
    run(server.start(model, "policy"))
    assert len(plan.starts) == 1  # the same weights again are those that it has
    server.free()
    assert server.ended and not plan.left
    assert "bye" in (plan.folder / "logs" / "server-001.log").read_text()  # it was asked kindly


def test_the_weights_of_another_folder_end_the_server_and_start_one_for_them(
    plan: Plan, model: Path, server: OwnServer, tmp_path: Path
) -> None:
    other = tmp_path / "checkpoint"
    tiny_tokenizer().save_pretrained(other)

    async def work() -> None:
        await server.start(model, "policy")
        await server.start(other, "leafe")

    run(work())
    first, second = plan.starts
    assert (first["model"], second["model"]) == (str(model), str(other)) and all(gone(pid, 5) for pid in first["pids"])
    server.free()
    assert not plan.left


def test_the_key_stands_in_no_command_line_and_in_no_log(plan: Plan, model: Path, server: OwnServer) -> None:
    server.keep_logs_in(plan.folder / "logs")
    run(server.start(model, "policy"))
    (start,) = plan.starts
    assert start["key"] == server.key and len(server.key) >= 32
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.name != "self"]
    assert not any(server.key.encode() in line for line in lines) and server.key not in str(start["line"])
    assert server.key not in (plan.folder / "logs" / "server-001.log").read_text()
    assert OwnServer(COMMAND).key != server.key


@pytest.mark.parametrize(
    ("how", "patience", "sentence"),
    [
        (
            {"dies": "(EngineCore pid=1) ERROR 11-26 14:00:00 [c.py:1] ValueError: Free memory is less"},
            60,
            "status 1: ValueError: Free",
        ),
        ({"silent": True}, 0.3, r"not ready within 0.3 seconds \(engine.patience\)"),
    ],
)
def test_a_start_that_fails_is_told_in_the_server_s_words_with_all_of_them_in_a_file(
    how: dict[str, Any], patience: float, sentence: str, plan: Plan, model: Path
) -> None:
    plan(how)
    own = OwnServer(COMMAND, patience=patience)
    with pytest.raises(EngineError, match=sentence) as refused:
        run(own.start(model, "policy"))
    path = Path(str(refused.value).rpartition("its log is ")[2])
    assert path.is_file() and not plan.left and own.ended


def test_a_port_that_was_taken_meanwhile_is_given_up(plan: Plan, model: Path, server: OwnServer, told: list[str]) -> None:
    plan({"taken": True}, {})
    run(server.start(model, "policy"))
    first, second = plan.starts
    assert first["port"] != second["port"] and any("was taken" in line for line in told)


# Dying in the middle


def test_a_server_that_is_killed_in_the_middle_loses_nothing(plan: Plan, model: Path, server: OwnServer, told: list[str]) -> None:
    asks = asked(12)
    undisturbed = run(answers(engine_on(server, model), asks))
    server.free()
    begun = len(plan.starts)
    plan(*[{}] * begun, {"answers": 5}, {"answers": 4}, {})
    disturbed = run(answers(engine_on(server, model), asks))
    assert disturbed == undisturbed and len(plan.starts) == begun + 3
    text = " ".join(told)
    assert "ended by SIGKILL" in text and "starting it again, 2 of at most 2 times" in text and "is back" not in text
    server.free()
    assert not plan.left


def test_a_server_that_dies_too_often_ends_the_waiting_at_once(plan: Plan, model: Path, server: OwnServer) -> None:
    plan({"answers": 2}, {"answers": 0}, {"dies": "RuntimeError: CUDA error: uncorrectable ECC error encountered"})
    with pytest.raises(EngineError, match=r"3 times .*engine\.restarts=2.*uncorrectable ECC"):
        run(answers(engine_on(server, model), asked(6)))
    assert len(plan.starts) == 3 and not plan.left


@pytest.mark.parametrize("gone", ["program", "terminal"])
def test_a_server_that_cannot_be_started_again_ends_the_waiting_at_once(gone: str, plan: Plan, model: Path, tmp_path: Path) -> None:
    plan({"answers": 2}, {})
    program = tmp_path / "serving"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)

    def vanish(text: str) -> None:
        if "starting it again" in text and gone == "program":
            program.unlink()
        elif "starting it again" in text:
            raise BrokenPipeError("the terminal is gone")

    own = OwnServer(ServeCommand((str(program), FAKE), dtype="float32"), patience=60, restarts=2, told=vanish)
    began = time.monotonic()
    wanted = (
        "serving' *, which is no program"
        if gone == "program"
        else r"cannot be started again \(BrokenPipeError: the terminal is gone"
    )
    with pytest.raises(EngineError, match=wanted):
        run(answers(engine_on(own, model), asked(6)))
    assert time.monotonic() - began < 50  # less than the patience
    own.free()
    assert not plan.left


def test_one_request_that_is_cancelled_leaves_the_start_to_the_others(plan: Plan, model: Path, server: OwnServer) -> None:
    async def work() -> Completion:
        engine = engine_on(server, model)
        first, second = (asyncio.create_task(engine.generate(ask)) for ask in asked(2))
        await asyncio.sleep(0.1)
        first.cancel()
        try:
            return await second
        finally:
            await engine.close()

    assert run(work()).text and len(plan.starts) == 1


# This process's end

SCRIPT = """
import asyncio, signal, sys
from pathlib import Path
from leafe.engines.serve import OwnServer
from leafe.engines.serve_command import ServeCommand
async def work():
    await own.start(Path(sys.argv[2]), "policy")
    print("ready", flush=True)
    await asyncio.sleep(600)
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes away from what it starts in the background
own = OwnServer(ServeCommand((sys.executable, sys.argv[1]), dtype="float32"))
asyncio.run(work())
"""


@pytest.mark.parametrize(
    ("number", "how"),
    [(signal.SIGKILL, {"deaf": True}), (signal.SIGKILL, {}), (signal.SIGINT, {}), (signal.SIGINT, {"silent": True})],
    ids=["killed, with a deaf server", "killed", "interrupted", "interrupted while it loads"],
)
def test_no_server_outlives_the_process_that_started_it(number: int, how: dict[str, Any], plan: Plan, model: Path) -> None:
    plan(how)
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", SCRIPT, FAKE, str(model)], stdout=subprocess.PIPE, env=surroundings) as parent:
        try:
            plan.wait(1)
            if "silent" not in how:
                assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
            parent.send_signal(number)
            parent.wait(30)
        finally:
            parent.kill()
    assert plan.starts and not plan.left
    assert how or (plan.folder / "bye").exists()  # one that hears is asked first
