"""Tables: rows as ordinary runs at one budget, work that is done once, what is refused, and what is shown."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from command import Said, leafe

from leafe.compose import bench_of
from leafe.config import load_recipe, parse
from leafe.engines.base import Engine, Scores
from leafe.errors import EngineError, UserError
from leafe.evaluation.passk import Interval
from leafe.evaluation.tables import TableResult, markdown, verdict
from leafe.experiment import Experiment, ForestSpec
from leafe.nano import CHECKPOINTS
from leafe.progress import Silent
from leafe.proofs import explored, measured, trained
from leafe.records import Ask, Completion, Example, Message
from leafe.reproduce.asked import Asked, paper_models, recipe_of
from leafe.reproduce.paper import figures_of
from leafe.reproduce.plan import Plan
from leafe.reproduce.spec import load_table, parse_table, table_names
from leafe.reproduce.work import carry_out
from leafe.run import RunDirectory
from leafe.settings import RunConfig
from leafe.stages import Policy
from leafe.viewer.table import render_table

RECIPE = """
name: small
environment: {name: sokoban, args: {rows: 5, columns: 5, min_length: 1, max_length: 3, horizon: 4}}
tasks: {train: 4, test: 2}
explore: {turns: 12, max_attempts: 3, max_depth: 1}
distill: {qualify: any, success_share: 1.0}
train: {epochs: 1, batch_size: 64}
engine: {slots: 16, cache_gib: 0.2, threads: 1}
evaluate: {samples: 2, resamples: 20}
"""
LEAFE = 'method: leafe, settings: ["leafe.controls=[]", "leafe.arms=[leafe]"]'
TABLE = f"""
about: An arm, the same again, and what a third would start from.
against: [base, leafe]
rows:
  base: {{}}
  leafe: {{{LEAFE}}}
  twin: {{{LEAFE}}}
  again: {{start: leafe, against: [leafe]}}
checks:
  - {{claim: "LEAFE raises Pass@{{k}}", row: leafe, above: base}}
  - {{claim: LEAFE has the highest Pass@1, row: leafe, k: 1}}
  - {{claim: "LEAFE raises Pass@{{k}}", row: leafe, above: base, k: 64}}
"""


@dataclass(frozen=True)
class Shop:
    """A table and a recipe in a folder, and the table's directory."""

    table: Path
    recipe: Path
    out: Path

    def __call__(self, *more: str) -> Said:
        return leafe("reproduce", self.table, "--recipe", self.recipe, "--out", self.out, *more)

    def plan(self, *seeds: int) -> Plan:
        return Plan(load_table(str(self.table)), Asked(recipe=str(self.recipe), out=self.out, seeds=seeds))


def shop(folder: Path, table: str = TABLE) -> Shop:
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_text(table)
    (folder / "small.yaml").write_text(RECIPE)
    return Shop(folder / "mine.yaml", folder / "small.yaml", folder / "out")


def assert_one_sentence(said: Said, *words: str) -> None:
    assert said.status == 2 and said.err.startswith("leafe: ") and said.err.count("\n") == 1, said
    for word in words:
        assert word in said.err


def sums(folder: Path, *patterns: str) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(b"".join(sorted(path.read_bytes().splitlines(True)))).hexdigest()
        for pattern in patterns
        for path in folder.glob(pattern)
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, Said]:
    made = shop(tmp_path_factory.mktemp("table"))
    return made, made("--seeds", "1", "--json")


# A whole table


