"""A table's directory over several commands: what is added to it, what is refused before anything is begun, and what is told to type."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command import Said, leafe
from test_reproduce import LEAFE, RECIPE, Shop, assert_one_sentence, shop

from leafe.cli.console import console
from leafe.compose import bench_of
from leafe.errors import UserError
from leafe.experiment import Experiment
from leafe.progress import Silent
from leafe.reproduce.asked import Asked
from leafe.reproduce.plan import Plan
from leafe.reproduce.spec import Table, load_table, parse_table
from leafe.reproduce.summary import summary
from leafe.run import RunDirectory
from leafe.settings import RunConfig

# Rows that measure and train nothing, so that they are made in no time.
MEASURED = """
about: Levels of several lengths.
rows:
  base: {}
  short: {settings: [environment.args.max_length=2]}
  shortest: {settings: [environment.args.max_length=1]}
"""


def table_of(made: Shop) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made.out / "table.json").read_text())
    return found


def rows_of(made: Shop) -> dict[str, list[int]]:
    return {row["name"]: row["seeds"] for row in table_of(made)["rows"]}


def bench(config: RunConfig) -> Experiment:
    return bench_of(config, Silent())


def done(said: Said) -> Said:
    assert said.status == 0, said
    return said


# What is added


def test_rows_and_seeds_of_earlier_commands_stay_in_the_table(tmp_path: Path) -> None:
    made = shop(tmp_path, MEASURED)
    done(made("--rows", "base,short", "--seeds", "1"))
    before = (made.out / "table.md").read_text()
    done(made("--rows", "base", "--seeds", "1"))
    assert (made.out / "table.md").read_text() == before and rows_of(made) == {"base": [1], "short": [1]}
    said = json.loads(done(made("--rows", "shortest", "--seeds", "2", "--json")).out)
    assert said == table_of(made) and rows_of(made) == {"base": [1], "short": [1], "shortest": [2]}
    assert said["missing"] == [
        "base, seed 2: not asked for", "short, seed 2: not asked for", "shortest, seed 1: not asked for"
    ]  # fmt: skip
    done(made("--seeds", "2"))
    done(made("--seeds", "1"))
    assert rows_of(made) == {"base": [1, 2], "short": [1, 2], "shortest": [1, 2]} and table_of(made)["missing"] == []


def test_a_row_of_other_settings_is_named_and_not_mixed_with_the_others(tmp_path: Path) -> None:
    made = shop(tmp_path, MEASURED)
    done(made("--rows", "base,short", "--seeds", "1"))
    changed = shop(tmp_path, MEASURED.replace("max_length=2", "max_length=3").replace("  short: {", "  short: {against: [], "))
    done(changed("--rows", "base", "--seeds", "1"))
    assert rows_of(made) == {"base": [1], "short": []}
    assert table_of(made)["missing"] == ["short, seed 1: made with other settings (environment.args.max_length: 2 -> 3)"]


def test_a_directory_in_which_every_row_has_other_settings_is_refused_whatever_is_asked_for(tmp_path: Path) -> None:
    made = shop(tmp_path, MEASURED)
    done(made("--rows", "short", "--seeds", "1"))
    before = (made.out / "table.json").read_bytes()
    for more in (("--rows", "base", "--seeds", "1"), ("--seeds", "2")):
        assert_one_sentence(
            made(*more, "evaluate.samples=3"),
            "holds a table of other settings (evaluate.samples: 2 -> 3); to go on with them type evaluate.samples=2, else give another",
        )
    assert (made.out / "table.json").read_bytes() == before and not (made.out / "seed-2").exists()


def test_seeds_at_which_nothing_fits_are_not_in_the_title_and_fewer_seeds_are_marked(tmp_path: Path) -> None:
    made = shop(tmp_path, MEASURED)
    done(made("--rows", "base,short", "--seeds", "1"))
    done(made("--rows", "short", "--seeds", "2"))
    flags = {row["name"]: row["flags"] for row in table_of(made)["rows"]}
    assert flags == {"base": ["of seed 1 alone"], "short": []} and table_of(made)["seeds"] == [1, 2]
    changed = shop(tmp_path, MEASURED.replace("max_length=2", "max_length=3"))
    done(changed("--rows", "base", "--seeds", "1"))
    assert table_of(made)["seeds"] == [1]


def test_a_row_whose_run_is_damaged_is_named_and_the_same_command_makes_it_anew(tmp_path: Path) -> None:
    made = shop(tmp_path, MEASURED)
    done(made("--rows", "base,short", "--seeds", "1"))
    path = made.out / "seed-1" / "short"
    done(made("--rows", "short", "--seeds", "2"))
    for name, words in (
        ("stages.json", "is not a JSON object"),
        ("eval/base.jsonl", "is not as the stage 'evaluate base' left it"),
        ("config.yaml", "is not as leafe wrote it"),
    ):
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole[: len(whole) // 2])
        done(made("--rows", "base", "--seeds", "1"))
        told = [line for line in table_of(made)["missing"] if line.startswith("short")]
        assert len(told) == 1 and told[0].startswith(f"short, seed 1: {path / name} ") and words in told[0]
        assert f"restore it, or delete {path}, and the same command makes that row anew" in told[0]
        assert rows_of(made) == {"base": [1], "short": [2]}
        assert_one_sentence(made("--rows", "short", "--seeds", "1"), f"delete {path}, and the same command makes that row anew")
        (path / name).write_bytes(whole)
    (path / "config.yaml").write_text("cut")
    said = made("--rows", "short", "--seeds", "1")
    assert_one_sentence(said, f"delete {path}, and the same command makes that row anew")
    assert "--out" not in said.err and "leafe run" not in said.err


def test_a_directory_is_of_one_table_and_one_model(tmp_path: Path) -> None:
    made = shop(tmp_path, MEASURED)
    done(made("--rows", "base", "--seeds", "1"))
    before = (made.out / "table.json").read_bytes()
    other = made.table.with_name("other.yaml")
    other.write_text(MEASURED)
    again = leafe("reproduce", other, "--recipe", made.recipe, "--out", made.out)
    assert_one_sentence(again, f"{made.out} holds the table mine of nano in sokoban, and this is other of nano", "another --out")
    assert_one_sentence(made("--model", "nano-household"), "holds the table mine of nano", "this is mine of nano-household")
    assert (made.out / "table.json").read_bytes() == before
    (made.out / "table.json").write_text("[]")
    done(made("--rows", "base", "--seeds", "1"))
    assert (made.out / "table.json").read_bytes() == before
    assert_one_sentence(leafe("report", made.out), "is the directory of a table, and no run", str(made.out / "seed-1" / "base"))


def test_the_table_of_several_models_is_not_replaced_by_that_of_fewer(tmp_path: Path) -> None:
    made = shop(tmp_path, MEASURED)
    made.out.mkdir()
    (made.out / "table.json").write_text(json.dumps({"name": "mine", "environment": "sokoban", "model": "nano, nano-household"}))
    assert_one_sentence(made(), "holds the table mine of nano, nano-household in sokoban, and this is mine of nano in sokoban")
    assert_one_sentence(made("--model", "nano,small"), "and this is mine of nano, small in sokoban")


def test_what_is_finished_is_not_in_the_cost(tmp_path: Path) -> None:
    made = shop(tmp_path, MEASURED)
    done(made("--rows", "base", "--seeds", "1"))
    found = json.loads(done(made("--seeds", "1,2", "--dry-run", "--json")).out)
    assert {row["row"]: row["seeds"] for row in found["rows"]} == {"base": 1, "short": 2, "shortest": 2}
    assert found["attempts"] == (1 + 2 + 2) * 2 * 2
    said = done(made("--rows", "base", "--seeds", "1", "--dry-run"))
    assert f"Nothing is left to do in {made.out}." in said.out.replace("\n", "")


@pytest.mark.parametrize("width", [20, 40])
def test_a_narrow_terminal_leaves_no_figure_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    made = shop(tmp_path, MEASURED)
    wide = done(made("--rows", "base,short", "--seeds", "1"))
    monkeypatch.setattr(console, "width", width)
    narrow = done(made("--rows", "base,short", "--seeds", "1"))
    figures = [sorted(re.findall(r"\d[\d,]*\.\d+", said.out)) for said in (wide, narrow)]
    assert figures[0] == figures[1] and len(figures[0]) > 20


# What is refused before anything is begun


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tasks.test_split=vaild", "'vaild'"),
        ("tasks.train_split=vaild", "'vaild'"),
        ("sampling.act.max_tokens=1", "type sampling.act.max_tokens="),
        ("engine.kind=vllm", "vllm"),
        ("explore.new_luck=true", "set explore.new_luck=false"),
    ],
)
def test_a_fault_of_all_rows_is_one_sentence_and_leaves_nothing(tmp_path: Path, override: str, words: str) -> None:
    made = shop(
        tmp_path,
        f"{MEASURED}  leafe: {{{LEAFE}}}\n  grpo: {{method: grpo, settings: [grpo.size=2, grpo.groups=1]}}\n",
    )
    assert_one_sentence(made("--seeds", "1,2", override), words)
    assert "the row" not in made("--seeds", "1,2", override).err
    assert not made.out.exists()
    assert_one_sentence(made("--seeds", "1,2", "--jobs", "2", override), words)
    assert not made.out.exists()


def test_a_row_that_is_refused_leaves_no_directory_and_a_corrected_one_is_made(tmp_path: Path) -> None:
    table = "about: x\nrows: {base: {}, far: {settings: [environment.args.horizon=HORIZON]}}"
    made = shop(tmp_path, table.replace("HORIZON", "none"))
    assert made("--seeds", "1").status == 2 and not (made.out / "seed-1" / "far").exists()
    done(shop(tmp_path, table.replace("HORIZON", "5"))("--seeds", "1"))
    assert rows_of(made) == {"base": [1], "far": [1]}


def test_a_directory_in_which_nothing_was_done_takes_the_corrected_settings(tmp_path: Path) -> None:
    made = shop(tmp_path, MEASURED)
    plan = made.plan(1)
    row = plan.table.row("base")
    other = plan.config(row, 1).model_copy(update={"prompts": "full"})
    RunDirectory.open(plan.path(row, 1), other).close()  # as a command leaves it that failed before its first result
    done(made("--rows", "base", "--seeds", "1"))
    with RunDirectory.existing(plan.path(row, 1), read_only=True) as run:
        assert run.config.prompts == "terse" and run.done


def test_other_settings_are_refused_with_what_to_type_to_go_on(tmp_path: Path) -> None:
    made = shop(tmp_path, MEASURED)
    done(made("--rows", "base", "--seeds", "1", "evaluate.samples=3", "tasks.test_split=valid"))
    said = made("--rows", "base", "--seeds", "1")
    assert_one_sentence(said, "started with other settings", "to go on with them type ")
    typed = re.search(r"to go on with them type (.*), else give another --out", said.err)
    assert typed and sorted(typed[1].split()) == ["""'tasks.test_split="valid"'""", "evaluate.samples=3"]
    done(made("--rows", "base", "--seeds", "1", *(text.strip("'") for text in typed[1].split())))


def test_an_option_without_a_value_is_not_the_default() -> None:
    for option, wanted in {
        "--rows": "names, as base,leafe",
        "--env": "an environment's name, as household",
        "--recipe": "a recipe's name or YAML file",
        "--model": "a model or several, as nano or A,B",
    }.items():
        said = leafe("reproduce", "table1", "--dry-run", option, "")
        assert (said.status, said.err) == (2, f"leafe: {option}: wanted {wanted}, found nothing\n")
    for command in (("reproduce", "table1"), ("run", "quickstart")):
        assert_one_sentence(leafe(*command, "--out", " "), "invalid value for '--out': wanted a directory, found nothing")


def parsed(rows: str, more: str = "") -> Table:
    return parse_table(f"about: x\n{more}\nrows: {{{rows}}}", "mine")


def plan_of(table: Table, *overrides: str, rows: tuple[str, ...] = ()) -> Plan:
    Path("small.yaml").write_text(RECIPE)
    return Plan(table, Asked(recipe="small.yaml", seeds=(1,), rows=rows, overrides=overrides))


def refused(plan: Plan) -> str:
    with pytest.raises(UserError) as told:
        plan.check(bench)
    return str(told.value)


@pytest.mark.usefixtures("elsewhere")
def test_a_setting_of_a_method_that_no_row_has_is_refused() -> None:
    both = parsed(f"base: {{}}, leafe: {{{LEAFE}}}, ace: {{method: ace, arm: ace}}")
    assert "'grpo.size=4' is for the method grpo, which none of the rows base, leafe, ace has" in refused(
        plan_of(both, "grpo.size=4")
    )
    assert "which none of the rows base, leafe has" in refused(plan_of(both, "ace.batch=2", rows=("base", "leafe")))
    plan_of(both, "ace.batch=2", rows=("base", "ace")).check(bench)
    assert "'grpo.size=4' is for the method grpo" in refused(plan_of(parsed("base: {}", "settings: [grpo.size=4]")))
    sizes = "sizes: {quickstart: [grpo.size=4]}"
    assert "'grpo.size=4' is for the method grpo" in refused(plan_of(parsed("base: {}", sizes)))
    plan_of(parsed("base: {}, grpo: {method: grpo}", sizes), rows=("base",)).check(bench)


@pytest.mark.usefixtures("elsewhere")
def test_a_setting_that_every_row_for_it_has_of_its_own_is_refused() -> None:
    rows = f"base: {{}}, leafe: {{{LEAFE}}}, one: {{method: grpo, arm: grpo, settings: [grpo.size=2, distill.beta=0.5]}}"
    told = refused(plan_of(parsed(rows), "grpo . size=4", rows=("base", "one")))
    assert told == "'grpo . size=4' has no effect, since one set grpo.size in the table; leave it out"
    assert "since one set distill.beta" in refused(plan_of(parsed(rows), "distill.beta=1", rows=("base", "one")))
    found = plan_of(parsed(rows), "distill.beta=1", "explore.turns=500")
    found.check(bench)
    assert [found.config(found.table.row(name), 1).distill.beta for name in ("leafe", "one")] == [1, 0.5]


@pytest.mark.usefixtures("elsewhere")
def test_turns_that_are_advised_are_those_of_the_table_and_its_row_is_named() -> None:
    half = parsed("base: {}, half: {method: grpo, arm: grpo, share: 0.3, settings: [grpo.groups=4, grpo.size=8]}")
    told = refused(plan_of(half))
    assert told.startswith("the row half of the table mine cannot be made: ")
    advised = re.search(r"type (explore\.turns=(\d+))", told)
    assert advised
    plan_of(half, advised[1]).check(bench)
    fewer = int(advised[2]) - 4
    assert "half" in refused(plan_of(half, f"explore.turns={fewer}"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Tables as they are written


def test_a_table_says_its_environment_and_which_model_there_is_for_it() -> None:
    assert_one_sentence(
        leafe("reproduce", "codecontests", "--dry-run"),
        "no recipe ships for nano in 'codecontests'",
        "--model Qwen/",
        "--recipe FILE",
    )
    asked = Asked(model="Qwen/Qwen2.5-7B-Instruct")
    assert Plan(load_table("codecontests"), asked).recipe == "paper-codecontests"
    assert Plan(load_table("codecontests"), Asked(environment="household")).recipe == "household-nano"
    assert Plan(load_table("codecontests"), Asked(recipe="quickstart")).recipe == "quickstart"
    with pytest.raises(UserError, match="unknown environment of the table mine 'sokobann'; did you mean 'sokoban'"):
        parsed("base: {}", "environment: sokobann")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the table mine should be a group of settings, as `about: What it shows`, and is empty"),
        ("about: x\nrows: {base: hello}", "the row base of the table mine should be a group of settings, as `method: leafe`, and is"),
        ("about: x\nrows: {base: {metod: leafe}}", "unknown setting of the row base of the table mine 'metod'; did you mean 'method'"),
        ("about: x\nrowz: {}\nrows: {base: {}}", "unknown setting of the table mine 'rowz'; did you mean 'rows'"),
        ("about: x\nrows: {base: {}}\nchecks: [{claim: y, row: base, above: base}]", "claims that base is above base, which is itself"),
        ("about: x\nrows: {base: {}}\nchecks: [y]", "check 1 of the table mine should be a group of settings, as `claim: A raises"),
        (f"about: x\nrows: {{{'a' * 101}: {{}}}}", "wanted at most 100 characters"),
    ],
)  # fmt: skip
def test_a_fault_of_a_table_names_its_place(text: str, words: str) -> None:
    with pytest.raises(UserError) as told:
        parse_table(text, "mine")
    assert words in str(told.value)


def test_without_a_row_called_base_nothing_is_subtracted_unless_the_table_says_so() -> None:
    assert parsed("mine: {}").said.against == () and parsed("base: {}, mine: {}").said.against == ("base",)
    with pytest.raises(UserError, match="unknown row of the table mine 'base'"):
        parsed("mine: {}", "against: [base]")


@pytest.mark.usefixtures("elsewhere")
def test_a_claim_about_a_row_that_is_not_measured_names_its_column() -> None:
    plan = plan_of(parsed(f"base: {{}}, leafe: {{{LEAFE}}}", 'checks: [{claim: "LEAFE raises Pass@{k}", row: leafe, above: base}]'))
    assert summary(plan, {}).claims == ("LEAFE raises Pass@2: not measured",)
