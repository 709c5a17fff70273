"""Where worlds live: in the loop, on threads, in processes. Nothing but time may depend on it, and nothing may be left behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from players import MOVES, PLACES, Breaking, erratic, key_in, rules, steady

from leafe.engines.scripted import ScriptedEngine
from leafe.envs import registry
from leafe.envs.alarm import Alarm, TimeUp
from leafe.envs.base import Environment, Fidelity, Placement
from leafe.envs.calls import Call, patience_for
from leafe.envs.check import check_environment
from leafe.envs.worker_pool import Terms, worker_pool
from leafe.envs.world import World, observation_digest
from leafe.envs.world_process import WorldProcess
from leafe.errors import EngineError, EnvironmentFailure, ReplayDiverged, UserError
from leafe.forest.builder import TreeBuilder
from leafe.forest.driver import Rollout, Runtime, drive
from leafe.forest.explore import explore
from leafe.forest.journal import Journal
from leafe.forest.store import ForestWriter
from leafe.records import Ask, Completion, Observation, StopReason, Task, Tree
from leafe.worlds.codecontests import CodeContests
from leafe.worlds.fakes import Lookup
from leafe.worlds.mbpp import Mbpp

RULES = rules(turns=24, max_attempts=5, max_depth=3, reflect_every=2)
ELSEWHERE = [Placement.THREAD, Placement.PROCESS]
TASK = key_in(3, horizon=4)


def lookups(count: int) -> Sequence[Task]:
    return Lookup(horizon=4).tasks("train", count)


def driven(
    runtime: Runtime, tasks: Sequence[Task], path: Path | None = None, *, concurrency: int = 8, **changes: Any
) -> dict[str, Tree]:
    """The trees of tasks, written to a forest as they come."""
    found: dict[str, Tree] = {}
    writer = ForestWriter(path) if path else None
    rollouts = [Rollout(task.id, task, explore(TreeBuilder(task, replace(RULES, **changes)))) for task in tasks]

    async def main() -> None:
        async for rollout, tree in drive(rollouts, runtime, concurrency=concurrency):
            found[rollout.key] = tree
            if writer:
                writer.add(tree)

    try:
        asyncio.run(main())
    finally:
        if writer:
            writer.close()
    return found


def runtime(make: Callable[[], Environment], placement: Placement, actions: Sequence[str] = PLACES, **more: Any) -> Runtime:
    return Runtime(ScriptedEngine(erratic(actions)), make, placement=placement, workers=more.pop("workers", 2), **more)


# The same everywhere


@pytest.mark.parametrize("placement", ELSEWHERE)
@pytest.mark.parametrize(
    ("name", "arguments", "actions"),
    [
        ("lookup", {"horizon": 4}, PLACES),
        ("sokoban", {"horizon": 8}, MOVES),
        pytest.param("players:Breaking", {"odds": 0.1}, PLACES, marks=pytest.mark.slow),
    ],
)
def test_a_forest_holds_the_same_bytes_wherever_its_worlds_live(
    placement: Placement, name: str, arguments: dict[str, Any], actions: list[str], tmp_path: Path
) -> None:
    make = partial(registry.make, name, arguments)
    tasks = make().tasks("train", 8)
    for concurrency in (1, 8):
        for where in (Placement.INLINE, placement):
            driven(runtime(make, where, actions), tasks, tmp_path / f"{where}-{concurrency}", concurrency=concurrency)
    inline, elsewhere = ((tmp_path / f"{where}-1").read_bytes() for where in (Placement.INLINE, placement))
    assert inline == elsewhere and inline.count(b"\n") == 9
    # Which tree is finished first depends on time; what is in it does not.
    assert sorted(inline.splitlines()) == sorted((tmp_path / f"{placement}-8").read_bytes().splitlines())


@pytest.mark.parametrize("placement", ELSEWHERE)
def test_a_run_that_stopped_in_one_place_goes_on_in_another(placement: Placement, tmp_path: Path) -> None:
    tasks = lookups(12)
    whole = driven(runtime(Lookup, Placement.INLINE), tasks)
    journal = Journal(tmp_path / "journal.jsonl")
    failing = Runtime(ScriptedEngine(erratic(PLACES), fail_after=90), Lookup, journal, placement=placement, workers=2)
    with pytest.raises(EngineError):
        driven(failing, tasks)
    journal.close()
    kept = Journal(tmp_path / "journal.jsonl")
    assert driven(runtime(Lookup, Placement.INLINE, journal=kept), tasks) == whole
    kept.close()


def test_programs_are_judged_on_threads() -> None:
    assert CodeContests.placement is Mbpp.placement is Placement.THREAD and Lookup.placement is Placement.INLINE


# Threads


class Watched(Lookup):
    """Notes which thread makes and calls each instance, and how many are called at once."""

    lock: ClassVar[threading.Lock] = threading.Lock()
    now: ClassVar[int] = 0
    most: ClassVar[int] = 0
    threads: ClassVar[list[set[int]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.own = {threading.get_ident()}
        Watched.threads.append(self.own)

    def step(self, action: str) -> Observation:
        with Watched.lock:
            Watched.now += 1
            Watched.most = max(Watched.most, Watched.now)
        self.own.add(threading.get_ident())
        time.sleep(0.001)
        with Watched.lock:
            Watched.now -= 1
        return super().step(action)

    def close(self) -> None:
        self.own.add(threading.get_ident())


def test_a_world_stays_on_its_thread_and_no_more_are_called_at_once_than_allowed() -> None:
    Watched.threads, Watched.most = [], 0
    found = driven(runtime(Watched, Placement.THREAD, workers=3), lookups(30), concurrency=10)
    assert len(found) == 30 and 1 <= Watched.most <= 3
    assert all(len(own) == 1 for own in Watched.threads)
    assert threading.get_ident() not in set.union(*Watched.threads)
    assert len(Watched.threads) <= 10  # worlds of finished jobs were used again


class Patient(Lookup):
    """Its steps wait until the engine was asked by somebody else."""

    asked: ClassVar[threading.Event] = threading.Event()

    def step(self, action: str) -> Observation:
        assert Patient.asked.wait(60), "nobody else could ask meanwhile"
        return super().step(action)


def test_the_others_go_on_while_one_world_takes_its_time() -> None:
    Patient.asked.clear()
    engine = ScriptedEngine(steady("open place1", "turn none"))

    def noticed(ask: Ask, completion: Completion) -> None:
        if len(engine.asks) > 1:  # the first one's step is under way by then, and waits
            Patient.asked.set()

    found = driven(Runtime(engine, Patient, None, noticed, Placement.THREAD, 1), lookups(2), max_attempts=1)
    assert len(found) == 2


@pytest.mark.parametrize("placement", ELSEWHERE)
def test_a_single_worker_serves_everybody(placement: Placement) -> None:
    assert len(driven(runtime(Lookup, placement, workers=1), lookups(6), concurrency=6)) == 6


# Processes


class Deadly(Lookup):
    """Tells its process in every observation; ends it where place2 is opened."""

    def step(self, action: str) -> Observation:
        if action == "open place2":
            print("out of memory, or so", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(super().step(action), info={"process": os.getpid()})


def gone(process: int) -> bool:
    """Whether a process is no more, a zombie included, after a while at most."""
    for _ in range(600):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def processes_of(trees: dict[str, Tree]) -> set[int]:
    infos = [turn.observation.info for tree in trees.values() for turn in tree.turns]
    return {int(info["process"]) for info in infos if "process" in info}


def test_a_process_that_dies_costs_the_attempt_that_was_in_it_and_leaves_nothing() -> None:
    found = driven(runtime(Deadly, Placement.PROCESS), lookups(3))
    attempts = [attempt for tree in found.values() for attempt in tree.attempts]
    lost = [attempt for attempt in attempts if attempt.stop is StopReason.ENVIRONMENT_ERROR]
    assert len(found) == 3 and 0 < len(lost) < len(attempts)
    ended = "the process that played the environment was ended by SIGKILL: out of memory, or so"
    assert {attempt.error for attempt in lost} == {f"EnvironmentFailure: {ended}"}
    assert os.getpid() not in processes_of(found) and all(gone(process) for process in processes_of(found))


class Telling(Lookup):
    """Tells its process, talks on its output, and starts another that would stay."""

    def step(self, action: str) -> Observation:
        print("step", action)
        other = subprocess.Popen(["sleep", "600"])
        return replace(super().step(action), info={"process": os.getpid(), "other": other.pid})


def test_whoever_stops_listening_leaves_no_process(tmp_path: Path) -> None:
    seen: list[Observation] = []

    async def main() -> None:
        rollouts = (Rollout(task.id, task, explore(TreeBuilder(task, RULES))) for task in lookups(9))
        trees = drive(rollouts, runtime(Telling, Placement.PROCESS), concurrency=9)
        _, tree = await anext(trees)
        seen.extend(turn.observation for turn in tree.turns)
        await trees.aclose()

    asyncio.run(main())
    assert seen and all(gone(int(one.info["process"])) and gone(int(one.info["other"])) for one in seen)


def test_a_finished_job_hands_its_process_on() -> None:
    found = driven(runtime(Telling, Placement.PROCESS), lookups(6), max_attempts=1)
    assert len(processes_of(found)) <= 2


PARENT = """
import sys
from players import key_in
from test_placement import Telling
from leafe.envs.calls import Call
from leafe.envs.world_process import WorldProcess
world = WorldProcess(Telling)
world.take(Call("reset", key_in(3)))
print(world.take(Call("step", action="open place1")).observation.info["process"], flush=True)
sys.stdin.read()
"""


def test_a_process_ends_with_its_parent_however_that_ends() -> None:
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=surroundings) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        os.kill(process, 0)
        parent.kill()
    assert gone(process)


class Endless(Lookup):
    """Never answers."""

    def step(self, action: str) -> Observation:
        time.sleep(3600)
        return super().step(action)


def test_a_world_that_does_not_answer_is_ended_and_the_next_call_has_a_fresh_one() -> None:
    world = WorldProcess(Endless, limit=3)
    first = world.take(Call("reset", TASK)).observation
    with pytest.raises(EnvironmentFailure, match=r"did not answer in 3 s and was ended"):
        world.take(Call("step", action="open place1"))
    assert world.take(Call("reset", TASK)).observation == first
    world.close()


class Spoilt(Lookup):
    """Raises whatever the task says, when it is reset."""

    def reset(self, task: Task) -> Observation:
        if task.instruction == "left":
            os._exit(3)
        raise {"UserError": UserError("no such level"), "SystemExit": SystemExit(3)}[task.instruction]


@pytest.mark.parametrize("placement", ELSEWHERE)
def test_bad_input_found_by_an_environment_stops_the_stage_from_anywhere(placement: Placement) -> None:
    with pytest.raises(UserError, match="no such level"):
        driven(runtime(Spoilt, placement), [replace(TASK, instruction="UserError")])


def test_an_environment_that_leaves_its_process_is_a_lost_attempt() -> None:
    tree = driven(runtime(Spoilt, Placement.PROCESS), [replace(TASK, instruction="left")], max_attempts=1).popitem()[1]
    assert re.fullmatch("EnvironmentFailure: .* 3", str(tree.attempts[0].error))


def test_an_environment_that_calls_exit_costs_its_attempt_wherever_it_lives() -> None:
    for placement in Placement:
        tree = driven(runtime(Spoilt, placement), [replace(TASK, instruction="SystemExit")], max_attempts=1).popitem()[1]
        assert tree.attempts[0].error == "EnvironmentFailure: lookup called sys.exit(3)"


class Panic(BaseException):
    """What a library in another language raises, which is no Exception."""


class Panicking(Lookup):
    """Raises at one place what would end a program."""

    def step(self, action: str) -> Observation:
        if action in ("open place1", "open place2"):
            raise Panic("rust panicked") if action == "open place1" else asyncio.CancelledError("not yours")
        return super().step(action)


class PanickingLater(Panicking):
    """The same from a coroutine."""

    async def step(self, action: str) -> Observation:  # type: ignore[override]
        return super().step(action)


@pytest.mark.parametrize(("place", "told"), [(1, "Panic: rust panicked"), (2, "CancelledError: ")])
def test_what_is_no_exception_costs_its_attempt_wherever_the_world_lives(place: int, told: str) -> None:
    engine = ScriptedEngine(steady(f"open place{place}", "turn none"))
    for kind, placement in [*((Panicking, one) for one in Placement), (PanickingLater, Placement.THREAD)]:
        for tree in driven(Runtime(engine, kind, placement=placement), [TASK, key_in(4, horizon=4)], max_attempts=1).values():
            assert [attempt.stop for attempt in tree.attempts] == [StopReason.ENVIRONMENT_ERROR]
            assert f"lookup: {told}" in str(tree.attempts[0].error)


def test_a_task_of_ours_can_be_cancelled_while_its_world_is_called() -> None:
    async def main() -> None:
        pool = worker_pool(Stuck, Terms(Placement.THREAD))
        seat = await pool.session()
        await seat.take(Call("reset", TASK))
        work = asyncio.create_task(seat.take(Call("step", action="open place3")))
        await asyncio.sleep(0.2)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert work.cancelled()

    asyncio.run(main())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, TimeUp])
def test_what_is_meant_for_the_caller_passes_through_a_world(kind: type[BaseException]) -> None:
    class Interrupted(Lookup):
        def step(self, action: str) -> Observation:
            raise kind

    world = World(Interrupted())
    world.reset(TASK)
    with pytest.raises(kind):
        world.step("open place1")


def test_an_environment_that_cannot_be_made_stops_the_stage_from_anywhere() -> None:
    for placement in Placement:
        with pytest.raises(UserError, match="lookup wants at least one place"):
            driven(runtime(partial(Lookup, places=0), placement), [TASK])
        with pytest.raises((OSError, RuntimeError), match="no room for this"):
            driven(runtime(partial(Unmade, "no room for this"), placement), [TASK])


class Unmade(Lookup):
    """Cannot be made."""

    def __init__(self, why: str) -> None:
        raise OSError(why)


def test_what_cannot_be_made_in_another_process_is_said_at_once() -> None:
    with pytest.raises(UserError, match=r"wants to be made by a function that can be pickled"):
        driven(runtime(lambda: Lookup(), Placement.PROCESS), [TASK])


def test_rollbacks_in_another_process_are_verified_as_here() -> None:
    world = WorldProcess(partial(Breaking, odds=0.0))
    root = world.take(Call("reset", TASK)).observation
    world.take(Call("step", action="open place1"))
    world.take(Call("step", action="open place2"))
    back = world.take(Call("rollback", turn=2))
    assert (back.observation.text, back.replayed_steps) == ("Empty.", 1)
    with pytest.raises(ReplayDiverged, match="replay diverged at turn 1"):
        world.take(Call("replay", TASK, actions=("open place1",), digests=(observation_digest(root), "another")))
    world.close()


def children() -> set[str]:
    """The processes that this one started and has not waited for, zombies included; none where the system does not tell."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = status.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if parent == str(os.getpid()):
            found.add(status.parent.name)
    return found


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


