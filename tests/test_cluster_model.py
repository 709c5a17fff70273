"""The model of a cluster behind `benchmarks/scale.py --simulate`: its clock, its engine against one pass after another, its figures."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    import cluster

    yield cluster
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def scale(model: Any) -> Any:
    import scale

    return scale


def test_hours_pass_at_once_and_in_order(model: Any) -> None:
    async def work() -> list[int]:
        order: list[int] = []

        async def wait(hours: int) -> None:
            await asyncio.sleep(3600 * hours)
            order.append(hours)

        await asyncio.gather(*(wait(hours) for hours in (30, 1, 200, 2)))
        assert asyncio.get_running_loop().time() == pytest.approx(200 * 3600)
        return order

    assert model.run_virtually(work()) == [1, 2, 30, 200]


def test_waiting_for_what_can_never_happen_is_an_error(model: Any) -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="no event is left"):
        model.run_virtually(work())


def test_a_level_is_weighted_by_time(model: Any) -> None:
    async def work() -> Any:
        level = model.Level()
        for change, seconds in ((2, 94), (3, 4), (-5, 2)):
            level.add(change)
            await asyncio.sleep(seconds)
        return level.mean, level.share(0.94), level.share(0.97), level.most, level.busy

    assert model.run_virtually(work()) == (pytest.approx(2.08), 2, 5, 5, pytest.approx(0.98))


Load = list[tuple[float, int, int, int]]  # (arrival in seconds, prompt, of which fresh, length)


def pass_by_pass(card: Any, load: Load) -> list[float]:
    """When each request ends, by a loop that takes one pass at a time."""
    ends, now = [0.0] * len(load), 0.0
    coming, waiting = deque(sorted(range(len(load)), key=lambda one: load[one][0])), deque[int]()
    filling, running = deque[list[int]](), dict[int, list[int]]()
    while coming or waiting or filling or running:
        while coming and load[coming[0]][0] <= now + 1e-12:
            waiting.append(coming.popleft())
        while waiting and len(running) + len(filling) < card.slots:
            filling.append([waiting[0], load[waiting.popleft()][2]])
        if not filling and not running:
            now = load[coming[0]][0]
            continue
        now += card.passes(1, len(running), sum(context for context, _ in running.values()))
        room, ready = card.chunk, list[int]()
        while filling and room:
            part = min(room, filling[0][1])
            filling[0][1] -= part
            room -= part
            if not filling[0][1]:
                ready.append(filling.popleft()[0])
        now += (card.chunk - room) / card.prefill if ready or room < card.chunk else 0.0
        for one in list(running):
            running[one] = [running[one][0] + 1, running[one][1] - 1]
        for one in ready:
            running[one] = [load[one][1] + 1, load[one][3] - 1]
        for one in [one for one in running if not running[one][1]]:
            ends[one] = now
            del running[one]
    return ends


@settings(max_examples=40)
@given(
    load=st.lists(
        # Arrivals are irrational, so none falls on the end of a pass: who comes first among those who come at once is nobody's promise.
        st.tuples(st.integers(0, 200), st.integers(1, 3000), st.floats(0, 1), st.integers(1, 60)).map(
            lambda one: (sqrt(2) / 100 * one[0], one[1], max(1, int(one[1] * one[2])), one[3])
        ),
        min_size=1,
        max_size=12,
        unique_by=lambda one: one[0],
    ),
    slots=st.integers(1, 6),
    token=st.sampled_from([0.0, 1e-6, 1e-5]),
)
def test_an_engine_in_jumps_is_the_engine_pass_by_pass(model: Any, load: Load, slots: int, token: float) -> None:
    card = model.Card(base=0.01, sequence=0.001, token=token, prefill=20_000, slots=slots, chunk=1000)

    async def work() -> list[float]:
        replica, loop, ends = model._Replica(card), asyncio.get_running_loop(), [0.0] * len(load)

        async def ask(number: int, arrival: float, prompt: int, fresh: int, length: int) -> None:
            await asyncio.sleep(arrival)
            done = loop.create_future()
            replica.submit(model._Request(prompt, fresh, length, done))
            await done
            ends[number] = loop.time()

        await asyncio.gather(*(ask(number, *one) for number, one in enumerate(load)))
        return ends

    assert model.run_virtually(work()) == pytest.approx(pass_by_pass(card, load), abs=1e-6)


def test_prefixes_of_a_task_are_reused_until_there_is_no_room(model: Any, scale: Any) -> None:
    plan, pace = scale.Plan(6, 6, turns=12, horizon=12), model.Pace(model.Spread(0.1))
    room, tight = (scale.simulated(plan, replace(model.CARDS["7b"], kept=kept), 1, pace) for kept in (1_000_000, 500))
    assert room.reused > 0.8 and tight.reused == 0 and tight.seconds > room.seconds
    assert room.digest == tight.digest


def test_the_same_seed_gives_the_same_figures_and_never_beats_the_ideal(model: Any, scale: Any) -> None:
    plan, pace = scale.Plan(24, 12, turns=10, horizon=10), model.Pace(model.Spread(0.2, 0.8), workers=4)
    first, second = (scale.simulated(plan, model.CARDS["7b"], 2, pace, overhead=0.001) for _ in range(2))
    assert first == second and first.turns == 240
    assert first.seconds >= first.ideal > 0 and 0 < first.working <= 1 and 0 < first.busy <= 1
    other = scale.simulated(replace(plan, seed=2), model.CARDS["7b"], 2, pace, overhead=0.001)
    assert other.digest != first.digest


def test_slow_worlds_cost_what_the_longest_of_them_takes(model: Any, scale: Any) -> None:
    plan, pace = scale.Plan(40, 40, turns=8, horizon=8), model.Pace(model.Spread(1.0))
    quick = scale.simulated(plan, model.CARDS["0.5b"], 4, pace)
    slow = scale.simulated(plan, model.CARDS["0.5b"], 4, replace(pace, share=0.1, factor=10.0))
    assert slow.bound == "longest task" and slow.seconds >= 70 > quick.seconds
    assert slow.digest == quick.digest


def test_a_task_alone_takes_what_arithmetic_says(model: Any, scale: Any) -> None:
    lengths = model.Lengths(first=100, observation=10, reply=model.Spread(20), reflection=model.Spread(20))
    card = model.Card(base=0.01, sequence=0.0, token=0.0, prefill=1e9)
    found = scale.simulated(scale.Plan(1, 1, turns=5, horizon=5), card, 1, model.Pace(model.Spread(0.5)), lengths=lengths)
    resets = 1
    assert found.turns == 5
    assert found.seconds == pytest.approx(5 * 20 * 0.01 + (5 + resets) * 0.5, rel=0.01)


def test_worlds_that_sleep_in_workers_give_the_forest_that_was_predicted(scale: Any) -> None:
    plan, began = scale.Plan(8, 8, turns=6, horizon=4), time.process_time()
    found = scale.measured(plan, 0.01, 0.01, scale.partial(scale.spread, scale.start_process, 2))
    expected = scale.predicted(plan, 0.01, 0.01, 0.0)
    assert found.digest == expected.digest and found.seconds >= expected.longest
    assert found.effects > 2 * 8 * 6 and 0 < found.processor <= time.process_time() - began
