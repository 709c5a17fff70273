"""Losses: packed, they have the gradients of the samples one by one, and each is its paper's formula on cases done by hand."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import gradients, precise_model

from leafe.distillation.attention import tree_attention
from leafe.distillation.pack import Detail, Source, collate
from leafe.distillation.rows import Bundle, pack_examples, shares
from leafe.errors import UserError
from leafe.records import Example, Message, Target
from leafe.training.loss import (
    ClippedRatio,
    CrossEntropy,
    Distribution,
    Loss,
    Preference,
    check_examples,
    check_picklable,
    packing_of,
    pass_loss,
)
from leafe.training.terms import Step, Terms

NETWORK = precise_model("qwen2", torch.float64)
IDS = range(1, 6)
WEIGHTS = (-1.5, -0.25, 0.5, 1.0, 2.0)  # exact in float32, which weights are kept in


class Digits:
    """A tokenizer for conversations of digits, each its own id."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return [int(digit) for message in messages for digit in message.content]


def example(prompt: Sequence[int], targets: Sequence[Target], *, number: int = 0, **more: Any) -> Example:
    text = "".join(map(str, prompt))
    fields = {"kind": "any", "task": "t", "attempt": number} | more
    ids = tuple(target.id for target in targets)
    return Example(
        f"e{number}", origin="", messages=(Message("user", text),), target="", target_ids=ids, targets=tuple(targets), **fields
    )


@dataclass
class Apart:
    """One example, computed alone: log-probabilities after each place of its target, `(targets, vocabulary)`."""

    example: Example
    logprobs: torch.Tensor

    def now(self, index: int) -> torch.Tensor:
        return self.logprobs[index, self.example.target_ids[index]]

    def weight(self, index: int) -> float:
        return self.example.weight * self.example.targets[index].weight


def apart(examples: Sequence[Example]) -> list[Apart]:
    found = []
    for one in examples:
        prompt = Digits().prompt_ids(one.messages)
        logits = NETWORK(input_ids=torch.tensor([[*prompt, *one.target_ids]])).logits[0]
        found.append(Apart(one, logits[len(prompt) - 1 : -1].log_softmax(-1)))
    return found


def averaged(alone: Sequence[Apart], normalise: str | int, term: Callable[[Apart, int], torch.Tensor]) -> torch.Tensor:
    """The sum of terms, normalised by definition: nested means, or one sum over a count."""
    groups: defaultdict[object, defaultdict[object, list[torch.Tensor]]] = defaultdict(lambda: defaultdict(list))
    for number, one in enumerate(alone):
        group, sequence = (one.example.group, one.example.attempt) if one.example.group else (number, 0)
        groups[group][sequence] += [term(one, index) for index in range(len(one.example.target_ids))]
    sequences = [[torch.stack(terms) for terms in group.values()] for group in groups.values()]
    if normalise == "sequence":
        return torch.stack([torch.stack([terms.mean() for terms in group]).mean() for group in sequences]).mean()
    every = [terms for group in sequences for terms in group]
    total = torch.cat(every).sum()
    return total / (len(torch.cat(every)) if normalise == "targets" else normalise * len(every))


def cross_entropy(alone: Sequence[Apart], loss: CrossEntropy) -> torch.Tensor:
    return averaged(alone, loss.normalise, lambda one, index: -one.weight(index) * one.now(index))


def clipped_ratio(alone: Sequence[Apart], loss: ClippedRatio) -> torch.Tensor:
    def term(one: Apart, index: int) -> torch.Tensor:
        target, advantage = one.example.targets[index], one.weight(index)
        assert target.logprob is not None and target.reference is not None
        ratio = torch.exp(one.now(index) - target.logprob)
        held = ratio.clamp(1 - loss.low, 1 + loss.high)
        toward = torch.exp(target.reference - one.now(index))
        spread = -sum(one.logprobs[index].exp() * one.logprobs[index])
        return -torch.min(ratio * advantage, held * advantage) + loss.kl * (toward - torch.log(toward) - 1) - loss.entropy * spread

    return averaged(alone, loss.normalise, term)


