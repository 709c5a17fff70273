"""Trackers: what they are told of exploring, training and measuring, once, though a run was killed; what is missing is said at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from test_sft import PLAN, TOKENIZER, lessons
from tiny import tiny_model

from leafe.compose import bench_of
from leafe.config import parse
from leafe.engines.base import Engine
from leafe.engines.scripted import ScriptedEngine
from leafe.errors import EngineError, UserError
from leafe.experiment import Experiment, ForestSpec, explore_tasks
from leafe.jsonl import read_lines
from leafe.measuring import measure_stage
from leafe.progress import Silent
from leafe.run import RunDirectory
from leafe.stages import Policy
from leafe.tracked import due
from leafe.trackers import LEDGER, OUTLETS, SCHEMA, Trackers, check_trackers
from leafe.training.sft import fine_tune
from leafe.worlds.fakes import Lookup

RECIPE = "name: tracked\nenvironment: {name: lookup}\ntasks: {train: 6, test: 3}\nexplore: {turns: 2}\nevaluate: {samples: 2}"


@dataclass
class Kept:
    """An outlet that keeps what it is told."""

    told: list[tuple[str, int, dict[str, float]]] = field(default_factory=list)
    closed: bool = False

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        self.told.append((stage, step, dict(figures)))

    def close(self) -> None:
        self.closed = True


def trackers(kept: Kept, run: Path) -> Trackers:
    """Trackers of a run that tell `kept`."""
    found = Trackers(["tensorboard"], {"tensorboard": ("json", lambda path: kept)})
    run.mkdir(exist_ok=True)
    found.open(run)
    return found


def experiment(tracker: Trackers, fail_after: int | None = None) -> Experiment:
    def engine(folder: Path) -> Engine:
        return ScriptedEngine(lambda ask: "open place1", fail_after=fail_after, concurrency=2)

    config = parse(RECIPE, "tracked", [])
    return Experiment(config, Path("none"), engine, lambda: Lookup(places=2, horizon=2), Silent(), tracker=tracker)


def test_exploring_tells_every_task_once_though_it_was_killed_and_gone_on_with(tmp_path: Path) -> None:
    spec = ForestSpec("independent", 1, Path("none"), tmp_path / "forest.jsonl", tmp_path / "journal.jsonl")
    kept, again = Kept(), Kept()
    tracker = trackers(kept, tmp_path / "run")
    with pytest.raises(EngineError):
        explore_tasks(experiment(tracker, fail_after=6), "explore round 1", spec)
    tracker.close()
    assert kept.closed and 0 < len(kept.told) < 6
    trees = explore_tasks(experiment(trackers(again, tmp_path / "run")), "explore round 1", spec)
    told = kept.told + again.told
    assert [(stage, step) for stage, step, _ in told] == [("explore round 1", step) for step in range(1, 7)]
    solved = sum(any(attempt.success for attempt in tree.attempts) for tree in trees)
    turns = sum(tree.spend.turns for tree in trees)
    attempts = sum(len(tree.attempts) for tree in trees)
    assert told[-1][2] == {"solved": solved, "solved_share": solved / 6, "turns": turns, "attempts": attempts}


def test_measuring_tells_successes_as_they_come(tmp_path: Path) -> None:
    kept = Kept()
    made = experiment(trackers(kept, tmp_path / "kept"))
    with RunDirectory.open(tmp_path / "run", made.config) as run:
        figures = measure_stage(made, run, "base", Policy(Path("none"))).figures
    assert [step for _, step, _ in kept.told] == [1, 2, 3, 4, 5, 6]
    assert kept.told[-1] == ("evaluate base", 6, {"successes": figures["successes"], "success_share": figures["successes"] / 6})


def test_training_tells_loss_and_rate_of_each_step(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    noticed: list[tuple[int, dict[str, float]]] = []
    plan = PLAN.model_copy(update={"batch_size": 8, "epochs": 1})
    told: Callable[[int, Mapping[str, float]], None] = lambda step, figures: noticed.append((step, dict(figures)))  # noqa: E731
    report = fine_tune(tmp_path / "base", lessons(), tmp_path / "out", plan, seed=1, noticed=told)
    assert [step for step, _ in noticed] == list(range(1, report.steps + 1))
    assert sum(figures["loss"] for _, figures in noticed) / report.steps == pytest.approx(report.loss)
    rates = [figures["learning_rate"] for _, figures in noticed]
    assert rates[0] == plan.learning_rate and rates == sorted(rates, reverse=True) and rates[-1] > 0


def test_a_step_that_was_told_is_not_told_again_and_a_kill_leaves_the_ledger_readable(tmp_path: Path) -> None:
    first, second = Kept(), Kept()
    trackers(first, tmp_path / "run").log("a", 1, {"x": 1.0})
    with open(tmp_path / "run" / LEDGER, "ab") as file:
        file.write(b'{"stage": "a", "st')  # killed while it wrote
    on = trackers(second, tmp_path / "run")
    for step in (1, 2, 2):
        on.log("a", step, {"x": 1.0})
    on.log("b", 1, {"x": 2.0})
    on.close()
    on.log("b", 2, {"x": 2.0})  # after its end
    assert second.told == [("a", 2, {"x": 1.0}), ("b", 1, {"x": 2.0})]
    assert list(read_lines(tmp_path / "run" / LEDGER, SCHEMA))[-1] == {"stage": "b", "step": 1}


def test_nobody_is_told_by_default_and_nothing_is_written(tmp_path: Path) -> None:
    nobody = Trackers(parse(RECIPE, "tracked", []).report_to)
    nobody.open(tmp_path)
    nobody.log("a", 1, {"x": 1.0})
    assert not nobody.active and not list(tmp_path.iterdir())


def test_a_missing_package_is_one_sentence_before_a_model_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OUTLETS, "trackio", ("no_such_package", OUTLETS["trackio"][1]))
    config = parse(RECIPE, "tracked", ["report_to=[trackio]", "model=./none"])
    with pytest.raises(
        UserError, match=r"^report_to=trackio wants the package no_such_package, .* pip install 'leafe\[trackio\]'$"
    ):
        bench_of(config, Silent())
    with pytest.raises(UserError, match=r"report_to.*wanted 'tensorboard', 'trackio' or 'wandb', found 'mlflow'"):
        parse(RECIPE, "tracked", ["report_to=[mlflow]"])


def test_trackers_do_not_make_another_run(tmp_path: Path) -> None:
    config = parse(RECIPE, "tracked", [])
    RunDirectory.open(tmp_path, config).close()
    RunDirectory.open(tmp_path, config.model_copy(update={"report_to": ("tensorboard",)})).close()


def test_what_tensorboard_was_told_can_be_read_back(tmp_path: Path) -> None:
    reader: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    check_trackers(["tensorboard"])
    for steps in ((1, 2), (2, 3)):  # the second time after a kill
        tracker = Trackers(["tensorboard"])
        tracker.open(tmp_path)
        for step in steps:
            tracker.log("explore round 1", step, {"solved": step * 2, "solved_share": 0.5})
        tracker.close()
    found = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    points = [(point.step, point.value) for point in found.Scalars("explore round 1/solved")]
    assert points == [(1, 2.0), (2, 4.0), (3, 6.0)]


@pytest.mark.parametrize("total", [1, 7, 99, 100, 101, 5000])
def test_a_stage_is_told_of_at_most_a_hundred_times_and_of_its_end(total: int) -> None:
    told = [done for done in range(1, total + 1) if due(done, total)]
    assert len(told) == min(total, 100) and told[-1] == total
