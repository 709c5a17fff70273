"""Configurations: what is accepted, what is refused in which words, and that nothing is lost on the way through YAML."""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.config import config_class, dump, load_recipe, parse, recipe_names
from leafe.differing import differing_fields
from leafe.errors import UnknownName, UserError
from leafe.methods.leafe import Leafe, LeafeSettings
from leafe.records import Sampling
from leafe.settings import RunConfig
from leafe.yaml_text import read_values

MINIMAL = "name: trial\nenvironment: {name: sokoban}\n"


def trial(*overrides: str) -> RunConfig:
    return parse(MINIMAL, "trial", overrides)


def own(config: RunConfig) -> LeafeSettings:
    """The section of LEAFE."""
    assert isinstance(config.own, LeafeSettings)
    return config.own


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        trial(*overrides)
    return str(caught.value)


numbers = st.floats(min_value=1e-300, max_value=1e300)
texts = st.text(min_size=1, max_size=30)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
configs = st.builds(
    lambda name, model, args, rate, epochs, lora: config_class(Leafe).model_validate(
        {
            "name": name,
            "model": model,
            "environment": {"name": model, "args": args},
            "train": {"learning_rate": rate, "epochs": epochs, "lora": {"alpha": lora, "targets": [model]} if lora else None},
        }
    ),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    texts,
    st.dictionaries(texts, json_values, max_size=4),
    numbers,
    numbers,
    st.none() | st.integers(1, 10**6),
)


@given(configs)
def test_a_configuration_written_as_yaml_reads_back_equal(config: RunConfig) -> None:
    again = parse(dump(config), "written")
    assert again == config
    assert again.digest == config.digest
    assert differing_fields(config, again) == []


@given(configs, configs)
def test_digests_are_equal_exactly_where_no_field_differs(one: RunConfig, other: RunConfig) -> None:
    assert (one.digest == other.digest) == (differing_fields(one, other) == [])


@pytest.mark.parametrize(
    "text",
    ["1e5", "1e-6", "yes", "null", "007", "0x1f", "- a", "a: b", "#", "2020-01-01", "1_000", "'", "\x85", "\u2028", "√", "~"],
)
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    config = config_class(Leafe).model_validate({"name": "trial", "model": text, "environment": {"name": "sokoban"}})
    assert parse(dump(config), "written").model == text


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_is_named_after_its_file(name: str) -> None:
    assert load_recipe(name).name == name


def test_the_recipes_of_the_first_command_and_of_the_smoke_test_are_shipped() -> None:
    assert {"quickstart", "smoke"} <= set(recipe_names())


def test_a_recipe_may_be_a_file_anywhere(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINIMAL)
    assert load_recipe(str(tmp_path / "mine.yaml"), ["seed=7"]).seed == 7


def test_overrides_are_laid_over_the_recipe_in_turn() -> None:
    config = trial("train.epochs=3", "train.epochs=4", "environment.args.size=6", "controls=[refine]", "train.lora.rank=8")
    assert config.train.epochs == 4.0
    assert config.environment.args == {"size": 6}
    assert own(config).controls == ("refine",)
    assert config.train.lora is not None and config.train.lora.rank == 8


def test_a_number_may_be_written_without_a_point_before_its_exponent() -> None:
    assert trial("train.learning_rate=1e-6").train.learning_rate == 1e-6


def test_a_value_that_holds_an_equals_sign_is_kept_whole() -> None:
    assert trial("engine.base_url='http://localhost/v1?version=a'").engine.base_url == "http://localhost/v1?version=a"


def test_an_unknown_setting_is_refused_with_the_closest_one_and_all_of_its_level() -> None:
    message = refusal("train.epoch=3")
    assert "unknown setting 'train.epoch'; did you mean 'train.epochs'?" in message
    assert "train.attention, train.batch_size, train.checkpointing, train.compile, train.dtype, train.epochs" in message


def test_a_setting_on_the_wrong_level_is_pointed_to_its_place() -> None:
    assert "did you mean 'train.learning_rate'?" in refusal("learning_rate=1")


def test_an_unknown_setting_in_an_optional_group_is_refused() -> None:
    assert "did you mean 'train.lora.rank'?" in refusal("train.lora.ranks=1")


