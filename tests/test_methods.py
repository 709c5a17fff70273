"""Methods: one of another package runs like LEAFE, one that is broken is told in a sentence, and what a run keeps serves any of them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command import QUICK, Said, leafe
from hypothesis import given, settings
from hypothesis import strategies as st
from players import steady
from tiny import tiny_model, tiny_tokenizer

from leafe.config import dump, load_recipe, parse
from leafe.digest import text_digest
from leafe.distillation.store import read_examples
from leafe.engines.base import Engine
from leafe.engines.scripted import ScriptedEngine
from leafe.errors import CorruptFile, UnknownName, UserError
from leafe.evaluation.outcomes import read_outcomes
from leafe.experiment import Experiment
from leafe.forest.builder import Start, TreeBuilder
from leafe.forest.effects import Play
from leafe.forest.play import play
from leafe.known_methods import SHIPPED, find
from leafe.lab import Lab, run_recipe, run_stage, run_verb, stages_of
from leafe.methods.base import Made, Method, Policy, Stage
from leafe.methods.leafe import LeafeSettings
from leafe.progress import Silent
from leafe.records import Ask, Tree
from leafe.results import arms_of, as_json, comparison_of, exploration_of
from leafe.run import HEADER, RunDirectory
from leafe.shown import check_name
from leafe.stages import VERBS, PutOff, carry_out, check_stages, needed, of_verb
from leafe.viewer.report import write_report
from leafe.worlds.fakes import Lookup

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
LEVELS = "environment.args={min_length: 2, max_length: 3, horizon: 4}"
FEW = (LEVELS, *QUICK, "tasks.train=4", "tasks.test=2", "explore.turns=30", "evaluate.samples=1")


@dataclass(frozen=True)
class Shelf:
    """A folder on the path into which packages are put that offer methods."""

    folder: Path

    def put(self, package: str, source: str, *offers: str) -> str:
        """A package of one module, whose entry points are `offers`, as `name = Class`. Returns the module's name."""
        module = package.replace("-", "_")
        (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{module}-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {module}:{found}" for name, _, found in (offer.partition(" = ") for offer in offers)]
        (info / "entry_points.txt").write_text("\n".join(["[leafe.methods]", *lines, ""]))
        return module


@pytest.fixture
def shelf(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    folder, before = tmp_path_factory.mktemp("packages"), set(sys.modules)
    monkeypatch.syspath_prepend(folder)
    yield Shelf(folder)
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def documented() -> str:
    """The method of the documentation, word for word."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(block)


def assert_one_sentence(said: Said, *expected: str) -> None:
    assert said.status == 2 and said.err.count("\n") == 1 and said.err.startswith("leafe: "), said
    assert "Traceback" not in said.out + said.err
    for words in expected:
        assert words in said.err


# A method of another package


def test_the_method_of_the_documentation_installs_by_entry_point_and_runs_like_leafe(shelf: Shelf, tmp_path: Path) -> None:
    source, run = documented(), tmp_path / "run"
    assert source.count("\n") <= 60
    shelf.put("my-methods", source, "rejection = Rejection")

    listed = {one["name"]: one for one in json.loads(leafe("methods", "--json").out)}
    assert list(listed) == sorted({*SHIPPED, "rejection"}) and "successes" in listed["rejection"]["summary"]
    assert "my-methods" in listed["rejection"]["origin"] and "comes with leafe" in listed["leafe"]["origin"]
    shown = json.loads(leafe("methods", "rejection", "--json").out)
    assert shown["settings"] == [{"name": "rejection.per_task", "wants": "int, at least 1", "about": "", "default": 2}]
    assert "rejection.per_task" in leafe("methods", "rejection").out

    recipe = ("run", "smoke", "method=rejection", "rejection.per_task=1", *FEW, "--out", run)
    said = leafe(*recipe)
    assert (said.status, said.err) == (0, "")
    assert "rejection" in said.out and "independent," in said.out
    assert list(json.loads((run / "stages.json").read_text())) == [
        "evaluate base",
        "explore round 1",
        "distil round 1",
        "train rejection",
        "evaluate rejection",
    ]
    compared, found = (json.loads(leafe(verb, run, "--json").out) for verb in ("compare", "report"))
    assert [arm["name"] for arm in compared["arms"]] == ["base", "rejection"] and found["arms"] == compared["arms"]
    assert found["method"] == "rejection" and found["done"] and "train rejection" in found["stages"]
    (explored,) = found["exploration"]
    assert explored["name"] == "independent, round 1" and explored["successes"] > 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert ">rejection<" in page and "independent, round 1" in page and "rejection.per_task" in page

    # Of each task the one shortest success, and no more.
    examples = list(read_examples(run / "round-1" / "examples.jsonl"))
    assert examples and all(
        len({one.attempt for one in examples if one.task == task}) == 1 for task in {one.task for one in examples}
    )

    # The settings of its own are a part of the run.
    before = (run / "stages.json").read_bytes()
    assert_one_sentence(leafe(*recipe[:3], "rejection.per_task=3", *recipe[4:]), "rejection.per_task: 1 -> 3")
    assert leafe(*recipe).status == 0 and leafe("evaluate", run).status == 0 and leafe("distill", run).status == 0
    assert (run / "stages.json").read_bytes() == before


def test_a_method_is_found_as_module_and_class_without_being_installed(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    (shelf.folder / "loose_method.py").write_text(documented())
    config = load_recipe("smoke", ["method=loose_method:Rejection", "rejection.per_task=3"])
    assert config.method == "loose_method:Rejection" and config.own.model_dump() == {"per_task": 3}
    assert parse(dump(config), "kept", whole=True) == config
    with pytest.raises(UnknownName, match=r"did you mean 'rejection\.per_task'"):
        load_recipe("smoke", ["method=loose_method:Rejection", "rejection.per_tsk=3"])
    with pytest.raises(UserError, match=r"rejection\.per_task: wanted at least 1, found 0"):
        load_recipe("smoke", ["method=loose_method:Rejection", "per_task=0"])


GOOD = """
from leafe.methods.base import Method

class Good(Method):
    name, summary = "good", "a method"

    def stages(self, lab, run, settings):
        return []
"""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "raise RuntimeError('no licence\\nfound')",
            ["importing 'broken' ends with RuntimeError: no licence found", "broken.py line 1"],
        ),
        ("import nowhere_at_all", ["No module named 'nowhere_at_all'"]),
        ("import sys\nsys.exit(3)", ["SystemExit: 3"]),
        ("def Good(:", ["SyntaxError"]),
        ("Other = 3", ["'broken' has no class 'Good'"]),
        ("Good = 3", ["wants a class", "is 3"]),
        (GOOD.replace("def stages", "def stage"), ["lacks stages"]),
        (GOOD.replace("(Method)", "").replace("stages", "go"), ["lacks Settings and stages and trains and check"]),
        (GOOD.replace('name, summary = "good", "a method"', ""), ["lacks name and summary"]),
        (GOOD.replace('"good"', '"bad"'), ["is offered as 'good' and calls itself 'bad'"]),
        (GOOD.replace('"good"', '"a.b"'), ["wants a name of letters", "found 'a.b'"]),
        (GOOD.replace('"a method"', "7"), ["wants a summary in words, found 7"]),
        (GOOD + "    Settings = dict\n", ["wants Settings derived from leafe.settings.Settings"]),
        (GOOD + "    def __init__(self, lab):\n        pass\n", ["cannot be made: TypeError"]),
    ],
)
def test_a_broken_method_is_told_in_one_sentence(source: str, words: list[str], shelf: Shelf, tmp_path: Path) -> None:
    shelf.put("broken", source, "good = Good")
    assert_one_sentence(leafe("run", "smoke", "method=good", "--out", tmp_path / "run"), "good", *words)
    assert_one_sentence(leafe("methods", "good"), *words)
    listed = leafe("methods", "--json")
    assert_one_sentence(listed, *words)
    assert [one["name"] for one in json.loads(listed.out) if not one["fault"]] == sorted(SHIPPED)
    assert not (tmp_path / "run").exists() and load_recipe("smoke").method == "leafe"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('where?')", "stages() of the method 'good' ends with ValueError: where?"),
        ("return []", "has no stages"),
        ("return [3]", "wants stages of the class leafe.stages.Stage, found 3"),
        ("return 3", "stages() of the method 'good' ends with TypeError"),
        ("return [Stage('a', dict), Stage('a', dict)]", "each name once, found 'a'"),
        ("return [Stage('a', dict, ('b',)), Stage('b', dict)]", "needs 'b', which is none before it"),
        ("return [Stage('a', dict, verb='sing')]", "wants a verb of explore, distill, train, evaluate, found 'sing'"),
        ("return [lab.measure(run, 'a/b', Policy(lab.base))]", "the arm wants a name of at most"),
        ("return [lab.explore(run, 1, Policy(lab.base), explorer='forest')]", "unknown explorer 'forest'"),
    ],
)
def test_stages_that_cannot_be_are_told_before_anything_is_done(
    body: str, words: str, shelf: Shelf, base: Path, tmp_path: Path
) -> None:
    source = GOOD.replace("import Method", "import Method, Policy, Stage").replace("return []", body)
    shelf.put("unstaged", source, "good = Good")
    here = experiment(base, steady("wait", "none"), "method=good")
    with RunDirectory.open(tmp_path / "run", here.config) as run:
        with pytest.raises(UserError, match=r"'good'|explorer|arm") as told:
            run_recipe(here, run)
        assert words in str(told.value) and "\n" not in str(told.value) and not run.stages


@pytest.mark.parametrize("call", ["check(self, config, settings)", "trains(self, settings)"])
def test_what_a_method_raises_when_it_is_asked_is_one_sentence(call: str, shelf: Shelf, tmp_path: Path) -> None:
    source = GOOD.replace("import Method", "import Method, Policy").replace(
        "return []", "return [lab.measure(run, 'base', Policy(lab.base))]"
    )
    shelf.put("raising", source + f"    def {call}:\n        return {{}}['no\\nkey']\n", "good = Good")
    said = leafe("run", "smoke", "method=good", "--out", tmp_path / "run")
    assert_one_sentence(said, f"{call.partition('(')[0]}() of the method 'good' ends with KeyError: ", "raising.py line")
    assert not (tmp_path / "run").exists()


def test_two_methods_of_one_name_are_refused_and_the_class_can_be_named(shelf: Shelf, tmp_path: Path) -> None:
    shelf.put("one", GOOD, "good = Good")
    shelf.put("other", GOOD, "good = Good")
    assert_one_sentence(
        leafe("run", "smoke", "method=good", "--out", tmp_path / "run"), "two methods are called 'good': one:Good and other:Good"
    )
    assert find("one:Good").name == "good"
    assert leafe("methods").out.count("cannot be used") == 2


def test_a_method_that_takes_the_name_of_the_shipped_one_is_refused(shelf: Shelf) -> None:
    shelf.put("thief", GOOD.replace('"good"', '"leafe"'), "leafe = Good")
    with pytest.raises(UserError, match=r"two methods are called 'leafe': leafe\.methods\.leafe:Leafe and thief:Good"):
        load_recipe("smoke")
    assert load_recipe("smoke", ["method=leafe.methods.leafe:Leafe"]).own == LeafeSettings(
        controls=("independent",), arms=("leafe", "rehearsal", "independent")
    )


@pytest.mark.parametrize("name", ["train", "own", "digest", "model_dump"])
def test_a_method_cannot_be_called_as_something_in_every_recipe(name: str, shelf: Shelf) -> None:
    shelf.put("bold", GOOD.replace('"good"', f'"{name}"'), f"{name} = Good")
    with pytest.raises(UserError, match=f"a method cannot be called '{name}'"):
        load_recipe("smoke", [f"method={name}"])


# Settings of a method


def test_a_recipe_holds_sections_for_several_methods_and_one_is_chosen(shelf: Shelf) -> None:
    shelf.put("my-methods", documented(), "rejection = Rejection")
    text = "name: both\nenvironment: {name: lookup}\nleafe: {rounds: 2}\nrejection: {per_task: 5}\n"
    leafes, other = parse(text, "both"), parse(text, "both", ["method=rejection"])
    assert leafes.own == LeafeSettings(rounds=2) and other.own.model_dump() == {"per_task": 5}
    assert "rejection" not in leafes.model_dump() and "leafe" not in other.model_dump()
    for override, words in {
        "leafe.rounds=3": "'leafe.rounds=3' is for the method leafe, and the method of this run is rejection",
        "rounds=3": "rounds is a setting of the method leafe, and the method here is rejection; write it as leafe.rounds",
    }.items():
        with pytest.raises(UserError, match=re.escape(words)):
            parse(text, "both", ["method=rejection", override])
    with pytest.raises(UnknownName, match="unknown setting 'rejektion'; did you mean 'rejection'"):
        parse(text.replace("rejection:", "rejektion:"), "both", ["method=rejection"])


def test_a_setting_of_the_method_may_stand_at_the_top_and_stands_once() -> None:
    minimal = "name: trial\nenvironment: {name: sokoban}\n"
    nested, flat = parse(minimal + "leafe: {rounds: 2, arms: []}", "a"), parse(minimal + "rounds: 2\narms: []", "b")
    assert nested == flat and nested.digest == flat.digest
    assert parse(minimal + "leafe: {rounds: 2, arms: []}", "a", ["rounds=3"]).own == LeafeSettings(rounds=3, arms=())
    with pytest.raises(UserError, match=r"c holds rounds twice, at the top and as leafe\.rounds"):
        parse(minimal + "leafe: {rounds: 2}\nrounds: 2", "c")
    for value in ("3", "[1]"):
        with pytest.raises(UserError, match="method: wanted a name"):
            parse(minimal, "d", [f"method={value}"])
    with pytest.raises(UnknownName, match="unknown method 'leaf'; did you mean 'leafe'"):
        parse(minimal, "e", ["method=leaf"])


def test_a_run_that_an_older_version_began_is_read_and_gone_on_with(tmp_path: Path) -> None:
    config = load_recipe("smoke", ["seed=5"])
    RunDirectory.open(tmp_path / "run", config).close()
    new = dump(config)
    section = "leafe:\n  rounds: 1\n  controls:\n  - independent\n  arms:\n  - leafe\n  - rehearsal\n  - independent\n"
    later = "  average: 0.5\n  averaged: leafe\n"
    assert section + later in new and "method: leafe\n" in new
    top = section.removeprefix("leafe:\n").replace("\n  ", "\n").removeprefix("  ")
    old = new.replace(section + later, top).replace("method: leafe\n", "")
    (tmp_path / "run" / "config.yaml").write_text(HEADER + text_digest(old) + "\n" + old)
    with RunDirectory.existing(tmp_path / "run", read_only=True) as run:
        assert run.config == config
    with RunDirectory.open(tmp_path / "run", config):
        assert (tmp_path / "run" / "config.yaml").read_text().partition("\n")[2] == new


# Stages


def stage(name: str, *needs: str, verb: str = "", done: Callable[[], Made] = Made, asked_only: bool = False) -> Stage:
    return Stage(name, done, needs, verb, asked_only)


TWO_ROUNDS = (
    stage("measure base", verb="evaluate"),
    stage("explore 1", verb="explore"),
    stage("control", verb="explore"),
    stage("distil 1", "explore 1", verb="distill"),
    stage("train 1", "distil 1", verb="train"),
    stage("explore 2", "train 1", verb="explore"),
    stage("distil 2", "explore 2", verb="distill"),
    stage("train 2", "distil 2", verb="train"),
    stage("measure", verb="evaluate"),
)


def test_a_command_means_the_stages_of_its_verb_that_need_no_later_verb() -> None:
    meant = {verb: [one.name for one in of_verb(TWO_ROUNDS, verb)] for verb in VERBS}
    assert meant == {
        "explore": ["explore 1", "control"],
        "distill": ["distil 1"],
        "train": ["explore 1", "distil 1", "train 1", "explore 2", "distil 2", "train 2"],
        "evaluate": ["measure base", "measure"],
    }
    assert [one.name for one in needed(TWO_ROUNDS, TWO_ROUNDS[5])] == ["explore 1", "distil 1", "train 1"]


@settings(max_examples=25)
@given(needs=st.lists(st.integers(0, 9), min_size=1, max_size=12), deaths=st.lists(st.integers(0, 6), max_size=8))
def test_stages_that_are_killed_again_and_again_are_each_finished_once_in_their_order(
    needs: list[int], deaths: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    class Killed(Exception):
        pass

    lives, finished = iter([*deaths, 10**6]), []
    left = next(lives)

    def work(name: str) -> Made:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        finished.append(name)
        return Made({"number": len(finished)})

    named = [f"s{number}" for number in range(len(needs))]
    stages = check_stages(
        [
            Stage(name, lambda name=name: work(name), (named[need],) if need < number else ())
            for number, (name, need) in enumerate(zip(named, needs, strict=True))
        ],
        "trial",
    )
    config = parse("name: trial\nenvironment: {name: lookup}", "trial")
    with RunDirectory.open(tmp_path_factory.mktemp("run") / "run", config) as run:
        while len(run.stages) < len(named):
            try:
                carry_out(stages, run, stages)
            except Killed:
                left = next(lives)
        assert finished == named == list(run.stages)
        assert [run.stages[name]["number"] for name in named] == list(range(1, len(named) + 1))


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=6))
def test_stages_that_are_put_off_come_last_and_so_does_what_needs_them(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, bool]]
) -> None:
    busy = {f"s{number}" for number, (_, put_off) in enumerate(drawn) if put_off}

    def work(name: str) -> None:
        if name in busy:
            busy.remove(name)
            raise PutOff

    stages = [
        Stage(f"s{number}", partial(work, f"s{number}"), (f"s{need}",) if need < number else ())
        for number, (need, _) in enumerate(drawn)
    ]
    late: set[str] = set()
    for stage in stages:
        late |= {stage.name} if stage.name in busy or late & set(stage.needs) else set()
    config = parse("name: trial\nenvironment: {name: lookup}", "trial")
    with RunDirectory.open(tmp_path_factory.mktemp("run") / "run", config) as run:
        carry_out(stages, run, stages)
        done = list(run.stages)
    names = [stage.name for stage in stages]
    assert done[: len(names) - len(late)] == [name for name in names if name not in late] and set(done) == set(names)
    assert all(done.index(need) < done.index(stage.name) for stage in stages for need in stage.needs)


def test_a_need_that_is_not_finished_is_told_with_the_command_for_it(tmp_path: Path) -> None:
    config = parse("name: trial\nenvironment: {name: lookup}", "trial")
    with RunDirectory.open(tmp_path / "run", config) as run:
        with pytest.raises(UserError, match=r"the stage 'distil 1' of .*run is not finished yet; type: leafe distill .*run$"):
            carry_out(TWO_ROUNDS, run, [TWO_ROUNDS[4]])
        assert not run.stages


# Arms, forests and policies, with scripts for models


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


RECIPE = """
name: trial
environment: {name: lookup, args: {places: 2, horizon: 2}}
tasks: {train: 6, test: 2}
explore: {turns: 6, max_attempts: 3}
evaluate: {samples: 2, resamples: 10}
train: {epochs: 1, batch_size: 8}
"""


def experiment(base: Path, policy: Callable[[Ask], str], *overrides: str, heard: list[Ask] | None = None) -> Experiment:
    """A bench whose models all say what `policy` says; `heard` gets every request."""

    def engine(folder: Path) -> Engine:
        made = ScriptedEngine(policy)
        made.asks = made.asks if heard is None else heard
        return made

    config = parse(RECIPE, "trial", [f"model={base}", *overrides])
    return Experiment(config, base, engine, lambda: Lookup(places=2, horizon=2), Silent())


def opens(ask: Ask) -> str:
    return "turn 1: open place2" if ask.purpose == "reflect" else "open place1"


class Named(Method):
    """Measures one policy under a name that says something in HTML and in a terminal's markup."""

    name, summary = "named", "one arm"
    ARM = "<b>bold</b> [red]& é"

    def stages(self, lab: Lab, run: RunDirectory, settings: Any) -> Iterator[Stage]:
        yield lab.measure(run, self.ARM.replace("/", "|"), Policy(lab.base))
        yield lab.explore(run, "<i>wood", Policy(lab.base), explorer="refine")


def test_any_name_of_an_arm_and_a_forest_is_shown_as_it_was_written(base: Path, tmp_path: Path) -> None:
    here = experiment(base, opens, f"method={__name__}:Named")
    with RunDirectory.open(tmp_path / "run", here.config) as run:
        run_recipe(here, run)
        assert list(run.arms()) == ["<b>bold<|b> [red]& é"] and list(run.forests()) == ["<i>wood"]
        page = write_report(run).read_text(encoding="utf-8")
        assert "&lt;b&gt;bold&lt;|b&gt; [red]&amp; é" in page and "<b>bold" not in page and "<i>wood" not in page
        (arm,) = comparison_of(run).arms
        assert arm.minus_base == {} and as_json(run)["exploration"][0]["name"] == "<i>wood"
    said = leafe("report", tmp_path / "run")
    assert said.status == 0 and "[red]&" in " ".join(said.out.split())
    compared = leafe("compare", tmp_path / "run")
    assert (compared.status, compared.err) == (0, "") and "[red]&" in " ".join(compared.out.split())


@given(st.text(max_size=60))
def test_a_name_is_refused_or_is_a_file_in_its_folder(name: str) -> None:
    folder = Path("run/eval")
    try:
        check_name("arm", name)
    except UserError as refused:
        assert "\n" not in str(refused)
    else:
        assert (folder / f"{name}.jsonl").parent == folder and f"{name}.jsonl".isprintable() and not name.startswith(".")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "-x", " a", "a ", "a:b", "a\nb", "a\x00", "\u202eab", "x" * 41, 3, None]
)
def test_a_name_that_is_no_safe_file_is_refused(name: object) -> None:
    with pytest.raises(UserError, match="the forest wants a name of at most 40 characters"):
        check_name("forest", name)


