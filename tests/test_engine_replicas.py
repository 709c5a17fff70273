"""An engine in several processes: the same completions, one process a task, and nobody waits for a process that is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command import QUICK, leafe
from tiny import tiny_model, tiny_tokenizer

from leafe.compose import slower
from leafe.engines.base import Engine
from leafe.engines.replicas import ReplicatedEngine
from leafe.engines.scripted import ScriptedEngine
from leafe.engines.transformers import TransformersEngine
from leafe.errors import CorruptFile, EngineError, MissingDependency, UnknownName, UserError
from leafe.records import Ask, Completion, Message, Sampling
from leafe.settings import EngineSettings


def own_number(ask: Ask) -> str:
    """Answers with the number of the process that was asked."""
    return str(os.getpid())


def slow(ask: Ask) -> str:
    """Takes longer than any test waits, unless the ask says otherwise."""
    if ask.messages[-1].content != "at once":
        time.sleep(60)
    return str(os.getpid())


def scripted(answer: object, fail_after: int | None = None) -> Engine:
    return ScriptedEngine(answer, fail_after=fail_after, concurrency=5)  # type: ignore[arg-type]


def ask(task: int, turn: int = 0, *, system: str = "") -> Ask:
    messages = [Message("user", f"task {task}")]
    messages += [message for n in range(turn) for message in (Message("assistant", f"go {n}", True), Message("user", f"seen {n}"))]
    return Ask((*([Message("system", system)] if system else []), *messages), Sampling(0.9, 0.95, 7), 100 * task + turn)


async def all_of(engine: Engine, asks: list[Ask]) -> list[Completion]:
    return list(await asyncio.gather(*(engine.generate(one) for one in asks)))


def answers(engine: Engine, asks: list[Ask]) -> list[Completion]:
    async def work() -> list[Completion]:
        try:
            return await all_of(engine, asks)
        finally:
            await engine.close()

    return asyncio.run(work())


def test_what_makes_an_engine_slow_is_said_with_what_to_type() -> None:
    settings = EngineSettings()
    assert slower(settings, "cpu", "") == [] == slower(EngineSettings(dtype="auto"), "cuda:0", "")
    (precision,) = slower(settings, "cuda:0", "")
    assert "samples in float32 on a GPU" in precision and "type engine.dtype=auto" in precision
    (path,) = slower(settings, "cpu", "its logits are off by 0.3")
    assert "plain forward pass" in path and "since with those its logits are off by 0.3;" in path


def gone(number: int) -> bool:
    """Whether a process has ended, waiting some seconds for it."""
    for _ in range(500):
        try:
            state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_what_is_drawn_does_not_depend_on_how_many_processes_there_are(checkpoint: Path) -> None:
    asks = [ask(task, turn) for turn in range(3) for task in range(5)]
    load = partial(TransformersEngine.from_folder, checkpoint, slots=8)
    alone, shared = load(), ReplicatedEngine([load, load])
    assert shared.concurrency == 16
    assert answers(alone, asks) == answers(shared, asks)
    assert shared.stats.requests == alone.stats.requests == 15
    assert shared.stats.sampled_tokens == alone.stats.sampled_tokens


def hindered(answer: object) -> Engine:
    """An engine that says why it is slow, as those of a GPU do."""
    made: Any = scripted(answer)
    made.obstacle = "its logits are off by 0.3"
    return made


def test_a_task_stays_with_its_process_and_tasks_are_shared_out() -> None:
    asks = [ask(task, turn, system="The same for all.") for turn in range(4) for task in range(6)]
    numbers = [completion.text for completion in answers(ReplicatedEngine([partial(scripted, own_number)] * 2), asks)]
    homes = {
        number: {one.messages[1].content for one, at in zip(asks, numbers, strict=True) if at == number} for number in set(numbers)
    }
    assert len(homes) == 2 and sorted(map(len, homes.values())) == [3, 3]
    assert not set.intersection(*homes.values())
    assert all(gone(int(number)) for number in homes)


def test_a_refusal_reaches_the_one_who_asked() -> None:
    async def work() -> Counter[str]:
        engine = ReplicatedEngine([partial(scripted, own_number, 2)])
        found = await asyncio.gather(*(engine.generate(ask(task)) for task in range(5)), return_exceptions=True)
        await engine.close()
        return Counter(str(one) for one in found if isinstance(one, EngineError))

    assert asyncio.run(work()) == {"the script says to fail after 2 requests": 3}


class Unreadable(UserError):
    """An error that is not made again of its message."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def failing(ask: Ask) -> str:
    """Raises what the ask names."""
    match ask.messages[-1].content:
        case "bug":
            raise ZeroDivisionError("in a chat template")
        case "unknown":
            raise UnknownName("engine", "vlm", ["vllm", "sglang"])
        case "missing":
            raise MissingDependency("ray", "pip install ray")
        case "unreadable":
            raise Unreadable("a", "b")
    return "fine"


