"""Runs that find less than they hoped for: what is lost, what is kept, and what is said about it. The policies are scripts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer

from leafe.config import parse
from leafe.distillation.store import read_examples
from leafe.engines.base import Engine
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Environment
from leafe.errors import EngineError, UserError
from leafe.experiment import UNTRAINED, Experiment
from leafe.forest.store import read_forest
from leafe.lab import run_recipe, run_verb
from leafe.progress import Silent
from leafe.records import Ask, Usage
from leafe.results import as_json
from leafe.run import RunDirectory
from leafe.settings import RunConfig
from leafe.viewer.report import write_report
from leafe.worlds.fakes import Lookup

RECIPE = """
name: trial
environment: {name: lookup, args: {places: 3, horizon: 2}}
tasks: {train: 6, test: 2}
explore: {turns: 6, max_attempts: 3}
evaluate: {samples: 2, resamples: 10}
train: {epochs: 1, batch_size: 8}
"""
COSTS = ("turns", "prompt_tokens", "sampled_tokens", "reflection_tokens", "replayed_steps", "rollbacks")
Policy = Callable[[Ask], str]


def stubborn(ask: Ask) -> str:
    """Solves nothing without advice."""
    return "turn 1: open place2" if ask.purpose == "reflect" else ask.messages[-1].content.partition("Advice: ")[2] or "wait"


def hopeless(ask: Ask) -> str:
    """Solves nothing and says nothing that can be read."""
    return "wait"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def experiment(base: Path, policies: dict[str, Policy], *overrides: str) -> Experiment:
    """Engines by the folder's name: what is loaded from `base` is `policies["base"]`."""

    def engine(folder: Path) -> Engine:
        name = "base" if folder == base else folder.name
        if name not in policies:
            raise EngineError(f"nobody plays {name}")
        return ScriptedEngine(policies[name])

    def environment() -> Environment:
        return Lookup(places=3, horizon=2)

    config: RunConfig = parse(RECIPE, "trial", [f"model={base}", *overrides])
    return Experiment(config, base, engine, environment, Silent())


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_later_round_without_examples_keeps_what_the_rounds_before_it_learned(base: Path, tmp_path: Path) -> None:
    here = experiment(base, {"base": stubborn, "leafe-round-1": hopeless, "leafe": hopeless}, "rounds=2")
    with RunDirectory.open(tmp_path / "run", here.config) as run:
        run_recipe(here, run)
        assert run.stages["train leafe-round-1"]["examples"] > 0
        assert run.stages["train leafe"] == {"examples": 0, "steps": 0, "note": UNTRAINED}
        assert weights(run.checkpoint("leafe")) == weights(run.checkpoint("leafe-round-1")) != weights(base)
        assert run.stages["evaluate leafe"] == {
            "successes": 0,
            "attempts": 4,
            "engine": "transformers",
            "model": "checkpoints/leafe",
        }


def test_a_control_without_a_success_stays_the_base_and_says_so(base: Path, tmp_path: Path) -> None:
    everything = {"base": stubborn, "leafe": hopeless, "rehearsal": hopeless, "independent": hopeless}
    here = experiment(base, everything, "controls=[independent]", "arms=[leafe, independent]")
    with RunDirectory.open(tmp_path / "run", here.config) as run:
        run_recipe(here, run)
        assert run.stages["train independent"]["note"] == UNTRAINED
        assert weights(run.checkpoint("independent")) == weights(base) != weights(run.checkpoint("leafe"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ("method=leafe", "distill.branches_per_task=0", "distill.success_share=0.0"),
            "branches_per_task=0 and distill.success_share=0",
        ),
        (
            ("method=leafe", "distill.branches_per_task=0", "distill.beta=0.0"),
            "branches_per_task=0 and distill.beta=0 leave nothing",
        ),
        (("method=leafe", "leafe.arms=[leafe, rehearsal]", "distill.beta=0.0"), "distill.beta=0 leaves the arm rehearsal"),
        (("method=soft_targets", "distill.branches_per_task=0", "distill.beta=0.0"), "leave nothing to learn from: raise one"),
    ],
)
def test_settings_that_leave_nothing_to_learn_from_are_refused_before_anything_is_played(
    base: Path, tmp_path: Path, overrides: tuple[str, ...], words: str
) -> None:
    here = experiment(base, {}, *overrides)
    with RunDirectory.open(tmp_path / "run", here.config) as run:
        with pytest.raises(UserError, match=words):
            run_recipe(here, run)
        assert not run.stages


