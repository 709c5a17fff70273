"""The whole method once, small enough to know every number: fail, look back, roll back, succeed, learn that without the advice.

The policy is a script; only training is real, on a model of random weights that nobody asks anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from players import TERSE
from tiny import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from leafe.chat import fill
from leafe.cli import app
from leafe.config import parse
from leafe.distillation.store import read_examples
from leafe.engines.base import Engine
from leafe.engines.scripted import ScriptedEngine
from leafe.errors import EngineError
from leafe.experiment import Experiment
from leafe.forest.store import read_forest
from leafe.lab import run_recipe
from leafe.progress import Silent
from leafe.records import Ask, StopReason, Tree
from leafe.run import RunDirectory
from leafe.settings import RunConfig
from leafe.viewer.report import write_report
from leafe.worlds.fakes import Lookup

RECIPE = """
name: golden
model: {model}
environment: {{name: lookup, args: {{places: 4, horizon: 3}}}}
tasks: {{train: 8, test: 16}}
explore: {{turns: 40, max_attempts: 4, max_depth: 3}}
controls: [independent, refine]
distill: {{qualify: success, success_share: 1.0}}
train: {{epochs: 1, learning_rate: 1e-3, batch_size: 8}}
evaluate: {{samples: 2, resamples: 50}}
arms: [leafe, rehearsal]
"""
PLACES = [f"place{number}" for number in range(1, 5)]


def untrained(ask: Ask) -> str:
    """Opens the first place again and again; advised, the place that the advice names. Looks back to turn 2, one place further."""
    said = "".join(message.content for message in ask.messages)
    if ask.purpose == "reflect":
        furthest = max(number for number, place in enumerate(PLACES) if number == 0 or f"open {place} instead" in said)
        return f"turn 2: open {PLACES[furthest + 1]} instead" if furthest < 3 else "turn none"
    latest = ask.messages[-1].content
    return next((f"open {place}" for place in PLACES if f"open {place} instead" in latest), "open place1")


def trained(ask: Ask) -> str:
    """What the examples teach: another place each turn."""
    return f"open {PLACES[sum(message.role == 'assistant' for message in ask.messages)]}"


@dataclass
class Models:
    """Engines by the folder that they are loaded from. `patience` is how many requests they answer, all together."""

    patience: int | None = None
    loaded: list[str] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)

    def load(self, folder: Path) -> Engine:
        """A script in the place of the folder's model."""
        assert (folder / "model.safetensors").is_file()
        self.loaded.append(folder.name)
        engine = ScriptedEngine(trained if folder.name == "leafe" else untrained, fail_after=self.patience)
        engine.asks = self.asks
        return engine


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_tokenizer().save_pretrained(folder)
    tiny_model().save_pretrained(folder)
    return parse(RECIPE.format(model=folder), "golden")


def complete(config: RunConfig, path: Path, models: Models) -> None:
    """What `leafe run` does, with scripts for models."""
    experiment = Experiment(config, Path(config.model), models.load, lambda: Lookup(**config.environment.args), Silent())
    with RunDirectory.open(path, config) as directory:
        run_recipe(experiment, directory)
        write_report(directory)
        assert not directory.done
        directory.finish()


@dataclass(frozen=True)
class Golden:
    """The finished run."""

    run: RunDirectory
    models: Models
    trees: list[Tree]

    def key(self, tree: Tree) -> int:
        """Where a tree's key lies, from 1."""
        return PLACES.index(str(tree.task.payload["key"])) + 1


@pytest.fixture(scope="module")
def golden(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Golden]:
    path, models = tmp_path_factory.mktemp("runs") / "golden", Models()
    complete(config, path, models)
    with RunDirectory.existing(path, read_only=True) as run:
        yield Golden(run, models, list(read_forest(run.forest())))


def test_every_task_is_solved_by_as_many_rollbacks_as_its_key_is_far(golden: Golden) -> None:
    assert len({golden.key(tree) for tree in golden.trees}) == 4
    for tree in golden.trees:
        success = next(attempt for attempt in tree.attempts if attempt.success)
        assert success.index == success.depth == golden.key(tree) - 1
        assert [attempt.stop for attempt in tree.attempts[: success.index]] == [StopReason.TURN_LIMIT] * success.index
        if success.index:
            assert (success.parent, success.turn) == (success.index - 1, 2)
            assert [turn.action for turn in tree.trajectory(success.leaf)] == ["open place1", f"open place{golden.key(tree)}"]
            assert success.experience == f"open place{golden.key(tree)} instead"


def test_the_counterfactual_example_is_the_mended_action_under_the_prompt_without_advice(golden: Golden) -> None:
    examples = [example for example in read_examples(golden.run.examples()) if example.kind == "counterfactual"]
    solved = [tree for tree in golden.trees if golden.key(tree) > 1]
    assert {example.task for example in examples} == {tree.task.id for tree in solved}
    for example in examples:
        tree = next(tree for tree in solved if tree.task.id == example.task)
        assert example.target == f"open place{golden.key(tree)}" and example.target_ids == tuple(example.target.encode())
        first = fill(TERSE.first, instruction="Find the key.", horizon=3, observation=tree.root.text)
        assert [(message.role, message.content, message.sampled) for message in example.messages] == [
            ("user", first, False),
            ("assistant", "open place1", True),
            ("user", fill(TERSE.turn, turn=2, observation="Empty."), False),
        ]


