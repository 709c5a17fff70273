"""Tables as they are planned: what is refused before anything is begun, and the figures that a table prints."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from command import leafe as leafe_says

import leafe.prompts
from leafe.compose import bench_of
from leafe.config import parse
from leafe.errors import Unwritable, UserError
from leafe.evaluation.tables import RowResult, TableResult, markdown
from leafe.experiment import Experiment, ForestSpec
from leafe.forest.store import ForestWriter
from leafe.progress import Silent
from leafe.prompts import PROFILES
from leafe.proofs import explored, measured, trained
from leafe.records import (
    Attempt,
    Completion,
    Example,
    Experience,
    Message,
    Observation,
    Reflection,
    StopReason,
    Task,
    Tree,
    Usage,
)
from leafe.reproduce.asked import Asked
from leafe.reproduce.cost import estimate
from leafe.reproduce.paper import figures_of
from leafe.reproduce.plan import Plan, shows
from leafe.reproduce.spec import Table, load_table, parse_table
from leafe.reproduce.summary import summary
from leafe.reproduce.work import carry_out
from leafe.run import RunDirectory
from leafe.settings import RunConfig
from leafe.stages import Made, Policy, Stage
from leafe.trackers import Trackers

RECIPE = """
name: small
environment: {name: sokoban, args: {rows: 5, columns: 5, min_length: 1, max_length: 3, horizon: 4}}
tasks: {train: 4, test: 2}
explore: {turns: 12, max_attempts: 3, max_depth: 1}
train: {epochs: 1, batch_size: 64}
engine: {slots: 16, cache_gib: 0.2, threads: 1}
evaluate: {samples: 2, resamples: 20}
"""
LEAFE = 'method: leafe, settings: ["leafe.controls=[]", "leafe.arms=[leafe]"]'


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(RECIPE)


def table(rows: str, more: str = "against: []") -> Table:
    return parse_table(f"about: x\n{more}\nrows: {{{rows}}}", "mine")


def plan(of: Table, *overrides: str, **asked: Any) -> Plan:
    return Plan(of, Asked(recipe="small.yaml", seeds=(1,), overrides=overrides, **asked))


def bench(config: RunConfig) -> Experiment:
    return bench_of(config, Silent())


def refusal(of: Table, *overrides: str, **asked: Any) -> str:
    with pytest.raises(UserError) as told:
        plan(of, *overrides, **asked).check(bench)
    assert "\n" not in str(told.value)
    return str(told.value)


SERVER = ("engine.kind=openai", "engine.base_url=http://localhost:9/v1")


def test_a_row_that_starts_from_a_checkpoint_is_refused_where_a_server_would_play_the_base_for_it() -> None:
    rows = f"a: {{{LEAFE}}}, measured: {{start: a}}, explores: {{start: a, {LEAFE}}}"
    told = refusal(table(rows), *SERVER)
    assert "the row measured" in told and "engine.kind=vllm" in told and told.endswith("without such rows: --rows a")
    assert "the row explores" in refusal(table(rows), *SERVER, rows=("explores",))
    here = table(f"a: {{{LEAFE}}}, measured: {{start: a, in_process: true}}")
    found = plan(here, *SERVER)
    assert found.config(here.row("measured"), 1).engine.kind == "transformers" and set(found.check(bench)) == {"a", "measured"}
    served = plan(table(rows), "engine.kind=vllm").config(table(rows).row("measured"), 1)
    assert served.engine.kind == "vllm" and served.model.endswith("/seed-1/a/checkpoints/leafe")


@pytest.mark.parametrize("method", ["grpo", "reset_groups", "opd"])
def test_a_row_that_needs_new_weights_at_every_step_samples_here_and_is_measured_like_the_others_where_that_can_be(
    method: str,
) -> None:
    rows = table(f"a: {{method: {method}}}")
    through = plan(rows, "engine.kind=vllm").config(rows.row("a"), 1).engine
    assert (through.kind, through.processes) == ("vllm", 0)
    assert plan(rows, *SERVER).config(rows.row("a"), 1).engine.kind == "transformers"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ('a: {settings: ["tasks .train=500"]}', "sets tasks.train, which a table settles"),
        ('a: {method: leafe, settings: [" explore . turns =5"]}', "sets explore.turns, which a table settles"),
        ("a: {settings: [tasks.train]}", "the row a of the table mine: an override is written key=value"),
        (
            "a: {method: grpo, settings: [grpo.start=elsewhere]}",
            "sets grpo.start to start from a model; write it as a row's own start",
        ),
        ("a: {method: ace, settings: [start=elsewhere]}", "sets start to start from a model"),
        ("a: {method: ace, settings: ['ace={start: elsewhere}']}", "sets ace to start from a model"),
        ("a: {method: ace, sizes: {quickstart: [ace . start=elsewhere]}}", "sets ace.start to start from a model"),
        ("a: {envs: [sokobann]}", "did you mean 'sokoban'"),
        ("a: {sizes: {quickstrat: []}}", "did you mean 'quickstart'"),
    ],
)
def test_a_setting_that_a_row_may_not_have_is_refused_when_the_table_is_read(rows: str, words: str) -> None:
    with pytest.raises(UserError) as told:
        table(rows)
    assert words in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("setting", ["seed=9", "method=grpo", " name =zzz"])
def test_a_setting_that_every_row_has_of_its_own_is_refused_typed_and_in_a_table(setting: str) -> None:
    name = setting.partition("=")[0].strip()
    assert f"sets {name}, which has no effect on a table" in refusal(table("a: {}"), setting)
    with pytest.raises(UserError, match=f"the table mine sets {name}, which has no effect"):
        table("a: {}", f"against: []\nsettings: ['{setting}']")


def test_a_model_to_start_from_is_no_setting_for_all_rows() -> None:
    for setting in ("grpo.start=elsewhere", "start=elsewhere", "ace={start: elsewhere}"):
        assert "to start from a model; write it as a row's own start: ROW" in refusal(table("a: {}"), setting)
        with pytest.raises(UserError, match=r"the table mine sets .* to start from a model"):
            table("a: {}", f"against: []\nsettings: ['{setting}']")


def test_options_that_contradict_each_other_or_name_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"--env household and --recipe small\.yaml, whose environment is sokoban: leave one"):
        plan(table("a: {}"), environment="household").check(bench)
    assert set(plan(table("a: {}"), environment="sokoban").check(bench)) == {"a"}
    said = leafe_says("reproduce", "model-size", "--rows", ",")
    assert said.status == 2 and said.err == "leafe: --rows: wanted names, as base,leafe, found ','\n"


def test_a_table_without_a_row_for_the_environment_is_refused() -> None:
    assert "the table mine has no row for sokoban" in refusal(table("a: {envs: [household]}"))
    assert [row.name for row in plan(table("a: {envs: ['my_worlds:Maze']}, b: {envs: [sokoban]}")).rows] == ["b"]


def test_a_claim_is_about_a_column_that_a_table_can_have() -> None:
    for k in (3, 0):
        with pytest.raises(UserError, match="k: wanted a whole number that is a power of two"):
            table("a: {}", f"against: []\nchecks: [{{claim: y, row: a, k: {k}}}]")
    assert table("a: {}", "against: []\nchecks: [{claim: y, row: a, k: 16}]").checks[0].k == 16


def test_nano_is_the_bundled_model_of_the_environment_of_a_recipe() -> None:
    found = {
        (recipe, model): Plan(load_table("model-size"), Asked(recipe=recipe, model=model)).base.model
        for recipe, model in (("household-nano", "nano"), ("quickstart", "nano"), ("household-nano", "A"), ("household-nano", ""))
    }
    assert list(found.values()) == ["nano-household", "nano", "A", "nano-household"]


METHOD = '''
from leafe.methods.base import Method, Policy, Settings


class MineSettings(Settings):
    beta: float = 1.0


class Mine(Method):
    """Measures its base."""

    name, summary, Settings = "mine", "measures", MineSettings

    def stages(self, lab, run, settings):
        yield lab.measure(run, "mine", Policy(lab.base))

    def trains(self, settings):
        return False
'''


def test_a_typed_setting_of_a_tables_own_method_is_for_that_methods_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    module("own_methods", METHOD, monkeypatch)
    of = table(f"base: {{}}, leafe: {{{LEAFE}}}, mine: {{method: 'own_methods:Mine', arm: mine}}")
    found = plan(of, "mine.beta=2")
    assert set(found.check(bench)) == {"base", "leafe", "mine"} and found.config(of.row("mine"), 1).own.model_dump() == {
        "beta": 2.0
    }


def test_a_limit_of_tokens_is_shared_out_as_turns_are() -> None:
    of = table(f"half: {{share: 0.5, {LEAFE}}}, whole: {{{LEAFE}}}")
    found = [plan(of, "explore.tokens=1001").config(of.row(name), 1).explore.tokens for name in ("half", "whole")]
    assert found == [500, 1001] and plan(of).config(of.row("half"), 1).explore.tokens == 0


def test_a_cost_counts_what_a_row_plays_for_learning_and_shares_only_what_is_made_alike() -> None:
    around, one = "method: early_experience, arm: early_experience", "settings: [early_experience.alternatives=1]"
    of = table(
        f"""
