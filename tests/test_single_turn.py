"""Single-turn tasks with several tries: rows, reward functions in the style of verifiers, feedback, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import leafe
from test_cli import assert_one_sentence

from leafe.config import parse
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.check import check_environment
from leafe.envs.registry import make
from leafe.envs.single_turn import SingleTurn
from leafe.envs.world import World
from leafe.errors import CorruptFile, EnvironmentFailure, UserError
from leafe.experiment import Experiment, ForestSpec, explore_tasks
from leafe.progress import Silent
from leafe.records import Observation


def exact(completion: list[dict[str, str]], answer: str) -> float:
    return float(completion[-1]["content"].strip() == answer)


async def near(reply: str, row: dict[str, Any]) -> tuple[float, str]:
    row["answer"] = "spoilt"
    off = abs(float(reply) - float(row["info"]["number"])) if reply.strip().isdecimal() else 99
    return (1.0, "Yes.") if off == 0 else (0.0, f"You are off by {off:g}.")


def told(**everything: Any) -> dict[str, Any]:
    return {"reward": 0.5, "feedback": ",".join(sorted(everything))}


def strict(reply: str, answer: str) -> tuple[float, str]:
    off = abs(float(reply) - float(answer))
    return (1.0, "Right.") if off == 0 else (0.0, f"You are off by {off:g}.")


async def later(reply: str, answer: str) -> tuple[float, str]:
    return strict(reply, answer)


def endless(reply: str) -> float:
    return float("nan")


def quiet(reply: str) -> float:
    raise ValueError


def echoed(reply: str) -> tuple[float, str]:
    return 0.0, f"You said {reply!r}."


def silent(state: dict[str, Any]) -> None:
    return None


def curious(reply: str, model: str) -> float:
    return 0.0


@pytest.fixture
def sums(tmp_path: Path) -> str:
    rows = [{"question": f"What is {n} + {n}?", "answer": str(2 * n), "info": {"number": 2 * n}} for n in range(60)]
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return str(path)


def given(sums: str, reward: str, **more: Any) -> SingleTurn:
    return SingleTurn(data=sums, reward=f"test_single_turn:{reward}", **more)


def test_a_wrong_answer_may_be_followed_by_another_and_a_right_one_ends_it(sums: str) -> None:
    environment = given(sums, "exact")
    task = environment.tasks("train", 1)[0]
    assert environment.reset(task).text == task.instruction and task.horizon == 4
    assert environment.step("x") == Observation("That is not right. Reward: 0.")
    right = environment.step(f" {task.payload['answer']} ")
    assert right == Observation("That is right.", True, True, 1.0) == environment.step("x")


def test_a_reward_function_may_be_asynchronous_and_say_what_is_wrong_and_changes_nothing(sums: str) -> None:
    environment = given(sums, "near")
    task = environment.tasks("train", 1)[0]
    environment.reset(task)
    number = task.payload["info"]["number"]
    assert environment.step(str(number + 3)) == Observation("You are off by 3.")
    assert environment.step(str(number)) == Observation("Yes.", True, True, 1.0)
    assert task.payload["answer"] == str(number)


def test_a_reward_function_gets_what_it_names(sums: str) -> None:
    environment = given(sums, "told", success_reward=0.5)
    environment.reset(environment.tasks("test", 1)[0])
    assert environment.step("x") == Observation("answer,completion,info,prompt,reply,row,state,task", True, True, 0.5)


@pytest.mark.slow
def test_many_rollbacks_hold_true(sums: str) -> None:
    arguments = {"data": sums, "reward": "test_single_turn:near"}
    report = check_environment(
        lambda: make("single-turn", arguments), name="single-turn", spec="single-turn", arguments=arguments, rollbacks=60
    )
    assert report.passed and {one.name: one.verdict for one in report.findings}["rollback"] == "pass"


def test_splits_are_the_rows_own_or_follow_from_their_content(sums: str, tmp_path: Path) -> None:
    drawn = [{task.id for task in given(sums, "exact").tasks(split, count)} for split, count in (("train", 30), ("test", 3))]
    assert not drawn[0] & drawn[1]
    (tmp_path / "own").write_text('{"prompt": [{"role": "user", "content": "Hm?"}], "split": "valid"}\n')
    (task,) = given(str(tmp_path / "own"), "exact", question="prompt").tasks("valid", 1)
    assert task.instruction == "Hm?"


@pytest.mark.parametrize("reward", ["strict", "later"])
def test_an_answer_that_a_reward_function_cannot_read_earns_nothing_and_is_told_why(reward: str, sums: str) -> None:
    environment = given(sums, reward)
    task = environment.tasks("train", 1)[0]
    environment.reset(task)
    assert environment.step("I do not know.") == Observation("could not convert string to float: 'I do not know.'")
    assert len(environment.step("x" * 10_000).text) < 600
    assert environment.step(str(task.payload["answer"])).success
    arguments = {"data": sums, "reward": f"test_single_turn:{reward}"}
    assert check_environment(lambda: make("single-turn", arguments), name="single-turn", rollbacks=20).passed


def test_a_reward_function_that_gives_no_reason_still_earns_nothing(sums: str) -> None:
    environment = given(sums, "quiet")
    environment.reset(environment.tasks("train", 1)[0])
    assert environment.step("x") == Observation("That is not right. Reward: 0.")


def test_a_reward_that_is_no_number_is_a_lost_episode_and_no_wrong_answer(sums: str) -> None:
    world = World(given(sums, "endless"))
    world.reset(world.environment.tasks("train", 1)[0])
    with pytest.raises(EnvironmentFailure, match="the reward is nan"):
        world.step("x")


def test_a_reward_function_gets_a_reply_without_action_as_it_is(sums: str) -> None:
    config = parse("environment: {name: single-turn}\nname: trial\nprompts: full\ntasks: {train: 1}\nexplore: {turns: 1}", "trial")
    engine = ScriptedEngine(lambda ask: "<think>3 < 5.</think>\n```python\ndef f(x):\n    return x\n```")
    experiment = Experiment(config, Path("none"), lambda folder: engine, lambda: given(sums, "echoed"), Silent())
    (tree,) = explore_tasks(experiment, "explore", ForestSpec("independent", 5, Path("none")))
    assert tree.turns[0].observation.text == r"You said '```python\ndef f(x):\n    return x\n```'."


def test_a_reward_that_is_none_is_a_lost_episode(sums: str) -> None:
    world = World(given(sums, "silent"))
    world.reset(world.environment.tasks("train", 1)[0])
    with pytest.raises(EnvironmentFailure, match="single-turn: TypeError"):
        world.step("x")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["data=nowhere.jsonl"], "single-turn finds no file nowhere.jsonl; give one of JSON lines, data=PATH"),
        (["reward=nowhere_at_all:f"], "cannot import 'nowhere_at_all' for the reward function"),
        (["reward=test_single_turn"], "is no reward function; write module:function"),
        (["reward=test_single_turn:no"], "is no reward function; write module:function"),
        (["reward=test_single_turn:curious"], "unknown argument of the reward function test_single_turn:curious 'model'"),
        (["horizon=0"], "single-turn wants a horizon of at least 1 try"),
        (["question=prompt"], "line 1 holds no question: every line wants to be a JSON object with a field 'prompt'"),
        (["--split", "exam"], "unknown split 'exam'"),
        (["--split", "valid", "data=SMALL"], "wanted 8 tasks of split 'valid', found 0"),
        (["data=BROKEN"], "line 2 holds no question"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(arguments: list[str], sentence: str, sums: str, tmp_path: Path) -> None:
    (tmp_path / "small").write_text('{"question": "a", "split": "train"}\n')
    (tmp_path / "broken").write_text('{"question": "a"}\n{"question": \n')
    files = {"data=SMALL": f"data={tmp_path / 'small'}", "data=BROKEN": f"data={tmp_path / 'broken'}"}
    base = [] if any(one.startswith("data=") for one in arguments) else [f"data={sums}"]
    base += [] if any(one.startswith("reward=") for one in arguments) else ["reward=test_single_turn:exact"]
    assert_one_sentence(leafe("check-env", "single-turn", *base, *(files.get(one, one) for one in arguments)), sentence)


def test_a_missing_reward_function_is_asked_for(sums: str) -> None:
    with pytest.raises(UserError, match="missing a required argument: 'reward'"):
        make("single-turn", {"data": sums})


ODD = "a\u2028b\u0085c\x0bd"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "\ufeff" + text,
        lambda text: "\n\n" + text,
        lambda text: "\ufeff\n" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace('"valid"', '"validation"').replace('"train"', '"Training"'),
        lambda text: text.rstrip("\n"),
    ],
)
def test_lines_are_read_with_marks_blank_lines_and_any_break_of_lines_in_their_texts(spoil: Any, tmp_path: Path) -> None:
    rows = [{"question": f"{ODD}{n}", "split": split} for n in range(3) for split in ("train", "valid", "test")]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_bytes(spoil(text).encode())
    environment = SingleTurn(data=str(tmp_path / "rows.jsonl"), reward="test_single_turn:exact")
    for split in ("train", "valid", "validation", "test"):
        tasks = environment.tasks(split, 3)
        assert all(environment.reset(task).text.startswith(ODD) for task in tasks) and len({task.id for task in tasks}) == 3
    assert environment.tasks("validation", 3) == environment.tasks("valid", 3)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            '{"question": "caf\xe9"}'.encode("latin-1"),
            "line 2 holds no question: it is no JSON: the byte 0xe9 is none of UTF-8; save the file",
        ),
        (b'{"question": "a", "info": NaN}', "line 2 holds no question: it is no JSON \\(NaN is no JSON: write null"),
        (b'{"question": "a", "info": -Infinity}', "-Infinity is no JSON: write null"),
        (b'{"question": "a", "info": 1e999}', "the number 1e999 is too large"),
        (b'{"question": "a", "info": ' + b"7" * 5000 + b"}", "line 2 holds no question: it is no JSON"),
        (b'{"question": "a", "info": ' + b"[" * 100_000, "line 2 holds no question: it is no JSON"),
        (b'{"question": "\\ud800"}', "line 2 holds no question: its text cannot be written"),
        (b'["a"]', "line 2 holds no question: it should be a JSON object and is"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_with_what_to_do(line: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"question": "a"}\n' + line + b"\n")
    with pytest.raises(CorruptFile, match=sentence):
        SingleTurn(data=str(tmp_path / "rows.jsonl"), reward="test_single_turn:exact").tasks("train", 1)


def test_lines_of_unknown_splits_are_told(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "split": "extra"}\n{"question": "b", "split": "test"}\n')
    with pytest.raises(UserError, match=r"2 .*'test'.* 1 .*extra"):
        SingleTurn(data=str(tmp_path / "rows.jsonl"), reward="test_single_turn:exact").tasks("test", 2)


def test_a_split_with_too_few_lines_names_the_one_that_has_some(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "b", "split": "test"}\n')
    with pytest.raises(UserError, match=r"'train', found 0 .*those of 'test', as with tasks\.train_split=test"):
        SingleTurn(data=str(tmp_path / "rows.jsonl"), reward="test_single_turn:exact").tasks("train", 1)
