"""Classes of one's own that leave something loose: they are read as they are meant, or refused in one sentence before anything is begun."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from players import scripted

from leafe.config import parse
from leafe.engines.scripted import ScriptedEngine
from leafe.envs import registry
from leafe.envs.base import Environment
from leafe.envs.check import check_environment
from leafe.envs.settled import drawn, settled
from leafe.envs.world import World
from leafe.errors import UserError
from leafe.experiment import Experiment
from leafe.preflight import short_horizons
from leafe.progress import Silent
from leafe.records import Observation, Task
from leafe.worlds.fakes import Lookup


def giving(change: Callable[[Sequence[Task]], Any]) -> Environment:
    """A world whose tasks are changed."""

    class Giving(Lookup):
        def tasks(self, split: str, count: int, seed: int = 0) -> Any:
            return change(super().tasks(split, count, seed))

    return Giving()


def experiment(kind: type[Environment]) -> Experiment:
    config = parse("name: trial\nenvironment: {name: lookup}\nprompts: terse\ntasks: {train: 3, test: 2}", "trial")
    return Experiment(config, Path("none"), lambda folder: ScriptedEngine(scripted()), kind, Silent())


def test_annotations_that_only_a_type_checker_sees_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nfrom leafe.worlds.fakes import Lookup\n"
        "if TYPE_CHECKING:\n    from pathlib import Path\n"
        "class World(Lookup):\n    def __init__(self, folder: Path | None = None):\n        super().__init__()\n"
    )
    (tmp_path / "typed_world.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("typed_world", None)
    assert registry.make("typed_world:World", {"folder": "here"}).name == "lookup"


def test_tasks_may_be_a_generator() -> None:
    assert drawn(giving(iter), "train", 3, 0) == Lookup().tasks("train", 3)


def _breaks(tasks: Sequence[Task]) -> Iterator[Task]:
    yield tasks[0]
    raise KeyError("no more")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tasks: None, r"tasks\('train', 3, 0\) of lookup wants a list of leafe.records.Task; found None"),
        (lambda tasks: ["one", "two", "three"], r"wants a list of leafe.records.Task; found \['one'"),
        (lambda tasks: [], "wants 3 tasks, found 0; let it give as many"),
        (
            lambda tasks: tasks[:2],
            "wants 3 tasks, found 2; ask for fewer, as with tasks.train and tasks.test, or let it give as many",
        ),
        (lambda tasks: [*tasks, *tasks], "wants 3 tasks, found 6; let it give as many"),
        (
            lambda tasks: [replace(task, id="same") for task in tasks],
            "several tasks with the id 'same'.*give each an id of its own",
        ),
        (_breaks, "raised KeyError: 'no more'"),
    ],
)
def test_tasks_that_are_not_as_many_as_asked_for_or_share_an_id_are_refused(change: Callable[..., Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        drawn(giving(change), "train", 3, 0)


def test_a_run_refuses_tasks_that_share_an_id_before_it_begins() -> None:
    kind = type(giving(lambda tasks: [replace(task, id="same") for task in tasks]))
    with pytest.raises(UserError, match="several tasks with the id 'same'"):
        experiment(kind).check()


class Failing(Lookup):
    """Knows too little about its own tasks."""

    def fewest_turns(self, task: Task) -> int | None:
        raise KeyError("length")


class Vague(Lookup):
    """Says how many in words."""

    def fewest_turns(self, task: Task) -> Any:
        return "several"


class Slow(Lookup):
    """Waits for what it knows."""

    async def fewest_turns(self, task: Task) -> int | None:  # type: ignore[override]
        return task.horizon + 1


def test_fewest_turns_that_breaks_is_one_sentence() -> None:
    tasks = Lookup().tasks("train", 2)
    with pytest.raises(UserError, match=r"fewest_turns of lookup raised KeyError: 'length' .* for the task 'lookup-"):
        list(short_horizons(Failing(), tasks))
    with pytest.raises(UserError, match=r"fewest_turns of lookup gave 'several' .*return None where"):
        list(short_horizons(Vague(), tasks))


class Timid(Lookup):
    """Says more than it takes."""

    def fewest_turns(self, task: Task) -> int | None:
        return 5


@pytest.mark.parametrize(
    ("kind", "told"),
    [(Failing, "raised KeyError: 'length'"), (Vague, "gave 'several'"), (Timid, "at least 5 turns, and was solved in 1")],
)
def test_the_check_reports_fewest_turns_that_a_run_would_refuse_or_that_are_too_many(kind: type[Environment], told: str) -> None:
    report = check_environment(kind, name="lookup", rollbacks=10, count=2)
    (found,) = [finding for finding in report.findings if finding.verdict == "fail"]
    assert found.name == "fewest_turns" and told in found.sentence


def test_fewest_turns_may_be_a_coroutine() -> None:
    made = settled(Slow())
    (told,) = short_horizons(made, made.tasks("train", 2))
    made.close()
    assert "2 of 2 tasks cannot be solved within their horizon" in told
    experiment(Slow).check()


class Waiting(Lookup):
    """A place is drawn while one waits, also anew."""

    draw = random.Random(0)

    async def reset(self, task: Task) -> Observation:  # type: ignore[override]
        self.draw = random.Random(0)
        return super().reset(task)

    async def step(self, action: str) -> Observation:  # type: ignore[override]
        return Observation(f"{super().step(action).text} {self.draw.randrange(10**6)}")

    async def reseed(self, seed: int) -> None:  # type: ignore[override]
        self.draw = random.Random(seed)


@pytest.mark.filterwarnings("error")
def test_reseed_may_be_a_coroutine() -> None:
    world = World(Waiting())
    world.reset(world.environment.tasks("train", 1)[0])
    texts = {world.step("open place1", seed).text for seed in (None, 1, 2)}
    again = world.step("open place1", 1).text
    world.close()
    assert len(texts) == 3 and again in texts


class Unclosable(Lookup):
    """Its server is gone when it says good-bye."""

    def close(self) -> None:
        raise RuntimeError("server gone")


def test_a_world_that_cannot_be_closed_costs_nothing_and_is_reported_by_the_check() -> None:
    trial = experiment(Unclosable)
    trial.check()
    assert len(trial.tasks("train")) == 3
    report = check_environment(Unclosable, name="lookup", rollbacks=10, count=2)
    (found,) = [finding for finding in report.findings if finding.verdict == "fail"]
    assert found.name == "close" and "RuntimeError: server gone" in found.sentence