def distribution(alone: Sequence[Apart], loss: Distribution) -> torch.Tensor:
    def term(one: Apart, index: int) -> torch.Tensor:
        target, logprobs = one.example.targets[index], one.logprobs[index]
        teacher = dict(target.top) or {target.id: 1.0}
        left = 1 - sum(teacher.values())
        if loss.rest == "renormalise":
            teacher = {token: share / sum(teacher.values()) for token, share in teacher.items()}
        outcomes = [(share, logprobs[token]) for token, share in teacher.items()]
        others = [token for token in range(len(logprobs)) if token not in teacher]
        if loss.rest == "bucket" and left > 1e-6:
            outcomes.append((left, torch.logsumexp(logprobs[others], 0)))
        entropy = sum(share * math.log(share) for share, _ in outcomes if share) if loss.kl else 0.0
        return one.weight(index) * (entropy - sum((share * logprob for share, logprob in outcomes), torch.tensor(0.0)))

    return averaged(alone, loss.normalise, term)


def preference(alone: Sequence[Apart], loss: Preference) -> torch.Tensor:
    margins: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
    for one in alone:
        for index, target in enumerate(one.example.targets):
            assert target.reference is not None
            margins[one.example.group].append(one.weight(index) * (one.now(index) - target.reference))
    return torch.stack([-torch.sigmoid(loss.beta * torch.stack(one).sum()).log() for one in margins.values()]).mean()


def packed(examples: Sequence[Example], loss: Loss, *, row_tokens: int = 1000, pass_tokens: int = 1000, processes: int = 1) -> Any:
    """The loss of a step in the passes of all processes, with what was told of each pass."""
    bundles = pack_examples(examples, Digits(), row_tokens=row_tokens, most=1000, **packing_of(loss))
    rows = [row for bundle in bundles for row in bundle.rows]
    passes = [one for share in shares(rows, processes, pass_tokens) for one in share]
    with tree_attention(NETWORK):
        found = [pass_loss(NETWORK, collate(one), loss, Step.of(bundles)) for one in passes]
    return torch.cat([one.losses for one in found]).sum(), found


def assert_as_apart(
    examples: Sequence[Example], loss: Any, by_hand: Callable[[Sequence[Apart], Any], torch.Tensor], cut: tuple[int, int, int]
) -> None:
    check_examples(loss, examples)
    wanted_loss = by_hand(apart(examples), loss)
    wanted = gradients(NETWORK, wanted_loss)
    row_tokens, pass_tokens, processes = cut
    found_loss, _ = packed(examples, loss, row_tokens=row_tokens, pass_tokens=pass_tokens, processes=processes)
    found = gradients(NETWORK, found_loss)
    assert found_loss.item() == pytest.approx(wanted_loss.item(), rel=1e-10, abs=1e-10)
    assert found.keys() == wanted.keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-10 * max(largest, 1e-3), name


prompts = st.lists(st.sampled_from(IDS), min_size=1, max_size=4)
logprobs = st.floats(-4, 0).map(lambda value: round(value, 5))
# Few different teachers, so that some are equal; the last leaves nothing over.
teachers = st.sampled_from([((1, 0.5), (2, 0.25)), ((1, 0.25), (2, 0.5)), ((3, 0.125),), ((1, 0.5), (4, 0.5), (5, 0.0))])
targets = st.builds(Target, st.sampled_from(IDS), st.sampled_from(WEIGHTS), logprobs, logprobs, teachers)
cuts = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 3))  # tokens of a row, of a pass; processes


@st.composite
def trees(draw: st.DrawFn) -> list[Example]:
    """Examples that share much, some of them in groups, some twice the same."""
    found = []
    for number in range(draw(st.integers(2, 6))):
        wanted = draw(st.lists(targets, min_size=1, max_size=3))
        group, attempt = draw(st.sampled_from(["a", "a", "b", ""])), draw(st.integers(0, 2))
        weight, kind = draw(st.sampled_from(WEIGHTS)), draw(st.sampled_from(["one", "other"]))
        one = example(draw(prompts), wanted, number=number, attempt=attempt, group=group, weight=weight, kind=kind)
        found.append(one)
        if draw(st.booleans()) and not group:
            found.append(replace(one, id=f"again{number}"))
    return found


@st.composite
def pairs(draw: st.DrawFn) -> list[Example]:
    """Groups of two attempts, of one or two turns each; turns of both may begin alike."""
    found = []
    for group in range(draw(st.integers(1, 3))):
        start = draw(prompts)
        for attempt, sign in enumerate((1.0, -1.0)):
            for turn in range(draw(st.integers(1, 2))):
                wanted = [replace(one, weight=abs(one.weight)) for one in draw(st.lists(targets, min_size=1, max_size=3))]
                more = {"attempt": attempt, "group": f"g{group}", "weight": sign}
                found.append(example([*start, *draw(prompts)][: 3 + turn], wanted, number=len(found), **more))
    return draw(st.permutations(found))