def test_every_row_is_an_ordinary_run_and_the_table_has_its_figures(whole: tuple[Shop, Said]) -> None:
    made, said = whole
    assert (said.status, said.err) == (0, "")
    found = json.loads(said.out)
    assert [row["name"] for row in found["rows"]] == ["base", "leafe", "twin", "again"] and found["missing"] == []
    assert found == json.loads((made.out / "table.json").read_text())
    for row, arm in {"base": "base", "leafe": "leafe", "again": "base"}.items():
        compared = json.loads(leafe("compare", made.out / "seed-1" / row, "--json").out)
        own = next(one["pass_at_k"] for one in compared["arms"] if one["name"] == arm)
        mine = next(one["values"] for one in found["rows"] if one["name"] == row)
        assert {k: one["value"] for k, one in mine.items()} == {k: one["value"] for k, one in own.items()}
    budget = 4 * 12
    costs = {row["name"]: row["cost"] for row in found["rows"]}
    assert found["budget"] == budget and costs["base"]["turns"] is None
    assert 0 < costs["leafe"]["turns"] == costs["twin"]["turns"] == costs["again"]["turns"] <= budget
    assert costs["leafe"]["steps"] == 1 and costs["leafe"]["examples"] > 0
    assert [claim.partition(":")[0] for claim in found["claims"][:2]] == ["LEAFE raises Pass@2", "LEAFE has the highest Pass@1"]
    assert found["claims"][2] == "LEAFE raises Pass@64: not measured"  # there are 2 samples
    moved = {row["name"]: row["explained"].get("nats_from_base", {}).get("value") for row in found["rows"]}
    assert moved["base"] is None and moved["leafe"] == moved["twin"] == moved["again"] != 0


def test_work_that_rows_share_is_done_once_and_is_byte_for_byte_the_same(whole: tuple[Shop, Said]) -> None:
    seed = whole[0].out / "seed-1"
    stages = {row: json.loads((seed / row / "stages.json").read_text()) for row in ("base", "leafe", "twin", "again")}
    taken = {row: {name: one["taken_from"] for name, one in said.items() if "taken_from" in one} for row, said in stages.items()}
    twin = dict.fromkeys(("explore round 1", "train leafe", "evaluate leafe"), "leafe")
    assert taken["base"] == {} and taken["leafe"] == {"evaluate base": "base"}
    assert taken["twin"] == {"evaluate base": "base", **twin} and taken["again"] == {"evaluate base": "leafe"}
    for file in ("round-1/forest.jsonl", "checkpoints/leafe/model.safetensors", "eval/leafe.jsonl"):
        assert (seed / "leafe" / file).read_bytes() == (seed / "twin" / file).read_bytes()
    assert (seed / "again" / "eval" / "base.jsonl").read_bytes() == (seed / "leafe" / "eval" / "leafe.jsonl").read_bytes()


def test_the_page_links_the_pages_of_the_runs_and_the_files_hold_the_same_rows(whole: tuple[Shop, Said]) -> None:
    made, _ = whole
    page, text = (made.out / "table.html").read_text(), (made.out / "table.md").read_text()
    links = re.findall(r'href="([^"]+)"', page)
    assert len(links) == 4 and all((made.out / link).is_file() for link in links)
    for row in ("base", "leafe", "twin", "again"):
        assert f">{row}<" in page and f"| {row} |" in text


def test_the_same_command_goes_on_and_other_settings_are_refused(whole: tuple[Shop, Said]) -> None:
    made, _ = whole
    before = sums(made.out, "seed-1/*/stages.json")
    said = made("--seeds", "1")
    assert said.status == 0 and sums(made.out, "seed-1/*/stages.json") == before and "LEAFE raises Pass@2" in said.out
    assert_one_sentence(made("--seeds", "1", "train.epochs=2"), "was started with other settings", "train.epochs: 1.0 -> 2.0")
    assert not (made.out / "seed-2").exists()


@dataclass
class Failing:
    """An engine that breaks after some requests, as a machine does that is taken away."""

    engine: Engine
    patience: list[int]

    def __post_init__(self) -> None:
        self.stats, self.concurrency = self.engine.stats, self.engine.concurrency

    async def generate(self, ask: Ask) -> Completion:
        self.patience[0] -= 1
        if self.patience[0] < 0:
            raise EngineError("the machine was taken away")
        return await self.engine.generate(ask)

    async def score(self, messages: Sequence[Message], ids: Sequence[int], top: int = 0) -> Scores:
        return await self.engine.score(messages, ids, top)

    async def load(self, folder: str | Path) -> None:
        await self.engine.load(folder)

    async def close(self) -> None:
        await self.engine.close()


