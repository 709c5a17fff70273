"""Runs with a server, through the command line: what is refused beforehand, what is kept, and what survives a server that dies."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Said, leafe
from fake_server import Body, FakeServer
from tiny import tiny_model, tiny_tokenizer

from leafe.forest.store import read_forest
from leafe.records import Tree
from leafe.run import RunDirectory

RECIPE = """
name: trial
environment: {name: lookup, args: {places: 3, horizon: 2}}
tasks: {train: 6, test: 2}
explore: {turns: 6, max_attempts: 3}
evaluate: {samples: 2, resamples: 10}
engine: {kind: openai, threads: 1, retries: 1, patience: 20}
sampling: {act: {max_tokens: 24}, reflect: {max_tokens: 48}}
train: {epochs: 1, batch_size: 8}
arms: []
"""


def searching(messages: list[Body], draw: random.Random) -> str:
    """Opens any place, and says of a failure that it should have been another."""
    place = f"open place{draw.randint(1, 3)}"
    return f"turn 1: {place}" if messages[-1]["content"].endswith("Reflect.") else place


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def run(recipe: Path, model: Path, address: str, *more: str) -> Said:
    """`leafe run`, in a directory beside the recipe."""
    return leafe("run", recipe, "--out", recipe.parent / "run", f"model={model}", f"engine.base_url={address}", *more)


def words(said: Said) -> str:
    """What was printed, whatever the width of the terminal."""
    return " ".join(said.out.split())


def forest(recipe: Path) -> list[Tree]:
    return sorted(read_forest(recipe.parent / "run" / "round-1" / "forest.jsonl"), key=lambda tree: tree.task.id)


def files(recipe: Path) -> str:
    """All that a run wrote, as one text."""
    written = [path for path in (recipe.parent / "run").rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in written)


def test_a_run_through_a_server_keeps_ids_and_what_the_server_is(recipe: Path, model: Path) -> None:
    with FakeServer("vllm", play=searching).listening() as address:
        said = run(recipe, model, address)
    assert said.status == 0, said.err
    assert (
        "the server serves policy with a context of 2048 tokens; replies come with the ids of sampled tokens, with log-prob"
        in words(said)
    )
    assert "seeds differ, and one seed gives one reply" in words(said)
    turns = [turn for tree in forest(recipe) for turn in tree.turns]
    assert turns and all(len(turn.completion.token_ids) == len(turn.completion.logprobs) > 0 for turn in turns)
    with RunDirectory.existing(recipe.parent / "run", read_only=True) as directory:
        assert [*directory.stages][:2] == ["probe", "evaluate base"]
        assert directory.stages["probe"]["ids"] == "sampled"
    assert "its chat template gives the ids of the local tokenizer" in (recipe.parent / "run" / "report.html").read_text()


def test_trained_arms_and_their_base_are_both_measured_in_this_process(recipe: Path, model: Path) -> None:
    server = FakeServer("llama", play=searching)
    with server.listening() as address:
        said = run(recipe, model, address, "arms=[leafe]", "distill.qualify=any")
    assert said.status == 0, said.err
    assert "base and arms are measured in this process, since the server serves the base only" in words(said)
    played = sum(len(tree.turns) + len(tree.reflections) for tree in forest(recipe))
    assert len(server.asked) < played * 2 + 12  # nothing of what was measured


TABLE = """
rows:
  base: {}
  ga: {method: ga_rollback}
  leafe: {method: leafe, settings: ["leafe.arms=[leafe]"]}