def test_a_forest_that_still_grows_is_shown_by_its_place(base: Path, tmp_path: Path) -> None:
    here = experiment(base, opens, "controls=[refine]")
    with RunDirectory.open(tmp_path / "run", here.config) as run:
        run_verb(here, run, "explore")
        grown = list(run.forests())
        assert grown == ["tree, round 1", "refine"] and [name for name, _ in exploration_of(run)] == grown
    (tmp_path / "run" / "stages.json").unlink()  # as before the first stage is finished, and as an older version kept it
    with RunDirectory.existing(tmp_path / "run", read_only=True) as run:
        assert list(run.forests()) == grown and run.arms() == {}


def test_forests_of_rounds_come_first_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    config = parse("name: trial\nenvironment: {name: lookup}", "trial")
    with RunDirectory.open(tmp_path / "run", config) as run:
        for place, name in (("x", "ex"), (10, "tree, round 10"), (2, "tree, round 2")):
            run.forest(place).write_text("{}\n")
            run.finish_stage(f"explore {place}", files=[run.forest(place)], forest=name)
        for place in (3, "growing"):
            run.forest(place).write_text('{}\n{"method": "walk"}\n')
        run.journal("growing").write_text("{}\n")
        run.examples("x").write_text("{}\n")
        assert list(run.forests()) == ["tree, round 2", "walk, round 3", "tree, round 10", "ex", "growing"]
        assert run.forests()["ex"] == run.forest("x")


