"""Worlds and replicas in actors of Ray: the forest is that of one process, whatever is lost. Skipped where Ray is not installed."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command import leafe
from players import PLACES, erratic, rules

from leafe.engines.base import Engine
from leafe.engines.scripted import ScriptedEngine
from leafe.envs import registry
from leafe.errors import MissingDependency, UserError
from leafe.forest.builder import TreeBuilder
from leafe.forest.driver import Rollout, Runtime, drive
from leafe.forest.explore import explore
from leafe.records import Ask, Tree
from leafe.scale.cluster import RayLink, RayWorkers, connect
from leafe.scale.engine import SpreadEngine
from leafe.scale.worlds import SpreadWorlds, spread

try:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # or actors starve on a machine that has other work
    import ray
    from ray.cluster_utils import Cluster
except ImportError:
    ray = None

needs_ray = pytest.mark.skipif(ray is None, reason="wants ray: pip install -c constraints.txt -e '.[ray]'")
RULES = rules(turns=16, max_attempts=4, max_depth=3, reflect_every=2)
make = partial(registry.make, "lookup", {"horizon": 4})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores and two machines with two each, of which one may be lost."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    found.first, found.second = (found.add_node(num_cpus=2) for _ in range(2))
    connect(found.address)
    yield found
    ray.shutdown()
    found.shutdown()


def driven(**more: Any) -> dict[str, Tree]:
    found: dict[str, Tree] = {}
    engine = more.pop("engine", None) or ScriptedEngine(erratic(PLACES))

    async def main() -> None:
        rollouts = [Rollout(task.id, task, explore(TreeBuilder(task, RULES))) for task in make().tasks("train", 8)]
        try:
            async for rollout, tree in drive(rollouts, Runtime(engine, make, **more), concurrency=8):
                found[rollout.key] = tree
        finally:
            await engine.close()

    asyncio.run(main())
    return found


def disturbed(what: Callable[[], None], after: int) -> Engine:
    """An engine that does something before it answers its request number `after`."""
    asked = 0

    def answer(ask: Ask) -> str:
        nonlocal asked
        asked += 1
        if asked == after:
            what()
        return erratic(PLACES)(ask)

    return ScriptedEngine(answer)


def scripted() -> Engine:
    return ScriptedEngine(erratic(PLACES))


@needs_ray
@pytest.mark.slow
def test_an_actor_that_is_killed_costs_no_result(cluster: Any) -> None:
    links: list[Any] = []

    async def start(service: Any) -> Any:
        links.append(await RayWorkers(cpus=1)(service))
        return links[-1]

    engine = disturbed(lambda: ray.kill(links[0].actor), 60)
    assert driven(host=partial(spread, start, 2), engine=engine) == driven()
    assert len(links) >= 2 and all(isinstance(link, RayLink) for link in links)


@needs_ray
@pytest.mark.slow
def test_replicas_in_actors_give_what_one_engine_gives(cluster: Any) -> None:
    links: list[Any] = []

    async def start(service: Any) -> Any:
        links.append(await RayWorkers(cpus=0.5)(service))
        return links[-1]

    engine = SpreadEngine(start, scripted, replicas=2, concurrency=8)
    assert driven(engine=engine, host=partial(spread, RayWorkers(cpus=0.5), 2)) == driven()
    assert len(links) == 2 and engine.stats.requests > 100


@needs_ray
@pytest.mark.slow
def test_more_than_the_cluster_has_is_refused_in_one_sentence(cluster: Any) -> None:
    with pytest.raises(
        UserError, match=r"a worker wants 64 cores and 0 GPUs, and in 2 s no machine .* has 4 cores .*type a smaller"
    ):
        driven(host=partial(spread, RayWorkers(cpus=64, patience=2), 2))


@needs_ray
@pytest.mark.slow
def test_a_machine_that_is_lost_costs_no_result(cluster: Any) -> None:
    hosts: list[SpreadWorlds] = []

    def host(*how: Any) -> SpreadWorlds:
        hosts.append(spread(RayWorkers(cpus=1), 4, *how))
        return hosts[-1]

    def lose() -> None:
        cluster.remove_node(cluster.second, allow_graceful=False)
        for _ in range(600):  # until the cluster has noticed it, or the run could end before
            if sum(node["Alive"] for node in ray.nodes()) == 2:
                break
            time.sleep(0.1)

    engine = disturbed(lose, 40)
    assert driven(host=host, engine=engine) == driven()
    assert hosts[0].rebuilt > 0 and hosts[0].replaced > 0


RECIPE = """
name: spread
model: nano
prompts: terse
environment: {name: sokoban, args: {horizon: 6}}
tasks: {train: 6, test: 2}
explore: {turns: 12, max_attempts: 3}
engine: {threads: 1, device: cpu}
"""


@needs_ray
@pytest.mark.slow
def test_the_command_line_explores_on_a_cluster_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "spread.yaml").write_text(RECIPE)
    recipe = str(tmp_path / "spread.yaml")
    here = leafe("explore", recipe, "--out", str(tmp_path / "here"))
    there = leafe(
        "explore", recipe, "scale.ray=local", "scale.workers=2", "scale.replicas=2", "scale.cpus=0.25", "scale.gpus=0",
        "--out", str(tmp_path / "there"),
    )  # fmt: skip
    assert (here.status, there.status) == (0, 0), there
    forests = [sorted((tmp_path / name / "round-1" / "forest.jsonl").read_bytes().splitlines()) for name in ("here", "there")]
    assert forests[0] == forests[1] and len(forests[0]) == 7


@needs_ray
def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(
        UserError, match=r"scale\.ray=127\.0\.0\.1:9: no Ray cluster answers \(.*refused\); type: ray start --head, or"
    ):
        connect("127.0.0.1:9")


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"ray, which scale\.ray wants, is not installed; type: pip install"):
        connect("local")
