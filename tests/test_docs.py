"""Examples in the documentation run as they stand there."""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command import leafe
from tiny import tiny_model, tiny_tokenizer
from transformers import TrainingArguments

from leafe import __version__
from leafe.config import parse
from leafe.distillation.store import read_examples
from leafe.engines.scripted import ScriptedEngine
from leafe.engines.tokens import ChatTokenizer
from leafe.envs import registry
from leafe.evaluation.outcomes import read_outcomes
from leafe.experiment import Experiment
from leafe.forest.store import read_forest
from leafe.lab import measure_base, run_verb
from leafe.progress import Silent
from leafe.records import Ask, Example, Message, Target
from leafe.run import RunDirectory

DOCS = Path(__file__).resolve().parent.parent / "docs"


def code(name: str, number: int = 0, *, of: int = 1) -> str:
    """A Python block of a page, which has so many of them."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == of
    return str(blocks[number])


Lessons = list[tuple[list[int], list[int], float]]  # (prompt ids, target ids, weight)


def loss_of(model: Any, samples: Lessons) -> float:
    """What training on samples one by one would have as its loss: weighted, over the number of target tokens."""
    total = 0.0
    with torch.inference_mode():
        for prompt, target, weight in samples:
            shares = model(torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            total -= weight * float(shares.gather(1, torch.tensor(target)[:, None]).sum())
    return total / sum(len(target) for _, target, _ in samples)


@pytest.mark.parametrize(
    "tasks",
    [
        [[([1, 2, 3], [4, 5], 1.0), ([1, 2, 3, 4, 5, 6], [7], 0.5)], [([8], [9], 1.0)]],
        [[([1, 2, 3], [4, 5], 1.0), ([1, 2, 3], [6, 7], -1.0)], [([8], [9], 1.0), ([8], [10], -1.0)]],
        [[([1, 2, 3], [4, 5], 1.0), ([1, 2, 3], [4, 5], -1.0), ([1, 2], [3], -0.25)]],
    ],
    ids=["weights", "advantages that add up to nothing", "terms that cancel out"],
)
def test_the_training_example_trains(tasks: list[Lessons], tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(compile(code("training.md", 1, of=2), "training.md", "exec"), names)
    model = tiny_model("llama").train()
    before = [weight.detach().clone() for weight in model.parameters()]
    wanted = loss_of(model, [sample for samples in tasks for sample in samples])
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=1,
        per_device_train_batch_size=2,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
    )
    result = names["train"](model, tasks, arguments)
    assert result.global_step == 1 and result.training_loss == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_the_losses_and_learners_of_the_documentation_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(compile(code("training.md", 0, of=2), "training.md", "exec"), names)
    lines = code("training.md", 0, of=2).split("\n\n\n")[1].splitlines()
    assert lines[0] == "class Focal:" and len(lines) <= 10
    base, tokenizer = tmp_path / "base", tiny_tokenizer()
    tiny_model("llama").save_pretrained(base)
    tokenizer.save_pretrained(base)

    def sample(model: Any, step: int) -> list[Example]:
        asked, ids = (Message("user", f"you see {step}"),), tuple(tokenizer.encode("go left", add_special_tokens=False))
        logits = model(torch.tensor([[*ChatTokenizer(tokenizer).prompt_ids(asked), *ids]])).logits[0, -len(ids) - 1 : -1]
        told = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
        targets = tuple(Target(token, logprob=min(0.0, value)) for token, value in zip(ids, told, strict=True))
        return [Example(f"e{n}", "sampled", "t", n, "", asked, "go left", ids, 1.0 - 1.5 * n, "g", targets) for n in range(2)]

    report = names["tuned"](base, sample(tiny_model("llama"), 0), tmp_path / "tuned")
    assert report.steps == 1 and (tmp_path / "tuned" / "model.safetensors").is_file()
    names["in_turns"](base, sample, tmp_path / "state", tmp_path / "out")
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in said] == ["1", "2", "3", "4"] and all(float(line[2]) == 0 for line in said)
    assert (tmp_path / "out" / "model.safetensors").is_file()


DRAWERS = """
name: drawers
model: nowhere
environment: {name: MODULE:Drawers}
tasks: {train: 6, test: 5}
explore: {turns: 20, max_attempts: 3}
distill: {qualify: success, success_share: 1.0}
evaluate: {samples: 2}
"""


def opens(ask: Ask) -> str:
    """Opens drawer 0; advised, the one that the advice names; looks back to the first turn. Once it is taught, another each turn."""
    said = "".join(message.content for message in ask.messages)
    tried = max((int(number) for number in re.findall(r"try open ([0-9])", said)), default=0)
    if ask.purpose == "reflect":
        return f"turn 1: try open {tried + 1}"
    return f"open {tried}"


@pytest.mark.parametrize("fidelity", ["REPLAY", "NONE"])
def test_the_environment_of_the_documentation_is_checked_explored_and_measured(
    fidelity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, module = code("environments.md"), f"drawers_{fidelity.lower()}"
    lines = source[source.index("class ") :].strip().splitlines()
    assert len(lines) <= 20 and source.count("Fidelity.REPLAY") == 1
    (tmp_path / f"{module}.py").write_text(source.replace("Fidelity.REPLAY", f"Fidelity.{fidelity}"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the import of module:Class adds the folder; put back as it was

    said = leafe("check-env", f"{module}:Drawers", "--json")
    found = json.loads(said.out)
    verdicts = {finding["name"]: finding for finding in found["findings"]}
    assert said.status == 0 and found["passed"] and found["declared"] == fidelity.lower(), said
    assert verdicts["rollback"]["verdict"] == ("pass" if fidelity == "REPLAY" else "skipped")
    assert fidelity == "NONE" or verdicts["rollback"]["figures"]["rollbacks"] >= 200

    config = parse(DRAWERS.replace("MODULE", module), "drawers")
    make = partial(registry.make, f"{module}:Drawers")
    experiment = Experiment(config, tmp_path, lambda folder: ScriptedEngine(opens), make, Silent())
    with RunDirectory.open(tmp_path / "run", config) as run:
        run_verb(experiment, run, "explore")
        run_verb(experiment, run, "distill")
        measure_base(experiment, run)
        trees, outcomes = list(read_forest(run.forest())), read_outcomes(run.evaluation("base"))
        lessons = [example for example in read_examples(run.examples()) if example.kind == "counterfactual"]
    assert len(trees) == 6 and len(outcomes) == 10
    mended = [tree for tree in trees if not tree.attempts[0].success and any(attempt.success for attempt in tree.attempts)]
    assert mended and lessons
    assert sum(tree.spend.rollbacks for tree in trees) == 0 if fidelity == "NONE" else mended[0].spend.rollbacks > 0
    assert not any("try open" in message.content for example in lessons for message in example.messages)


ROOT = DOCS.parent


def test_the_readme_links_to_nothing_that_a_package_index_lacks_and_names_pages_that_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(target.startswith("https://") for target in re.findall(r"\]\(([^)]+)\)", text))
    named = set(re.findall(r"`(docs/[a-z_]+\.md|[A-Z]+\.md)`", text)) - {"README.md"}
    assert named >= {"docs/api.md", "docs/methods.md"} and all((ROOT / name).is_file() for name in named)


@pytest.mark.parametrize("name", ["llms.txt", "AGENTS.md", "CONTRIBUTING.md"])
def test_pages_for_those_who_come_link_to_files_that_are_there(name: str) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    assert all((ROOT / target).is_file() for target in targets)


def test_the_citation_names_the_version_that_this_is() -> None:
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert __version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
