"""Worlds and engines in workers: the forest is that of one process, whichever worker ends when, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from players import MOVES, PLACES, Breaking, Deadly, erratic, rules

from leafe.config import parse
from leafe.differing import differing_fields
from leafe.engines.base import Engine
from leafe.engines.scripted import ScriptedEngine
from leafe.envs import registry
from leafe.envs.base import Environment, Fidelity, Placement
from leafe.envs.calls import Call
from leafe.envs.worker_pool import Terms
from leafe.errors import EngineError, EnvironmentFailure, ReplayDiverged, UserError
from leafe.forest.builder import TreeBuilder
from leafe.forest.driver import Rollout, Runtime, drive
from leafe.forest.explore import explore
from leafe.records import Ask, Message, Observation, Sampling, StopReason, Task, Tree
from leafe.scale import worlds as worlds_module
from leafe.scale.desk import Desk, Order
from leafe.scale.engine import SpreadEngine
from leafe.scale.fakes import FakeWorkers
from leafe.scale.line import Line, Starter, WorkerLost
from leafe.scale.process import ProcessLink, start_process
from leafe.scale.worlds import SpreadWorlds, spread
from leafe.worlds.fakes import Lookup

RULES = rules(turns=16, max_attempts=4, max_depth=3, reflect_every=2)


lookup = partial(registry.make, "lookup", {"horizon": 4})
sokoban = partial(registry.make, "sokoban", {"horizon": 6})


def breaking() -> Environment:
    return Breaking(odds=0.1, horizon=4)


class Noisy(Lookup):
    """Shows something else in every instance, whatever it declares."""

    def reset(self, task: Task) -> Observation:
        return replace(super().reset(task), text=str(random.SystemRandom().random()))


class Unrepeatable(Lookup):
    """Declares that it cannot go back."""

    fidelity = Fidelity.NONE


def driven(make: Callable[[], Environment], tasks: Sequence[Task], actions: Sequence[str], **more: Any) -> dict[str, Tree]:
    """The trees of tasks. `engine` and `host` stand for those of one process; nothing may be left to asyncio to complain about."""
    found: dict[str, Tree] = {}
    complaints: list[Any] = []
    engine = more.pop("engine", None) or ScriptedEngine(erratic(actions))
    concurrency = more.pop("concurrency", 6)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        rollouts = [Rollout(task.id, task, explore(TreeBuilder(task, RULES))) for task in tasks]
        try:
            async for rollout, tree in drive(rollouts, Runtime(engine, make, **more), concurrency=concurrency):
                found[rollout.key] = tree
        finally:
            await engine.close()

    asyncio.run(main())
    assert complaints == []
    return found


def ends_at(*messages: int) -> Callable[[int], bool]:
    return lambda message: message in messages


@cache
def whole(make: Callable[[], Environment]) -> dict[str, Tree]:
    """What one process gives."""
    return driven(make, make().tasks("train", 6), PLACES if make is lookup else MOVES)


# Worlds


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("make", "actions"), [(lookup, PLACES), (sokoban, MOVES)])
@settings(max_examples=8)
@given(ends=st.sets(st.integers(1, 120), max_size=2))
def test_a_forest_is_the_same_whenever_workers_end(
    make: Callable[[], Environment], actions: list[str], workers: int, ends: set[int]
) -> None:
    # Three ends could meet one call on a busy machine: two workers and its trial alone, which would be the world's fault.
    fake = FakeWorkers(ends_at(*ends))
    found = driven(make, make().tasks("train", 6), actions, host=partial(spread, fake, workers))
    assert found == whole(make) and fake.open == []


@pytest.mark.parametrize("make", [lookup, sokoban])
@pytest.mark.parametrize("lost", [3, 5, 6])
def test_a_machine_that_is_lost_with_all_its_workers_costs_no_result(make: Callable[[], Environment], lost: int) -> None:
    fake, actions = FakeWorkers(room=6), PLACES if make is lookup else MOVES

    def answer(ask: Ask) -> str:
        if len(engine.asks) == 40:
            for number, link in enumerate(fake.open[:lost]):  # one after another is noticed, as over a network
                link.kill(0.02 * number)
        return erratic(actions)(ask)

    engine = ScriptedEngine(answer)
    host = partial(spread, fake, 6)
    assert driven(make, make().tasks("train", 6), actions, engine=engine, host=host) == whole(make)
    assert fake.started > 6 and fake.open == []


def test_calls_travel_in_heaps() -> None:
    fake = FakeWorkers()
    driven(lookup, lookup().tasks("train", 40), PLACES, host=partial(spread, fake, 1), concurrency=40)
    assert fake.messages < fake.orders


class OneByOne:
    """A service whose answers are ready one after another."""

    async def serve(self, request: int) -> int:
        for _ in range(3 * request):
            await asyncio.sleep(0)
        return request

    async def close(self) -> None: ...


@pytest.mark.parametrize(("gather", "count", "most"), [(0.0, 30, 30), (0.1, 30, 2), (0.1, 7, 7)])
def test_where_messages_are_dear_answers_wait_for_each_other_and_a_few_do_not(gather: float, count: int, most: int) -> None:
    async def work() -> list[list[int]]:
        desk, heaps = Desk(OneByOne), []
        await desk.hand_in([Order(number, number) for number in range(1, count + 1)])
        while sum(map(len, heaps)) < count:
            heaps.append([answer.result for answer in await desk.collect(gather)])
        return heaps

    heaps = asyncio.run(work())
    assert sorted(number for heap in heaps for number in heap) == list(range(1, count + 1))
    assert len(heaps) <= most and ((gather and count > 8) or len(heaps) > count // 2)


def test_a_forest_is_the_same_where_messages_wait_for_each_other() -> None:
    tasks = lookup().tasks("train", 40)
    fake = FakeWorkers(gather=0.002)
    here = driven(lookup, tasks, PLACES, concurrency=40)
    assert driven(lookup, tasks, PLACES, host=partial(spread, fake, 2), concurrency=40) == here


def test_an_attempt_that_breaks_breaks_in_a_worker_as_it_does_here() -> None:
    tasks = breaking().tasks("train", 12)
    here = driven(breaking, tasks, PLACES)
    assert driven(breaking, tasks, PLACES, host=partial(spread, FakeWorkers(), 2)) == here
    assert any(attempt.stop is StopReason.ENVIRONMENT_ERROR for tree in here.values() for attempt in tree.attempts)


async def seat_in(worlds: SpreadWorlds, task: Task, *actions: str) -> Any:
    session = await worlds.session()
    await session.take(Call("reset", task))
    for action in actions:
        await session.take(Call("step", action=action))
    return session


def kill_all(fake: FakeWorkers) -> None:
    for link in fake.open:
        link.kill()


def played(make: Callable[[], Environment], after: Callable[[Any, FakeWorkers, SpreadWorlds], Any], **terms: Any) -> Any:
    """What comes of a call in a world whose worker has ended after two steps."""

    workers = terms.pop("workers", 1)

    async def main() -> Any:
        fake = FakeWorkers()
        worlds = SpreadWorlds(fake, make, Terms(**terms), workers=workers)
        try:
            (task,) = make().tasks("train", 1)
            session = await seat_in(worlds, task, PLACES[0], PLACES[1])
            kill_all(fake)
            await asyncio.sleep(0.01)
            return await after(session, fake, worlds)
        finally:
            await worlds.close()

    return asyncio.run(main())


def test_a_world_whose_worker_is_gone_stands_where_it_stood() -> None:
    async def go_on(session: Any, fake: FakeWorkers, worlds: SpreadWorlds) -> Any:
        back = await session.take(Call("rollback", turn=2))
        return back, worlds.rebuilt, worlds.replaced, fake.started

    back, rebuilt, replaced, started = played(lookup, go_on)
    assert back.replayed_steps == 1 and (rebuilt, replaced, started) == (1, 1, 2)


def test_a_worker_that_says_nothing_for_too_long_counts_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds_module, "SILENCE", 0.05)

    async def go_on(session: Any, fake: FakeWorkers, worlds: SpreadWorlds) -> Any:
        await session.take(Call("step", action=PLACES[2]))  # whose worker is another one, and hangs from here on
        silent, fake.swallows = fake.open[0], lambda message: fake.open[0] is silent
        return await session.take(Call("rollback", turn=2)), worlds.rebuilt

    back, rebuilt = played(lookup, go_on, timeout=0.01)
    assert back.observation.text == "Empty." and rebuilt == 2


class Stuck:
    """A link that takes nothing and says nothing."""

    ended = False
    gather = 0.0

    async def hand_in(self, orders: Any) -> None:
        await asyncio.Event().wait()

    async def collect(self) -> Any:
        await asyncio.Event().wait()

    async def end(self) -> None:
        self.ended = True


def test_a_worker_that_takes_nothing_can_be_given_up() -> None:
    async def main() -> None:
        link = Stuck()
        line = Line(link)
        with pytest.raises(WorkerLost, match=r"it did not answer in 0\.01 s"):
            await line.ask("anything", limit=0.01)
        await line.close()
        assert link.ended

    asyncio.run(main())


class Refusing(Stuck):
    """A link that fails in its own way before anything is sent, as Ray's may."""

    async def hand_in(self, orders: Any) -> None:
        raise TypeError("could not serialize the argument")


