"""A learner: steps, what a step says of itself, and that a kill costs at most the step that it falls into."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_precision import narrow
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from leafe.engines.tokens import ChatTokenizer
from leafe.errors import CorruptFile, RunConflict, UserError
from leafe.model_folder import fingerprint
from leafe.records import Example, Message, Target
from leafe.settings import LoraSettings, TrainSettings
from leafe.training.learner import Learner
from leafe.training.loss import ClippedRatio, CrossEntropy, Distribution, Loss, Preference
from leafe.training.sft import fine_tune

TOKENIZER = tiny_tokenizer()
PLAN = TrainSettings(learning_rate=1e-3, warmup_share=0.0)
ANSWERS = ("go left", "go right", "go up", "go down")
RATIO = ClippedRatio(low=0.2, high=0.3, kl=0.1, normalise="sequence")


def lessons(step: int = 0, count: int = 6) -> list[Example]:
    """What a method might have sampled for a step: groups of three attempts with advantages that add up to nothing."""
    found = []
    for number in range(count):
        draw = random.Random(f"{step} {number}")
        ids = (*TOKENIZER.encode(draw.choice(ANSWERS), add_special_tokens=False), TOKENIZER.eos_token_id)
        targets = tuple(Target(token, 1.0, round(-9 - draw.random(), 5), round(-9 - draw.random(), 5)) for token in ids)
        messages = (Message("user", f"you see {number // 3}"),)
        advantage, group = (1.0, 0.5, -1.5)[number % 3], f"g{number // 3}"
        found.append(Example(f"e{step}-{number}", "sampled", "t", number, "", messages, "", ids, advantage, group, targets))
    return found


def checkpoint(folder: Path, *, dropout: float = 0.0, seed: int = 0) -> Path:
    """A model of random weights."""
    model = tiny_model("llama", seed=seed)
    model.config.attention_dropout = dropout
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose steps draw what they drop."""
    return checkpoint(tmp_path_factory.mktemp("drawing"), dropout=0.1)


def learner(base: Path, *, steps: int = 6, settings: TrainSettings = PLAN, loss: Loss = RATIO, **more: Any) -> Learner:
    return Learner(base, settings, steps=steps, loss=loss, threads=1, **more)


def weights(of: Learner) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in of.model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_a_step_says_what_it_was_and_moves_the_weights(base: Path) -> None:
    one = learner(base)
    before = weights(one)
    mixed = [replace(example, kind=("sampled", "other")[number % 2]) for number, example in enumerate(lessons())]
    report = one.step(mixed)
    assert (report.step, report.examples, one.done) == (1, 6, 1)
    assert report.targets == sum(len(example.target_ids) for example in mixed) > report.tokens / 2
    assert report.by_kind.keys() == {"sampled", "other"} and sum(report.by_kind.values()) == pytest.approx(report.loss)
    assert report.gradient_norm > 0 and report.learning_rate == PLAN.learning_rate
    assert report.figures.keys() == {"clipped", "kl", "ratio"} and 0 <= report.figures["clipped"] <= 1
    assert not same(before, weights(one)) and not one.model.training


def test_the_rate_warms_up_from_more_than_nothing_and_falls_to_nothing(base: Path) -> None:
    one = learner(base, steps=10, settings=PLAN.model_copy(update={"warmup_share": 0.2}))
    rates = [one.rate(done) for done in range(11)]
    assert rates[:3] == pytest.approx([PLAN.learning_rate / 3, PLAN.learning_rate * 2 / 3, PLAN.learning_rate])
    assert rates[6] == pytest.approx(PLAN.learning_rate / 2) and rates[10] == 0
    assert all(after < before for before, after in pairwise(rates[2:]))


def test_what_a_step_draws_follows_from_the_seed_and_from_nothing_else(drawing: Path) -> None:
    losses = []
    for seed, noise in [(1, 5), (1, 6), (2, 5)]:
        one = learner(drawing, seed=seed)
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        losses.append([one.step(lessons()).loss, one.step(lessons()).loss])
        assert torch.equal(before, torch.get_rng_state())
    assert losses[0] == losses[1] != losses[2]