def test_arms_that_an_older_version_measured_are_found_by_their_stages(base: Path, tmp_path: Path) -> None:
    here = experiment(base, opens, "arms=[]")
    with RunDirectory.open(tmp_path / "run", here.config) as run:
        run_recipe(here, run)
        assert [arm.name for arm in arms_of(run)] == ["base"] and "distil round 1" not in run.stages
        kept = {name: dict(entry) for name, entry in run.stages.items()}
    (tmp_path / "run" / "stages.json").write_text(json.dumps(kept))
    with RunDirectory.existing(tmp_path / "run", read_only=True) as run:
        assert [arm.name for arm in arms_of(run)] == ["base"] and list(run.forests()) == ["tree, round 1"]


class Noted(Method):
    """Measures and explores with notes, and with the prompts of another profile."""

    name, summary = "noted", "notes in the prompt"
    NOTES = ("Keys lie in place2.", "Never wait.")

    def stages(self, lab: Lab, run: RunDirectory, settings: Any) -> Iterator[Stage]:
        noted = Policy(lab.base, notes=self.NOTES)
        yield lab.measure(run, "base", Policy(lab.base))
        yield lab.measure(run, "noted", noted)
        yield lab.explore(run, 1, noted)
        yield lab.measure(run, "full", Policy(lab.base, prompts="full"))

    def trains(self, settings: Any) -> bool:
        return False