def test_a_worker_that_cannot_be_sent_anything_is_lost() -> None:
    async def main() -> None:
        line = Line(Refusing())
        with pytest.raises(WorkerLost, match="TypeError: could not serialize the argument"):
            await asyncio.wait_for(line.ask("anything"), 5)
        with pytest.raises(WorkerLost):
            await line.ask("anything else")
        await line.close()

    asyncio.run(main())


def test_a_world_that_cannot_be_repeated_is_lost_with_its_worker_and_can_begin_anew() -> None:
    async def go_on(session: Any, fake: FakeWorkers, worlds: SpreadWorlds) -> Any:
        with pytest.raises(EnvironmentFailure, match="declares fidelity 'none'"):
            await session.take(Call("step", action=PLACES[2]))
        return await session.take(Call("reset", Unrepeatable().tasks("train", 1)[0]))

    assert played(Unrepeatable, go_on).observation.text.startswith("Places")


def test_a_world_that_shows_something_else_when_it_is_rebuilt_is_no_longer_believed() -> None:
    async def go_on(session: Any, fake: FakeWorkers, worlds: SpreadWorlds) -> None:
        with pytest.raises(ReplayDiverged, match="at the reset"):
            await session.take(Call("step", action=PLACES[2]))

    played(Noisy, go_on)