@given(trees(), st.sampled_from(["targets", "sequence", 7]), cuts)
@settings(max_examples=15)
def test_packed_cross_entropy_has_the_gradients_of_the_samples(
    examples: list[Example], how: Any, cut: tuple[int, int, int]
) -> None:
    assert_as_apart(examples, CrossEntropy(how), cross_entropy, cut)


@given(trees(), st.sampled_from(["targets", "sequence", 7]), st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 0.25]), cuts)
@settings(max_examples=15)
def test_a_packed_clipped_ratio_has_the_gradients_of_the_samples(
    examples: list[Example], how: Any, kl: float, entropy: float, cut: tuple[int, int, int]
) -> None:
    loss = ClippedRatio(low=0.2, high=0.3, kl=kl, normalise=how, entropy=entropy)
    assert_as_apart(examples, loss, clipped_ratio, cut)


@given(trees(), st.sampled_from(["targets", "sequence"]), st.sampled_from(["drop", "renormalise", "bucket"]), st.booleans(), cuts)
@settings(max_examples=15)
def test_a_packed_distribution_has_the_gradients_of_the_samples(
    examples: list[Example], how: Any, rest: Any, kl: bool, cut: tuple[int, int, int]
) -> None:
    some = [replace(one, targets=tuple(replace(target, top=()) for target in one.targets)) for one in examples[:1]]
    assert_as_apart([*some, *examples[1:]], Distribution(rest, kl, mixed=True, normalise=how), distribution, cut)


@given(pairs(), cuts)
@settings(max_examples=15)
def test_a_packed_preference_has_the_gradients_of_the_samples(examples: list[Example], cut: tuple[int, int, int]) -> None:
    assert_as_apart(examples, Preference(beta=0.5), preference, cut)


def test_terms_are_merged_only_where_the_loss_allows_it_and_share_their_tokens_all_the_same() -> None:
    one = Target(3, 1.0, -0.5, -0.25, ((3, 0.5),))
    prompt, same, lighter = [1, 2], [one, one], [replace(one, weight=0.5), one]
    others = [replace(one, logprob=-0.75), replace(one, top=((4, 0.5),))]
    examples = [example(prompt, wanted, number=number) for number, wanted in enumerate([same, same, lighter, others])]
    counts = {}
    for name, loss in {
        "sum": CrossEntropy(),
        "apart": ClippedRatio(),
        "teacher": Distribution(),
        "by length": CrossEntropy("sequence"),
    }.items():
        (bundle,) = pack_examples(examples, Digits(), row_tokens=100, **packing_of(loss))
        (row,) = bundle.rows
        assert len(row.ids) == 3 and (bundle.sequences, bundle.groups, bundle.target_tokens) == (4, 4, 8)
        counts[name] = sorted(zip(row.term_at, row.term_weight, strict=True))
    # Of four targets after the prompt and four after one more token, one has another teacher.
    assert counts["sum"] == counts["teacher"] == [(1, 3.5), (2, 1.0), (2, 3.0)]
    assert (
        counts["apart"] == counts["by length"] == [(1, 0.5), (1, 1.0), (1, 1.0), (1, 1.0), (2, 1.0), (2, 1.0), (2, 1.0), (2, 1.0)]
    )


def plain(number: int, *, group: str = "", task: str = "t") -> Example:
    return example([1 + number % 5, 2, 3], [Target(4)] * 2, number=number, group=group, task=task)


def rows_of(bundles: Sequence[Bundle], key: Callable[[Source], int]) -> list[set[int]]:
    found = []
    for bundle in bundles:
        for row in bundle.rows:
            sources = [detail.source for detail in row.term_detail]
            found.append({key(source) for source in sources if source is not None})
    return found


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=14), st.integers(1, 5), st.integers(1, 12))
@settings(max_examples=100)
def test_a_group_is_never_in_two_steps_and_never_cut_where_the_loss_needs_it_whole(
    groups: list[str], most: int, tokens: int
) -> None:
    examples = [plain(number, group=group, task=f"t{number % 2}") for number, group in enumerate(groups)]
    options = {"row_tokens": tokens, "most": most, "merges": False}
    for whole in (False, True):
        bundles = pack_examples(examples, Digits(), whole_groups=whole, **options)
        of_bundles = [set().union(*rows_of([bundle], lambda source: source.group)) for bundle in bundles]
        for number, mine in enumerate(of_bundles):
            assert not mine & set().union(*of_bundles[:number]), "a group is in two bundles"
            assert bundles[number].examples <= most or len(mine) == 1
        every = rows_of(bundles, lambda source: source.example)
        assert sorted(number for row in every for number in row) == list(range(len(examples)))
        if whole:
            of_rows = rows_of(bundles, lambda source: source.group)
            assert sum(map(len, of_rows)) == len(set().union(*of_rows)), "a group is in two rows"