def test_a_stage_without_a_job_starts_nothing() -> None:
    async def main() -> None:
        for placement in Placement:
            await worker_pool(Lookup, Terms(placement)).close()

    asyncio.run(main())


class Single(Lookup):
    """Counts how many of it are there."""

    there: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        Single.there += 1
        Single.most = max(Single.most, Single.there)

    def close(self) -> None:
        Single.there -= 1


@pytest.mark.parametrize("placement", [Placement.INLINE, Placement.THREAD])
def test_there_are_no_more_worlds_than_there_can_be(placement: Placement) -> None:
    Single.there = Single.most = 0
    found = driven(runtime(Single, placement, instances=2), lookups(9), concurrency=9)
    assert len(found) == 9 and Single.most <= 2 and Single.there == 0


# As many threads as there are worlds that wait


class Together(Lookup):
    """Its first step waits until so many worlds are in theirs."""

    gate: ClassVar[threading.Barrier] = threading.Barrier(12)

    def step(self, action: str) -> Observation:
        Together.gate.wait(60)
        return super().step(action)


def test_a_thread_serves_each_world_that_waits() -> None:
    found = driven(runtime(Together, Placement.THREAD, workers=0), lookups(12), concurrency=12, max_attempts=1, turns=1)
    assert all(tree.attempts[0].error is None for tree in found.values()) and len(found) == 12