def test_the_notes_and_prompts_of_a_policy_are_read_at_every_request_and_kept_out_of_training(base: Path, tmp_path: Path) -> None:
    heard: list[Ask] = []
    here = experiment(base, opens, f"method={__name__}:Noted", heard=heard)
    found: dict[str, list[str]] = {}
    with RunDirectory.open(tmp_path / "run", here.config) as run:
        for one in stages_of(here, run):
            heard.clear()
            run_stage(here, run, one.name)
            found[one.name] = ["\n".join(message.content for message in ask.messages) for ask in heard]
        with pytest.raises(UserError, match="has no stage 'evaluate leafe'; its stages: evaluate base, evaluate noted"):
            run_stage(here, run, "evaluate leafe")
        with pytest.raises(UserError, match=r"has no stage for `leafe distill`; type: leafe run .*config\.yaml --out"):
            run_verb(here, run, "distill")
        assert not any(note in text for text in found["evaluate base"] for note in Noted.NOTES)
        for name in ("evaluate noted", "explore round 1"):
            assert found[name] and all(text.count(note) == 1 for text in found[name] for note in Noted.NOTES)
        assert any("Advice: open place2" in text for text in found["explore round 1"])
        assert all("<action>" in text for text in found["evaluate full"]) and "<action>" not in found["evaluate base"][0]
        trees = Lab(here).trees(run, 1)
        assert len(read_outcomes(run.arms()["noted"])) == 4 and len(trees) == 6
        lessons = Lab(experiment(base, opens, "distill.qualify=any", "distill.success_share=1.0"))
        from_them = find("leafe").stages(lessons, run, LeafeSettings())
        (distil,) = (one for one in from_them if one.name == "distil round 1")
        (file,) = distil.work().files
        assert list(read_examples(file))
        assert not any(note in message.content for one in read_examples(file) for message in one.messages for note in Noted.NOTES)


