"""The command line: every bad input is one sentence and status 2, and the whole of a small run, on somebody else's model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from command import QUICK, WORLD, Said, leafe
from pyarrow.parquet import read_table
from safetensors.torch import load_file

from leafe.distillation.store import FORMATS, HINTS, read_examples, write_examples
from leafe.records import Observation, Task
from leafe.run import RunDirectory
from leafe.worlds.fakes import Lookup
from leafe.worlds.sokoban.boxoban import write_levels
from leafe.worlds.sokoban.generator import Recipe, levels


class Interrupted(Lookup):
    """Somebody presses Ctrl-C while it is set up."""

    def reset(self, task: Task) -> Observation:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def model(taught: Path) -> Path:
    """A checkpoint of another family than the bundled one, which plays `lookup` a little."""
    return taught


def smoke(model: Path, out: Path, *overrides: str) -> Said:
    return leafe("run", "smoke", f"model={model}", *WORLD, *QUICK, *overrides, "--out", out)


@pytest.fixture(scope="module")
def first(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """The smoke recipe, run to its end, and what it said."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    return out, smoke(model, out)


@pytest.fixture
def finished(first: tuple[Path, Said], tmp_path: Path) -> Path:
    """A finished run of one's own to spoil."""
    return Path(shutil.copytree(first[0], tmp_path / "finished"))