def test_where_no_further_worker_has_room_a_call_that_ended_two_is_given_up_untried() -> None:
    async def go_on(session: Any, fake: FakeWorkers, worlds: SpreadWorlds) -> None:
        before, fake.room = fake.messages, 1
        # The way back is two messages, the call the third; from the second worker on there are two more, by which it says that it is there.
        fake.ends = ends_at(before + 3, before + 8)
        with pytest.raises(EnvironmentFailure, match="ended 2 workers and was then tried alone: there was no room"):
            await session.take(Call("step", action=PLACES[2]))

    played(lookup, go_on)


def test_no_more_worlds_are_there_than_may_be_however_many_workers_there_are() -> None:
    async def main() -> None:
        worlds = SpreadWorlds(FakeWorkers(), lookup, Terms(instances=2), workers=3)
        first, second = await worlds.session(), await worlds.session()
        waiting = asyncio.create_task(worlds.session())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await first.leave()
        await (await waiting).leave()
        await second.leave()
        await worlds.close()

    asyncio.run(main())


def test_an_environment_that_cannot_be_made_stops_the_stage_with_its_own_sentence() -> None:
    make = partial(registry.make, "lookup", {"places": 0})
    with pytest.raises(UserError, match="lookup wants at least one place"):
        driven(make, lookup().tasks("train", 2), PLACES, host=partial(spread, FakeWorkers(), 2))


def test_workers_that_end_before_they_answer_anything_stop_the_stage() -> None:
    with pytest.raises(EngineError, match=r"3 workers.*the script says so"):
        driven(lookup, lookup().tasks("train", 1), PLACES, host=partial(spread, FakeWorkers(lambda message: True), 1))


# Settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
PLAIN = "name: trial\nenvironment: {name: sokoban}\n"


def test_the_recipe_of_the_documentation_can_be_read() -> None:
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    config = parse(recipe, "scale.md")
    assert config.scale.ray == "auto" and config.scale.replicas == 8
    assert config.engine.max_context > config.sampling.act.max_tokens


def test_where_worlds_live_makes_no_other_run() -> None:
    here, there = parse(PLAIN, "here"), parse(PLAIN, "there", ["scale.workers=4", "scale.ray=auto", "scale.replicas=2"])
    assert differing_fields(here, there) == [] and here.digest == there.digest


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["scale.replicas=2"],
            "scale.replicas wants scale.ray, as local or auto, found 2 without; on one machine engine.processes does",
        ),
        (
            ["scale.replicas=2", "scale.ray=auto", "engine.kind=openai", "engine.base_url=http://localhost:1/v1"],
            "scale.replicas: wanted 0 where engine.kind is openai, found 2",
        ),
        (["scale.workers=-1"], "scale.workers"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        parse(PLAIN, "trial", overrides)


# Processes


@pytest.fixture
def started() -> tuple[Starter, list[ProcessLink]]:
    links: list[ProcessLink] = []

    async def start(make: Any) -> Any:
        link = await start_process(make)
        assert isinstance(link, ProcessLink)
        links.append(link)
        return link

    return start, links


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


class Killing:
    """Kills a worker's process with the fiftieth request to the engine."""

    def __init__(self, links: list[ProcessLink]) -> None:
        self.links, self.asked = links, 0

    def __call__(self, ask: Ask) -> str:
        self.asked += 1
        if self.asked == 50:
            os.kill(self.links[0].pid, signal.SIGKILL)
        return erratic(PLACES)(ask)


@pytest.mark.parametrize("placement", [Placement.INLINE, Placement.PROCESS])
def test_a_worker_process_that_is_killed_costs_no_result(placement: Placement, started: tuple[Starter, list[ProcessLink]]) -> None:
    start, links = started
    engine = ScriptedEngine(Killing(links))
    host = partial(spread, start, 2)
    found = driven(lookup, lookup().tasks("train", 6), PLACES, host=host, engine=engine, placement=placement)
    assert found == whole(lookup)
    assert len(links) >= 2 and all(gone(link.pid) for link in links)


def test_a_world_that_ends_its_workers_is_tried_alone_and_then_given_up(started: tuple[Starter, list[ProcessLink]]) -> None:
    start, links = started

    async def main() -> None:
        worlds = SpreadWorlds(start, Deadly, Terms(Placement.THREAD), workers=1)
        try:
            task, other = Deadly().tasks("train", 2)
            deadly, quiet = await seat_in(worlds, task, PLACES[0]), await seat_in(worlds, other, PLACES[0])
            sentence = r"step\('open place3'\) ended 2 workers and was then tried alone: it was ended by SIGKILL"
            with pytest.raises(EnvironmentFailure, match=sentence):
                await deadly.take(Call("step", action=PLACES[2]))
            assert (await quiet.take(Call("step", action=PLACES[1]))).observation.text
            assert (await deadly.take(Call("reset", task))).observation.text
        finally:
            await worlds.close()

    asyncio.run(main())
    assert all(gone(link.pid) for link in links)


# Engines


def erratic_engine() -> Engine:
    return ScriptedEngine(erratic(PLACES))


def broken_engine() -> Engine:
    raise UserError("no checkpoint in 'nowhere'")


def ask(number: int) -> Ask:
    return Ask((Message("user", f"task {number % 5}"),), Sampling(), number)


@settings(max_examples=8)
@given(ends=st.sets(st.integers(1, 200), max_size=2), replicas=st.integers(1, 3))
def test_replicas_of_an_engine_give_what_one_gives_whenever_they_end(ends: set[int], replicas: int) -> None:
    fake = FakeWorkers(ends_at(*ends))
    engine = SpreadEngine(fake, erratic_engine, replicas=replicas, concurrency=6)
    assert driven(lookup, lookup().tasks("train", 6), PLACES, engine=engine) == whole(lookup)
    assert fake.open == [] and engine.stats.requests > 0


def answers(engine: SpreadEngine, count: int) -> list[Any]:
    async def main() -> list[Any]:
        try:
            return list(await asyncio.gather(*(engine.generate(ask(number)) for number in range(count)), return_exceptions=True))
        finally:
            await engine.close()

    return asyncio.run(main())


@pytest.mark.parametrize("lost", [4, 6])
def test_a_machine_that_is_lost_with_all_its_replicas_costs_no_result(lost: int) -> None:
    fake, noticed = FakeWorkers(room=6), [0]

    def lose(asked: Ask, completion: Any) -> None:
        noticed[0] += 1
        if noticed[0] == 40:
            for number, link in enumerate(fake.open[:lost]):
                link.kill(0.02 * number)

    engine = SpreadEngine(fake, erratic_engine, replicas=6, concurrency=6)
    assert driven(lookup, lookup().tasks("train", 6), PLACES, engine=engine, noticed=lose) == whole(lookup)
    assert fake.started > 6 and fake.open == []


def test_workers_that_had_nothing_to_do_are_no_worse_for_being_lost() -> None:
    async def go_on(session: Any, fake: FakeWorkers, worlds: SpreadWorlds) -> int:
        await session.take(Call("step", action=PLACES[2]))
        return fake.started

    assert played(lookup, go_on, workers=8) > 8


def test_what_replicas_did_is_counted_once() -> None:
    engine = SpreadEngine(FakeWorkers(), erratic_engine, replicas=2, concurrency=6)
    completions = answers(engine, 20)
    assert engine.stats.requests == 20
    assert engine.stats.sampled_tokens == sum(len(one.token_ids) for one in completions)


def test_an_engine_that_cannot_be_made_or_fails_says_so_in_its_own_words() -> None:
    (error,) = answers(SpreadEngine(FakeWorkers(), broken_engine, replicas=2, concurrency=6), 1)
    assert isinstance(error, UserError) and str(error) == "no checkpoint in 'nowhere'"
    found = answers(SpreadEngine(FakeWorkers(), partial(ScriptedEngine, ["a", "b"]), replicas=1, concurrency=6), 3)
    assert sum(isinstance(one, EngineError) for one in found) == 1


def test_a_request_that_loses_replica_after_replica_stops_the_stage() -> None:
    # The first ends with the request, the others say that they are there and end with it: messages 1; 2, 3, 4; 5, 6, 7.
    (error,) = answers(SpreadEngine(FakeWorkers(ends_at(1, 4, 7)), erratic_engine, replicas=1, concurrency=6), 1)
    assert isinstance(error, EngineError) and "lost 3 replicas" in str(error)
    (error,) = answers(SpreadEngine(FakeWorkers(lambda message: True), erratic_engine, replicas=1, concurrency=6), 1)
    assert isinstance(error, EngineError) and "3 workers in a row ended before they answered" in str(error)


def test_whoever_stops_waiting_has_the_request_cancelled() -> None:
    async def main() -> None:
        fake = FakeWorkers()
        engine = SpreadEngine(fake, erratic_engine, replicas=1, concurrency=6)
        waiting = asyncio.create_task(engine.generate(ask(1)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (await engine.generate(ask(2))).text is not None
        await engine.close()
        assert fake.open == []

    asyncio.run(main())


def test_what_was_asked_for_before_new_weights_is_finished_by_the_old_ones(tmp_path: Path) -> None:
    def answering(folder: Path) -> Callable[[], Engine]:
        return partial(ScriptedEngine, [folder.name] * 20)

    async def main() -> list[str]:
        fake = FakeWorkers()
        engine = SpreadEngine(fake, answering(Path("old")), replicas=2, concurrency=6, made_on=answering)
        before = [asyncio.create_task(engine.generate(ask(number))) for number in range(5)]
        await asyncio.sleep(0)
        await engine.load(tmp_path / "new")
        told = [(await task).text for task in before] + [(await engine.generate(ask(9))).text]
        await engine.close()
        assert fake.open == []
        return told

    assert asyncio.run(main()) == ["old"] * 5 + ["new"]
