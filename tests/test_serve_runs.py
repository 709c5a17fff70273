"""Runs that start their server themselves, through the command line and as functions; the program is `fake_vllm.py`."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest
from command import Said, leafe
from test_serve import FAKE, Plan
from tiny import tiny_model, tiny_tokenizer

import leafe as api
from leafe.config import load_recipe
from leafe.forest.store import read_forest
from leafe.launching import Launched
from leafe.progress import Silent
from leafe.records import BROKEN, Ask, Message, Sampling, Tree
from leafe.run import RunDirectory

RECIPE = """
name: trial
environment: {name: lookup, args: {places: 3, horizon: 2}}
tasks: {train: 6, test: 2}
explore: {turns: 6, max_attempts: 3}
distill: {qualify: any}
evaluate: {samples: 2, resamples: 10}
engine: {kind: vllm, threads: 1, patience: 60}
sampling: {act: {max_tokens: 24}, reflect: {max_tokens: 48}}
train: {epochs: 1, batch_size: 8}
arms: []
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    (tmp_path / "fake").mkdir()
    (tmp_path / "trial.yaml").write_text(RECIPE, encoding="utf-8")
    return Plan(tmp_path / "fake", monkeypatch)


def run(plan: Plan, model: Path, *more: str, out: str = "run") -> Said:
    place = plan.folder.parent
    command = f"engine.command=[{sys.executable}, {FAKE}]"
    return leafe("run", place / "trial.yaml", "--out", place / out, f"model={model}", command, *more)


def words(said: Said) -> str:
    return " ".join(said.out.split())


def forest(path: Path) -> list[Tree]:
    return sorted(read_forest(path / "round-1" / "forest.jsonl"), key=lambda tree: tree.task.id)


def test_a_run_whose_server_is_killed_gives_the_forest_of_an_undisturbed_one_and_measures_what_it_trained(
    plan: Plan, model: Path, tmp_path: Path
) -> None:
    assert run(plan, model, out="whole").status == 0
    assert len(plan.starts) == 1 and not plan.left  # probed, measured and explored with one server, which then ended

    plan({}, {"answers": 40}, {})
    said = run(plan, model, "arms=[leafe]")
    assert said.status == 0, said.err
    assert "starting it again, 1 of at most 3 times" in words(said) and "ended by SIGKILL" in words(said)
    assert "measured in this process" not in words(said)
    assert forest(tmp_path / "run") == forest(tmp_path / "whole")
    assert not [attempt.stop for tree in forest(tmp_path / "run") for attempt in tree.attempts if attempt.stop in BROKEN]
    turns = [turn.completion for tree in forest(tmp_path / "run") for turn in tree.turns]
    assert turns and all(len(turn.token_ids) == len(turn.logprobs) > 0 for turn in turns)

    served = [start["model"] for start in plan.starts[1:]]
    assert served == [str(model), str(model), str(tmp_path / "run" / "checkpoints" / "leafe")] and not plan.left
    with RunDirectory.existing(tmp_path / "run", read_only=True) as directory:
        assert directory.stages["probe"]["server"] == "vLLM 0.30.0" and directory.stages["evaluate leafe"]["attempts"] == 4
        measured = [
            path.read_text().splitlines() for path in (directory.evaluation("base"), tmp_path / "whole" / "eval" / "base.jsonl")
        ]
        assert sorted(measured[0]) == sorted(measured[1])  # which finishes first is not promised
    assert [path.name for path in sorted((tmp_path / "run" / "server").iterdir())] == [f"server-00{n}.log" for n in (1, 2, 3)]
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(start["key"].encode() in text for text in written for start in plan.starts)
    assert not any(start["key"] in said.out + said.err for start in plan.starts)


def test_an_on_policy_method_samples_here_while_it_trains_and_is_measured_through_the_server(
    plan: Plan, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "trial.yaml").write_text(RECIPE.replace("arms: []", ""), encoding="utf-8")
    said = run(plan, model, "method=grpo", "grpo.groups=1", "grpo.size=2", "explore.turns=8", "sampling.act.temperature=1")
    assert said.status == 0, said.err
    out = tmp_path / "run"
    assert [start["model"] for start in plan.starts] == [str(model), str(out / "checkpoints" / "grpo")] and not plan.left
    with RunDirectory.existing(out, read_only=True) as directory:
        stages = directory.stages
        assert stages["train grpo"]["turns"] > 0
        assert [stages[f"evaluate {arm}"]["engine"] for arm in ("base", "grpo")] == ["vllm", "vllm"]


@pytest.mark.slow
def test_trained_adapters_are_loaded_into_the_server_of_the_base_also_when_it_died(plan: Plan, model: Path, tmp_path: Path) -> None:
    plan({}, {"answers": 24}, {})
    said = run(plan, model, "arms=[leafe, rehearsal]", "train.lora={rank: 2, keep: true}", "evaluate.samples=8")
    assert said.status == 0, said.err
    assert [start["model"] for start in plan.starts] == [str(model)] * len(plan.starts)  # no checkpoint was served
    assert len(plan.starts) == 3 and "starting it again" in words(said)
    pairs = [list(zip(start["line"], start["line"][1:], strict=False)) for start in plan.starts]
    assert all(("--max-lora-rank", "8") in pair for pair in pairs)
    for arm in ("leafe", "rehearsal"):
        adapter = tmp_path / "run" / "checkpoints" / arm / "adapter"
        assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
        assert f"{arm} is served as an adapter" in words(said)
    with RunDirectory.existing(tmp_path / "run", read_only=True) as directory:
        assert [directory.stages[f"evaluate {arm}"]["attempts"] for arm in ("base", "leafe", "rehearsal")] == [16, 16, 16]