base: {{}}
ga: {{method: ga_rollback, arm: ga_rollback}}
grpo: {{method: grpo, arm: grpo, settings: [grpo.groups=1, grpo.size=2]}}
leafe: {{{LEAFE}}}
preference: {{method: preference, arm: preference}}
one: {{{around}, {one}}}
imitation: {{method: early_experience, arm: imitation, settings: ["early_experience.arms=[imitation]"]}}
two: {{{around}, settings: [early_experience.alternatives=2]}}
again: {{{around}, {one}}}
ace: {{method: ace, arm: ace}}
other: {{method: ace, arm: ace, settings: [ace.batch=1]}}
second: {{{LEAFE}, start: leafe}}
""".replace("\n", ", ").strip(", ")
    )
    made = plan(of)
    costs = {row.row: row for row in estimate(made, made.check(bench), 4).rows}
    whole = 4 * 12
    assert {name: cost.turns for name, cost in costs.items()} == {
        "base": 0, "ga": 0, "grpo": whole, "leafe": whole, "preference": 0, "one": whole, "imitation": whole, "two": whole, "again": 0,
        "ace": whole, "other": whole, "second": whole,
    }  # fmt: skip
    assert costs["preference"].shared == ("evaluate base", "explore round 1") and costs["two"].shared == ("evaluate base",)
    assert costs["ga"].attempts == 4 and costs["second"].attempts == 4 and costs["second"].shared == ("evaluate base",)


@pytest.mark.parametrize(("turns", "share", "expected"), [(100, 0.29, 29), (100, 0.57, 57), (99, 0.5, 49), (12, 1, 12)])
def test_a_share_of_the_turns_loses_none_to_binary_fractions_and_is_never_more(turns: int, share: float, expected: int) -> None:
    of = table(f"part: {{share: {share}, {LEAFE}}}")
    assert plan(of, f"explore.turns={turns}").config(of.row("part"), 1).explore.turns == expected


EXPLORES = 'settings: ["leafe.controls=[]", "leafe.arms=[]"]'


def test_a_forest_that_the_method_does_not_grow_is_refused() -> None:
    assert "'tre, round 1', and its method grows 'tree, round 1';" in refusal(
        table(f'a: {{method: leafe, forest: "tre, round 1", {EXPLORES}}}')
    )
    assert "reports the forest 'independent'" in refusal(table(f"a: {{method: leafe, forest: independent, {EXPLORES}}}"))
    rounds = 'settings: ["leafe.controls=[]", "leafe.arms=[leafe]", leafe.rounds=10]'
    of = table(f'a: {{method: leafe, forest: "tree, round 10", {rounds}}}, b: {{method: ace, forest: ace}}')
    (stages, others) = plan(of).check(bench).values()
    assert [stage.name for stage in stages if shows(stage, "tree, round 10")] == ["explore round 10"]
    assert [stage.name for stage in others if shows(stage, "ace")] == ["explore ace"]
    unnamed = [Stage(f"explore round {number}", Made, verb="explore") for number in (1, 10)]  # as another package's may be
    assert [stage.name for stage in unnamed if shows(stage, "mine, round 10")] == ["explore round 10"]


def test_a_row_that_starts_from_an_arm_without_a_training_is_refused() -> None:
    words = "the row b of the table mine starts from a, whose arm 'ace' is not trained: it has no stage 'train ace'"
    assert words in refusal(table(f"a: {{method: ace}}, b: {{start: a, {LEAFE}}}"))
    assert "whose arm 'base' is not trained" in refusal(table(f"a: {{method: leafe, arm: base, {EXPLORES}}}, b: {{start: a}}"))


THOUGHT = (Reflection(0, 1, (Completion("left"),), Experience(1, "left")),)


def grown(task: str, *successes: bool, thoughts: tuple[Reflection, ...] = THOUGHT, last: StopReason | None = None) -> Tree:
    """A tree of fresh attempts; `last` is how one more of them ended."""
    stops = [StopReason.SUCCESS if success else StopReason.FAILURE for success in successes] + ([last] if last else [])
    attempts = tuple(Attempt(n, 0, stop, stop is StopReason.SUCCESS, 0.0, None) for n, stop in enumerate(stops))
    return Tree(Task(task, "sokoban", "Push.", 4), "tree", Observation(""), (), attempts, thoughts, Usage(turns=4))


def reported(forest: str, *forests: dict[str, list[Tree]]) -> RowResult:
    """The row that reports a forest of the runs whose forests are given, a seed each."""
    of = table(f'tree: {{method: leafe, forest: "{forest}", settings: ["leafe.controls=[independent]", "leafe.arms=[]"]}}')
    found = Plan(of, Asked(recipe="small.yaml", seeds=tuple(range(1, len(forests) + 1)), out=Path("out")))
    for seed, trees in enumerate(forests, start=1):
        with RunDirectory.open(found.path(of.row("tree"), seed), found.config(of.row("tree"), seed)) as run:
            for stage, (name, some) in zip(("explore round 1", "explore independent"), trees.items(), strict=False):
                path = run.forest(1 if stage == "explore round 1" else name)
                path.parent.mkdir(parents=True, exist_ok=True)
                writer = ForestWriter(path)
                for one in some:
                    writer.add(one)
                writer.close()
                run.finish_stage(stage, {"turns": 4}, files=[path], forest=name)
            run.finish()
    (row,) = summary(found, found.check(bench)).rows
    return row


def test_the_intervals_of_exploration_are_over_tasks_and_not_over_seeds() -> None:
    row = reported("tree, round 1", {"tree, round 1": [grown("a", True)]}, {"tree, round 1": [grown("a", False)]})
    assert row.extra is not None and row.cost.turns == 4
    fresh = row.extra["fresh attempts solved"]
    assert (fresh.value, fresh.low, fresh.high) == (0.5, 0.5, 0.5)  # both seeds' attempts at the one task are drawn together


def test_fresh_attempts_are_those_of_all_tasks_without_the_ones_that_the_budget_cut() -> None:
    trees = [grown("a", True, True, True, thoughts=()), grown("b", False, last=StopReason.BUDGET)]
    row = reported("tree, round 1", {"tree, round 1": trees})
    assert row.extra is not None and row.extra["fresh attempts solved"].value == 0.75


def test_the_figures_of_exploration_are_those_of_the_reported_forest_alone() -> None:
    forests = {"tree, round 1": [grown("a", False)], "independent": [grown("a", True, thoughts=())]}
    assert reported("independent", forests).extra is None


def test_a_row_that_ended_and_whose_record_was_lost_is_named_as_missing() -> None:
    of = table(f"a: {{{LEAFE}}}")
    found = plan(of, out=Path("out"))
    with RunDirectory.open(found.path(of.row("a"), 1), found.config(of.row("a"), 1)) as run:
        run.finish()
    told = summary(found, found.check(bench))
    assert told.missing == ("a, seed 1: not finished yet",) and not told.rows[0].values


def test_a_directory_that_cannot_be_made_is_refused_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("")
    for out in ("file", "file/below/it"):
        assert (
            refusal(table("a: {}"), out=Path(out))
            == f"cannot make the directory {out}: file is no directory; give another with --out"
        )
    said = leafe_says("reproduce", "model-size", "--out", "file", "--dry-run")
    assert said.status == 2 and said.err.startswith("leafe: cannot make the directory file") and said.err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="the first user may write everywhere")
def test_a_directory_that_may_not_be_written_in_is_refused() -> None:
    Path("closed").mkdir(mode=0o500)
    assert refusal(table("a: {}"), out=Path("closed/below")).startswith("cannot write in closed")


# What is carried out

BASE = "about: x\nagainst: []\nrows: {base: {}}"


def test_what_was_typed_is_never_read_as_markup() -> None:
    Path("mine.yaml").write_text(BASE)
    typed = ("reproduce", "mine.yaml", "--recipe", "small.yaml", "--seeds", "1", "--out", "[/x]")
    planned, made = leafe_says(*typed, "--dry-run"), leafe_says(*typed)
    assert (planned.status, made.status) == (0, 0), (planned, made)
    assert "Runs would be made in [/x]." in planned.out and "The page: [/x]/table.html" in made.out
    for said in (leafe_says("report", "[/x]/seed-1/base"), leafe_says("evaluate", "small.yaml", "--out", "[/y]")):
        assert said.status == 0 and "[/" in said.out, said
    assert leafe_says("new-env", "my_[/maze]").status == 2


@dataclass
class Kept:
    """A tracker's library that keeps what it is told."""

    stages: list[str] = field(default_factory=list)
    closed: int = 0

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        self.stages.append(stage)

    def close(self) -> None:
        self.closed += 1


