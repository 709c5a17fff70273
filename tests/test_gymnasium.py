"""Gymnasium environments: text and discrete actions, seeds as tasks, colours as words, endings, and what cannot be played."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest
from command import leafe
from test_cli import assert_one_sentence

from leafe.envs.base import Fidelity, Placement
from leafe.envs.check import CheckReport, check_environment
from leafe.envs.gymnasium import Gymnasium
from leafe.envs.gymnasium_texts import described, in_words, uncoloured
from leafe.envs.registry import make
from leafe.envs.wording import complaint
from leafe.errors import MissingDependency, UserError
from leafe.records import Observation
from leafe.replies import parse_action

gymnasium = pytest.importorskip("gymnasium", reason="wants pip install -e '.[gymnasium]'")


class Parrot(gymnasium.Env[str, str]):
    """Wants the word that it says, backwards; succeeds by its info."""

    observation_space = gymnasium.spaces.Text(30)
    action_space = gymnasium.spaces.Text(8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.word = "".join(self.np_random.choice(list("abc"), 4)) if options is None else options["word"]
        return f"Say {self.word} backwards.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        right = action == self.word[::-1]
        return ("Yes." if right else "No."), 0.5 * right, right, action == "stop", {"is_success": right}


class Odd(Parrot):
    """Talks in groups of numbers, and never ends well."""

    observation_space = gymnasium.spaces.Dict({"a": gymnasium.spaces.Discrete(5), "b": gymnasium.spaces.Box(0, 1, (2,))})
    action_space = gymnasium.spaces.Discrete(2, start=3)

    def reset(self, **settings: Any) -> Any:
        super().reset(**settings)
        return {"a": self.np_random.integers(5), "b": self.np_random.random(2).astype("float32")}, {}

    def step(self, action: Any) -> Any:
        return {"a": 1, "b": [0.25, 1]}, float("nan") if action == 4 else -1, False, False, {}


gymnasium.register("Parrot-v0", entry_point=Parrot, max_episode_steps=7)
gymnasium.register("Odd-v0", entry_point=Odd)
PARROT = {"id": "test_gymnasium:Parrot-v0"}


def played(environment: Gymnasium, actions: Sequence[str], number: int = 0) -> list[Observation]:
    task = environment.tasks("train", number + 1)[-1]
    return [environment.reset(task), *(environment.step(action) for action in actions)]


def checked(arguments: dict[str, Any], rollbacks: int = 15) -> CheckReport:
    return check_environment(
        lambda: make("gymnasium", arguments),
        name="gymnasium",
        rollbacks=rollbacks,
        count=4,
        spec="gymnasium",
        arguments=arguments,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"id": "FrozenLake-v1", "horizon": 12},
        {"id": "FrozenLake-v1", "fidelity": "snapshot", "horizon": 12},
        {"id": "Taxi-v4", "horizon": 12, "kwargs": {"is_rainy": True}},
        {"id": "CliffWalking-v1", "horizon": 12, "success_reward": -1.0},
        {"id": "Blackjack-v1"},
        PARROT,
    ],
    ids=lambda arguments: f"{arguments['id']}-{arguments.get('fidelity', 'replay')}",
)
def test_what_is_declared_holds_over_many_rollbacks(arguments: dict[str, Any]) -> None:
    report = checked(arguments)
    assert report.passed, [finding for finding in report.findings if finding.verdict == "fail"]
    assert {finding.name: finding.verdict for finding in report.findings}["rollback"] == "pass"
    assert report.declared == arguments.get("fidelity", "replay")


def test_ice_that_is_slippery_slips_the_same_way_for_the_same_seed_and_another_way_for_another() -> None:
    trajectories = {
        tuple(one.text for one in played(Gymnasium(id="FrozenLake-v1"), ["right", "down"] * 4, number)) for number in range(12)
    }
    again = {
        tuple(one.text for one in played(Gymnasium(id="FrozenLake-v1"), ["right", "down"] * 4, number)) for number in range(12)
    }
    assert trajectories == again and len(trajectories) > 6


def test_an_action_may_be_named_or_numbered_and_colours_are_words() -> None:
    dry = {"is_slippery": False}
    named = played(Gymnasium(id="FrozenLake-v1", kwargs=dry), ["right", " DOWN ", "down"])
    numbered = played(Gymnasium(id="FrozenLake-v1", kwargs=dry), ["2", "1", "1"])
    own = played(Gymnasium(id="FrozenLake-v1", kwargs=dry, actions=["w", "s", "e", "n"]), ["e", "s", "s"])
    assert named == numbered == own
    assert named[0].text == "[red S]FFF\nFHFH\nFFFH\nHFFG"
    assert named[2].text == "  (Down)\nSFFF\nF[red H]FH\nFFFH\nHFFG\nReward: 0. The episode is over."
    assert named[2].done and not named[2].success and named[3] == named[2]


@pytest.mark.parametrize("text", ["", "up up", "4", "-1", "²", "99999999999999999999"])
def test_text_that_is_no_action_takes_no_step(text: str) -> None:
    first, told, moved = played(Gymnasium(id="FrozenLake-v1", kwargs={"is_slippery": False}), [text, "right"])
    assert told == Observation("That is no action. Actions: left, down, right, up.")
    assert moved.text.startswith("  (Right)\nS[red F]FF") and first.text.startswith("[red S]")


def test_names_that_differ_in_case_alone_are_different_actions() -> None:
    given = {"id": "FrozenLake-v1", "kwargs": {"is_slippery": False}}
    environment = Gymnasium(**given, actions=["N", "n", "Down", "up"])
    plain = Gymnasium(**given)
    for named, numbered in (("n", "1"), ("N", "0"), ("down", "2"), ("DOWN", "2"), ("Up", "3")):
        assert played(environment, ["n", "Down", named]) == played(plain, ["1", "2", numbered])
    either = Gymnasium(**given, actions=["go", "GO", "Down", "up"])
    assert played(either, ["Go"])[-1].text.startswith("That is no action.")


def test_marks_may_be_the_names_of_actions() -> None:
    environment = Gymnasium(id="FrozenLake-v1", kwargs={"is_slippery": False}, actions=["<", "v", ">", "^"])
    for number, name in enumerate("<v>^"):
        read = parse_action("tags", f"<action>{name}</action>")
        assert played(environment, [read]) == played(environment, [str(number)])


def test_success_is_the_last_reward_or_what_the_environment_says_and_a_truncation_is_none() -> None:
    way = ["down", "down", "right", "right", "down", "right"]
    goal = played(Gymnasium(id="FrozenLake-v1", kwargs={"is_slippery": False}), way)[-1]
    assert (goal.done, goal.success, goal.reward) == (True, True, 1.0)
    much = played(Gymnasium(id="FrozenLake-v1", kwargs={"is_slippery": False}, success_reward=2.0), way)[-1]
    assert (much.done, much.success) == (True, False)
    said, stopped = (played(Gymnasium(**PARROT, options={"word": "ab"}), [action])[-1] for action in ("ba", "stop"))
    assert (said.done, said.success, said.reward) == (True, True, 0.5)
    assert (stopped.done, stopped.success) == (True, False)


def test_text_actions_are_handed_on_as_they_are_and_the_task_counts_the_turns() -> None:
    parrot = Gymnasium(**PARROT)
    assert parrot.tasks("test", 1)[0].horizon == 7 and "8 characters" in parrot.tasks("test", 1)[0].instruction
    found = played(parrot, ["nothing"] * 9)  # the registered limit of 7 steps is not the environment's any more
    assert found[0].text.startswith("Say ") and {one.done for one in found} == {False}
    assert played(parrot, ["far too long a word"])[1].text.startswith("That is no action. An action is text of 1 to 8")


def test_numbers_are_told_as_they_are_and_a_reward_that_is_none_is_a_failure() -> None:
    odd = Gymnasium(id="test_gymnasium:Odd-v0")
    first, second = played(odd, ["3"])
    assert first.text.startswith("a: ") and second.text == "a: 1\nb: 0.25, 1\nReward: -1."
    with pytest.raises(ValueError, match="reward is nan"):
        odd.step("4")


def test_no_seed_is_in_two_splits_and_other_arguments_are_other_tasks() -> None:
    lake = Gymnasium(id="FrozenLake-v1")
    drawn = {split: lake.tasks(split, 400, seed=5) for split in ("train", "valid", "test")}
    seeds = [{task.payload["seed"] for task in tasks} for tasks in drawn.values()]
    assert all(len(one) == 400 for one in seeds) and len(set.union(*seeds)) == 1200
    other = Gymnasium(id="FrozenLake-v1", kwargs={"is_slippery": False}).tasks("train", 400, seed=5)
    assert not {task.id for task in other} & {task.id for task in drawn["train"]}


def test_fidelity_and_placement_are_the_users_word() -> None:
    lake = Gymnasium(id="FrozenLake-v1", fidelity="none", placement="process")
    assert (lake.fidelity, lake.placement) == (Fidelity.NONE, Placement.PROCESS)
    assert (Gymnasium.fidelity, Gymnasium.placement) == (Fidelity.REPLAY, Placement.INLINE)


def test_colours_become_words_and_other_escapes_go() -> None:
    assert uncoloured("\x1b[1m\x1b[34mP\x1b[0m|\x1b[43m \x1b[0m\x1b[2J|\x1b[7mx\x1b[0m\r\n") == "[blue P]|[yellow  ]|x\n"


def test_escapes_of_every_kind_go_from_renderings_and_from_texts() -> None:
    assert uncoloured("\x1b]0;title\x07a\x1b(Bb\x1b[?25lc\x1b]8;;http://x\x1b\\d\x1b[38;5;196me\x1b[0m\x1bMf\x1b") == "abcdef"
    assert in_words({"say": "\x1b[31mfire\x1b[0m"}) == "say: [red fire]"


numpy = pytest.importorskip("numpy")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (100_000_001, "100000001"),
        (numpy.int64(2**53 + 1), "9007199254740993"),
        (numpy.uint8(7), "7"),
        (1_234_567.0, "1234567"),
        (1_234_567.25, "1234567.25"),
        (numpy.float32(0.1), "0.1"),
        (numpy.float32(16_777_216), "16777216"),
        (-0.5, "-0.5"),
        (True, "True"),
        (numpy.bool_(False), "False"),
        (float("inf"), "inf"),
        (numpy.array(5), "5"),
        (numpy.array([[1, 2], [3, 4_000_000]]), "1, 2, 3, 4000000"),
        (numpy.array([0.1, 2.5], dtype="float32"), "0.1, 2.5"),
    ],
)
def test_numbers_are_told_without_loss(number: Any, text: str) -> None:
    assert in_words(number) == text


@pytest.mark.parametrize("first", [10**6, 10**8, 2**50])
def test_two_numbers_never_read_alike(first: int) -> None:
    for one, other in ((first, first + 1), (float(first), first + 1.0), (first + 0.25, first + 0.5)):
        assert in_words(one) != in_words(other)


def test_an_environment_that_pays_for_each_step_is_refused_until_told_what_success_is() -> None:
    sentence = (
        "CartPole-v1 pays 1 for a step that does not end the episode, so a last reward of at least success_reward=1 is no success"
    )
    assert_one_sentence(leafe("check-env", "gymnasium", "id=CartPole-v1"), sentence)
    with pytest.raises(UserError, match="give a success_reward above what such a step pays"):
        Gymnasium(id="CartPole-v1", success_reward=0.5).tasks("train", 1)
    pole = Gymnasium(id="CartPole-v1", success_reward=2)
    assert not any(one.success for one in played(pole, ["0"] * 30))


class Late(Parrot):
    """Pays as much as success only after more steps than are tried beforehand."""

    def step(self, action: str) -> Any:
        self.steps = getattr(self, "steps", 0) + 1
        return "On.", float(action == "now"), False, False, {}


gymnasium.register("Late-v0", entry_point=Late)


def test_a_step_that_pays_too_much_is_refused_when_it_comes() -> None:
    with pytest.raises(UserError, match=r"test_gymnasium:Late-v0 .* 1 "):
        played(Gymnasium(id="test_gymnasium:Late-v0"), ["now"])


def test_the_environment_describes_its_task_where_nobody_else_does() -> None:
    (lake,) = Gymnasium(id="FrozenLake-v1").tasks("train", 1)
    assert lake.instruction.startswith("Play FrozenLake-v1. Frozen lake involves crossing a frozen lake")
    assert lake.instruction.endswith("Actions: left, down, right, up.")
    assert Gymnasium(id="FrozenLake-v1", instruction="Cross.").tasks("train", 1)[0].instruction == "Cross."
    described_by = Gymnasium(**PARROT)._env
    described_by.unwrapped.description = "Mirror \x1b[31mthe word\x1b[0m.\n\nQuickly."
    assert described(described_by) == "Mirror [red the word]. Quickly."
    described_by.unwrapped.description = "word " * 500
    assert len(described(described_by)) < 610


def test_observations_without_words_are_told() -> None:
    report = checked({"id": "CartPole-v1", "success_reward": 2.0, "horizon": 5}, rollbacks=4)
    (text,) = [finding for finding in report.findings if finding.name == "text"]
    assert text.verdict == "pass" and "an observation is 4 numbers without a word on what they mean" in text.sentence
    assert complaint(", ".join(map(str, range(147)))).startswith("an observation is 147 numbers")
    assert not complaint("  (Down)\nSFFF\nFHFH") and not complaint("You have 3 coins, 2 keys.") and not complaint("")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["id=FrozenLak-v1"], "Gymnasium knows no environment 'FrozenLak-v1'; did you mean 'FrozenLake-v1'?"),
        (["id=nowhere_at_all:X-v0"], "cannot import 'nowhere_at_all' for the Gymnasium environment"),
        (
            ["id=FrozenLake-v1", "kwargs={slippery: 1}"],
            "Gymnasium cannot make 'FrozenLake-v1' with kwargs={'slippery': 1}: TypeError",
        ),
        (["id=Pendulum-v1"], "only text and discrete actions can be typed"),
        (["id=FrozenLake-v1", "actions=[a, b]"], "has 4 actions and wants as many different names; found actions=['a', 'b']"),
        (["id=FrozenLake-v1", "horizon=-1"], "gymnasium wants a horizon of at least 1"),
        (["id=FrozenLake-v1", "fidelity=exact"], "unknown fidelity 'exact'"),
        (["id=FrozenLake-v1", "placement=cloud"], "unknown placement 'cloud'"),
        (["id=3"], "gymnasium wants id as str; found 3"),
        ([], "gymnasium cannot be made from {}: missing a required argument: 'id'"),
        (["id=''"], "Gymnasium knows no environment ''"),
    ],
)
def test_what_cannot_be_played_is_one_sentence(arguments: list[str], sentence: str) -> None:
    assert_one_sentence(leafe("check-env", "gymnasium", *arguments), sentence)


def test_a_split_that_is_none_is_one_sentence() -> None:
    assert_one_sentence(leafe("check-env", "gymnasium", "id=FrozenLake-v1", "--split", "exam"), "unknown split 'exam'")


def test_without_the_extra_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingDependency, match=r"gymnasium is not installed; type: pip install .*\[gymnasium\]"):
        Gymnasium(id="FrozenLake-v1")
    assert issubclass(MissingDependency, UserError)
    assert_one_sentence(leafe("check-env", "gymnasium", "id=FrozenLake-v1"), "gymnasium is not installed; type: pip install")


def test_a_wrapped_environment_is_played_from_the_command_line() -> None:
    said = leafe("play", "gymnasium", "id=FrozenLake-v1", "kwargs={is_slippery: false}", stdin="right\nback 1\ndown\n")
    assert said.status == 0 and "[red F]HFH" in said.out