@pytest.mark.parametrize("trained_on", ["base", "first round", "unknown"])
def test_an_adapter_is_served_only_on_the_model_that_it_was_trained_on(
    trained_on: str, plan: Plan, model: Path, tmp_path: Path
) -> None:
    arm = tmp_path / "arm"
    shutil.copytree(model, arm)
    (arm / "adapter").mkdir()
    named = {"base": {"base_model_name_or_path": str(model)}, "first round": {"base_model_name_or_path": str(tmp_path)}}
    (arm / "adapter" / "adapter_config.json").write_text(json.dumps(named.get(trained_on, {})))
    overrides = [f"model={model}", f"engine.command=[{sys.executable}, {FAKE}]", "train.lora={rank: 2, keep: true}"]
    launched = Launched(load_recipe(str(tmp_path / "trial.yaml"), overrides), model, Silent())

    async def work() -> None:
        engine = launched.engine(arm)
        await engine.generate(Ask((Message("user", "go"),), Sampling(max_tokens=24), 1))
        await engine.close()

    asyncio.run(work())
    launched.server.free()
    assert [start["model"] for start in plan.starts] == [str(model if trained_on == "base" else arm)]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("engine.command=[/no/such/vllm]", "make an environment for vLLM (python -m venv vllm-env"),
        ("engine.arguments=[--max-model-len, '64']", "type engine.max_context=VALUE"),
        ("train.lora={rank: 1024, keep: true}", "train.lora.rank: wanted at most 512"),
        ("engine.arguments=[--no-such-option]", "unrecognized arguments: --no-such-option"),
        ("engine.base_url=http://127.0.0.1:1/v1", "leave out engine.base_url, or type engine.kind=openai"),
        ("sampling.act.max_tokens=4", "every reply would be cut; type sampling.act.max_tokens="),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence_and_leaves_neither_a_run_nor_a_server(
    more: str, sentence: str, plan: Plan, model: Path, tmp_path: Path
) -> None:
    said = run(plan, model, more)
    assert (said.status, said.err.count("\n")) == (2, 1) and sentence in said.err, said
    assert not (tmp_path / "run").exists() and not plan.left


def test_a_server_of_its_own_that_gives_fewer_probable_tokens_than_the_method_reads_is_refused_and_ended(
    plan: Plan, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "trial.yaml").write_text(RECIPE.replace("arms: []\n", ""), encoding="utf-8")
    said = run(plan, model, "method=soft_targets", "soft_targets.top=50")
    assert (said.status, said.err.count("\n")) == (2, 1) and "gives 20 and refuses 50; type soft_targets.top=20, or let" in said.err
    assert not (tmp_path / "run").exists() and len(plan.starts) == 1 and not plan.left


def test_a_server_that_dies_for_lack_of_memory_is_told_in_its_own_words(plan: Plan, model: Path, tmp_path: Path) -> None:
    words_of_vllm = "ValueError: Free memory on device cuda:0 (2.1/79.1 GiB) on startup is less than desired GPU memory utilization"
    plan({"dies": f"(EngineCore pid=7) ERROR 11-26 14:50:01 [core.py:1] {words_of_vllm}"})
    said = run(plan, model)
    assert (said.status, said.err.count("\n")) == (2, 1) and words_of_vllm in said.err
    assert "; engine.memory_share sets gpu-memory-utilization; its log is " in said.err
    assert not (tmp_path / "run").exists()
    assert Path(said.err.strip().rpartition("its log is ")[2]).is_file()


@pytest.mark.slow
def test_a_server_that_is_given_up_ends_the_stage_and_the_same_command_goes_on(plan: Plan, model: Path, tmp_path: Path) -> None:
    plan({"answers": 40}, {})
    said = run(plan, model, "engine.restarts=0")
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert "engine.restarts=0" in said.err and "the same command goes on from there" in said.err and not plan.left
    journal = (tmp_path / "run" / "round-1" / "journal.jsonl").read_text()
    assert run(plan, model, "engine.restarts=0").status == 0 and len(plan.starts) == 2
    texts = {json.loads(line)["result"]["text"] for line in journal.splitlines()[1:] if '"token_ids"' in line}
    trees = forest(tmp_path / "run")
    replies = [turn.completion for tree in trees for turn in tree.turns]
    replies += [reply for tree in trees for reflection in tree.reflections for reply in reflection.replies]
    assert texts and texts <= {reply.text for reply in replies}
    assert not [attempt for tree in trees for attempt in tree.attempts if attempt.stop in BROKEN]


def test_the_functions_end_the_server_that_they_started(plan: Plan, model: Path) -> None:
    settings = {"engine.kind": "vllm", "engine.command": [sys.executable, FAKE], "engine.threads": 1, "sampling.act.max_tokens": 24}
    measured = api.evaluate("lookup", model=model, tasks=2, samples=2, settings=settings)
    assert len(measured.outcomes) == 4 and len(plan.starts) == 1 and not plan.left