def test_a_row_has_its_page_before_it_is_finished_and_is_tracked() -> None:
    found, kept = plan(table("base: {}"), out=Path("out")), Kept()
    path = found.path(found.table.row("base"), 1)
    RunDirectory.open(path, found.config(found.table.row("base"), 1)).close()
    page = path / "report.html"
    page.mkdir()  # so that it cannot be written

    def tracking(config: RunConfig) -> Experiment:
        return replace(bench(config), tracker=Trackers(["tensorboard"], {"tensorboard": ("json", lambda path: kept)}))

    with pytest.raises(Unwritable):
        carry_out(found, tracking, Silent())
    assert set(kept.stages) == {"evaluate base"} and kept.closed == 1 and not (path / "DONE").exists()
    page.rmdir()
    assert carry_out(found, tracking, Silent()) == [] and page.is_file() and (path / "DONE").is_file()
    page.unlink()  # as an older version left it, if it was killed between the two
    assert carry_out(found, tracking, Silent()) == [] and page.is_file()


# What is shown


def test_the_papers_figures_are_beside_rows_of_their_own_environment_alone() -> None:
    ood = Plan(load_table("ood"), Asked("A", "codecontests"))
    assert {(one.row, one.environment) for one in figures_of(ood)} == {(f"{row}-mbpp", "mbpp") for row in ("base", "grpo", "leafe")}
    here, household = (Plan(load_table("table1"), Asked(environment=name)) for name in ("sokoban", "household"))
    assert {one.environment for one in figures_of(here)} == {"sokoban"}
    assert {one.environment for one in figures_of(household)} == {"alfworld"}  # the nearest that the paper has
    elsewhere = [figures_of(Plan(load_table(name), Asked())) for name in ("ood", "stage1", "ablation", "synergy")]
    assert elsewhere == [()] * 4