def test_a_table_may_be_moved_and_a_checkpoint_that_changed_is_refused(whole: tuple[Shop, Said], tmp_path: Path) -> None:
    made = shop(tmp_path)
    shutil.copytree(whole[0].out, made.out)
    path = made.out / "seed-1" / "again"
    kept = path / "config.yaml"
    assert str(whole[0].out) in kept.read_text()  # it names the checkpoint by its place
    said = made("--seeds", "1", "--json")
    assert said.status == 0 and json.loads(said.out)["rows"] == json.loads(whole[1].out)["rows"]
    assert str(made.out) in kept.read_text()
    for row, other, told in (
        ("again: {start: leafe", "again: {start: twin", "start: leafe -> twin"),
        (f"twin: {{{LEAFE}", f"twin: {{start: leafe, {LEAFE}", "start: none -> leafe"),
    ):
        assert_one_sentence(shop(tmp_path, TABLE.replace(row, other))("--seeds", "1"), "started with other settings", told)
    shop(tmp_path)
    weights = made.out / "seed-1" / "leafe" / "checkpoints" / "leafe" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert_one_sentence(made("--seeds", "1"), str(weights), "is not as the stage 'train leafe' left it")


TOY = '''
import shutil
from pathlib import Path
from leafe.errors import UserError
from leafe.methods.base import Made, Method, Policy, Settings, Stage
from leafe.folders import whole_folder


class ToySettings(Settings):
    turns: int = 7
    fails: bool = False


class Toy(Method):
    """Copies the base and says that it took turns."""

    name, summary, Settings = "toy", "copies its base", ToySettings

    def stages(self, lab, run, settings):
        def copied():
            if settings.fails:
                raise UserError("there is nothing to copy")
            with whole_folder(run.checkpoint("toy")) as folder:
                shutil.copytree(lab.base, folder, dirs_exist_ok=True)
            return Made({"turns": settings.turns, "steps": 2, "examples": 3}, [run.checkpoint("toy")])

        yield Stage("train toy", copied, verb="train")
        yield lab.measure(run, "toy", lab.trained(run, "toy"), needs=("train toy",))

    def trains(self, settings):
        return False
'''
TOYS = """
about: Copies.
against: [first]
rows:
  hidden: {method: "toys:Toy", arm: toy, share: 0.5, shown: false}
  first: {method: "toys:Toy", arm: toy, settings: [toy.turns=48]}
  half: {method: "toys:Toy", arm: toy, start: hidden, share: 0.5}
  more: {method: "toys:Toy", arm: toy, start: first, settings: [toy.turns=900]}
  broken: {method: "toys:Toy", arm: toy, settings: [toy.fails=true]}
  lost: {method: "toys:Toy", arm: toy, start: broken}
"""


def test_a_table_that_stopped_in_the_middle_ends_with_the_same_files(whole: tuple[Shop, Said], tmp_path: Path) -> None:
    explores = '{method: leafe, arm: base, settings: ["leafe.controls=[]", "leafe.arms=[]"]}'
    made = shop(tmp_path, f"about: x\nrows: {{base: {{}}, leafe: {explores}}}")
    patience = [4 * 4 + 5]  # measuring asks 16 times at most, so that it is exploring that breaks

    def breaking(config: RunConfig) -> Experiment:
        real = bench_of(config, Silent())
        return replace(real, load_engine=lambda folder: Failing(real.load_engine(folder), patience))

    with pytest.raises(EngineError):
        carry_out(made.plan(1), breaking, Silent())
    seed = made.out / "seed-1"
    assert (seed / "base" / "DONE").exists() and (seed / "leafe" / "eval").exists() and not (seed / "leafe" / "DONE").exists()
    patience[0] = 10**6
    assert carry_out(made.plan(1), breaking, Silent()) == []
    files = ("*/eval/base.jsonl", "*/round-1/forest.jsonl")
    found, wanted = sums(seed, *files), sums(whole[0].out / "seed-1", *files)
    assert len(found) == 3 and found == {name: wanted[name] for name in found}