def test_whatever_a_process_raises_reaches_the_one_who_asked() -> None:
    def saying(text: str) -> Ask:
        return Ask((Message("user", text),), Sampling(), 0)

    async def work() -> None:
        engine = ReplicatedEngine([partial(scripted, failing)])
        try:
            with pytest.raises(EngineError, match="an engine process failed with ZeroDivisionError: in a chat template"):
                await asyncio.wait_for(engine.generate(saying("bug")), 30)
            with pytest.raises(UnknownName, match="did you mean 'vllm'"):
                await asyncio.wait_for(engine.generate(saying("unknown")), 30)
            with pytest.raises(MissingDependency, match="ray is not installed; type: pip install ray"):
                await asyncio.wait_for(engine.generate(saying("missing")), 30)
            assert (await engine.generate(saying("hello"))).text == "fine"
            waiting = [engine.generate(saying("unreadable")), engine.generate(saying("unreadable"))]
            for found in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30):
                assert isinstance(found, EngineError) and "sent an answer that cannot be read (TypeError" in str(found)
            with pytest.raises(EngineError, match="cannot be read"):
                await engine.generate(saying("hello"))
        finally:
            await engine.close()

    asyncio.run(work())


def test_a_process_that_is_killed_fails_what_it_had_and_what_comes_after() -> None:
    async def work() -> None:
        engine = ReplicatedEngine([partial(hindered, slow)])
        assert engine.obstacle == "its logits are off by 0.3"
        number = int((await engine.generate(Ask((Message("user", "at once"),), Sampling(), 0))).text)
        waiting = [asyncio.create_task(engine.generate(ask(task))) for task in range(3)]
        await asyncio.sleep(0.1)
        os.kill(number, signal.SIGKILL)
        for found in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(found, EngineError) and "-9" in str(found)
        with pytest.raises(EngineError, match="an engine process ended"):
            await engine.generate(ask(4))
        await engine.close()

    asyncio.run(work())


def test_closing_cancels_what_is_in_flight_and_leaves_no_process() -> None:
    async def work() -> int:
        engine = ReplicatedEngine([partial(scripted, own_number)])
        number = int((await engine.generate(ask(0))).text)
        waiting = asyncio.create_task(engine.generate(ask(1)))
        await asyncio.sleep(0)
        await engine.close()
        with pytest.raises((asyncio.CancelledError, EngineError)):
            await waiting
        return number

    assert gone(asyncio.run(work()))


@pytest.mark.parametrize("damage", ["no folder", "no weights"])
def test_a_checkpoint_that_cannot_be_loaded_is_told_as_in_one_process(tmp_path: Path, checkpoint: Path, damage: str) -> None:
    folder = tmp_path / "model"
    if damage == "no weights":
        folder.mkdir()
        (folder / "config.json").write_text((checkpoint / "config.json").read_text())
    load = partial(TransformersEngine.from_folder, folder)
    with pytest.raises((UserError, CorruptFile)) as alone:
        load()
    with pytest.raises(type(alone.value)) as shared:
        ReplicatedEngine([load, load])
    assert str(shared.value) == str(alone.value)


ORPHANS = """
import asyncio, os
from leafe.engines.replicas import ReplicatedEngine
from leafe.engines.scripted import ScriptedEngine
from leafe.records import Ask, Message, Sampling

def own_number(ask):
    return str(os.getpid())

def scripted():
    return ScriptedEngine(own_number)

async def work():
    engine = ReplicatedEngine([scripted] * 2)
    asks = [Ask((Message("user", str(task)),), Sampling(), 0) for task in range(2)]
    print(*[one.text for one in await asyncio.gather(*map(engine.generate, asks))], flush=True)
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(work())
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_no_process_outlives_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(ORPHANS)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    numbers = [int(word) for word in parent.stdout.readline().split()]
    assert len(numbers) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert all(gone(number) for number in numbers)


def test_a_run_may_sample_in_several_processes_and_names_no_device_that_is_not_there(taught: Path, tmp_path: Path) -> None:
    arguments = ("explore", "smoke", f"model={taught}", "environment.name=lookup", "environment.args={}", *QUICK)
    found = []
    for processes in (1, 2):
        said = leafe(*arguments, f"engine.processes={processes}", "--out", tmp_path / str(processes))
        assert said.status == 0, said
        found.append(sorted((tmp_path / str(processes) / "round-1" / "forest.jsonl").read_text().splitlines()))
    assert found[0] == found[1]
    said = leafe(*arguments, "engine.device=abacus", "--out", tmp_path / "other")
    assert said.status == 2 and "engine.device=auto" in said.err and "Traceback" not in said.err
