"""The package as functions: the page that tells of them is run as it stands, also inside an event loop."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

import leafe
from leafe.errors import UserError
from leafe.records import Example, Message
from leafe.training.loss import ClippedRatio
from leafe.worlds.fakes import Lookup

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"
SMALL = {
    "environment.args": {"min_length": 4, "max_length": 6, "horizon": 8},
    "sampling": {"act": {"max_tokens": 4}},
    "engine": {"threads": 1, "processes": 1},
}


def test_the_page_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), globals())
    printed = capsys.readouterr().out
    assert "Forest(sokoban: " in printed and "tasks solved in 128 turns" in printed
    assert [line.split()[0] for line in printed.splitlines()[1:]] == ["arm", "base", "2", "leafe", "2"]
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]


def test_a_running_loop_is_no_hindrance_and_changes_nothing() -> None:
    async def notebook() -> tuple[leafe.Forest, leafe.Forest]:
        waited = leafe.explore("sokoban", tasks=2, turns=8, settings=SMALL)
        return waited, await leafe.aexplore("sokoban", tasks=2, turns=8, settings=SMALL)

    waited, awaited = asyncio.run(notebook())
    assert waited.trees == awaited.trees and len(waited) == 2


def test_a_loss_that_the_examples_do_not_suit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    asked = (Message("user", "x"),)
    examples = [Example("e1", "rehearsal", "t1", 0, "turn1", asked, "a", (1,))]
    with pytest.raises(UserError, match=r"example e1 .*task t1 .*distill\.logprobs=true"):
        leafe.train("nano", examples, tmp_path / "ckpt", loss=ClippedRatio())
    with pytest.raises(UserError, match=r"wanted a loss, .* found 'grpo'"):
        leafe.train("nano", examples, tmp_path / "ckpt", loss="grpo")
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_is_gone_on_with(tmp_path: Path) -> None:
    kept = tmp_path / "forest.jsonl"
    first = leafe.explore("sokoban", tasks=2, turns=8, settings=SMALL, out=kept)
    written = kept.read_bytes()
    again = leafe.explore("sokoban", tasks=2, turns=8, settings=SMALL, out=kept)
    assert again.trees == first.trees and kept.read_bytes() == written
    graded = tmp_path / "graded.jsonl"
    outcomes = leafe.evaluate("sokoban", tasks=2, samples=2, settings=SMALL, out=graded)
    assert len(graded.read_text().splitlines()) == 1 + len(outcomes.outcomes)


def test_what_was_kept_under_other_settings_is_never_taken_for_the_answer(tmp_path: Path) -> None:
    kept = tmp_path / "forest.jsonl"
    leafe.explore("sokoban", tasks=1, turns=4, settings=SMALL, out=kept)
    written = kept.read_bytes()
    for other in ({"turns": 8}, {"turns": 4, "seed": 2}, {"turns": 4, "method": "independent"}):
        with pytest.raises(UserError, match="other settings"):
            leafe.explore("sokoban", tasks=1, settings=SMALL, out=kept, **other)
    (tmp_path / "graded.jsonl").write_text('{"schema":"leafe.eval/1"}\n')
    with pytest.raises(UserError, match="that holds its settings"):
        leafe.evaluate("sokoban", tasks=1, samples=1, settings=SMALL, out=tmp_path / "graded.jsonl")
    assert kept.read_bytes() == written


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: leafe.explore("sokobann"), "sokobann"),
        (lambda: leafe.explore("sokoban", method="forest"), "tree, independent, refine, retry"),
        (lambda: leafe.explore("sokoban", settings={"explore.turn": 3}), "explore.turn"),
        (lambda: leafe.explore("sokoban", tasks=0), "tasks.train"),
        (lambda: leafe.explore(7), "name of an environment"),  # type: ignore[arg-type]
        (lambda: leafe.evaluate("sokoban", model="no/where/at/all"), "no checkpoint"),
        (lambda: leafe.train("nano", [], "there"), "no example to train on"),
        (lambda: leafe.train("nano", [], "ckpt", epoch=2), "train.epoch"),
        (lambda: leafe.read_forest("nowhere"), "nowhere"),
        (lambda: leafe.load_engine("nano", kind="openai", base_url="http://localhost:1/v1"), "OpenAIEngine"),
    ],
)
def test_bad_input_is_one_sentence(call: object, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(named)):
        call()  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []


def test_a_trained_model_never_replaces_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="is there already"):
        leafe.train("nano", [], tmp_path / "mine")


def test_a_class_is_an_environment_as_well() -> None:
    report = leafe.check_environment(Lookup, {"places": 3}, rollbacks=5, tasks=2)
    assert report.passed and report.name == "leafe.worlds.fakes:Lookup"
    assert leafe.make("lookup", places=3).tasks("train", 1)


def test_the_package_alone_loads_no_torch_and_offers_what_it_says() -> None:
    said = "import sys, leafe; print('torch' in sys.modules, set(leafe.__all__) <= set(dir(leafe)))"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    with pytest.raises(AttributeError, match="sokoban"):
        leafe.sokoban  # noqa: B018