def test_turns_are_added_up_and_rows_that_are_not_at_equal_turns_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toys.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = shop(tmp_path, TOYS)
    said = made("--seeds", "1", "--json")
    assert_one_sentence(replace(said, out=""), "broken", "there is nothing to copy")
    found = json.loads(said.out)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["first", "half", "more", "broken", "lost"]
    assert {name: row["cost"]["turns"] for name, row in rows.items()} == {
        "first": 48,
        "half": 14,
        "more": 948,
        "broken": None,
        "lost": None,
    }
    assert rows["half"]["cost"]["steps"] == 4 and rows["half"]["cost"]["examples"] == 6
    assert rows["first"]["flags"] == [] and rows["half"]["share"] == 1
    assert rows["half"]["flags"] == ["took 29 % of the turns that it may"]
    assert "not at equal turns" in rows["more"]["flags"][0] and "2 of the budget" in rows["more"]["flags"][0]
    assert "over its budget of 96 turns" in rows["more"]["flags"][1]
    config = RunDirectory.existing(made.out / "seed-1" / "half", read_only=True).config
    assert (
        RunDirectory.existing(made.out / "seed-1" / "hidden", read_only=True).config.evaluate.samples == 1 < config.evaluate.samples
    )
    assert config.explore.turns == 6 and config.model.endswith("/seed-1/hidden/checkpoints/toy")
    assert [one.partition(":")[0] for one in found["missing"]] == ["broken, seed 1", "lost, seed 1"]
    assert {rows[name]["explained"]["nats_from_base"]["value"] for name in ("first", "half", "more")} == {0}  # they are copies
    assert rows["half"]["minus"]["first"]["1"]["value"] == 0 and rows["lost"]["values"] == {}


def test_forests_are_reported_by_the_share_that_their_first_attempts_solved(tmp_path: Path) -> None:
    table = """
about: Exploring.
against: [IS]
rows:
  IS: {method: leafe, forest: independent, settings: ["leafe.controls=[independent]", "leafe.arms=[]"]}
  tree: {method: leafe, forest: "tree, round 1", settings: ["leafe.controls=[]", "leafe.arms=[]"]}
checks:
  - {claim: The tree solves more, row: tree, above: IS}
"""
    made = shop(tmp_path, table)
    said = made("--seeds", "1", "--json", "evaluate.samples=1")
    assert said.status == 0, said
    rows = {row["name"]: row for row in json.loads(said.out)["rows"]}
    run = RunDirectory.existing(made.out / "seed-1" / "IS", read_only=True)
    assert rows["IS"]["values"]["all"]["value"] == run.stages["explore independent"]["solved"] / 4
    assert rows["tree"]["values"]["all"]["value"] == run.stages["explore round 1"]["solved"] / 4
    assert rows["IS"]["cost"]["turns"] == run.stages["explore independent"]["turns"]
    assert rows["tree"]["cost"]["turns"] == run.stages["explore round 1"]["turns"]
    assert rows["IS"]["values"]["1"]["value"] <= rows["IS"]["values"]["all"]["value"]


def test_a_dry_run_counts_what_would_be_done_and_makes_nothing(tmp_path: Path) -> None:
    made = shop(tmp_path)
    said = made("--dry-run", "--json", "--seeds", "1,2")
    assert said.status == 0 and not made.out.exists()
    found = json.loads(said.out)
    turns, attempts = ({row["row"]: row[what] for row in found["rows"]} for what in ("turns", "attempts"))
    assert turns == {"base": 0, "leafe": 48, "twin": 0, "again": 0}
    assert attempts == {"base": 4, "leafe": 4, "twin": 4, "again": 0}  # what training will give is not known yet
    assert (found["turns"], found["attempts"], found["longest"]) == (2 * 48, 2 * 12, 4)
    assert found["sample"]["attempts"] > 0 and found["seconds"] > 0


# What is equal