def test_what_computes_is_called_once_a_core_at_a_time() -> None:
    Watched.threads, Watched.most = [], 0
    driven(runtime(Watched, Placement.THREAD, workers=0, computes=True), lookups(12), concurrency=12, max_attempts=1)
    assert Watched.most <= len(os.sched_getaffinity(0))
    assert CodeContests.computes and Mbpp.computes


# A limit on the time of a step


class Stuck(Lookup):
    """Never comes back from place2, each time in another way; tells which of its instances it is."""

    made: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        Stuck.made += 1
        self.own = Stuck.made

    def step(self, action: str) -> Observation:
        while action == "open place2":
            try:
                time.sleep(0.05)
            except Exception:
                continue
        while action == "open place3":
            time.sleep(3600)
        return replace(super().step(action), info={"own": self.own})


@pytest.mark.parametrize(
    ("placement", "place"),
    [(Placement.INLINE, 2), (Placement.INLINE, 3), (Placement.THREAD, 2), (Placement.THREAD, 3), (Placement.PROCESS, 3)],
)
def test_a_step_that_takes_too_long_ends_its_attempt_under_a_name_of_its_own(placement: Placement, place: int) -> None:
    engine = ScriptedEngine(lambda ask: "open place1" if len(ask.messages) < 3 else f"open place{place}")
    task = key_in(5, horizon=4)
    found = driven(
        Runtime(engine, Stuck, placement=placement, workers=2, timeout=2.0 if placement is Placement.PROCESS else 1.0),
        [task, key_in(1, number=1)],
        max_attempts=2,
    )
    lost, won = (found[key].attempts for key in (task.id, key_in(1, number=1).id))
    assert [attempt.stop for attempt in lost] == [StopReason.STEP_TIMEOUT] * 2
    assert all(attempt.error and attempt.error.startswith("StepTimeout: ") for attempt in lost)
    assert "raise environment.timeout" in str(lost[0].error)
    assert won[0].success
    owners = [turn.observation.info["own"] for turn in found[task.id].turns]
    assert placement is Placement.PROCESS or len(set(owners)) == 2  # the second attempt was given another world