def terms(details: Sequence[Detail], targets: Sequence[int], weights: Sequence[float], step: Step) -> Terms:
    wanted = torch.tensor(weights, dtype=torch.float64)
    return Terms(torch.tensor(targets), wanted, ("",) * len(targets), step, tuple(details), torch.float64)


def logits_of(*shares: Sequence[float]) -> torch.Tensor:
    return torch.tensor(shares, dtype=torch.float64).log() + 3.0  # what is added to all changes nothing


def test_a_clipped_ratio_is_the_formula_on_a_case_done_by_hand() -> None:
    """Ratios of 2 and 0.5; clipped at 0.8 and 1.3. Two sequences of one and three targets in a group, one by itself."""
    shares = [[0.5, 0.5], [0.5, 0.5], [0.25, 0.75], [0.25, 0.75], [0.5, 0.5]]
    sources = [Source(0, 0, 0, 1, 2), *[Source(1, 1, 0, 3, 2)] * 3, Source(2, 2, 1, 1, 1)]
    old = [0.25, 0.25, 0.5, 0.5, 0.5]
    advantages = [1.0, -1.0, 1.0, -1.0, 3.0]
    details = [Detail(math.log(value), math.log(0.25), (), source) for value, source in zip(old, sources, strict=True)]
    values = [-1.3, 2.0, -0.5, 0.8, -3.0]  # min(2, 1.3); min(-2, -1.3); min(0.5, 0.8); min(-0.5, -0.8); a ratio of 1
    step, loss = Step(5, 3, 2), ClippedRatio(0.2, 0.3)
    given_terms = terms(details, [0, 0, 0, 0, 0], advantages, step)
    assert loss(logits_of(*shares), given_terms).tolist() == pytest.approx([value / 5 for value in values])
    assert given_terms.figures["clipped"].tolist() == [1, 0, 0, 1, 0]
    assert given_terms.figures["ratio"].tolist() == pytest.approx([2, 2, 0.5, 0.5, 1])
    by_sequence = replace(loss, normalise="sequence")(logits_of(*shares), terms(details, [0] * 5, advantages, step))
    assert float(by_sequence.sum()) == pytest.approx(((-1.3 + (2.0 - 0.5 + 0.8) / 3) / 2 - 3.0) / 2)
    by_constant = replace(loss, normalise=10)(logits_of(*shares), terms(details, [0] * 5, advantages, step))
    assert float(by_constant.sum()) == pytest.approx(sum(values) / 30)
    # The divergence of 0.5 and 0.25 from a reference of 0.25: 0.5 - log 0.5 - 1, and nothing.
    kl = 0.5 - math.log(0.5) - 1
    with_kl = replace(loss, kl=2.0)(logits_of(*shares), terms(details, [0] * 5, advantages, step))
    assert with_kl.tolist() == pytest.approx([(value + 2 * kl * (number in (0, 1, 4))) / 5 for number, value in enumerate(values)])
    # The entropy of a half and a half is log 2, that of a quarter and three log 4 - 3/4 log 3.
    spread = [math.log(2)] * 2 + [math.log(4) - 0.75 * math.log(3)] * 2 + [math.log(2)]
    given_terms = terms(details, [0] * 5, advantages, step)
    with_entropy = replace(loss, entropy=0.5)(logits_of(*shares), given_terms)
    assert with_entropy.tolist() == pytest.approx([(value - 0.5 * one) / 5 for value, one in zip(values, spread, strict=True)])
    assert given_terms.figures["entropy"].tolist() == pytest.approx(spread)


def test_the_first_step_of_a_clipped_ratio_has_the_gradient_of_reinforce() -> None:
    shares, advantages = [[0.2, 0.3, 0.5], [0.1, 0.6, 0.3]], [1.5, -0.5]
    details = [Detail(math.log(row[1]), None, (), Source(number, number, number, 1, 1)) for number, row in enumerate(shares)]
    found = []
    for loss in (ClippedRatio(), CrossEntropy()):
        logits = logits_of(*shares).requires_grad_()
        loss(logits, terms(details, [1, 1], advantages, Step(2, 2, 2))).sum().backward()
        assert logits.grad is not None
        found.append(logits.grad)
    assert torch.allclose(*found)