def test_one_step_of_a_learner_is_one_step_of_fine_tuning(base: Path, tmp_path: Path) -> None:
    settings = PLAN.model_copy(update={"epochs": 1.0, "weight_decay": 0.1, "lora": LoraSettings(rank=2, alpha=4)})
    plain = [replace(example, group="", targets=()) for example in lessons()]
    one = learner(base, steps=1, settings=settings, loss=CrossEntropy(), seed=3)
    report = one.step(plain)
    one.save(tmp_path / "one")
    tuned = fine_tune(base, plain, tmp_path / "tuned", settings, seed=3)
    assert report.loss == pytest.approx(tuned.loss, rel=1e-6) and report.by_kind == pytest.approx(tuned.by_kind, rel=1e-6)
    found, wanted, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "one", tmp_path / "tuned", base))
    moved = max(float((wanted[name] - weight).abs().max()) for name, weight in before.items())
    assert moved > 1e-5
    assert max(float((found[name] - weight).abs().max()) for name, weight in wanted.items()) < 1e-3 * moved


def test_a_clipped_ratio_trains_through_fine_tuning_as_well(base: Path, tmp_path: Path) -> None:
    settings = PLAN.model_copy(update={"epochs": 1.0})
    tuned = fine_tune(base, lessons(), tmp_path / "tuned", settings, seed=3, loss=RATIO)
    assert tuned.loss == pytest.approx(learner(base, steps=1).step(lessons()).loss, rel=1e-5)


def test_saved_weights_are_an_ordinary_checkpoint_and_learning_goes_on(base: Path, tmp_path: Path) -> None:
    settings = PLAN.model_copy(update={"lora": LoraSettings(rank=2, alpha=4)})
    undisturbed, saved = learner(base, settings=settings), learner(base, settings=settings)
    for step in range(3):
        undisturbed.step(lessons(step))
        saved.step(lessons(step))
        saved.save(tmp_path / str(step))
    assert same(weights(undisturbed), weights(saved))
    assert {path.name for path in (tmp_path / "2").iterdir()} == {path.name for path in base.iterdir()}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "2").dtype == torch.float32
    with pytest.raises(UserError, match="is there already"):
        saved.save(tmp_path / "2")


def probs(one: Learner, asked: str) -> torch.Tensor:
    """What the model would answer with first, `(vocabulary,)`, as log-probabilities."""
    prompt = ChatTokenizer(one.tokenizer).prompt_ids((Message("user", asked),))
    with torch.no_grad():
        return one.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)


def said(step: int, number: int, target: Target, weight: float) -> Example:
    return Example(
        f"e{step}-{number}", "any", "t", number, "", (Message("user", "what now?"),), "", (target.id,), weight, "g", (target,)
    )


def grpo(one: Learner, draw: torch.Generator) -> list[Example]:
    """Eight answers of its own; even ids are what is wanted."""
    now = probs(one, "what now?")
    ids = torch.multinomial(now.exp(), 8, replacement=True, generator=draw).tolist()
    rewards = [float(token % 2 == 0) for token in ids]
    mean = sum(rewards) / len(rewards)
    return [
        said(one.done, number, Target(token, logprob=min(0.0, float(now[token]))), reward - mean)
        for number, (token, reward) in enumerate(zip(ids, rewards, strict=True))
    ]


def soft(one: Learner, draw: torch.Generator) -> list[Example]:
    """A teacher that is in two minds."""
    return [said(one.done, 0, Target(6, top=((6, 0.5), (8, 0.25))), 1.0)]


def preferred(one: Learner, draw: torch.Generator) -> list[Example]:
    return [said(one.done, number, Target(6 + number, reference=-5.0), 1.0 - 2 * number) for number in range(2)]