def stamps(folder: Path) -> dict[str, int]:
    """When each file was last written, what every command writes anew left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("lock", "report.html")]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def assert_one_sentence(said: Said, *named: str) -> None:
    """Bad input is one line that names what was found and what to type; how it says so is free."""
    assert said.status == 2, said
    assert said.err.count("\n") == 1 and said.err.startswith("leafe: "), said.err
    assert "Traceback" not in said.out + said.err
    assert all(name in said.err for name in named), said.err


def test_the_smoke_recipe_goes_through_every_stage_on_a_model_of_another_family(first: tuple[Path, Said]) -> None:
    out, said = first
    assert said.status == 0 and said.err == "", said.err
    stages = json.loads((out / "stages.json").read_text())
    arms = ("leafe", "rehearsal", "independent")
    assert list(stages) == [
        "evaluate base",
        "explore round 1",
        "explore independent",
        "distil round 1",
        *(f"train {arm}" for arm in arms),
        *(f"evaluate {arm}" for arm in arms),
    ]
    assert all(stages[f"train {arm}"]["examples"] > 0 for arm in arms)
    assert stages["distil round 1"]["counterfactual"] > 0
    assert (out / "DONE").exists() and (out / "report.html").exists()
    assert {path.name for path in (out / "checkpoints").iterdir()} == set(arms)
    assert json.loads((out / "checkpoints" / "leafe" / "config.json").read_text())["model_type"] == "llama"
    assert "Exploration at equal budget" in said.out and "independent" in said.out and "report.html" in said.out


@pytest.mark.slow
def test_matched_arms_and_an_average_go_through_the_command_line(model: Path, tmp_path: Path) -> None:
    run, arms = tmp_path / "run", ("rehearsal-matched", "independent-matched", "average")
    fewer = ("tasks.test=1", "evaluate.samples=1", "train.epochs=2", "distill.rehearse=tasks", "distill.success_share=1.0")
    explored = ("controls=[independent, retry]", "explore.stop_when_solved=1")
    command = (model, run, *explored, f"arms=[{', '.join(arms)}]", "average=0.25", *fewer)
    said = smoke(*command)
    assert said.status == 0 and said.err == "" and all(name in said.out for name in ("retry", *arms)), said.err
    stages = json.loads((run / "stages.json").read_text())
    assert all(stages[f"train {arm}"]["steps"] >= 2 for arm in ("leafe", *arms[:2]))
    assert all(stages[f"explore {place}"]["turns"] <= 4 * 24 for place in ("round 1", "independent", "retry"))
    matched = [list(read_examples(run / "controls" / f"{arm}.examples.jsonl")) for arm in arms[:2]]
    assert matched[0] != matched[1] and {one.kind for side in matched for one in side} == {"rehearsal"}
    assert {len(side) for side in matched} == {stages[f"train {arm}"]["examples"] for arm in arms[:2]}
    folders = (model, run / "checkpoints" / "leafe", run / "checkpoints" / "average")
    before, after, between = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.allclose(between[name], 0.75 * before[name] + 0.25 * after[name], atol=1e-6) for name in after)
    # Killed when the average was there and not yet said to be: it is made again, of the same arm.
    kept, written = dict(list(stages.items())[: list(stages).index("train average")]), stamps(run)
    (run / "stages.json").write_text(json.dumps(kept))
    (run / "DONE").unlink()
    assert smoke(*command).status == 0 and json.loads((run / "stages.json").read_text()) == stages
    changed = {name for name, when in stamps(run).items() if when != written.get(name)}
    assert {Path(name).parts[1] for name in changed if name.startswith("checkpoints")} == {"average"}


def test_tables_fit_into_eighty_characters_and_cut_no_word_off(first: tuple[Path, Said]) -> None:
    tables = first[1].out.partition("Exploration at")[2].rpartition("The page:")[0]
    assert max(map(len, tables.splitlines())) <= 80
    assert "…" not in tables


def test_a_finished_run_is_left_as_it_is(first: tuple[Path, Said], model: Path) -> None:
    before = stamps(first[0])
    again = smoke(model, first[0])
    assert again.status == 0 and stamps(first[0]) == before
    assert "evaluate base ..." not in again.out and "Pass@k" in again.out


@pytest.mark.parametrize("verb", ["explore", "distill", "train", "evaluate", "report"])
def test_a_finished_stage_is_left_as_it_is(first: tuple[Path, Said], verb: str) -> None:
    before = stamps(first[0])
    said = leafe(verb, first[0])
    assert (said.status, said.err) == (0, "") and stamps(first[0]) == before


def test_stages_can_be_taken_one_command_at_a_time_and_the_same_run_twice_gives_the_same_files(
    tmp_path: Path, first: tuple[Path, Said]
) -> None:
    with RunDirectory.existing(first[0], read_only=True) as directory:
        RunDirectory.open(tmp_path / "run", directory.config).close()
    run = tmp_path / "run"
    assert_one_sentence(leafe("distill", run), "'explore round 1'", f"leafe explore {run}")
    assert_one_sentence(leafe("evaluate", run), f"leafe train {run}")  # the base is measured by then
    for verb in ("explore", "distill", "train", "evaluate"):
        assert leafe(verb, run).status == 0
    for name in ("round-1/examples.jsonl", "controls/independent.examples.jsonl", "checkpoints/leafe/model.safetensors"):
        assert (run / name).read_bytes() == (first[0] / name).read_bytes()
    lines = [sorted((folder / "eval" / "leafe.jsonl").read_text().splitlines()) for folder in (first[0], run)]
    assert lines[0] == lines[1]


def test_a_recipe_can_be_explored_alone_and_the_run_goes_on_from_there(
    model: Path, tmp_path: Path, first: tuple[Path, Said]
) -> None:
    run = tmp_path / "run"
    said = leafe("explore", "smoke", f"model={model}", *WORLD, *QUICK, "--out", run)
    assert (said.status, said.err) == (0, "") and "Exploration at equal budget" in said.out
    assert list(json.loads((run / "stages.json").read_text())) == ["explore round 1", "explore independent"]
    assert leafe("evaluate", "smoke", f"model={model}", *WORLD, *QUICK, "--out", run).status == 0
    assert list(json.loads((run / "stages.json").read_text())) == ["explore round 1", "explore independent", "evaluate base"]
    assert sorted((run / "round-1" / "forest.jsonl").read_bytes().splitlines()) == sorted(
        (first[0] / "round-1" / "forest.jsonl").read_bytes().splitlines()
    )
    before = stamps(run)
    assert leafe("explore", run).status == 0 and stamps(run) == before


@pytest.mark.parametrize("verb", ["explore", "evaluate"])
def test_what_is_neither_a_run_directory_nor_a_recipe_is_told_so(verb: str, finished: Path, tmp_path: Path) -> None:
    assert_one_sentence(leafe(verb, "smoek"), "'smoek'", "'smoke'", "quickstart")
    assert_one_sentence(leafe(verb, tmp_path / "gone"), "gone", "recipe")
    assert_one_sentence(leafe(verb, "./gone.yaml"), "./gone.yaml")
    assert_one_sentence(leafe(verb, finished, "seed=2"), f"leave out all but {finished}")
    assert_one_sentence(leafe(verb, finished, "--out", tmp_path / "run"), f"leave out all but {finished}")
    assert_one_sentence(leafe(verb, "smoke", "explore.trns=3", "--out", tmp_path / "run"), "'explore.turns'")
    assert not (tmp_path / "run").exists()


def test_a_run_in_which_no_reply_holds_an_action_says_so_wherever_it_is_shown(model: Path, tmp_path: Path) -> None:
    limits = ("sampling.act.max_tokens=24", "sampling.reflect.max_tokens=24", "prompts=full", "tasks.train=2", "tasks.test=2")
    said = leafe("run", "smoke", f"model={model}", *WORLD, *QUICK, *limits, "--out", tmp_path / "run")
    assert_one_sentence(said, "there is no example to train on: no reply held an action")
    # The model knows untagged replies alone; some run on to the limit.
    cause = r"no reply held an action(: read some on the page|; [^:!]* cut at sampling\.act\.max_tokens=24: raise it)"
    assert re.search(cause, said.err)
    tables = said.out.partition("Exploration at")[2].rpartition("The page:")[0]
    assert max(map(len, tables.splitlines())) <= 80 and "…" not in tables
    words = " ".join(said.out.split())
    assert "100 % no action" in words and "none" not in tables and re.search(rf"! [^!]*base: {cause}", words)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert re.search(f"there is no example to train on: {cause}", page)
    found = json.loads(leafe("compare", tmp_path / "run", "--json").out)
    assert found["arms"][0]["faults"]["no_action"] == 1
    for verb in ("compare", "report"):
        assert re.search(rf"! [^!]*base: {cause}", " ".join(leafe(verb, tmp_path / "run").out.split()))


def test_compare_gives_json_of_the_agreed_shape(first: tuple[Path, Said]) -> None:
    found = json.loads(leafe("compare", first[0], "--json").out)
    assert [arm["name"] for arm in found["arms"]] == ["base", "leafe", "rehearsal", "independent"]
    for arm in found["arms"]:
        assert set(arm) == {"name", "pass_at_k", "minus_base", "turns", "tokens", "errors", "faults"}
        assert set(arm["pass_at_k"]) == {"1", "2", "4"}
        assert set(arm["minus_base"]) == (set() if arm["name"] == "base" else {"1", "2", "4"})
        for interval in (*arm["pass_at_k"].values(), *arm["minus_base"].values()):
            assert set(interval) == {"value", "low", "high"} and interval["low"] <= interval["value"] <= interval["high"]
        assert arm["errors"] == {} and arm["turns"] > 0 and arm["tokens"] > 0


def test_compare_takes_several_runs_and_one_more_k(first: tuple[Path, Said], finished: Path) -> None:
    found = json.loads(leafe("compare", first[0], finished, "--json", "--k", "3").out)
    assert [arm["name"] for arm in found["arms"]][::4] == ["smoke:base", "finished:base"]
    assert all(set(arm["pass_at_k"]) == {"1", "2", "3", "4"} for arm in found["arms"])


def test_runs_with_long_names_are_compared_in_eighty_characters_with_each_interval_whole(
    first: tuple[Path, Said], tmp_path: Path
) -> None:
    named = [tmp_path / "household-nano-with-a-second-seed", tmp_path / "quickstart-001"]
    for path in named:
        shutil.copytree(first[0], path, ignore=shutil.ignore_patterns("checkpoints"))
    table = leafe("compare", *named).out.partition("Replies, tries")[0]
    assert max(map(len, table.splitlines())) <= 80 and "…" not in table
    found = json.loads(leafe("compare", *named, "--json").out)["arms"]
    for arm in found:
        value = arm["pass_at_k"]["4"]
        assert f"{100 * value['value']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]" in table
    assert {"quickstart-", "household-", "base", "rehearsal", "independent"} <= set(re.split(r"[\s:]+", table.replace("001", " ")))


def test_compare_subtracts_the_arm_that_is_named(first: tuple[Path, Said]) -> None:
    against_base, against_leafe = (
        {arm["name"]: arm["minus_base"] for arm in json.loads(leafe("compare", first[0], "--json", "--base", base).out)["arms"]}
        for base in ("base", "leafe")
    )
    assert against_leafe["leafe"] == {}
    assert against_leafe["base"]["4"]["value"] == -against_base["leafe"]["4"]["value"]
    assert "- leafe" in leafe("compare", first[0], "--base", "leafe").out


def test_diagnose_gives_json_of_every_figure(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = leafe("diagnose", "smoke", f"model={model}", *WORLD, *QUICK, "--json", "--turns", "5")
    found = json.loads(said.out)
    assert (said.status, said.err) == (0, "") and not list(tmp_path.iterdir())
    assert found["tasks"] == 4 and 0 < found["branch_points"] <= 5 and found["reflections"] > 0
    assert set(found["reflection_gap"]) == {"value", "low", "high"}
    assert found["tree_faults"]["replies"] > 0 and found["tree_faults"]["reflections"] == found["reflections"]
    assert found["independent_faults"]["no_action"] is not None and found["independent_faults"]["unread"] is None


def test_any_model_is_measured_in_any_environment_and_compared_with_runs(
    first: tuple[Path, Said], model: Path, tmp_path: Path
) -> None:
    few = ("--tasks", "3", "--samples", "2")
    said = leafe("evaluate", model, "--env", "lookup", "places=3", "horizon=2", *QUICK, *few, "--out", tmp_path / "alone")
    assert said.status == 0 and "base" in said.out
    with RunDirectory.existing(tmp_path / "alone", read_only=True) as run:
        config = run.config
        assert config.environment.args == {"places": 3, "horizon": 2} and list(run.arms()) == ["base"]
        assert (config.tasks.test, config.evaluate.samples) == (3, 2)
    beside = json.loads(leafe("compare", first[0], tmp_path / "alone", "--json", "--k", "1").out)
    assert "alone:base" in [arm["name"] for arm in beside["arms"]]


def test_runs_in_other_environments_are_told_apart_and_give_no_difference(
    first: tuple[Path, Said], model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    leafe("evaluate", model, "--env", "lookup", "places=3", "horizon=1", *QUICK, "--tasks", "2", "--samples", "1", "--out", other)
    said = leafe("compare", first[0], other, "--k", "1")
    assert said.status == 0 and "their figures do not compare" in " ".join(said.out.split())
    refused = leafe("compare", first[0], other, "--k", "1", "--base", f"{first[0].resolve().name}:base")
    assert refused.status == 2 and "a difference wants one environment" in " ".join(refused.err.split())


def test_a_model_is_diagnosed_without_a_recipe(model: Path) -> None:
    said = leafe("diagnose", model, "--env", "lookup", "places=3", "horizon=2", *QUICK, "--tasks", "3", "--turns", "4", "--json")
    assert said.status == 0 and json.loads(said.out)["tasks"] == 3


def test_a_file_of_held_out_levels_alone_is_enough_to_measure_on_and_otherwise_its_split_is_named(
    model: Path, tmp_path: Path
) -> None:
    held_out, file = [level for level, _ in islice(levels(Recipe(), "test", 1), 2)], tmp_path / "levels.txt"
    file.write_text(write_levels(held_out))
    given = (model, "--env", "sokoban", f"levels={file}", "environment.args.horizon=2", *QUICK, "--tasks", "2")
    said = leafe("evaluate", *given, "--samples", "1", "--out", tmp_path / "run")
    assert said.status == 0, said
    refused = leafe("diagnose", *given)
    assert refused.status == 2 and "those of 'test', as with tasks.train_split=test" in " ".join(refused.err.split())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["evaluate", "smoke", "--samples", "3"], "--samples"),
        (["diagnose", "smoke", "--tasks", "3"], "--tasks"),
        (["evaluate", "nano", "--env", "sokobam"], "'sokoban'"),
        (["evaluate", "nano", "--env", "sokoban", "rooms=2"], "'rooms'"),
        (["evaluate", "nano", "--env", "sokoban", "train.epoch=2"], "'train.epoch'"),
        (["evaluate", "no/where", "--env", "sokoban"], "no/where"),
        (["diagnose", "nano", "--env", "sokoban", "levels=no.txt"], "no.txt"),
    ],
)
def test_a_model_or_an_environment_that_cannot_be_had_is_told_in_a_sentence(
    arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(leafe(*arguments), named)
    assert not list(tmp_path.iterdir())


def test_diagnose_shows_a_table(model: Path) -> None:
    said = leafe("diagnose", "smoke", f"model={model}", *WORLD, *QUICK)
    assert said.status == 0 and "reflection gap" in said.out and "Replies, tries and reflections, %" in said.out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["smoek"], ["'smoek'", "'smoke'", "quickstart"]),
        (["./nowhere.yaml"], ["./nowhere.yaml", "quickstart"]),
        (["smoke", "explor.turns=3"], ["'explor'", "'explore'"]),
        (["smoke", "explore.trns=3"], ["'explore.trns'", "'explore.turns'"]),
        (["smoke", "train.epochs=many"], ["train.epochs", "number", "'many'"]),
        (["smoke", "train.epochs"], ["'train.epochs'", "key=value"]),
        (["smoke", "engine.dtype=float8"], ["engine.dtype", "bfloat16", "'float8'"]),
        (["smoke", "environment.name=lokup"], ["'lokup'", "'lookup'"]),
        (["smoke", "environment.name=lookup", "environment.args={places: two}"], ["lookup", "places", "int", "'two'"]),
        (["smoke", "environment.args={rooms: 2}"], ["sokoban", "'rooms'"]),
        (["smoke", "tasks.test_split=exam"], ["'exam'", "train"]),
        (["smoke", "prompts=curt"], ["'curt'", "terse", "full"]),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_anything_is_made(
    arguments: list[str], named: list[str], model: Path, tmp_path: Path
) -> None:
    given = [*arguments, f"model={model}"] if len(arguments) > 1 else arguments
    assert_one_sentence(leafe("run", *given, "--out", tmp_path / "run"), *named)
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    assert_one_sentence(leafe("run", "smoke", f"model={tmp_path}/gone"), f"no checkpoint in '{tmp_path}/gone'")


def test_a_model_without_weights_is_one_sentence(model: Path, tmp_path: Path) -> None:
    (tmp_path / "hollow").mkdir()
    for path in model.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path / "hollow")
    assert_one_sentence(smoke(tmp_path / "hollow", tmp_path / "run"), "hollow", "model.safetensors")


def test_another_configuration_on_a_run_is_refused_naming_the_setting(finished: Path, model: Path) -> None:
    assert_one_sentence(smoke(model, finished, "seed=9"), "seed: 1 -> 9", "--out")


def test_a_second_process_on_a_run_is_refused(finished: Path, model: Path) -> None:
    with RunDirectory.existing(finished):
        assert_one_sentence(leafe("train", finished), "is in use by process")
        assert_one_sentence(smoke(model, finished), "is in use by process")
        assert leafe("compare", finished).status == 0  # looking on is allowed


def test_a_corrupt_line_is_named(finished: Path) -> None:
    forest = finished / "round-1" / "forest.jsonl"
    lines = forest.read_text().splitlines()
    lines[2] = lines[2].replace('"task":', '"tusk":')
    forest.write_text("\n".join(lines) + "\n")
    assert_one_sentence(leafe("report", finished), "forest.jsonl line 3 is no tree")
    lines[1] = lines[1][:40]
    forest.write_text("\n".join(lines) + "\n")
    assert_one_sentence(leafe("report", finished), "forest.jsonl line 2 is not a JSON object")


@pytest.mark.parametrize("verb", ["explore", "distill", "train", "evaluate", "report", "compare"])
def test_a_folder_that_is_no_run_is_refused(verb: str, tmp_path: Path) -> None:
    assert_one_sentence(leafe(verb, tmp_path), "config.yaml", "--out")


def test_pass_at_a_k_beyond_the_samples_is_refused(first: tuple[Path, Said]) -> None:
    assert_one_sentence(leafe("compare", first[0], "--k", "5"), "n=4", "k=5")
    assert_one_sentence(leafe("compare", first[0], "--k", "0"), "k >= 1")
    assert_one_sentence(leafe("compare", first[0], "--base", "rehersal"), "did you mean 'rehearsal'?")


def test_comparing_what_was_not_measured_is_refused(finished: Path) -> None:
    (finished / "stages.json").write_text("{}")
    assert_one_sentence(leafe("compare", finished), f"leafe evaluate {finished}")


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_examples_are_exported_for_other_trainers(first: tuple[Path, Said], tmp_path: Path, kind: str) -> None:
    out = tmp_path / ("out.parquet" if kind == "verl" else "out.jsonl")
    said = leafe("export", first[0], kind, out)
    wanted = json.loads((first[0] / "stages.json").read_text())["train leafe"]["examples"]
    assert said.status == 0 and f"{wanted} examples in" in said.out
    assert HINTS[kind].split(":")[0] in " ".join(said.out.split())
    assert (read_table(out).num_rows if kind == "verl" else len(out.read_text(encoding="utf-8").splitlines())) == wanted


def test_an_export_reports_what_it_leaves_out(finished: Path, tmp_path: Path) -> None:
    file, stages = finished / "round-1" / "examples.jsonl", json.loads((finished / "stages.json").read_text())
    examples = [replace(one, weight=0.0) if one.kind == "rehearsal" else one for one in read_examples(file)]
    counterfactual = sum(one.counts for one in examples)
    write_examples(file, examples)
    bare = {
        stage: {name: value for name, value in said.items() if name not in ("files", "digest")} for stage, said in stages.items()
    }
    (finished / "stages.json").write_text(json.dumps(bare))  # without digests, of which this file has another
    said = leafe("export", finished, "trl", tmp_path / "out")
    assert 0 < counterfactual < len(examples) and f"{counterfactual} examples in" in said.out
    assert f"left out: {len(examples) - counterfactual} examples of weight 0" in said.out


def test_an_export_that_cannot_be_is_refused(first: tuple[Path, Said], finished: Path, tmp_path: Path) -> None:
    assert_one_sentence(leafe("export", first[0], "json", tmp_path / "out"), "'json'", "trl")
    (tmp_path / "there").touch()
    assert_one_sentence(leafe("export", first[0], "trl", tmp_path / "there"), "there")
    assert_one_sentence(leafe("export", first[0], "trl", tmp_path / "no" / "where"), "where")
    (finished / "round-1" / "examples.jsonl").unlink()
    assert_one_sentence(leafe("export", finished, "trl", tmp_path / "out"), "examples.jsonl is not")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], "no such command 'rnu'"),
        (["run"], "missing argument 'recipe'"),
        (["run", "smoke", "--outt", "x"], "no such option: --outt"),
        (["compare", "x", "--k", "many"], "'--k': "),
        (["compare"], "missing argument 'runs"),
        (["play", "lookup", "--number", "0"], "'--number': "),
        (["diagnose", "smoke", "--turns", "0"], "'--turns': "),
        (["nano", "build", "--steps", "0"], "'--steps': "),
    ],
)
def test_a_command_that_is_typed_wrongly_is_told_so(arguments: list[str], words: str) -> None:
    said = leafe(*arguments)
    assert_one_sentence(said, "--help")
    assert words in said.err.lower()


def test_a_method_that_cannot_name_its_stages_is_refused_before_anything_is_made(model: Path, tmp_path: Path) -> None:
    assert_one_sentence(smoke(model, tmp_path / "run", "method=grpo"), "explore.turns=")
    assert_one_sentence(leafe("explore", "smoke", f"model={model}", *WORLD, "method=grpo", "--out", tmp_path / "run"), "explore")
    assert not (tmp_path / "run").exists()


def test_environments_are_listed_each_with_a_line() -> None:
    said = leafe("envs")
    assert said.status == 0
    assert {"lookup", "slippery-sokoban", "sokoban"} <= {line.partition("  ")[0] for line in said.out.splitlines()}


@pytest.mark.slow
def test_the_doctor_answers_in_json_and_whatever_is_missing_comes_with_what_mends_it() -> None:
    said = leafe("doctor", "--json")
    found = json.loads(said.out)
    assert all({"what", "found", "verdict", "mend"} == set(finding) for finding in found)
    assert {"Python", "bundled model", "processor cores", "free memory"} <= {finding["what"] for finding in found}
    assert said.status == int(any(finding["verdict"] == "missing" for finding in found))
    assert all(finding["mend"] for finding in found if finding["verdict"] == "missing")
    assert not any(finding["mend"] for finding in found if finding["verdict"] == "ok")


def test_an_environment_that_keeps_its_promise_passes() -> None:
    said = leafe("check-env", "lookup", "places=3", "--rollbacks", "20", "--json")
    found = json.loads(said.out)
    assert said.status == 0 and found["passed"] and found["declared"] == "replay"


def test_an_environment_that_breaks_its_promise_fails_and_is_told_why() -> None:
    said = leafe("check-env", "slippery-sokoban", "slip=0.9", "--rollbacks", "20")
    assert said.status == 1
    words = " ".join(said.out.split())
    assert "declares replay, holds none" in words and "replays differ" in words


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["sokobn"], ["'sokobn'", "'sokoban'"]),
        (["lookup", "places"], ["'places'", "name=value"]),
        (["lookup", "places=0"], ["lookup", "place"]),
        (["lookup", "places=[1"], ["'places=[1'"]),
        (["nowhere.at:All"], ["'nowhere.at'"]),
    ],
)
def test_an_environment_that_cannot_be_made_is_one_sentence(arguments: list[str], named: list[str]) -> None:
    assert_one_sentence(leafe("check-env", *arguments), *named)
    assert_one_sentence(leafe("play", *arguments), *named)


def test_a_person_plays_goes_back_and_solves_it() -> None:
    said = leafe("play", "lookup", "places=2", stdin="fly\nback 1\nopen place1\nback 1\nopen place2\n")
    assert said.status == 0
    assert "2. That is no action." in said.out and said.out.rstrip().endswith("Solved in 1 turn.")


def test_the_end_of_input_leaves_the_game() -> None:
    assert leafe("play", "lookup", "--split", "test", "--number", "2").status == 0


def test_an_interruption_is_one_line_and_the_status_of_the_shell() -> None:
    said = leafe("play", "test_cli:Interrupted")
    assert said.status == 130 and said.err.count("\n") == 1 and "the same command" in said.err


@pytest.mark.slow
def test_the_bundled_model_can_be_built_anew(tmp_path: Path) -> None:
    said = leafe("nano", "build", "--steps", "1", "--processes", "1", "--out", tmp_path / "nano")
    assert said.status == 0 and "step 1/1 loss" in said.out
    assert sum(path.stat().st_size for path in (tmp_path / "nano").iterdir()) < 5_000_000
    few = ("--tasks", "2", "--samples", "2", "engine.threads=1", "horizon=4")
    assert leafe("evaluate", tmp_path / "nano", "--env", "sokoban", *few, "--out", tmp_path / "run").status == 0
    assert json.loads((tmp_path / "run" / "stages.json").read_text())["evaluate base"]["attempts"] == 4


def test_the_entry_point_of_a_shell_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "leafe.cli", "play", "lokup"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("leafe: ") and "'lookup'" in done.stderr