def test_no_advice_reaches_any_training_prompt_or_target(golden: Golden) -> None:
    for example in read_examples(golden.run.examples()):
        assert "instead" not in example.target + "".join(message.content for message in example.messages)


def test_the_controls_explored_the_same_tasks_with_the_same_first_attempts_at_no_larger_cost(golden: Golden) -> None:
    for method in ("independent", "refine"):
        control = {tree.task.id: tree for tree in read_forest(golden.run.forest(method))}
        assert control.keys() == {tree.task.id for tree in golden.trees}
        for tree in golden.trees:
            other = control[tree.task.id]
            assert other.method == method and other.spend.turns <= 40 and other.spend.replayed_steps == 0
            assert [turn for turn in other.turns if turn.attempt == 0] == [turn for turn in tree.turns if turn.attempt == 0]


def test_the_stages_come_in_the_order_of_the_method_and_done_comes_last(golden: Golden) -> None:
    assert list(golden.run.stages) == [
        "evaluate base",
        "explore round 1",
        "explore independent",
        "explore refine",
        "distil round 1",
        "train leafe",
        "train rehearsal",
        "evaluate leafe",
        "evaluate rehearsal",
    ]
    assert golden.run.stages["explore round 1"]["solved"] == golden.run.stages["explore round 1"]["tasks"] == 8
    assert golden.run.stages["explore round 1"]["turns"] == sum(len(tree.turns) for tree in golden.trees)
    assert golden.models.loaded == ["base", "base", "base", "base", "leafe", "rehearsal"]
    assert golden.run.done and not golden.run.journal().exists()
    written = {path: path.stat().st_mtime_ns for path in golden.run.path.rglob("*") if path.is_file()}
    assert max(written.values()) == written[golden.run.path / "DONE"]


def test_the_page_shows_the_run(golden: Golden) -> None:
    page = golden.run.report.read_text(encoding="utf-8")
    assert "golden" in page and "open place2 instead" in page and "<script src" not in page


def test_compare_gives_pass_at_k_of_every_arm_and_its_gain_as_json(golden: Golden) -> None:
    result = CliRunner().invoke(app, ["compare", str(golden.run.path), "--json"])
    assert result.exit_code == 0, result.output
    arms = {arm.pop("name"): arm for arm in json.loads(result.output)["arms"]}
    assert list(arms) == ["base", "leafe", "rehearsal"]
    keys = [task.payload["key"] for task in Lookup(places=4, horizon=3).tasks("test", 16)]
    base, leafe = keys.count("place1") / 16, 1 - keys.count("place4") / 16
    assert 0 < base < leafe
    assert {k: interval["value"] for k, interval in arms["base"]["pass_at_k"].items()} == {"1": base, "2": base}
    assert {k: interval["value"] for k, interval in arms["leafe"]["pass_at_k"].items()} == {"1": leafe, "2": leafe}
    gain = arms["leafe"]["minus_base"]["1"]
    assert gain["low"] <= gain["value"] <= gain["high"] and gain["value"] == pytest.approx(leafe - base)
    assert arms["base"]["minus_base"] == {} and arms["rehearsal"]["minus_base"]["1"]["value"] == 0
    for arm in arms.values():
        assert set(arm) == {"pass_at_k", "minus_base", "turns", "tokens", "errors", "faults"}
        assert arm["errors"] == {} and arm["turns"] > 0 and arm["tokens"] > 0


def test_a_finished_run_is_left_as_it_is(golden: Golden, config: RunConfig) -> None:
    before = {path: path.read_bytes() for path in golden.run.path.rglob("*.jsonl")}
    again = Models()
    experiment = Experiment(config, Path(config.model), again.load, Lookup, Silent())
    with RunDirectory.open(golden.run.path, config) as directory:
        run_recipe(experiment, directory)
    assert again.loaded == [] and {path: path.read_bytes() for path in golden.run.path.rglob("*.jsonl")} == before


def test_a_run_whose_engine_keeps_dying_ends_with_the_same_forests_and_outcomes(
    golden: Golden, config: RunConfig, tmp_path: Path
) -> None:
    deaths = 0
    while not (tmp_path / "golden" / "DONE").exists():
        try:
            complete(config, tmp_path / "golden", Models(patience=20 * (deaths + 1)))
        except EngineError:
            deaths += 1
    assert deaths > 5
    with RunDirectory.existing(tmp_path / "golden", read_only=True) as run:
        assert run.stages.keys() == golden.run.stages.keys()
        for name in (
            "round-1/forest.jsonl",
            "controls/independent.jsonl",
            "controls/refine.jsonl",
            "eval/base.jsonl",
            "eval/leafe.jsonl",
            "eval/base.watched.jsonl",
            "eval/leafe.watched.jsonl",
        ):
            mended, alone = ((one.path / name).read_bytes().splitlines() for one in (run, golden.run))
            assert sorted(mended) == sorted(alone)
        assert (run.path / "round-1/examples.jsonl").read_bytes() == (golden.run.path / "round-1/examples.jsonl").read_bytes()