@pytest.mark.parametrize(
    ("loss", "sample", "grows"),
    [
        (ClippedRatio(normalise="sequence"), grpo, lambda now: float(now.exp()[::2].sum())),
        (Distribution("bucket"), soft, lambda now: -abs(float(now[6].exp()) - 0.5) - abs(float(now[8].exp()) - 0.25)),
        (Preference(), preferred, lambda now: float(now[6] - now[7])),
    ],
    ids=["a clipped ratio", "a distribution", "a preference"],
)
def test_each_loss_brings_about_what_it_is_for(base: Path, loss: Loss, sample: Any, grows: Any) -> None:
    one, draw = learner(base, steps=12, settings=PLAN.model_copy(update={"learning_rate": 3e-3}), loss=loss), torch.Generator()
    before = grows(probs(one, "what now?"))
    for _ in range(12):
        one.step(sample(one, draw.manual_seed(one.done)))
    assert grows(probs(one, "what now?")) > before + 0.1


def trained(base: Path, folder: Path, settings: TrainSettings, *, steps: int = 4) -> dict[str, torch.Tensor]:
    """What a method does: goes on where it was, and keeps its state after each step."""
    one = Learner.open(folder, base, settings, steps=steps, loss=RATIO, threads=1)
    while one.done < steps:
        one.step(lessons(one.done))
        one.state(folder)
    return weights(one)