def twice(builder: TreeBuilder) -> Play[Tree]:
    """Two fresh attempts and no more."""
    for _ in range(2):
        yield from play(builder, Start())
    return builder.tree("twice")


class Playbook(Method):
    """Explores in a way of its own, writes down what worked, and measures the base with that in its prompt; trains nothing."""

    name, summary = "playbook", "a playbook in the prompt"

    def stages(self, lab: Lab, run: RunDirectory, settings: Any) -> Iterator[Stage]:
        book = run.path / "playbook.txt"

        def curate() -> Made:
            won = {tree.attempts[0].leaf: tree for tree in lab.trees(run, 1) if tree.attempts[0].success}
            actions = sorted({turn.action for leaf, tree in won.items() for turn in tree.trajectory(leaf)})
            book.write_text("".join(f"It helped to {action}.\n" for action in actions))
            return Made({"notes": len(actions)}, [book])

        def reader() -> Policy:
            return Policy(lab.base, notes=tuple(run.check(book).read_text().splitlines()))

        yield lab.explore(run, 1, Policy(lab.base), explorer=twice)
        yield Stage("curate", curate, needs=("explore round 1",))
        yield lab.measure(run, "playbook", reader, needs=("curate",))

    def trains(self, settings: Any) -> bool:
        return False