def proofs(*overrides: str) -> dict[str, str | None]:
    """The keys of the three kinds of stages under some settings."""
    experiment = bench_of(parse(RECIPE, "small", list(overrides)), Silent())
    run = RunDirectory(Path("nowhere"), experiment.config, None)
    example = Example("e", "rehearsal", "t", 0, "", (Message("user", "go"),), "left", (5,))
    spec = ForestSpec("tree", experiment.explore_seed(1), experiment.base)
    return {
        "explore": explored(experiment, run, "explore round 1", spec).key,
        "measure": measured(experiment, run, "base", Policy(experiment.base)).key,
        "train": trained(experiment, run, "leafe", experiment.base, examples=[example]).key,
    }


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("name=other", set()),
        ("engine.threads=2", set()),
        ("leafe.arms=[rehearsal]", set()),
        ("evaluate.resamples=30", set()),
        ("seed=2", {"explore", "measure", "train"}),
        ("explore.turns=13", {"explore"}),
        ("explore.reflect_every=2", {"explore"}),
        ("sampling.reflect.temperature=0.5", {"explore"}),
        ("sampling.act.temperature=0.5", {"explore", "measure"}),
        ("engine.max_context=512", {"explore", "measure"}),
        ("tasks.train=5", {"explore"}),
        ("tasks.test=3", {"measure"}),
        ("evaluate.samples=3", {"measure"}),
        ("environment.args.horizon=5", {"explore", "measure"}),
        ("train.epochs=2", {"train"}),
        ("distill.beta=2", set()),
    ],
)
def test_a_stage_is_the_same_exactly_where_what_decides_it_is(override: str, changed: set[str]) -> None:
    before, after = proofs(), proofs(override)
    assert None not in (*before.values(), *after.values())
    assert {kind for kind in before if before[kind] != after[kind]} == changed


def test_what_cannot_be_told_by_its_content_is_never_taken_for_another() -> None:
    experiment = bench_of(parse(RECIPE, "small"), Silent())
    run = RunDirectory(Path("nowhere"), experiment.config, None)

    def own(builder: Any) -> Any:
        yield from ()

    assert explored(experiment, run, "explore x", ForestSpec(own, 1, experiment.base)).key is None
    plain = measured(experiment, run, "a", Policy(experiment.base)).key
    told = measured(experiment, run, "a", Policy(experiment.base, notes=("look left",))).key
    assert plain != told and measured(experiment, run, "a", Policy(experiment.base), player=own).key is None


# What is refused


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("about: x", "rows: wanted a value"),
        ("rows: {a: {}}\nchecks: x", "checks: wanted a list, as [a, b], found 'x'"),
        (
            "rows: {a: {}}\nchecks: [{claim: '{K} is best', row: a}]",
            "claim: wanted {k} alone in braces, for the k of a column, found '{K}'",
        ),
        ("rows: {a: {}}\nchecks: [{claim: 'x{', row: a}]", "found '{'"),
        ("paper: table99\nrows: {a: {}}", "unknown table of the paper, in the table mine, 'table99'"),
        ("rows: {base: {}, BASE: {}}", "has the rows base and BASE, which would be one folder on some disks"),
        ("rows: {base: {}, a: {against: [base, a]}}", "the row a of the table mine has itself in against:"),
        ("about: x\nrows: {a: {metod: leafe}}", "did you mean 'method'"),
        ("about: x\nrows: {a: {method: leafe, share: 0}}", "share: wanted more than 0"),
        ("about: x\nrows: {a: {share: 0.5}}", "method: wanted one"),
        ("about: x\nrows: {'../a': {}}", "wanted letters, digits"),
        ("about: x\nagainst: []\nrows: {a: {method: leafe, settings: [explore.turns=3]}}", "explore.turns, which a table settles"),
        ("about: x\nagainst: []\nrows: {a: {method: leafe, settings: [seed=3]}}", "sets seed"),
        ("about: x\nagainst: []\nrows: {a: {method: leafe, settings: [environment.args.rows=3]}}", "without a method"),
        ("about: x\nagainst: []\nrows: {a: {method: leafe, start: b}, b: {method: leafe, start: a}}", "starts from itself"),
        ("about: x\nagainst: []\nrows: {a: {start: b}, b: {}}", "starts from b, which trains nothing"),
        ("about: x\nagainst: []\nrows: {a: {start: c}, b: {}}", "unknown row of the table mine 'c'"),
        ("about: x\nagainst: [base]\nrows: {a: {}}", "unknown row of the table mine 'base'"),
        ("about: x\nagainst: []\nrows: {a: {}}\nchecks: [{claim: y, row: a, k: some}]", "k: wanted a whole number"),
        ("about: x\nagainst: []\nrows: {a: {shown: false}}", "no row that is shown"),
        ("- a", "should be a group of settings"),
        ("about: x\nagainst: []\nrows: {a: [3]}", "should be a group of settings"),
    ],
)
def test_a_table_that_cannot_be_is_told_in_one_sentence(table: str, words: str) -> None:
    with pytest.raises(UserError) as told:
        parse_table(table, "mine")
    assert words in str(told.value) and "\n" not in str(told.value)