def test_a_timer_that_rings_when_the_work_has_ended_interrupts_nothing() -> None:
    """As it does on a machine so busy that it rings again before it is stopped."""
    alarm = Alarm()
    try:
        assert alarm.call(60, lambda: 1) == 1
        signal.raise_signal(signal.SIGALRM)
        with pytest.raises(TimeUp):
            alarm.call(60, lambda: signal.raise_signal(signal.SIGALRM))
        signal.raise_signal(signal.SIGALRM)
    finally:
        alarm.close()


def test_a_replay_has_the_time_of_all_its_steps() -> None:
    assert patience_for(Call("step", action="x"), 2.0) == 2.0 and patience_for(Call("rollback", turn=5), 2.0) == 10.0
    assert patience_for(Call("replay", TASK, actions=("a", "b"), digests=("", "", "")), 2.0) == 6.0
    assert patience_for(Call("step", action="x"), 0.0) == 0.0


def test_a_world_in_line_is_limited_where_no_timer_can_be_had() -> None:
    found: list[dict[str, Tree]] = []
    engine = ScriptedEngine(steady("open place2", "turn none"))
    work = threading.Thread(target=lambda: found.append(driven(Runtime(engine, Stuck, timeout=0.5), [TASK], max_attempts=1)))
    work.start()
    work.join(60)
    assert found[0][TASK.id].attempts[0].stop is StopReason.STEP_TIMEOUT