def test_sampling_at_another_temperature_is_told_to_the_ratio() -> None:
    logits = logits_of([0.2, 0.3, 0.5])
    cold = torch.softmax(logits / 0.5, -1)[0, 2]
    details = [Detail(math.log(float(cold)), None, (), Source(0, 0, 0, 1, 1))]
    given_terms = terms(details, [2], [1.0], Step(1, 1, 1))
    ClippedRatio(temperature=0.5)(logits, given_terms)
    assert given_terms.figures["ratio"].tolist() == pytest.approx([1.0])


def test_the_rest_of_a_teachers_mass_goes_where_the_loss_says() -> None:
    """The teacher has 0.5 and 0.3 at two of four tokens, the model 0.4, 0.1, 0.3, 0.2."""
    logits, top = logits_of([0.4, 0.1, 0.3, 0.2]), ((0, 0.5), (2, 0.3))

    def value(loss: Distribution) -> float:
        return float(loss(logits, terms([Detail(top=top)], [0], [2.0], Step(4, 1, 1))))

    sums = -0.5 * math.log(0.4) - 0.3 * math.log(0.3)
    assert value(Distribution()) == pytest.approx(2 * sums / 4)
    assert value(Distribution("renormalise")) == pytest.approx(2 * sums / 0.8 / 4)
    assert value(Distribution("bucket")) == pytest.approx(2 * (sums - 0.2 * math.log(0.1 + 0.2)) / 4)
    kl = 0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.3) + 0.2 * math.log(0.2 / 0.3)
    assert value(Distribution("bucket", kl=True)) == pytest.approx(2 * kl / 4)


@pytest.mark.parametrize("rest", ["drop", "renormalise", "bucket"])
def test_a_teacher_that_knows_every_token_leaves_no_rest(rest: Any) -> None:
    logits = logits_of([0.4, 0.1, 0.3, 0.2]).requires_grad_()
    top = ((0, 0.4), (1, 0.1), (2, 0.3), (3, 0.19999))  # rounded
    loss = Distribution(rest, kl=True)(logits, terms([Detail(top=top)], [0], [1.0], Step(1, 1, 1)))
    loss.sum().backward()
    assert loss.item() == pytest.approx(0, abs=1e-4) and logits.grad is not None and float(logits.grad.abs().max()) < 1e-4


def test_a_preference_is_the_formula_on_a_case_done_by_hand() -> None:
    details = [
        Detail(None, math.log(reference), (), Source(number, number, 0, 1, 2)) for number, reference in enumerate((0.25, 0.5))
    ]
    given_terms = terms(details, [0, 1], [1.0, -1.0], Step(2, 2, 1))
    losses = Preference(beta=2.0)(logits_of([0.5, 0.5], [0.75, 0.25]), given_terms)
    margin = math.log(0.5 / 0.25) - math.log(0.25 / 0.5)
    assert float(losses.sum()) == pytest.approx(math.log(1 + math.exp(-2 * margin)))
    assert given_terms.figures["margin"].tolist() == pytest.approx([margin])
    assert given_terms.figures["preferred"].tolist() == [1]


def test_a_loss_of_your_own_is_called_with_what_it_asks_for() -> None:
    class Weighted:
        """REINFORCE with importance weights that have no gradient."""

        merges = False

        def __call__(self, logits: torch.Tensor, terms: Terms) -> torch.Tensor:
            now = logits.log_softmax(-1).gather(1, terms.target[:, None])[:, 0]
            return -(now - terms.logprob).exp().detach() * terms.weight * now / terms.step.targets

    def by_hand(alone: Sequence[Apart], loss: Any) -> torch.Tensor:
        def term(one: Apart, index: int) -> torch.Tensor:
            old = one.example.targets[index].logprob or 0.0
            return -torch.exp(one.now(index) - old).detach() * one.weight(index) * one.now(index)

        return averaged(alone, "targets", term)

    examples = [example([1, 2], [Target(3, 0.5, -1.0), Target(4, 1.0, -2.0)]), example([1, 2], [Target(3, 1.0, -0.5)], number=1)]
    assert_as_apart(examples, Weighted(), by_hand, (100, 100, 1))


GOOD = Target(3, 1.0, -0.5, -0.5, ((3, 0.5),))
SIDE = {"group": "g", "targets": (GOOD,), "target_ids": (3,)}