def test_what_cannot_be_made_is_refused_before_anything_is_begun(tmp_path: Path) -> None:
    table = f"about: x\nagainst: []\nrows: {{a: {{method: later}}, b: {{{LEAFE}}}, c: {{start: a}}}}"
    made = shop(tmp_path, table)
    assert_one_sentence(made(), "row a", "unknown method 'later'", "without such rows: --rows b")
    assert_one_sentence(made("--rows", "d"), "unknown row of the table mine 'd'")
    assert_one_sentence(
        made("--rows", "b", "--seeds", "1,x"), "--seeds: wanted whole numbers from 0 to 999,999,999, as 1,2,3, found '1,x'"
    )
    assert_one_sentence(made("--rows", "b", "--seeds", "1,1"), "each seed once")
    assert_one_sentence(made("--rows", "b", "explore.trns=3"), "did you mean 'explore.turns'")
    assert_one_sentence(leafe("reproduce", "tabel1"), "did you mean 'table1'")
    assert_one_sentence(leafe("reproduce", tmp_path / "none.yaml"), "cannot read the table")
    assert_one_sentence(leafe("reproduce", "table1", "--env", "chess"), "no recipe ships for nano in 'chess'", "--recipe FILE")
    wrong = shop(tmp_path, f"about: x\nagainst: []\nrows: {{b: {{arm: other, {LEAFE}}}}}")
    assert_one_sentence(wrong(), "reports the arm 'other'", "base, leafe")
    assert not (tmp_path / "out").exists()


# What ships


@pytest.mark.parametrize("name", table_names())
def test_every_shipped_table_is_whole(name: str) -> None:
    table = load_table(name)
    assert table.name == name and all(table.chain(row) for row in table.rows.values())


def test_settings_are_chosen_by_tables_that_do_not_see_the_tasks_that_are_measured() -> None:
    for path in (Path(__file__).parents[1] / "benchmarks/choices").glob("*.yaml"):
        for environment in ("sokoban", "household"):
            plan = Plan(load_table(str(path)), Asked(environment=environment))
            assert {plan.config(row, 1).tasks.test_split for row in plan.rows} == {"valid"}


@pytest.mark.slow
def test_several_models_have_a_table_each_and_one_of_all(tmp_path: Path) -> None:
    made, copy = shop(tmp_path / "models"), tmp_path / "other"
    shutil.copytree(CHECKPOINTS["nano"], copy)
    said = made("--model", f"nano,{copy}", "--seeds", "1", "--rows", "base,leafe")
    assert said.status == 0 and f"The page of all models: {made.out / 'table.html'}" in said.out.replace("\n", "")
    every, *each = (json.loads((folder / "table.json").read_text()) for folder in (made.out, made.out / "nano", made.out / "other"))
    assert [row["name"] for row in every["rows"]] == ["base (nano)", "leafe (nano)", "base (other)", "leafe (other)"]
    assert [row["values"] for row in every["rows"]] == [row["values"] for table in each for row in table["rows"]]
    assert every["rows"][3]["minus"] == each[1]["rows"][1]["minus"] and every["rows"][3]["minus"]["base"]
    assert [claim.partition(":")[0] for claim in every["claims"]] == ["nano"] * 3 + ["other"] * 3
    for row in every["rows"]:
        assert all((made.out / run / "DONE").is_file() for run in row["runs"])


def test_the_table_of_the_documentation_is_whole() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "reproduce.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    table = parse_table(block, "mine")
    assert [one.name for one in table.chain(table.rows["leafe-after"])] == ["max-rl", "leafe-after"]
    assert {name for name in table_names() if f"`{name}`" not in page} == set()