def in_child(work: Callable[[], object]) -> int:
    """Does the work in a copy of this process; how that ended."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(number: int, name: str = "fsync") -> None:
    """Kills this process at the `number`-th call of a function of `os`, counted from 0."""
    real, left = getattr(os, name), iter(range(number, -1, -1))

    def call(*arguments: Any, **options: Any) -> Any:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(os, name, call)


@pytest.mark.parametrize(
    "update",
    [{}, {"lora": LoraSettings(rank=2, alpha=4)}, {"dtype": "bfloat16"}],
    ids=["all weights", "an adapter", "weights in two halves"],
)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(
    drawing: Path, tmp_path: Path, update: dict[str, Any]
) -> None:
    settings = PLAN.model_copy(update={"warmup_share": 0.4, "weight_decay": 0.1, "micro_tokens": 32, **update})
    wanted = trained(drawing, tmp_path / "alone", settings)
    kills = 0
    for number in (2, 9, 3):

        def work(number: int = number) -> None:
            killed_at(number)
            trained(drawing, tmp_path / "killed", settings)

        kills += in_child(work) == -signal.SIGKILL
    torch.manual_seed(99)  # what the process draws plays no part
    assert kills == 3 and same(wanted, trained(drawing, tmp_path / "killed", settings))


@pytest.mark.parametrize(
    "update",
    [
        {"dtype": "bfloat16"},
        {"offload": True},
        pytest.param({"dtype": "bfloat16", "lora": LoraSettings(rank=2)}, marks=pytest.mark.slow),
    ],
)
def test_a_learner_in_bfloat16_loses_no_small_step(base: Path, tmp_path: Path, update: dict[str, Any]) -> None:
    """Steps of a millionth, of which a bfloat16 weight alone would keep none."""
    settings = PLAN.model_copy(update={"learning_rate": 1e-6, "lora": update.get("lora")})
    before, found = load_file(base / "model.safetensors"), []
    for number, chosen in enumerate((settings, settings.model_copy(update=update))):
        one = learner(base, settings=chosen)
        for step in range(6):
            one.step(lessons(step))
        one.save(tmp_path / str(number))
        saved = load_file(tmp_path / str(number) / "model.safetensors")
        assert {weight.dtype for weight in saved.values()} == {torch.float32}
        given = one.weights()
        assert all(torch.equal(given[name], saved[name]) for name in saved)
        found.append(torch.cat([(saved[name] - before[name]).flatten() for name in sorted(before)]))
    exact, halves = found
    assert exact.any() and float(torch.nn.functional.cosine_similarity(exact, halves, dim=0)) > 0.9


def test_a_state_is_whole_whatever_moment_it_is_killed_at(base: Path, tmp_path: Path) -> None:
    """Killed at each forcing to the disk and at each renaming in turn, the step before or this one is there."""
    one, folder = learner(base), tmp_path / "state"
    one.step(lessons(0))
    one.state(folder)
    first = weights(one)
    one.step(lessons(1))
    second = weights(one)
    found = set()
    for name in ("fsync", "rename", "replace"):
        for number in range(20):

            def work(name: str = name, number: int = number) -> None:
                killed_at(number, name)
                one.state(folder)

            if in_child(work) == 0:
                break
            back = Learner.resume(folder, loss=RATIO)
            assert same(weights(back), {1: first, 2: second}[back.done])
            found.add(back.done)
        else:
            pytest.fail("it never came to an end")
        one.state(folder)
    assert found == {1, 2} and Learner.resume(folder, loss=RATIO).done == 2
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_state_before_the_first_step_is_one_to_go_on_from(base: Path, tmp_path: Path) -> None:
    one = learner(base)
    one.state(tmp_path / "state")
    back = Learner.resume(tmp_path / "state", loss=RATIO)
    assert back.done == 0 and back.step(lessons()) == one.step(lessons()) and same(weights(one), weights(back))


def test_a_state_that_is_not_as_it_was_left_is_refused(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with pytest.raises(UserError, match="holds no state of a learner"):
        Learner.resume(folder)
    one = learner(base)
    one.step(lessons())
    one.state(folder)
    with pytest.raises(RunConflict, match=r"kept with the loss ClippedRatio\(.*found CrossEntropy\("):
        Learner.resume(folder)
    for other in ({"steps": 7}, {"seed": 1}, {"settings": PLAN.model_copy(update={"weight_decay": 0.5})}):
        with pytest.raises(RunConflict, match=r"other settings \((steps: 6 -> 7|seed: 0 -> 1|train.weight_decay: 0.0 -> 0.5)\)"):
            Learner.open(folder, base, **({"settings": PLAN, "steps": 6, "loss": RATIO} | other))
    for name in ("weights.safetensors", "optimizer.safetensors", "learner.json"):
        whole = (folder / name).read_bytes()
        for broken in (whole[:-3], whole.replace(b"1", b"2"), b"[]"):
            (folder / name).write_bytes(broken)
            with pytest.raises(CorruptFile, match=name):
                Learner.resume(folder, loss=RATIO)
        (folder / name).write_bytes(whole)
    assert Learner.resume(folder, loss=RATIO).done == 1
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt, which is no part"):
        one.state(folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_learner_resumes_on_another_machine(base: Path, tmp_path: Path) -> None:
    Learner.open(tmp_path, base, PLAN, steps=6, loss=RATIO).state(tmp_path)
    smaller = PLAN.model_copy(update={"micro_tokens": 32, "checkpointing": True})
    back = Learner.open(tmp_path, base, smaller, steps=6, loss=RATIO)
    assert back.settings == smaller and back.step(lessons()).loss == pytest.approx(learner(base).step(lessons()).loss, rel=1e-4)


def test_a_step_that_does_not_fit_is_taken_in_smaller_passes(tmp_path: Path) -> None:
    many = [example for step in range(8) for example in lessons(step)]
    found, wanted = (learner(narrow(tmp_path / str(room), room)) for room in (260, 10_000))
    assert found.step(many).loss == pytest.approx(wanted.step(many).loss, rel=1e-4)
    assert all(torch.allclose(one, weights(wanted)[name], atol=1e-5) for name, one in weights(found).items())
    small = learner(narrow(tmp_path / "small", 8))
    before = weights(small)
    with pytest.raises(UserError, match=r"train\.lora\.rank"):
        small.step(many)
    assert small.done == 0 and same(before, weights(small))


def test_an_adapter_is_kept_beside_the_merged_weights_where_it_is_wanted(base: Path, tmp_path: Path) -> None:
    one = learner(base, settings=PLAN.model_copy(update={"lora": LoraSettings(rank=2, alpha=4, keep=True)}))
    one.step(lessons())
    one.save(tmp_path / "out")
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()


def test_large_weights_are_known_by_pieces_wherever_they_lie(tmp_path: Path) -> None:
    own = checkpoint(tmp_path / "own")
    numbers = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    save_file({"weight": numbers}, own / "model.safetensors")
    before = fingerprint(own)
    assert fingerprint(own.rename(tmp_path / "moved")) == before
    save_file(
        {"weight": torch.where(torch.rand(1 << 20) < 0.01, numbers + 1e-3, numbers)}, tmp_path / "moved" / "model.safetensors"
    )
    assert fingerprint(tmp_path / "moved") != before


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2, alpha=4)])
def test_a_learner_goes_on_with_its_model_wherever_that_is_and_with_no_other(lora: LoraSettings | None, tmp_path: Path) -> None:
    plan, own = PLAN.model_copy(update={"lora": lora}), checkpoint(tmp_path / "base")
    one = learner(own, settings=plan)
    one.step(lessons())
    one.state(tmp_path / "state")
    there = own.rename(tmp_path / "there")
    with pytest.raises(RunConflict, match="another model"):
        Learner.resume(tmp_path / "state", loss=RATIO)
    back = Learner.open(tmp_path / "state", there, plan, steps=one.steps, loss=RATIO)
    assert back.done == 1 and same(weights(one), weights(back))
    back.state(tmp_path / "state")
    assert Learner.resume(tmp_path / "state", loss=RATIO).checkpoint == there
    checkpoint(there, seed=1)
    with pytest.raises(RunConflict, match="another model"):
        Learner.open(tmp_path / "state", there, plan, steps=one.steps, loss=RATIO)


def test_a_step_that_cannot_be_taken_leaves_everything_as_it_was(base: Path) -> None:
    one, alone = learner(base, steps=2), learner(base, steps=2)
    before = weights(one)
    far = [replace(one, targets=tuple(replace(target, logprob=-1e4) for target in one.targets)) for one in lessons()]

    class Fails:
        """A loss of one's own that fails at its second pass."""

        merges = False
        calls = 0

        def __call__(self, logits: torch.Tensor, terms: Any) -> torch.Tensor:
            self.calls += 1
            if self.calls == 2:
                raise UserError("no more")
            return RATIO(logits, terms)

    refused: Sequence[tuple[Sequence[Example], str]] = [
        ([], "step 1 has no example"),
        ([replace(lessons()[0], targets=())], r"log-probability \(`logprob`\)"),
        (far, r"step 1 has a loss of (inf|nan).*the weights are as they were"),
    ]
    for examples, wanted in refused:
        with pytest.raises(UserError, match=wanted):
            one.step(examples)
    one.loss, one._pass_tokens = Fails(), 8
    with pytest.raises(UserError, match="no more"):
        one.step(lessons())
    one.loss, one._pass_tokens = RATIO, alone._pass_tokens
    assert one.done == 0 and same(before, weights(one))
    assert [one.step(lessons(step)) for step in range(2)] == [alone.step(lessons(step)) for step in range(2)]
    with pytest.raises(UserError, match="all 2 steps of this learner are taken"):
        one.step(lessons())


def test_a_learner_that_cannot_be_made_is_refused_in_a_sentence(base: Path) -> None:
    with pytest.raises(UserError, match="steps: wanted at least 1, found 0"):
        learner(base, steps=0)
    with pytest.raises(UserError, match=r"one process; set train\.processes=1"):
        learner(base, settings=PLAN.model_copy(update={"processes": 2}))
    with pytest.raises(UserError, match=r"type train\.optimizer=auto"):
        learner(base, settings=PLAN.model_copy(update={"optimizer": "adafactor"}))
    with pytest.raises(UserError, match="make one of it, as ClippedRatio"):
        learner(base, loss=ClippedRatio)