@pytest.mark.parametrize(
    ("loss", "change", "wanted"),
    [
        (
            ClippedRatio(),
            {"targets": (replace(GOOD, logprob=None),)},
            r"`logprob`.* e1 of task t .* 1 of 1",
        ),
        (
            ClippedRatio(),
            {"targets": ()},
            r"log-probability \(`logprob`\) of every target, and the example e1 .*distill\.logprobs=true",
        ),
        (ClippedRatio(kl=0.1), {"targets": (replace(GOOD, reference=None),)}, r"`reference`.* e1 of task t .*kl=0"),
        (Distribution(), {"targets": (replace(GOOD, top=()),)}, r"teacher's tokens .* e1 of task t .*mixed=True"),
        (Preference(), {"targets": (replace(GOOD, reference=None),)}, r"`reference`.* e1 of task t "),
        (Preference(), {"group": ""}, r"e1 of task t has no group; give both sides"),
        (Preference(), {"group": "h"}, r"group 'g' of task t has attempt 0 with weights above 0; give both"),
        (Preference(), {"attempt": 0}, r"two attempts in a group.*attempt 0 with weights above and below 0"),
        (Preference(), {"weight": 1.0}, r"attempt 0 with weights above 0, attempt 1 with weights above 0"),
        (Preference(), {"weight": 0.0}, r"attempt 1 with none but 0"),
        (Preference(), {"task": "u"}, r"group 'g' of task t has attempt 0 with"),
    ],
)
def test_examples_that_lack_what_a_loss_needs_are_refused_by_name(loss: Loss, change: dict[str, Any], wanted: str) -> None:
    first = example([1], [GOOD], number=0, group="g", weight=1.0)
    second = example([1], [GOOD], number=1, group="g", weight=-1.0)
    check_examples(loss, [first, second])
    with pytest.raises(UserError, match=wanted) as told:
        check_examples(loss, [first, replace(second, **change)])
    assert str(told.value).startswith(f"the loss {type(loss).__name__} wants ") and "; " in str(told.value)


def test_what_is_no_loss_is_refused_before_anything_is_done() -> None:
    class Unsaid:
        def __call__(self, logits: torch.Tensor, terms: Terms) -> torch.Tensor:
            return logits.sum(1)

    class Scalar(Unsaid):
        merges = True

        def __call__(self, logits: torch.Tensor, terms: Terms) -> torch.Tensor:
            return logits.sum()

    class Greedy(Scalar):
        def __call__(self, logits: torch.Tensor, terms: Terms) -> torch.Tensor:
            return terms.logprob

    with pytest.raises(UserError, match=r"merges = True.*found <"):
        check_examples(Unsaid(), [])
    with pytest.raises(UserError, match=r"found the class ClippedRatio; make one of it, as ClippedRatio\(\)"):
        check_examples(ClippedRatio, [])
    with pytest.raises(UserError, match=r"one value a term, \(1,\), and gave \(\)"):
        packed([example([1], [GOOD])], Scalar())
    with pytest.raises(UserError, match=r"reads `logprob`.*merges = False"):
        packed([example([1], [GOOD])], Greedy())
    with pytest.raises(UserError, match=r"Scalar cannot be sent to other processes .*train\.processes=1"):
        check_picklable(Scalar())
    check_picklable(ClippedRatio(kl=0.1))


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: ClippedRatio(normalise=0), "normalise: wanted 'targets', 'sequence' or a number of tokens, found 0"),
        (lambda: CrossEntropy("tokens"), "found 'tokens'"),
        (lambda: ClippedRatio(low=-0.1), "low: wanted a number above 0 or 0, found -0.1"),
        (lambda: ClippedRatio(kl=float("nan")), "kl: .*found nan"),
        (lambda: ClippedRatio(entropy=-1), "entropy: wanted a number above 0 or 0, found -1"),
        (lambda: ClippedRatio(temperature=0), "temperature: wanted a number above 0, found 0"),
        (lambda: Preference(beta=0), "beta: wanted a number above 0, found 0"),
        (lambda: Distribution("lump"), "rest: wanted 'drop', 'renormalise' or 'bucket', found 'lump'"),
    ],
)
def test_settings_of_a_loss_that_mean_nothing_are_refused(make: Callable[[], Loss], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        make()


def test_a_teacher_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match=r"id 99, and the model's vocabulary ends at 11"):
        packed([example([1], [replace(GOOD, top=((99, 0.5),))])], Distribution())
