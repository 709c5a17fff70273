"""GRPO as a method: a run on the bundled model, and what its budget counts. `test_second_stages.py` breaks it in the middle."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from first_step import VARIANTS, first_step, norm
from test_trackers import Kept, trackers

from leafe.compose import bench_of
from leafe.config import parse
from leafe.engines.base import Engine
from leafe.errors import UserError
from leafe.experiment import Experiment
from leafe.jsonl import read_lines
from leafe.lab import run_recipe
from leafe.methods.grpo import GrpoSettings
from leafe.on_policy.groups import compared
from leafe.progress import Silent
from leafe.records import Observation, Task
from leafe.run import RunDirectory
from leafe.worlds.sokoban.environment import Sokoban

RECIPE = """
name: grpo
model: nano
method: grpo
environment: {name: sokoban, args: {rows: 5, columns: 5, min_length: 1, max_length: 3, horizon: 4}}
tasks: {train: 6, test: 2}
explore: {turns: 24}
sampling: {act: {max_tokens: 4}}
train: {learning_rate: 1.0e-4, warmup_share: 0.0}
engine: {slots: 16, cache_gib: 0.2, threads: 1}
evaluate: {samples: 1, resamples: 20}
grpo: {groups: 2, size: 4}
"""
BUDGET = 6 * 24
STEPS_SCHEMA = "leafe.grpo-steps/1"


def experiment(*overrides: str) -> Experiment:
    return bench_of(parse(RECIPE, "grpo.yaml", list(overrides)), Silent())


def run(path: Path, made: Experiment) -> RunDirectory:
    with RunDirectory.open(path, made.config) as directory:
        run_recipe(made, directory)
        return directory


def steps(path: Path) -> list[dict[str, Any]]:
    return list(read_lines(path / "grpo-steps.jsonl", STEPS_SCHEMA))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grpo") / "run"
    run(path, experiment())
    return path


def test_groups_are_sampled_and_learned_from_within_the_budget(whole: Path) -> None:
    taken = steps(whole)
    assert sum(line["turns"] for line in taken) <= BUDGET
    learned = [line for line in taken if "loss" in line]
    assert 1 <= len(learned) <= BUDGET // (2 * 4 * 4) and taken[: len(learned)] == learned
    for line in learned:
        assert 1 <= line["groups"] <= 2 and line["attempts"] == 4 * (line["groups"] + line["empty"])
        assert 0 < line["successes"] < line["attempts"]
        # The policy that learns is the one that sampled, and advantages of a group add up to nothing.
        assert line["ratio"] == pytest.approx(1.0, abs=1e-3) and abs(line["loss"]) < 1e-3 and line["gradient_norm"] > 0


def test_the_trained_model_is_an_arm_beside_the_base(whole: Path) -> None:
    with RunDirectory.existing(whole, read_only=True) as directory:
        assert list(directory.arms()) == ["base", "grpo"]
        kept = directory.stages["train grpo"]
    assert kept["steps"] == sum("loss" in line for line in steps(whole)) and kept["turns"] == sum(
        line["turns"] for line in steps(whole)
    )
    assert not (whole / "grpo").exists()


def test_a_run_that_was_killed_when_training_was_over_does_not_train_again(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "run"))
    (path / "grpo.over").mkdir()
    stages = json.loads((path / "stages.json").read_text())
    for name in ("train grpo", "evaluate grpo"):
        del stages[name]
    (path / "stages.json").write_text(json.dumps(stages))
    made = experiment()

    def loaded(folder: Path) -> Engine:
        assert folder.name == "grpo"  # nothing is sampled from the base any more
        return made.load_engine(folder)

    again = run(path, replace(made, load_engine=loaded))
    with RunDirectory.existing(whole, read_only=True) as before:
        assert again.stages["train grpo"] == before.stages["train grpo"]
    assert not (path / "grpo.over").exists()


@pytest.mark.parametrize(
    ("variant", "loss", "gradient"),
    [
        ("GRPO", 0.0, 13.538631),
        ("Dr. GRPO", -0.02777777, 2.930939),
        ("DAPO", -0.12827781, 13.535120),
        ("DAPO with an entropy bonus", -0.18445224, 13.502231),
    ],
)
def test_a_first_step_is_that_of_trl(variant: str, loss: float, gradient: float) -> None:
    """The figures are those of TRL 1.16.0, which `benchmarks/trl_first_step.py` compares with gradient by gradient."""
    found, gradients = first_step(VARIANTS[variant])
    assert found == pytest.approx(loss, abs=1e-5) and norm(gradients) == pytest.approx(gradient, rel=1e-4)


def test_where_no_group_teaches_anything_the_arm_is_the_base_and_says_so(tmp_path: Path) -> None:
    hard = "environment.args={rows: 6, columns: 6, min_length: 12, max_length: 16, horizon: 2}"
    found = run(tmp_path / "run", experiment(hard, "tasks.train=2", "tasks.test=1", "explore.turns=20")).stages["train grpo"]
    assert found["steps"] == 0 and "nothing to learn from" in found["note"] and 0 < found["turns"] <= 40


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sampling.act.temperature=0", "at temperature 0 they are all the same"),
        ("engine.kind=openai engine.base_url=http://localhost:1/v1", "engine.kind=openai does not take"),
        ("grpo.advantage=pkpo grpo.k=4", "grpo.k: wanted less than the 4 attempts"),
        ("grpo.kl=0.1 sampling.act.temperature=0.7", "grpo.kl wants sampling.act.temperature=1"),
        ("grpo.kl=0.1 sampling.act.top_p=0.95", "found 0.95; type sampling.act.top_p=1, or grpo.kl=0$"),
        ("train.processes=2", "method grpo trains in one process"),
        ("train.sharding=fsdp", "set train.processes=1 train.sharding=none"),
        ("grpo.size=1", "size"),
        ("train.optimizer=adafactor", r"type train\.optimizer=auto"),
        ("explore.tokens=500", r"found explore\.tokens=500"),
        ("explore.stop_when_solved=2", r"wanted 0, found 2; type explore\.stop_when_solved=0$"),
        ("grpo.normalise=seq", "^grpo.normalise: wanted"),
    ],
)
def test_settings_that_cannot_go_together_are_refused_when_they_are_read(override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        experiment(*override.split())


def test_a_budget_that_holds_no_step_is_refused_with_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not hold one step .*type explore\.turns=6"):
        run(tmp_path / "run", experiment("explore.turns=5"))
    assert not (tmp_path / "run" / "eval").exists()


def test_a_batch_that_teaches_nothing_does_not_end_training(tmp_path: Path) -> None:
    run(tmp_path / "run", experiment("grpo.dynamic=false", "grpo.groups=1"))
    taken = steps(tmp_path / "run")
    learned, spent = [line for line in taken if "loss" in line], sum(line["turns"] for line in taken)
    assert any(line["empty"] for line in learned) and (len(learned) == BUDGET // 16 or BUDGET - spent < 16)


@pytest.mark.slow
def test_a_world_that_breaks_in_the_middle_stops_training_which_goes_on_when_it_is_repaired(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Task] = []
    reset = Sokoban.reset

    def failing(world: Sokoban, task: Task) -> Observation:
        begun.append(task)
        if len(begun) > 12:
            raise RuntimeError("the world is away")
        return reset(world, task)

    with monkeypatch.context() as patched, pytest.raises(UserError, match=r"every attempt so far .*the world is away"):
        patched.setattr(Sokoban, "reset", failing)
        run(tmp_path / "run", experiment())
    again = run(tmp_path / "run", experiment())
    with RunDirectory.existing(whole, read_only=True) as before:
        assert again.stages["train grpo"] == before.stages["train grpo"]
    assert steps(tmp_path / "run") == steps(whole)


@pytest.mark.slow
def test_broken_attempts_are_counted_and_steps_are_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Task] = []
    reset = Sokoban.reset

    def failing(world: Sokoban, task: Task) -> Observation:
        begun.append(task)
        if not len(begun) % 5:
            raise RuntimeError("the world is away")
        return reset(world, task)

    monkeypatch.setattr(Sokoban, "reset", failing)
    kept = Kept()
    made = replace(experiment(), tracker=trackers(kept, tmp_path))
    stage = run(tmp_path / "run", made).stages["train grpo"]
    taken = steps(tmp_path / "run")
    assert stage["broken"] == sum(line["broken"] for line in taken if "broken" in line) > 0
    assert all(line["errors"] == {"EnvironmentFailure": line["broken"]} for line in taken if "broken" in line)
    told = [(step, figures["loss"]) for name, step, figures in kept.told if name == "train grpo"]
    assert told == [(line["step"], line["loss"]) for line in taken if "loss" in line]


def test_a_group_whose_advantages_are_all_nothing_teaches_nothing() -> None:
    settings = GrpoSettings(advantage="pkpo", size=8, k=4)
    assert compared([(number, float(number < 6)) for number in range(8)], settings) == []
    assert len(compared([(number, float(number < 4)) for number in range(8)], settings)) == 8