def test_tables_of_the_paper_take_its_settings_for_its_models() -> None:
    assert {one.rpartition("/")[2] for one in paper_models()} >= {
        f"Qwen2.5-{size}-Instruct" for size in ("7B", "14B", "32B", "72B")
    }
    environments = ("alfworld", "webshop", "scienceworld", "sokoban", "codecontests")
    for number, model in enumerate(paper_models()):
        environment = environments[number % len(environments)]
        table = load_table("codecontests" if environment == "codecontests" else "table1")
        plan = Plan(table, Asked(model, environment, rows=("base", "grpo", "leafe-from-grpo")))
        leafe_row, grpo = (plan.config(table.row(name), 1) for name in ("leafe-from-grpo", "grpo"))
        assert plan.base.model == grpo.model == model and leafe_row.model.endswith(f"/checkpoints/{table.row('grpo').arm}")
        assert (leafe_row.train.batch_size, leafe_row.train.learning_rate, leafe_row.evaluate.samples) == (128, 1e-6, 128)
        assert leafe_row.engine.kind == grpo.engine.kind == "vllm"
        assert leafe_row.train.dtype == grpo.train.dtype == "bfloat16"
        assert figures_of(plan)


def test_the_bundled_models_take_the_recipes_that_were_chosen_for_them() -> None:
    assert recipe_of(Asked(model="nano", environment="household")) == ("household-nano", ())
    assert recipe_of(Asked(model="nano")) == ("quickstart", ())
    plan = Plan(load_table("table1"), Asked(model="nano", environment="sokoban", rows=("leafe", "base")))
    quickstart = load_recipe("quickstart")
    assert plan.base.explore == quickstart.explore and plan.base.tasks.test_split == "test" and plan.base.evaluate.samples == 128
    assert [row.name for row in plan.shown] == ["base", "leafe"] and plan.out == Path("runs/table1-sokoban-nano")
    assert {figure.model for figure in figures_of(plan)} == {"Qwen2.5-7B", "Llama3.1-8B"}


def test_what_is_typed_counts_more_than_sizes_and_less_than_what_makes_a_row() -> None:
    table = load_table("table1")
    plan = Plan(table, Asked(rows=("grpo", "leafe"), overrides=("train.learning_rate=3e-5", "grpo.size=4", "leafe.rounds=2")))
    grpo, own = (plan.config(table.row(name), 1) for name in ("grpo", "leafe"))
    assert grpo.train.learning_rate == own.train.learning_rate == 3e-5
    assert grpo.own.model_dump()["size"] == 4 and own.own.model_dump()["rounds"] == 2
    assert Plan(table, Asked()).config(table.row("grpo"), 1).train.learning_rate == 1e-4
    half = table.row("grpo-half")  # whichever rows are asked for, so that the same directory goes on
    assert Plan(table, Asked()).config(half, 1) == Plan(table, Asked(rows=("grpo-half",))).config(half, 1)
    ablation = load_table("ablation")
    assert Plan(ablation, Asked(overrides=("distill.beta=2",))).config(ablation.row("beta-0"), 1).distill.beta == 0


def test_a_claim_is_yes_or_no_only_where_the_interval_leaves_out_zero() -> None:
    said = {
        verdict("A", Interval(*bounds)).partition(" (")[0] for bounds in ((0.1, 0.05, 0.2), (-0.1, -0.2, -0.01), (0.1, -0.1, 0.2))
    }
    assert said == {"A: yes", "A: no", "A: not decided"} and verdict("A", None) == "A: not measured"
    few = verdict("A", Interval(1.0, 1.0, 1.0), tasks=1)
    assert few == "A: not decided (+100.0 [+100.0, +100.0]; wanted at least 10 tasks, found 1)"


def test_names_of_others_are_shown_and_never_read_as_markup(whole: tuple[Shop, Said]) -> None:
    bad = "<script>alert(1)</script> | *x* [red]"
    empty = TableResult(bad, bad, bad, bad, bad, "test", (1,), 5, "Pass@", 0.95, (), (bad,), (bad,), ())
    assert "<script>" not in render_table(empty) and "<script>" not in markdown(empty).replace("\\<", "")
