"""Methods that go on from turns of failed attempts, and the loop of on-policy methods: groups, weights and pairs by hand, runs, kills."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from command import leafe
from players import PLACES, TERSE, Hand, Policy, breaks, erratic, grown, key_in, rules, scripted
from safetensors.torch import load_file

from leafe.compose import bench_of
from leafe.config import parse
from leafe.distillation.examples import Selection, distill
from leafe.distillation.store import read_examples
from leafe.engines.base import Engine, Scores
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Environment, Fidelity
from leafe.errors import EngineError, ReplayDiverged, UserError
from leafe.experiment import Experiment
from leafe.forest.effects import Rollback
from leafe.forest.explore import explore
from leafe.jsonl import read_lines
from leafe.lab import run_stage
from leafe.methods.on_policy_distillation import Advised, OnPolicyDistillationSettings
from leafe.methods.preference import pairs
from leafe.methods.reset_groups import REVISION, Continuations, ResetGroupsSettings
from leafe.methods.soft_targets import advised_prompts, softened
from leafe.on_policy.groups import Groups
from leafe.progress import Silent
from leafe.records import Ask, Completion, Example, Message, Target, Tree
from leafe.run import RunDirectory
from leafe.training.learner import Learner
from leafe.training.loss import Preference, check_examples
from leafe.worlds.fakes import Lookup

ONE, TWO, THREE = PLACES[:3]
RESET = ResetGroupsSettings(size=3, revision=0.5)


class Scoring(ScriptedEngine):
    """Gives every token the same log-probability, and keeps what it was asked to score."""

    def __init__(self, logprob: float) -> None:
        super().__init__([])
        self.logprob = logprob
        self.scored: list[tuple[Message, ...]] = []

    async def score(self, messages: Sequence[Message], ids: Sequence[int], top: int = 0) -> Scores:
        self.scored.append(tuple(messages))
        return Scores((self.logprob,) * len(ids))


def played(groups: Groups, policy: Policy, *, key: int = 3, horizon: int = 2, number: int = 0, hand: Hand | None = None) -> Tree:
    """The tree of a group, by hand."""
    hand = hand or Hand(Lookup(places=3), policy)
    (play,) = groups.plays(number, key_in(key, horizon=horizon), rules())
    tree = hand.finish(play)
    assert tree.spend.turns <= groups.most_turns(horizon)
    return tree


def learned(groups: Groups, tree: Tree, engine: Engine | None = None) -> Sequence[Example]:
    return asyncio.run(groups.learn("place", [tree], engine or Scoring(-0.25)))


def texts(examples: Sequence[Example]) -> str:
    return "\n".join(text for one in examples for text in (*(message.content for message in one.messages), one.target))


# Reset groups


def test_a_reset_group_goes_back_to_the_named_turn_and_is_told_nothing() -> None:
    hand = Hand(Lookup(places=3), scripted(ONE, TWO, "turn 2: look in the third", TWO, THREE, THREE, THREE))
    tree = played(Continuations(TERSE, RESET), hand.policy, hand=hand)
    assert [(one.turn, one.parent, one.experience, one.success) for one in tree.attempts] == [
        (None, None, None, False),
        *[(2, 0, None, False), (2, 0, None, True), (2, 0, None, True)],
        (2, 0, "look in the third", True),
    ]
    first, second, _, *bare, advised = [ask.messages for ask in hand.asks]
    assert bare == [second] * 3 and "third" in advised[-1].content
    assert first != second and [len(one.trajectory) for one in hand.effects if isinstance(one, Rollback)] == [1] * 4
    assert (tree.spend.turns, tree.spend.rollbacks, tree.spend.replayed_steps, tree.spend.reflections) == (6, 4, 4, 1)


def test_continuations_have_the_advantages_of_their_group_and_the_advice_what_it_was_worth_more() -> None:
    """Two of three continuations succeed: `max_rl` gives -1, 1/2, 1/2. The advised one succeeds: 1 - 2/3, half of it counts."""
    tree = played(Continuations(TERSE, RESET), scripted(ONE, TWO, "turn 2: look in the third", TWO, THREE, THREE, THREE))
    engine = Scoring(-0.25)
    found = learned(Continuations(TERSE, RESET), tree, engine)
    assert [(one.kind, one.attempt, one.target) for one in found] == [
        *[("reset_groups", 1, TWO), ("reset_groups", 2, THREE), ("reset_groups", 3, THREE)],
        (REVISION, 4, THREE),
    ]
    assert [one.weight for one in found] == pytest.approx([-1, 0.5, 0.5, 0.5 * (1 - 2 / 3)])
    assert len({one.group for one in found[:3]}) == 1 and found[3].group != found[0].group
    assert {target.logprob for one in found[:3] for target in one.targets} == {0.0}  # as they were sampled
    assert {target.logprob for target in found[3].targets} == {-0.25}  # without the advice
    assert engine.scored == [found[3].messages] and {one.messages for one in found} == {found[0].messages}
    assert "third" not in texts(found)


def test_where_all_continuations_fail_the_advice_alone_teaches() -> None:
    groups = Continuations(TERSE, RESET)
    tree = played(groups, scripted(ONE, TWO, "turn 1: x", *[ONE, TWO] * 3, THREE))
    (only,) = learned(groups, tree)
    assert (only.kind, only.weight, only.target) == (REVISION, 0.5, THREE)
    without = Continuations(TERSE, replace_setting(RESET, revision=0.0))
    assert list(learned(without, played(without, scripted(ONE, TWO, "turn 1: x", *[ONE, TWO] * 3)))) == []


def replace_setting(settings: Any, **changes: Any) -> Any:
    return type(settings)(**{**settings.model_dump(), **changes})


@pytest.mark.parametrize("turn", ["named", "drawn"])
def test_without_a_name_the_turn_is_drawn_and_stays_where_it_was_drawn(turn: str) -> None:
    groups = Continuations(TERSE, replace_setting(RESET, turn=turn, revision=0.0))
    hands = [Hand(Lookup(places=3), lambda ask: ONE if ask.purpose == "act" else "who knows") for _ in range(8)]
    trees = [played(groups, hand.policy, horizon=4, number=number // 2, hand=hand) for number, hand in enumerate(hands)]
    turns = [{one.turn for one in tree.attempts[1:]} for tree in trees]
    assert all(len(one) == 1 and one <= {1, 2, 3, 4} for one in turns) and turns[::2] == turns[1::2]
    assert len(set(map(frozenset, turns))) > 1
    assert {tree.spend.reflections for tree in trees} == {int(turn == "named")}


def test_a_continuation_whose_replay_diverged_is_in_no_group() -> None:
    groups = Continuations(TERSE, RESET)
    policy = scripted(ONE, TWO, "turn 2: x", TWO, THREE, TWO)
    third = [number for number, effect in enumerate(effects(groups, policy)) if isinstance(effect, Rollback)][1]
    hand = Hand(Lookup(places=3), scripted(ONE, TWO, "turn 2: x", TWO, THREE, TWO), breaks({third}, ReplayDiverged))
    tree = played(groups, hand.policy, hand=hand)
    assert [one.stop.value for one in tree.attempts[1:]] == ["turn_limit", "replay_diverged", "success", "turn_limit"]
    assert [(one.attempt, one.weight) for one in learned(groups, tree)] == [(1, -1), (3, 1), (4, -0.25)]


def effects(groups: Groups, policy: Policy) -> list[Any]:
    hand = Hand(Lookup(places=3), lambda ask: THREE if "x" in ask.messages[-1].content[-3:] else policy(ask))
    played(groups, hand.policy, hand=hand)
    return hand.effects


@pytest.mark.parametrize("groups", [Continuations(TERSE, RESET), Advised(TERSE, OnPolicyDistillationSettings())])
def test_an_attempt_that_succeeds_is_not_gone_back_into(groups: Groups) -> None:
    tree = played(groups, scripted(ONE, THREE))
    assert len(tree.attempts) == 1 and list(learned(groups, tree)) == []


@pytest.mark.parametrize("groups", [Continuations(TERSE, RESET), Advised(TERSE, OnPolicyDistillationSettings())])
def test_a_policy_that_does_everything_wrong_stays_within_the_turns_of_a_group(groups: Groups) -> None:
    for number in range(30):
        tree = played(groups, erratic(PLACES[:3]), horizon=4, number=number)
        assert all(math.isfinite(one.weight) and not one.messages[-1].sampled for one in learned(groups, tree))


# On-policy distillation


def test_tokens_from_the_named_turn_on_weigh_what_the_advised_policy_makes_of_them() -> None:
    hand = Hand(Lookup(places=3), scripted(ONE, TWO, ONE, "turn 2: look in the third", THREE))
    groups = Advised(TERSE, OnPolicyDistillationSettings(limit=2.0))
    tree = played(groups, hand.policy, horizon=3, hand=hand)
    turns = [
        replace(turn, completion=replace(turn.completion, logprobs=(-1.0, *turn.completion.logprobs[1:]))) for turn in tree.turns
    ]
    engine = Scoring(-2.5)
    found = learned(groups, replace(tree, turns=tuple(turns)), engine)
    assert [(one.kind, one.attempt, one.target, one.weight) for one in found] == [("opd", 0, TWO, 1.0), ("opd", 0, ONE, 1.0)]
    for one in found:  # log T - log S is -2.5 + 1 at the first token and -2.5 - 0, cut to -2, at the others
        assert [target.weight for target in one.targets] == [-1.5, *[-2.0] * (len(one.targets) - 1)]
    assert [one.messages for one in found] == [ask.messages for ask in hand.asks[1:3]] and "third" not in texts(found)
    # The teacher was told at the turn itself, and goes on reading it in the history.
    assert engine.scored[0] == hand.asks[4].messages
    assert ["third" in message.content for message in engine.scored[1]].count(True) == 1
    assert engine.scored[1][-1] == found[1].messages[-1]


@pytest.mark.parametrize("advised", [[TWO, ONE], [ONE, TWO]])
def test_advice_that_does_no_better_teaches_nothing(advised: list[str]) -> None:
    groups = Advised(TERSE, OnPolicyDistillationSettings())
    assert list(learned(groups, played(groups, scripted(ONE, TWO, "turn 1: x", *advised)))) == []


def test_turns_that_leave_no_room_for_the_advice_are_left_out() -> None:
    class Short(Scoring):
        async def score(self, messages: Sequence[Message], ids: Sequence[int], top: int = 0) -> Scores:
            if len(messages) > 2:
                raise UserError("wanted a text that fits")
            return await super().score(messages, ids, top)

    groups = Advised(TERSE, OnPolicyDistillationSettings())
    (only,) = learned(groups, played(groups, scripted(ONE, TWO, "turn 1: x", THREE)), Short(-1.0))
    assert only.target == ONE


# Preference


def test_the_revised_action_is_preferred_where_it_came_out_better_and_shared_tokens_say_nothing() -> None:
    tree = grown(explore, Hand(Lookup(places=3), scripted(ONE, TWO, "turn 1: look", THREE)), key_in(3, horizon=2), max_attempts=2)
    better, worse = pairs(tree, TERSE, 8)
    assert (better.target, better.weight, worse.target, worse.weight) == (THREE, 1.0, ONE, -1.0)
    assert better.group == worse.group and better.messages == worse.messages and "look" not in texts([better, worse])
    shared = len("open place")
    for one in (better, worse):
        assert [target.weight for target in one.targets] == [0.0] * shared + [1.0] * (len(one.target) - shared)
    referenced = [replace(one, targets=tuple(replace(target, reference=-1.0) for target in one.targets)) for one in (better, worse)]
    check_examples(Preference(), referenced)
    assert list(pairs(tree, TERSE, 0)) == []


def test_the_superseded_action_is_preferred_where_it_came_out_better() -> None:
    policy = scripted(ONE, "turn 1: look", THREE, TWO, "turn none", ONE)
    tree = grown(explore, Hand(Lookup(places=3), policy), key_in(3, horizon=2), max_attempts=2, reflect_every=1)
    assert [(one.success, one.turn) for one in tree.attempts] == [(True, None), (False, 1)]
    assert [(one.target, one.weight) for one in pairs(tree, TERSE, 8)] == [(ONE, 1.0), (TWO, -1.0)]


@pytest.mark.parametrize(
    ("answers", "horizon"),
    [
        ([ONE, TWO, "turn 1: x", TWO, ONE], 2),  # neither came out better
        ([ONE, TWO, "turn 1: x", ONE, THREE], 2),  # the same action
        ([ONE, TWO, "turn 1: x", "no such", THREE], 2),  # no action of the world's, so that its outcome is that of the next one
    ],
)
def test_actions_that_cannot_be_told_apart_are_no_pair(answers: list[str], horizon: int) -> None:
    tree = grown(explore, Hand(Lookup(places=3), scripted(*answers)), key_in(3, horizon=horizon), max_attempts=2)
    found = list(pairs(tree, TERSE, 8))
    assert len(found) == 2 * ("no such" in answers)


def test_a_reply_that_the_other_one_begins_with_is_no_pair() -> None:
    """Without an end token, as in a reply that was cut, it would have no token of its own to be preferred for."""
    policy = scripted(ONE, TWO, "turn 1: x", "open place12")
    tree = grown(explore, Hand(Lookup(places=12), policy), key_in(12, horizon=2), max_attempts=2)
    assert tree.attempts[1].success and list(pairs(tree, TERSE, 8)) == []


# Soft targets


def test_soft_targets_are_scored_with_the_prompt_that_the_revised_turn_was_sampled_from() -> None:
    hand = Hand(Lookup(places=3), erratic(PLACES[:3]))
    tree = grown(explore, hand, key_in(0, horizon=4), max_attempts=12)
    found = advised_prompts([tree], TERSE)
    revised = [turn for _, turn in tree.branch_turns()]
    asked = {ask.messages for ask in hand.asks}
    assert set(found) == {turn.id for turn in revised} and revised and set(found.values()) <= asked
    examples = [one for one in distill([tree], TERSE, Selection("any", 99)) if one.kind == "counterfactual"]
    assert examples and all(one.messages != found[one.origin] for one in examples)


def test_the_teachers_tokens_become_the_targets_and_weights_stay() -> None:
    one = Example(
        "e", "counterfactual", "t", 1, "o", (Message("user", "?"),), "ab", (1, 2), 0.5, targets=(Target(1, 2.0), Target(2))
    )
    top = (((1, 0.75), (3, 0.25)), ((2, 0.5),))
    assert softened(one, top).targets == (Target(1, 2.0, top=top[0]), Target(2, top=top[1]))
    assert softened(replace(one, targets=()), top).targets == (Target(1, top=top[0]), Target(2, top=top[1]))


# Runs

RECIPE = """
name: second
environment: {name: lookup, args: {places: 3, horizon: 2}}
tasks: {train: 4, test: 1}
explore: {turns: 40}
sampling: {act: {max_tokens: 6}, reflect: {max_tokens: 12}}
train: {learning_rate: 1.0e-3, warmup_share: 0.0}
engine: {threads: 1, slots: 16, cache_gib: 0.2}
evaluate: {samples: 1, resamples: 20}
"""
BUDGET = 4 * 40
RUNS = {
    "grpo": ["grpo.groups=2", "grpo.size=3", "grpo.steps=2", "grpo.kl=0.5", "grpo.passes=2"],
    "reset_groups": ["reset_groups.groups=2", "reset_groups.size=3", "reset_groups.steps=2", "reset_groups.revision=0.5"],
    "opd": ["opd.groups=2", "opd.steps=2", "opd.passes=2", "opd.entropy=0.01"],
    "preference": ["explore.turns=12"],
    "soft_targets": ["explore.turns=12", "soft_targets.top=5"],
}
ON_POLICY = ["grpo", "reset_groups", "opd"]


@pytest.fixture(scope="module")
def model(taught: Path) -> Path:
    return taught


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of a method through the command line, made once."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "recipe.yaml").write_text(RECIPE)

    def made(name: str) -> Path:
        if not (folder / name).exists():
            said = leafe("run", folder / "recipe.yaml", "--out", folder / name, f"model={model}", f"method={name}", *RUNS[name])
            assert (said.status, said.err) == (0, "")
        return folder / name

    return made


def experiment(model: Path, name: str, *overrides: str) -> Experiment:
    return bench_of(parse(RECIPE, "recipe.yaml", [f"model={model}", f"method={name}", *RUNS[name], *overrides]), Silent())


def train(path: Path, made: Experiment, name: str) -> None:
    with RunDirectory.open(path, made.config) as directory:
        run_stage(made, directory, f"train {name}")


def trained(path: Path, name: str) -> dict[str, Any]:
    return dict(RunDirectory.existing(path, read_only=True).stages[f"train {name}"])


def weights(path: Path, name: str) -> str:
    return hashlib.sha256((path / "checkpoints" / name / "model.safetensors").read_bytes()).hexdigest()


def steps(path: Path, name: str) -> list[dict[str, Any]]:
    return list(read_lines(path / f"{name}-steps.jsonl", f"leafe.{name}-steps/1"))


@pytest.mark.parametrize("name", ON_POLICY)
def test_an_on_policy_method_takes_its_steps_within_the_budget_and_says_what_they_cost(
    name: str, whole: Callable[[str], Path]
) -> None:
    taken, kept = steps(whole(name), name), trained(whole(name), name)
    passes = 2 if f"{name}.passes=2" in RUNS[name] else 1
    assert kept["steps"] == 2 * passes and len(taken) == 2 and kept["turns"] <= BUDGET
    for figure in ("turns", "prompt_tokens", "sampled_tokens", "reflection_tokens", "replayed_steps", "rollbacks", "examples"):
        assert kept[figure] == sum(line[figure] for line in taken)
    assert (kept["reflection_tokens"] > 0) == (kept["rollbacks"] > 0) == (name != "grpo")
    assert all(line["examples"] > 0 and line["ratio"] == pytest.approx(1, abs=1e-3) for line in taken)  # of the first pass
    with RunDirectory.existing(whole(name), read_only=True) as directory:
        assert list(directory.arms()) == ["base", name]
    assert not (whole(name) / name).exists()


def test_the_divergence_from_the_start_begins_at_nothing_and_counts_in_the_loss(whole: Callable[[str], Path]) -> None:
    first, second = steps(whole("grpo"), "grpo")
    assert first["kl"] == pytest.approx(0, abs=1e-6) and second["kl"] > 1e-4
    # Advantages of a group add up to nothing, so that the rest of the loss is the divergence.
    assert abs(first["loss"]) < 1e-5 and second["loss"] > 1e-4


def test_the_entropy_of_what_comes_next_is_a_figure_where_it_counts(whole: Callable[[str], Path]) -> None:
    assert all(0 < line["entropy"] < math.log(400) for line in steps(whole("opd"), "opd"))
    assert not any("entropy" in line for line in steps(whole("grpo"), "grpo"))


def test_pairs_are_scored_by_the_model_that_training_starts_from_and_learned_from(whole: Callable[[str], Path]) -> None:
    kept, examples = trained(whole("preference"), "preference"), list(read_examples(whole("preference") / "round-1/examples.jsonl"))
    assert kept["steps"] >= 2 and kept["examples"] == len(examples) and len(examples) % 2 == 0
    assert all(target.reference is not None for one in examples for target in one.targets)
    assert 0 < kept["loss"] < math.log(2) + 0.05  # the loss of a pair that nothing was learned of is log 2
    assert "Advice" not in texts(examples)


def test_revised_turns_alone_have_the_teachers_tokens(whole: Callable[[str], Path]) -> None:
    kept = trained(whole("soft_targets"), "soft_targets")
    examples = list(read_examples(whole("soft_targets") / "round-1/examples.jsonl"))
    assert kept["steps"] >= 2 and {one.kind for one in examples} == {"counterfactual", "rehearsal"}
    for one in examples:
        assert len(one.targets) == (len(one.target_ids) if one.kind == "counterfactual" else 0)
        for target in one.targets:
            assert 1 <= len(target.top) <= 5 and target.top[0][1] == max(share for _, share in target.top)
    assert "Advice" not in texts(examples)


@dataclass
class Failing:
    """An engine that breaks after some requests, as a machine does that is taken away."""

    engine: Engine
    patience: int

    def __post_init__(self) -> None:
        self.stats, self.concurrency = self.engine.stats, self.engine.concurrency

    def _ask(self) -> None:
        self.patience -= 1
        if self.patience < 0:
            raise EngineError("the machine was taken away")

    async def generate(self, ask: Ask) -> Completion:
        self._ask()
        return await self.engine.generate(ask)

    async def score(self, messages: Sequence[Message], ids: Sequence[int], top: int = 0) -> Scores:
        self._ask()
        return await self.engine.score(messages, ids, top)

    async def load(self, folder: str | Path) -> None:
        await self.engine.load(folder)

    async def close(self) -> None:
        await self.engine.close()


@pytest.mark.parametrize("name", ["reset_groups", *(pytest.param(name, marks=pytest.mark.slow) for name in ("grpo", "opd"))])
def test_a_run_that_breaks_in_a_step_and_between_two_passes_ends_with_the_same_weights(
    name: str, whole: Callable[[str], Path], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two passes the third optimiser step is the first of a batch, which is then never scored anew."""
    written, made = Learner.state, experiment(model, name)

    def killed(learner: Learner, folder: str | Path) -> None:
        written(learner, folder)
        if learner.done == learner.steps - 1:
            raise KeyboardInterrupt

    with pytest.raises(EngineError, match="taken away"):
        train(tmp_path / "run", replace(made, load_engine=lambda folder: Failing(made.load_engine(folder), 6)), name)
    monkeypatch.setattr(Learner, "state", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", made, name)
    monkeypatch.undo()
    train(tmp_path / "run", made, name)
    assert weights(tmp_path / "run", name) == weights(whole(name), name)
    assert steps(tmp_path / "run", name) == steps(whole(name), name)
    assert trained(tmp_path / "run", name) == trained(whole(name), name)


@pytest.mark.slow
def test_a_state_that_is_kept_less_often_costs_batches_and_changes_no_weight(
    whole: Callable[[str], Path], model: Path, tmp_path: Path
) -> None:
    """The engine fails in the second batch, before a state was kept: the first is drawn anew, and nothing is left of the other."""
    made, first = experiment(model, "reset_groups", "train.save_every=2"), steps(whole("reset_groups"), "reset_groups")[0]
    with pytest.raises(EngineError, match="taken away"):
        failing = replace(made, load_engine=lambda folder: Failing(made.load_engine(folder), 2 * first["turns"]))
        train(tmp_path / "run", failing, "reset_groups")
    folder = tmp_path / "run" / "reset_groups"
    assert not (folder / "learner").exists() and len(list(read_lines(folder / "steps.jsonl", "leafe.reset_groups-steps/1"))) == 1
    (folder / "step-2.journal.jsonl").write_text("drawn from weights that are gone\n")
    train(tmp_path / "run", made, "reset_groups")
    assert weights(tmp_path / "run", "reset_groups") == weights(whole("reset_groups"), "reset_groups")
    assert steps(tmp_path / "run", "reset_groups") == steps(whole("reset_groups"), "reset_groups")
    assert trained(tmp_path / "run", "reset_groups") == trained(whole("reset_groups"), "reset_groups")


def test_training_goes_on_from_the_checkpoint_of_another_run(whole: Callable[[str], Path], model: Path, tmp_path: Path) -> None:
    start = whole("preference") / "checkpoints" / "preference"
    still = ["reset_groups.steps=1", "reset_groups.kl=0.5", "train.learning_rate=1e-9", f"reset_groups.start={start}"]
    train(tmp_path / "run", experiment(model, "reset_groups", *still), "reset_groups")
    (line,) = steps(tmp_path / "run", "reset_groups")
    assert line["kl"] == pytest.approx(0, abs=1e-6) and line["ratio"] == pytest.approx(1, abs=1e-3)

    def read(folder: Path) -> Any:
        return load_file(folder / "model.safetensors")["model.norm.weight"]

    end = read(tmp_path / "run" / "checkpoints" / "reset_groups")
    assert float((end - read(start)).abs().max()) < 1e-7 < 1e-5 < float((end - read(model)).abs().max())


class Unreturning(Lookup):
    """A `Lookup` that does not say that it can go back."""

    fidelity = Fidelity.NONE


@pytest.mark.parametrize(
    ("name", "override", "sentence"),
    [
        ("reset_groups", "reset_groups.turn=drawn", "turn: wanted 'named' where revision is above 0"),
        ("reset_groups", "sampling.act.temperature=0.7", "reset_groups.revision wants sampling.act.temperature=1"),
        ("reset_groups", "reset_groups.advantage=pkpo reset_groups.k=3", "reset_groups.k: wanted less than the 3 attempts"),
        ("reset_groups", "reset_groups.reward=reward", "reward: wanted 'success' for the advantage max_rl"),
        ("reset_groups", "reset_groups.normalise=0", "^reset_groups.normalise: wanted"),
        ("opd", "sampling.act.temperature=0.7 opd.kl=0", "method opd wants sampling.act.temperature=1"),
        (
            "opd",
            "sampling.act.top_p=0.9 opd.kl=0",
            "method opd wants sampling.act.top_p=1, .* found 0.9; type sampling.act.top_p=1$",
        ),
        ("opd", "prompts=full", "found 0.7 and 0.95; type sampling.act.temperature=1 sampling.act.top_p=1"),
        ("opd", "engine.kind=openai engine.base_url=http://localhost:1/v1", "method opd gives the engine new weights"),
        ("preference", "preference.start=x engine.kind=openai engine.base_url=http://localhost:1/v1", "preference.start wants"),
        ("soft_targets", "soft_targets.rest=lump", "^soft_targets.rest: wanted"),
    ],
)
def test_settings_that_cannot_go_together_are_refused_when_they_are_read(name: str, override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse(RECIPE, "recipe.yaml", [f"method={name}", *RUNS[name], *override.split()])


@pytest.mark.parametrize(
    ("name", "override", "sentence"),
    [
        (
            "reset_groups",
            "explore.turns=4",
            r"2 groups of up to 10 turns = 20; type explore\.turns=5, or make reset_groups\.groups",
        ),
        ("opd", "opd.start=./nowhere", r"opd\.start: no checkpoint in './nowhere'"),
        ("preference", "preference.start=./nowhere", r"preference\.start: no checkpoint in './nowhere'"),
        *[(name, "", "cannot be rolled back") for name in ("reset_groups", "opd", "preference")],
    ],
)
def test_what_cannot_be_begun_is_refused_before_anything_is_measured(
    name: str, override: str, sentence: str, tmp_path: Path
) -> None:
    made = bench_of(parse(RECIPE, "recipe.yaml", [f"method={name}", *RUNS[name], *override.split()]), Silent())

    def unreturning() -> Environment:
        return Unreturning(places=3, horizon=2)

    made = made if override else replace(made, make_environment=unreturning)
    with pytest.raises(UserError, match=sentence):
        train(tmp_path / "run", made, name)
    assert json.loads((tmp_path / "run" / "stages.json").read_text() if (tmp_path / "run" / "stages.json").exists() else "{}") == {}