"""


def table(recipe: Path, model: Path, address: str, *more: str) -> Said:
    (recipe.parent / "rows.yaml").write_text(TABLE)
    laid = (f"model={model}", f"engine.base_url={address}", "distill.qualify=any")
    return leafe(
        "reproduce", recipe.parent / "rows.yaml", "--recipe", recipe, "--out", recipe.parent / "table", "--seeds", "1", *laid, *more
    )


def test_a_table_with_a_trained_row_measures_all_its_rows_in_this_process(recipe: Path, model: Path) -> None:
    recipe.write_text(RECIPE.replace("arms: []", ""))
    with FakeServer("vllm", play=searching).listening() as address:
        said = table(recipe, model, address)
    assert said.status == 0, said.err
    assert "measured in this process, like the trained rows of the table" in words(said) and "sampled by" not in words(said)
    runs = recipe.parent / "table" / "seed-1"
    assert (runs / "base" / "eval" / "base.jsonl").read_bytes() == (runs / "leafe" / "eval" / "base.jsonl").read_bytes()
    for row, arm in (("base", "base"), ("ga", "ga_rollback"), ("leafe", "leafe")):
        with RunDirectory.existing(runs / row, read_only=True) as run:
            assert run.stages[f"evaluate {arm}"]["engine"] == "transformers"


def test_rows_that_a_server_measured_are_marked_beside_those_of_this_process(recipe: Path, model: Path) -> None:
    recipe.write_text(RECIPE.replace("arms: []", ""))
    with FakeServer("vllm", play=searching).listening() as address:
        before = table(recipe, model, address, "--rows", "base,ga")
        said = table(recipe, model, address)
    assert before.status == said.status == 0, said.err
    assert "in this process" not in words(before) and "sampled by" not in words(before)
    assert "leafe: sampled by transformers, base by openai" in words(said)


def test_ids_made_by_a_local_tokenizer_are_flagged_at_the_terminal_and_on_the_page(recipe: Path, model: Path) -> None:
    server = FakeServer("openai", play=searching)
    with server.listening() as address:
        refused = run(recipe, model, address, "arms=[leafe]")
        assert refused.status == 2 and "training wants the ids of the sampled tokens" in refused.err
        assert not (recipe.parent / "run").exists()
        said = run(recipe, model, address, "engine.tokenizer=model")
    flag = "token ids were made from the text of replies by a local tokenizer"
    assert said.status == 0 and words(said).count(flag) >= 2  # by the probe, and beside the figures
    assert flag in (recipe.parent / "run" / "report.html").read_text()
    assert all(turn.completion.token_ids and not turn.completion.logprobs for tree in forest(recipe) for turn in tree.turns)


def test_a_server_without_ids_still_counts_what_it_samples(recipe: Path, model: Path) -> None:
    with FakeServer("openai", play=searching).listening() as address:
        assert run(recipe, model, address).status == 0
    assert all(tree.spend.sampled_tokens > 0 for tree in forest(recipe))


@pytest.mark.parametrize(
    ("server", "more", "sentence"),
    [
        (FakeServer(ignores_seeds=True), (), "one and the same reply for three seeds"),
        (FakeServer(), ("engine.served_model=polcy",), "did you mean 'policy'?"),
        (FakeServer(template_ids=2), ("arms=[leafe]",), "serve the folder that `model` names"),
        (FakeServer(key="hunter2"), (), "put its key into the environment variable"),
        (FakeServer(), ("engine.api_key_env=NO_SUCH_KEY",), "type: export NAME=KEY"),
        (FakeServer(), ("rounds=2",), "rounds: wanted 1 where engine.kind is openai"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_begun(
    server: FakeServer, more: tuple[str, ...], sentence: str, recipe: Path, model: Path
) -> None:
    with server.listening() as address:
        said = run(recipe, model, address, *more)
    assert (said.status, said.err.count("\n")) == (2, 1) and sentence in said.err
    assert not (recipe.parent / "run").exists()


SOFT = ("method=soft_targets", "distill.qualify=any")


@pytest.mark.parametrize(
    ("server", "more", "sentence"),
    [
        (FakeServer("llama"), SOFT, "method soft_targets has texts scored by the engine that explores, and http"),
        (
            FakeServer("llama"),
            ("method=preference",),
            "/completions gives no log-probabilities of prompts, by which ids are scored (404: ",
        ),
        (FakeServer(), (*SOFT, "soft_targets.top=50"), "gives 20 and refuses 50; type soft_targets.top=20, or let the server"),
        (FakeServer(max_logprobs=7), SOFT, "gives 5 and refuses 20; type soft_targets.top=5, or let the server"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "explore"])
def test_a_server_that_cannot_score_what_the_method_needs_is_refused_before_anything_is_begun(
    server: FakeServer, more: tuple[str, ...], sentence: str, verb: str, recipe: Path, model: Path
) -> None:
    recipe.write_text(RECIPE.replace("arms: []\n", ""), encoding="utf-8")
    with server.listening() as address:
        out = recipe.parent / "run"
        said = leafe(verb, recipe, "--out", out, f"model={model}", f"engine.base_url={address}", *more)
    assert (said.status, said.err.count("\n")) == (2, 1) and sentence in said.err, said.err
    assert not out.exists()


def test_a_server_that_scores_is_explored_with_and_scores_for_the_method(recipe: Path, model: Path) -> None:
    recipe.write_text(RECIPE.replace("arms: []\n", ""), encoding="utf-8")
    server = FakeServer(play=searching)
    with server.listening() as address:
        said = run(recipe, model, address, *SOFT, "soft_targets.top=3")
    assert said.status == 0, said.err
    scored = [number for number, body in enumerate(server.asked) if "prompt_logprobs" in body]
    assert len(scored) > 1 and all(server.asked[number]["prompt_logprobs"] == 3 for number in scored)
    assert any("messages" in body for body in server.asked[scored[0] : scored[1]])  # first the trial, and then exploring


def test_a_key_is_sent_and_stands_nowhere(recipe: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "hunter2")
    server = FakeServer(key="hunter2", play=searching)
    with server.listening() as address:
        said = run(recipe, model, address, "engine.api_key_env=MY_KEY")
    assert said.status == 0, said.err
    assert "hunter2" not in files(recipe) + said.out + said.err and "MY_KEY" in files(recipe)


@pytest.mark.parametrize(
    "setting", ["engine.base_url=http://me:hunter2@host/v1", "engine.api_key_env=hunter2-key", "engine='http://me:hunter2@host/v1'"]
)
def test_a_password_that_was_typed_is_not_repeated(setting: str, recipe: Path, model: Path) -> None:
    said = leafe("run", recipe, "--out", recipe.parent / "run", f"model={model}", "engine.base_url=http://host/v1", setting)
    assert said.status == 2 and "hunter2" not in said.out + said.err
    assert not (recipe.parent / "run").exists()


def spoiled_after(count: int, answer: tuple[int, Any]) -> Callable[[Body], tuple[int, Any] | None]:
    """A server that answers something else from its request number `count` on."""
    asked = [0]

    def broken(body: Body) -> tuple[int, Any] | None:
        asked[0] += 1
        return answer if asked[0] > count else None

    return broken


def test_a_malformed_answer_is_journaled_never_and_the_same_command_goes_on(recipe: Path, model: Path) -> None:
    with FakeServer(play=searching).listening() as address:
        assert run(recipe, model, address).status == 0
    whole = forest(recipe)
    (recipe.parent / "run").rename(recipe.parent / "whole")
    with FakeServer(play=searching, broken=spoiled_after(30, (200, {"choices": []}))).listening() as address:
        said = run(recipe, model, address)
    assert said.status == 1 and "EngineError" in said.err and "0 choices where one was asked for" in said.err
    journal = (recipe.parent / "run" / "round-1" / "journal.jsonl").read_text()
    assert "choices" not in journal and '"error"' not in journal
    with FakeServer(play=searching).listening() as address:
        assert run(recipe, model, address).status == 0
    assert forest(recipe) == whole


def test_a_server_that_is_away_for_a_while_pauses_the_run(recipe: Path, model: Path) -> None:
    """The server stops in the middle and stands at the same port again a moment later."""
    with FakeServer(play=searching).listening() as address:
        assert run(recipe, model, address).status == 0
    whole = forest(recipe)
    (recipe.parent / "run").rename(recipe.parent / "whole")
    reached, over = threading.Event(), threading.Event()
    slow = FakeServer(play=searching, broken=lambda body: reached.set() if len(slow.asked) > 30 else None)
    back: list[FakeServer] = []

    def restart() -> None:
        with slow.listening(port):
            up.set()
            reached.wait(60)
        time.sleep(0.5)
        back.append(FakeServer(play=searching))
        with back[0].listening(port):
            over.wait(60)

    port, up = int(address.rpartition(":")[2].removesuffix("/v1")), threading.Event()
    thread = threading.Thread(target=restart)
    thread.start()
    try:
        up.wait(10)
        said = run(recipe, model, address)
    finally:
        over.set()
        thread.join()
    assert said.status == 0, said.err
    out = words(said)
    assert back[0].asked and "waiting for it, at most 20 seconds (engine.patience)" in out and "is back" in out
    assert forest(recipe) == whole


def test_a_run_does_not_go_on_with_a_server_of_another_kind(recipe: Path, model: Path) -> None:
    with FakeServer(play=searching, broken=spoiled_after(30, (401, {"error": "no"}))).listening() as address:
        assert run(recipe, model, address).status == 1
    with FakeServer("openai", play=searching).listening() as address:
        said = run(recipe, model, address)
    assert said.status == 2 and "the server is not what it was" in said.err and "ids: sampled -> none" in said.err