# Worlds that are replaced after some episodes


class Aging(Lookup):
    """Counts its own episodes; there is no room for more than two."""

    born: ClassVar[int] = 0
    closed: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        Aging.born += 1
        self.episodes = 0

    def reset(self, task: Task) -> Observation:
        self.episodes += 1
        assert self.episodes <= 2, "no memory left"
        return super().reset(task)

    def close(self) -> None:
        Aging.closed += 1


@pytest.mark.parametrize("placement", [Placement.INLINE, Placement.THREAD])
def test_a_world_is_replaced_after_as_many_episodes_as_it_may_play(placement: Placement) -> None:
    Aging.born = Aging.closed = 0
    whole = driven(runtime(Lookup, Placement.INLINE), lookups(4), max_depth=0)
    found = driven(runtime(Aging, placement, recycle=2), lookups(4), concurrency=1, max_depth=0)
    assert found == whole and Aging.born == Aging.closed > 4


# What a class of one's own may leave loose


class Loose(Lookup):
    """Plain text where enums are meant."""

    placement = "thread"  # type: ignore[assignment]
    fidelity = "none"  # type: ignore[assignment]


def test_plain_text_means_the_enum_that_it_names() -> None:
    made = registry.make("test_placement:Loose")
    assert (made.placement, made.fidelity) == (Placement.THREAD, Fidelity.NONE)
    assert World(Loose()).fidelity is Fidelity.NONE
    loose = Loose()
    loose.placement = "tread"  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"unknown placement of lookup 'tread'; did you mean 'thread'\?"):
        World(loose)