@pytest.mark.parametrize("overrides", [("leafe.arms=[]",), ("distill.success_share=0.0",), ("distill.beta=0.0",)])
def test_settings_that_leave_one_side_to_learn_from_are_not_refused(base: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    here = experiment(base, {"base": stubborn, "leafe": hopeless}, "distill.branches_per_task=3", *overrides)
    with RunDirectory.open(tmp_path / "run", here.config) as run:
        run_recipe(here, run)
        assert run.stages["explore round 1"]


def test_a_first_round_without_examples_is_one_sentence_and_loses_no_measurement(base: Path, tmp_path: Path) -> None:
    here = experiment(base, {"base": hopeless})
    with RunDirectory.open(tmp_path / "run", here.config) as run:
        for _ in range(2):
            with pytest.raises(
                UserError,
                match=r"no attempt succeeded.*prompts=terse",
            ):
                run_recipe(here, run)
        assert list(run.stages) == ["evaluate base", "explore round 1", "distil round 1"]
        assert not run.checkpoint("leafe").exists()


def test_a_budget_in_tokens_is_a_setting_and_ends_exploration_beside_the_one_in_turns(base: Path, tmp_path: Path) -> None:
    for tokens, turns in ((0, 6), (1, 1)):
        here = experiment(base, {"base": stubborn}, f"explore.tokens={tokens}")
        with RunDirectory.open(tmp_path / f"{tokens}", here.config) as run:
            run_verb(here, run, "explore")
            assert max(tree.spend.turns for tree in read_forest(run.forest(1))) == turns


def test_a_forest_that_is_still_growing_is_not_distilled(base: Path, tmp_path: Path) -> None:
    asked = 0

    def dying(ask: Ask) -> str:
        nonlocal asked
        asked += 1
        if asked > 25:
            raise EngineError("the power is gone")
        return stubborn(ask)

    here = experiment(base, {"base": dying})
    with RunDirectory.open(tmp_path / "run", here.config) as run:
        with pytest.raises(EngineError):
            run_verb(here, run, "explore")
        assert run.forest(1).exists()
        with pytest.raises(UserError, match=r"'explore round 1' of .* is not finished yet; type: leafe explore"):
            run_verb(here, run, "distill")
    well = experiment(base, {"base": stubborn})
    with RunDirectory.open(tmp_path / "run", well.config) as run:
        run_verb(well, run, "explore")
        run_verb(well, run, "distill")
        assert len(list(read_forest(run.forest(1)))) == 6
        assert list(read_examples(run.examples(1)))


def test_every_round_explores_with_the_model_of_the_one_before(base: Path, tmp_path: Path) -> None:
    here = experiment(base, {"base": stubborn, "leafe-round-1": stubborn, "leafe": hopeless}, "rounds=2")
    with RunDirectory.open(tmp_path / "run", here.config) as run:
        run_verb(here, run, "train")
        assert {stage for stage in run.stages if stage.startswith("train")} == {"train leafe-round-1", "train leafe"}
        assert run.stages["train leafe"]["examples"] > 0
        models = [weights(folder) for folder in (base, run.checkpoint("leafe-round-1"), run.checkpoint("leafe"))]
        assert len(set(models)) == 3


def test_stages_report_what_exploring_and_training_cost(base: Path, tmp_path: Path) -> None:
    here = experiment(
        base, {"base": stubborn, "leafe": hopeless}, "controls=[independent]", "distill.success_share=1.0", "distill.beta=0.0"
    )
    with RunDirectory.open(tmp_path / "run", here.config) as run:
        run_recipe(here, run)
        for stage, place in {"explore round 1": 1, "explore independent": "independent"}.items():
            spent = sum((tree.spend for tree in read_forest(run.forest(place))), Usage())
            found = {name: run.stages[stage].get(name, 0) for name in COSTS}
            assert found == {name: getattr(spent, name) for name in COSTS}
            assert found["turns"] > 0 and found["prompt_tokens"] > 0 and found["sampled_tokens"] > 0
        assert run.stages["explore round 1"]["rollbacks"] > 0 and run.stages["explore round 1"]["reflection_tokens"] > 0
        assert "rollbacks" not in run.stages["explore independent"]
        # What has no weight carries no gradient and is no example in effect.
        kinds = [example.kind for example in read_examples(run.examples(1))]
        assert run.stages["train leafe"]["examples"] == kinds.count("counterfactual") < len(kinds)
        assert run.stages["train leafe"]["steps"] == 1
        assert as_json(run)["stages"]["explore round 1"] == run.stages["explore round 1"]
        assert "prompt_tokens" not in write_report(run).read_text(encoding="utf-8")