def test_a_name_is_no_link_in_markdown() -> None:
    name = "[a](javascript:b)"
    assert "\\[a](javascript" in markdown(TableResult(name, "", "", "", "", "", (1,), 5, "Pass@", 0.95, (), (), (), ()))


# What is equal

OWN = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Loss:
    weight: float = 1.0


def own(builder):
    yield from ()
"""


def keys(*overrides: str, loss: object = None, explorer: Any = "tree", prompts: str = "") -> list[str | None]:
    """The keys of training with a loss, of exploring with an explorer and of measuring, the latter two with prompts of the policy's."""
    experiment = bench(parse(RECIPE, "small", list(overrides)))
    run = RunDirectory(Path("nowhere"), experiment.config, None)
    example = Example("e", "rehearsal", "t", 0, "", (Message("user", "go"),), "left", (5,))
    return [
        trained(experiment, run, "a", experiment.base, examples=[example], loss=loss).key,
        explored(experiment, run, "explore x", ForestSpec(explorer, 1, experiment.base, prompts=prompts)).key,
        measured(experiment, run, "a", Policy(experiment.base, prompts=prompts)).key,
    ]


def module(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module in the working directory, imported anew."""
    Path(f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return importlib.import_module(name)


def test_a_loss_or_an_explorer_counts_with_its_module_and_the_text_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (module(name, OWN, monkeypatch) for name in ("first_losses", "second_losses"))
    assert keys(loss=first.Loss())[0] == keys(loss=first.Loss())[0] != keys(loss=second.Loss())[0]
    before = keys(loss=first.Loss(), explorer=first.own)
    assert None not in before and before == keys(loss=first.Loss(), explorer=first.own)
    edited = module("first_losses", OWN.replace("yield from ()", "yield from (1,)"), monkeypatch)
    after = keys(loss=edited.Loss(), explorer=edited.own)
    assert None not in after and before[0] != after[0] and before[1] != after[1] and before[2] == after[2]


WORLD = """
from leafe.worlds.fakes import Lookup


class World(Lookup):
    name = "mine"
"""


def test_an_environment_of_ones_own_counts_with_the_text_of_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ("environment.name=own_worlds:World", "environment.args={places: 3, horizon: 2}")
    module("own_worlds", WORLD, monkeypatch)
    before = keys(*own)
    assert None not in before and before == keys(*own)
    module("own_worlds", WORLD + "    about = 'other'\n", monkeypatch)
    assert [one == other for one, other in zip(before, keys(*own), strict=True)] == [True, False, False]


def test_prompts_count_by_their_texts_and_not_by_their_place() -> None:
    shipped = Path(leafe.prompts.__file__).parent / PROFILES[0]
    for name in ("mine", "moved", "edited"):
        shutil.copytree(shipped, name)
    changed = Path("edited/system.txt")
    changed.write_text(changed.read_text() + " Think.")
    assert keys() == keys("prompts=./mine") == keys("prompts=./moved")
    assert [one == other for one, other in zip(keys("prompts=./mine"), keys("prompts=./edited"), strict=True)] == [
        True,
        False,
        False,
    ]
    assert keys(prompts="./mine") == keys(prompts="./moved")
    assert [one == other for one, other in zip(keys(prompts="mine"), keys(prompts="edited"), strict=True)] == [True, False, False]
