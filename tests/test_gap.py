"""The reflection gap of a table's rows before and after training, against policies whose behaviour is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer

from leafe.engines.base import Engine
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Environment
from leafe.errors import CorruptFile, EngineError
from leafe.evaluation.gap import Gap, read_gaps, write_gaps
from leafe.evaluation.tables import RowResult, extra_rows, markdown
from leafe.experiment import Experiment
from leafe.progress import Silent
from leafe.records import Ask
from leafe.reproduce.asked import Asked
from leafe.reproduce.gap import gaps
from leafe.reproduce.plan import Plan
from leafe.reproduce.spec import parse_table
from leafe.reproduce.summary import summary
from leafe.reproduce.work import carry_out
from leafe.run import RunDirectory
from leafe.settings import RunConfig
from leafe.shown import GAPS
from leafe.viewer.table import render_table
from leafe.worlds.fakes import Lookup

RECIPE = """
name: small
model: {model}
environment: {{name: lookup, args: {{places: 3, horizon: 2}}}}
tasks: {{train: 24, test: 2}}
explore: {{turns: 50, max_attempts: 2}}
distill: {{qualify: any, success_share: 1.0}}
train: {{epochs: 1, batch_size: 64}}
evaluate: {{samples: 2, resamples: 20}}
"""
ROWS = """
base: {}
leafe: {method: leafe, settings: ["leafe.controls=[]", "leafe.arms=[leafe]"]}
ace: {method: ace}
"""


@dataclass
class Models:
    """The base opens place 1 unless it is told otherwise, and always advises place 2; what was trained of it opens place 2."""

    world: Callable[[], Environment] = lambda: Lookup(places=3, horizon=2)
    dies: Callable[[Path, Ask], None] = lambda folder, ask: None

    def load(self, folder: Path) -> Engine:
        def answer(ask: Ask) -> str:
            self.dies(folder, ask)
            if ask.purpose == "reflect":
                return "turn 1: open place2"
            told = "Advice: open place2" in ask.messages[-1].content
            return "open place2" if told or folder.name == "leafe" else "open place1"

        return ScriptedEngine(answer)

    def bench(self, config: RunConfig) -> Experiment:
        return Experiment(config, Path(config.model), self.load, self.world, Silent())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    tiny_tokenizer().save_pretrained(folder)
    tiny_model().save_pretrained(folder)
    return folder


def plan_of(folder: Path, base: Path, *overrides: str) -> Plan:
    (folder / "small.yaml").write_text(RECIPE.format(model=base))
    rows = ROWS.strip().replace("\n", ", ")
    table = parse_table(f"about: x\nrows: {{{rows}}}", "mine")
    return Plan(table, Asked(recipe=str(folder / "small.yaml"), out=folder / "out", seeds=(1,), overrides=overrides))


def run_of(plan: Plan) -> RunDirectory:
    return RunDirectory.existing(plan.path(plan.table.row("leafe"), 1), read_only=True)


def rows_of(plan: Plan, models: Models) -> dict[str, RowResult]:
    return {row.name: row for row in summary(plan, plan.check(models.bench)).rows}


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Models]:
    plan, models = plan_of(tmp_path_factory.mktemp("table"), base), Models()
    assert carry_out(plan, models.bench, Silent()) == []
    return plan, models


def test_what_was_learned_of_the_advice_closes_the_gap(whole: tuple[Plan, Models]) -> None:
    plan, models = whole
    keys = [task.payload["key"] for task in Lookup(places=3, horizon=2).tasks("train", 24)]
    named, mended = 24 - keys.count("place1"), keys.count("place2")
    assert 3 < mended < named
    extra = rows_of(plan, models)["leafe"].extra or {}
    found = {name: extra[name].value for name in ("best with advice", "best without", "best after training")}
    assert found == {"best with advice": mended / named, "best without": 0, "best after training": mended / named}
    assert run_of(plan).stages["gap leafe"] == {
        "turns": named, "advised": round(mended / named, 4), "before": 0, "after": round(mended / named, 4)
    }  # fmt: skip
    assert {one.advised for one in gaps(run_of(plan), "leafe") if one.after} == {True}


def test_the_figures_are_in_every_form_of_a_table_and_rows_that_train_nothing_have_none(whole: tuple[Plan, Models]) -> None:
    plan, models = whole
    rows = rows_of(plan, models)
    assert all("best without" not in (rows[name].extra or {}) for name in ("base", "ace"))
    table = summary(plan, plan.check(models.bench))
    heading, line, *_ = extra_rows(table)
    assert heading[-3:] == ("best with advice", "best without", "best after training") and line[0] == "leafe"
    assert "best after training" in markdown(table) and "best after training" in render_table(table)


def test_there_is_none_without_an_expert_without_rollback_and_where_nothing_is_watched(base: Path, tmp_path: Path) -> None:
    class Alone(Lookup):
        expert = Environment.expert

    for number, (models, more) in enumerate(
        (
            (Models(lambda: Alone(places=3, horizon=2)), ()),
            (Models(), ("evaluate.watched=0",)),
            (Models(), ("explore.max_depth=0",)),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        plan = plan_of(folder, base, *more)
        assert carry_out(plan, models.bench, Silent()) == []
        assert "gap leafe" not in run_of(plan).stages and "best without" not in (rows_of(plan, models)["leafe"].extra or {})


class Killed(Exception):
    """In the middle of it."""


@pytest.mark.parametrize("error", [EngineError("the machine was taken away"), Killed()])
def test_a_table_that_ended_here_goes_on_and_ends_with_the_same_file(
    whole: tuple[Plan, Models], base: Path, tmp_path: Path, error: Exception
) -> None:
    def dies(folder: Path, ask: Ask) -> None:
        if folder.name == "leafe" and (tmp_path / "out/seed-1/leafe/eval/leafe.scores.jsonl").exists():
            raise error

    plan = plan_of(tmp_path, base)
    with pytest.raises(type(error)):
        carry_out(plan, Models(dies=dies).bench, Silent())
    assert "score leafe" in run_of(plan).stages and "gap leafe" not in run_of(plan).stages
    assert carry_out(plan, Models().bench, Silent()) == []
    first, again = (run_of(one).evaluation("leafe", GAPS).read_bytes() for one in (whole[0], plan))
    assert first == again and run_of(plan).done


def test_a_line_that_is_no_such_turn_is_named_and_shares_are_shares(tmp_path: Path) -> None:
    one = Gap("t", "1", advised=True, before=0.25, after=1.0)
    write_gaps(tmp_path / "gap.jsonl", [one])
    assert read_gaps(tmp_path / "gap.jsonl") == (one,)
    with pytest.raises(ValueError, match="before is 2"):
        Gap("t", "1", advised=True, before=2, after=0)
    (tmp_path / "gap.jsonl").write_text((tmp_path / "gap.jsonl").read_text().replace("0.25", "7"))
    with pytest.raises(CorruptFile, match="line 2 is no turn with its best actions"):
        read_gaps(tmp_path / "gap.jsonl")


def test_a_figure_that_was_changed_is_refused(base: Path, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, base)
    assert carry_out(plan, Models().bench, Silent()) == []
    path = run_of(plan).evaluation("leafe", GAPS)
    path.write_text(path.read_text().replace('"before":0.0', '"before":0.5', 1))
    with pytest.raises(CorruptFile, match=r"leafe\.gap\.jsonl is not as the stage 'gap leafe' left it"):
        rows_of(plan, Models())