def test_an_unknown_setting_in_a_file_is_refused_like_one_on_the_command_line() -> None:
    with pytest.raises(UnknownName, match=r"did you mean 'explore\.max_depth'"):
        parse(MINIMAL + "explore: {maxdepth: 3}", "trial")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1.5", "seed: wanted a whole number, found 1.5"),
        ("seed=true", "seed: wanted a whole number, found True"),
        ("seed=-1", "seed: wanted at least 0, found -1"),
        ("train.epochs=x", "train.epochs: wanted a number, found 'x'"),
        ("train.epochs=.inf", "train.epochs: wanted a finite number, found inf"),
        ("train.epochs=", "train.epochs: wanted a number, found None"),
        ("train=3", "train: wanted a group of settings, found 3"),
        ("name=a/b", "name: wanted letters, digits, '.', '_' and '-', a letter or digit first, found 'a/b'"),
        ("model=''", "model: wanted text that is not empty, found ''"),
        ("sampling.act.max_repeats=1", "sampling.act.max_repeats: wanted 0 for no limit, or at least 2, found 1"),
        ("engine.kind=vlm", "engine.kind: wanted 'transformers', 'openai', 'vllm' or 'sglang', found 'vlm'"),
        (
            "engine={kind: vllm, base_url: 'http://host/v1'}",
            "engine.kind vllm starts a server of its own; leave out engine.base_url",
        ),
        ("engine.command=vllm", "engine.command: wanted a list, as [a, b], found 'vllm'"),
        ("engine.memory_share=0", "engine.memory_share: wanted more than 0.0, found 0"),
        ("engine.kind=openai", "engine.kind openai wants engine.base_url, as http://localhost:8000/v1, and found none"),
        ("controls=independent", "controls: wanted a list, as [a, b], found 'independent'"),
        ("controls=[tree]", "controls.0: wanted 'independent', 'refine' or 'retry', found 'tree'"),
        ("arms=[leafe,leafe]", "arms wants each name once, found ['leafe', 'leafe']"),
        ("distill.success_share=2", "distill.success_share: wanted at most 1.0, found 2"),
        ("explore.reflect_on_failure=false", "explore.reflect_every: wanted at least 1 where"),
        ("sampling.act.max_tokens=5000", "sampling.act.max_tokens: wanted less than engine.max_context, which is 1024, found 5000"),
        ("environment.args.x=.nan", "environment.args: wanted what JSON can hold"),
        ("environment.args.x=2020-01-01", "environment.args: wanted what JSON can hold"),
        ("environment.args={1: 2}", "environment.args.1: wanted text, found 1"),
    ],
)
def test_a_bad_value_is_refused_with_the_setting_what_was_wanted_and_what_was_found(override: str, message: str) -> None:
    assert message in refusal(override)


@pytest.mark.parametrize("override", ["seed", "=3", "train.=3", ".seed=3", ""])
def test_an_override_without_a_key_and_a_value_is_refused(override: str) -> None:
    assert "an override is written key=value" in refusal(override)


def test_an_override_cannot_reach_into_a_single_setting() -> None:
    assert "seed is a single setting and holds no 'x'" in refusal("seed=3", "seed.x=3")


def test_an_arm_wants_the_control_whose_successes_it_learns_from() -> None:
    assert "wants controls with 'independent'" in refusal("arms=[independent]")
    assert "wants controls with 'independent'" in refusal("arms=[rehearsal-matched]")
    assert own(trial("arms=[independent]", "controls=[independent]")).arms == ("independent",)
    assert "averaged: wanted one of the arms, found 'rehearsal'" in refusal("arms=[average]", "averaged=rehearsal")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "mine, line 1, is not valid YAML"),
        ("just words", "mine should be a group of settings"),
        ("", "mine should be a group of settings"),
        ("- a", "mine should be a group of settings"),
        ("environment: {name: sokoban}", "name: wanted a value, found nothing"),
        ("name: trial", "environment: wanted a value, found nothing"),
        ("name: a\nname: b", "mine, line 2, is not valid YAML: the key 'name' appears twice"),
        ("1: 2", "mine should be a group of settings"),
        ("name: !!python/object:os.system {}", "is not valid YAML"),
    ],
)
def test_text_that_is_no_configuration_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text, "mine")
    assert message in str(caught.value)


LEVELS = "abcdefgh"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{one}: &{one} [{', '.join([f'*{before}'] * 9)}]\n" for before, one in pairwise(LEVELS)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{one}: &{one} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n" for before, one in pairwise(LEVELS)
)
ENDLESS = [
    *("[" * 100_000, "{" * 5_000, "- " * 5_000, "? " * 3_000, "&a [*a]", "&a {b: *a}", "{x: " * 60 + "1" + "}" * 60),
    *("9" * 5_000, "-" + "9" * 5_000, "0x" + "f" * 5_000, "1:" * 2_000 + "1", "1" * 3_000 + ".5", "x" * 300_000),
    *("2024-13-45", "!!timestamp x", "!!int x", "!!int ''", "!!float x", "!!bool x", "!!map x", "!!binary '@@'", "!!set {a}"),
    *('"\\ud800"', '"\\UFFFFFFFF"', "\x00", "\udcff", "{? [a]: b}", "<<: 3", "=", "*x", "---\n---", "[1", "{a: 1, a: 2}"),
]