def test_a_method_explores_and_keeps_files_in_its_own_way_and_they_are_proved_like_any(base: Path, tmp_path: Path) -> None:
    heard: list[Ask] = []
    here = experiment(base, opens, f"method={__name__}:Playbook", heard=heard)
    with RunDirectory.open(tmp_path / "run", here.config) as run:
        with pytest.raises(UserError, match=r"the stage 'curate' .* is not finished yet; type: leafe run .*config\.yaml --out"):
            run_verb(here, run, "evaluate")
        run_recipe(here, run)
        assert list(run.forests()) == ["twice, round 1"] and {len(tree.attempts) for tree in Lab(here).trees(run, 1)} == {2}
        assert run.stages["curate"] == {"notes": 1} and run.stages["evaluate playbook"]["notes"] == ["It helped to open place1."]
        assert "It helped to open place1." in heard[-1].messages[0].content and comparison_of(run).base is None
    found = json.loads(leafe("report", tmp_path / "run", "--json").out)
    assert found["method"].endswith(":Playbook") and [arm["name"] for arm in found["arms"]] == ["playbook"]
    (tmp_path / "run" / "playbook.txt").write_text("Always wait.\n")
    kept = json.loads((tmp_path / "run" / "stages.json").read_text())
    del kept["evaluate playbook"]
    (tmp_path / "run" / "stages.json").write_text(json.dumps(kept))
    with (
        RunDirectory.existing(tmp_path / "run") as run,
        pytest.raises(CorruptFile, match=r"playbook\.txt is not as the stage 'curate'"),
    ):
        run_recipe(here, run)