class Async(Lookup):
    """Coroutines, on one event loop that stays the same, and its own."""

    loop: asyncio.AbstractEventLoop | None = None

    async def reset(self, task: Task) -> Observation:  # type: ignore[override]
        self.loop = self.loop or asyncio.get_running_loop()
        await asyncio.sleep(0.001)
        return super().reset(task)

    async def step(self, action: str) -> Observation:  # type: ignore[override]
        assert asyncio.get_running_loop() is self.loop
        await asyncio.sleep(0.001)
        return super().step(action)


def test_coroutines_are_awaited_wherever_they_are_played() -> None:
    whole = driven(runtime(Lookup, Placement.INLINE), lookups(4))
    made = registry.make("test_placement:Async")
    assert made.placement is Placement.THREAD
    made.close()
    for placement in Placement:
        assert driven(runtime(Async, placement), lookups(4)) == whole
    report = check_environment(Async, name="async", rollbacks=10, count=2)
    assert report.passed


class Noisy(Lookup):
    """Prints, warns, writes to the descriptor itself and leaves."""

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        print("drawing tasks")
        return super().tasks(split, count, seed)

    def step(self, action: str) -> Observation:
        print("a step")
        os.write(1, b"straight\n")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        if action == "open place9":
            sys.exit("enough")
        return super().step(action)


def test_what_a_world_prints_never_reaches_the_json() -> None:
    code = "from leafe.cli import check_env; check_env('test_placement:Noisy', as_json=True, tasks=2, rollbacks=4)"
    command = [sys.executable, "-c", code]
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    said = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    assert json.loads(said.stdout)["passed"] and said.returncode == 0
    assert "straight" in said.stderr and "a step" in said.stderr


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("import sys; sys.exit(1)", "cannot import 'broken_world' for the environment 'broken_world:World': SystemExit: 1"),
        ("x = 1 / 0", "ZeroDivisionError: division by zero (broken_world.py line 1)"),
        ("from leafe.worlds.fakes import Lookup\nclass World(Lookup):\n    def __init__(self):\n        1 / 0", "cannot be made from {}"),
        ("class Panic(BaseException): pass\nraise Panic('no device')", "for the environment 'broken_world:World': Panic: no device"),
    ],
)  # fmt: skip
def test_a_class_that_cannot_be_had_is_one_sentence(source: str, sentence: str, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "broken_world.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("broken_world", None)
    with pytest.raises(UserError) as raised:
        registry.make("broken_world:World")
    assert sentence in str(raised.value)