@pytest.mark.parametrize("value", ENDLESS, ids=lambda value: f"{value!r:.20}")
def test_a_value_that_would_be_endless_or_is_none_is_one_sentence(value: str) -> None:
    for setting in ("environment.args.x", "train.epochs", "prompts", "arms"):
        sentence = refusal(f"{setting}={value}")
        assert "\n" not in sentence and len(sentence) < 600
    with pytest.raises(UserError, match="quote it") as caught:
        read_values([f"x={value}"])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("text", [BOMB, MERGED])
def test_aliases_that_repeat_each_other_without_end_are_refused_before_any_of_it_is_made(text: str) -> None:
    with pytest.raises(UserError, match="stands for more than 20,000 values"):
        parse(MINIMAL + text, "trial")


def test_aliases_that_repeat_a_little_and_numbers_of_some_length_are_read() -> None:
    read = parse(MINIMAL + "tasks: &few {train: 3}\nevaluate: {samples: 4}\n", "trial", ["environment.args={a: &a [1, 2], b: *a}"])
    assert read.environment.args == {"a": [1, 2], "b": [1, 2]} and read.tasks.train == 3
    assert read_values(["x=" + "9" * 300]) == {"x": int("9" * 300)}


@pytest.mark.parametrize("day", ["2020-01-01", "2020-01-01T10:00:00Z", "{a: 2020-01-01}"])
def test_a_day_is_no_value_and_in_quotes_it_is_text(day: str) -> None:
    assert "wanted" in refusal(f"train.epochs={day}")
    assert "environment.args: wanted what JSON can hold" in refusal(f"environment.args.x={day}")
    with pytest.raises(UserError, match=r"x: wanted what JSON can hold, found .*; quote it"):
        read_values([f"x={day}"])
    assert read_values([f"x='{day}'"]) == {"x": day}


@pytest.mark.parametrize("key", ["x" * 50_000, "a." * 50_000 + "a", "environment.args." + "a." * 100 + "a"])
def test_a_name_beyond_all_measure_is_one_short_sentence(key: str) -> None:
    assert len(refusal(f"{key}=1")) < 3000


@pytest.mark.parametrize("setting", ["model", "prompts", "name", "environment.name"])
def test_a_name_that_no_folder_can_have_is_one_sentence_or_a_name(setting: str) -> None:
    with suppress(UserError):
        trial(f"{setting}={'x' * 5000}")


def test_an_unknown_recipe_is_refused_with_the_closest_one() -> None:
    with pytest.raises(UnknownName, match="unknown recipe 'quikstart'; did you mean 'quickstart'"):
        load_recipe("quikstart")


def test_a_recipe_file_that_is_not_there_is_refused_with_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the recipe .*quickstart"):
        load_recipe(str(tmp_path / "none.yaml"))


def test_differing_fields_name_the_setting_and_both_values() -> None:
    assert differing_fields(trial(), trial("train.epochs=3", "train.lora.rank=8")) == [
        "train.epochs: 6.0 -> 3.0",
        "train.lora.rank: none -> 8",
        "train.lora.alpha: none -> 32",
        "train.lora.targets: none -> []",
        "train.lora.keep: none -> false",
    ]


def test_settings_of_the_machine_make_no_other_run() -> None:
    engine = (
        "engine.threads=3",
        "engine.slots=8",
        "engine.concurrency=4",
        "engine.base_url=http://other/v1",
        "engine.patience=1.0",
        "engine.api_key_env=KEY",
    )
    train = (
        "train.processes=2",
        "train.attention=dense",
        "train.checkpointing=true",
        "train.micro_tokens=64",
        "train.compile=layers",
    )
    elsewhere = trial(*engine, *train)
    assert elsewhere.digest == trial().digest
    assert differing_fields(trial(), elsewhere) == []


def test_true_and_one_are_different_arguments_for_an_environment() -> None:
    assert differing_fields(trial("environment.args.x=true"), trial("environment.args.x=1")) == ["environment.args.x: true -> 1"]


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        trial().train.epochs = 3.0  # type: ignore[misc]


@given(st.integers(1, 5000))
def test_ks_are_the_powers_of_two_up_to_the_samples(samples: int) -> None:
    ks = trial(f"evaluate.samples={samples}").evaluate.ks
    assert ks == tuple(2**power for power in range(len(ks)))
    assert ks[-1] == 2 ** math.floor(math.log2(samples))


def test_draw_settings_become_the_record_that_engines_take() -> None:
    config = trial("sampling.act={temperature: 0.5, top_p: 0.9, max_tokens: 8}")
    assert config.sampling.act.sampling() == Sampling(0.5, 0.9, 8)
