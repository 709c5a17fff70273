"""Rows and passes: every example once, no row longer than allowed, nothing computed twice without need."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.distillation.pack import PackedRow, Sample, pack
from leafe.distillation.rows import shares, split

tokens = st.integers(1, 3)
samples = st.lists(
    st.tuples(
        st.lists(tokens, min_size=1, max_size=5),
        st.lists(tokens, min_size=1, max_size=3),
        st.sampled_from([0.5, 1.0]),
        st.sampled_from(["a", "b"]),
    ).map(lambda values: Sample(*values)),
    min_size=1,
    max_size=7,
).map(lambda given: sorted(given, key=lambda sample: [*sample.prompt, *sample.target]))
rows = st.lists(st.lists(tokens, min_size=1, max_size=12).map(lambda ids: pack([(ids, [1], 1.0)])), min_size=1, max_size=12)


Term = tuple[tuple[int, ...], int, str]  # prefix, target, kind


def terms(row: PackedRow) -> dict[Term, float]:
    """Every term of a row with its weight."""

    def prefix(place: int) -> tuple[int, ...]:
        return tuple(row.ids[key] for key in range(place + 1) if place < row.end[key])

    every = zip(row.term_at, row.term_target, row.term_kind, row.term_weight, strict=True)
    return {(prefix(at), target, kind): weight for at, target, kind, weight in every}


def added(parts: list[PackedRow]) -> dict[Term, float]:
    total: dict[Term, float] = {}
    for part in parts:
        for term, weight in terms(part).items():
            total[term] = total.get(term, 0.0) + weight
    return total


@given(samples, st.integers(1, 20))
@settings(max_examples=100)
def test_rows_of_a_split_hold_every_sample_and_are_as_short_as_asked(given: list[Sample], limit: int) -> None:
    parts = list(split(given, limit))
    assert added(parts) == terms(pack(given))
    longest = max(len(sample.prompt) + len(sample.target) - 1 for sample in given)
    assert all(len(part.ids) <= max(limit, longest) for part in parts)


@given(samples, st.integers(1, 20))
@settings(max_examples=100)
def test_no_other_cuts_compute_fewer_tokens(given: list[Sample], limit: int) -> None:
    def cost(cuts: tuple[int, ...]) -> int | None:
        sizes = []
        for start, stop in pairwise((0, *cuts, len(given))):
            sizes.append(len(pack(given[start:stop]).ids))
            if sizes[-1] > limit and stop - start > 1:
                return None
        return sum(sizes)

    every = (cuts for count in range(len(given)) for cuts in combinations(range(1, len(given)), count))
    cheapest = min(total for cuts in every if (total := cost(cuts)) is not None)
    assert sum(len(part.ids) for part in split(given, limit)) == cheapest


@given(rows, st.integers(1, 4), st.integers(1, 30))
@settings(max_examples=100)
def test_processes_share_rows_evenly_and_passes_hold_no_more_than_asked(given: list[PackedRow], processes: int, limit: int) -> None:
    loads = shares(given, processes, limit)
    assert len(loads) == processes
    assert sorted(id(row) for load in loads for one in load for row in one) == sorted(id(row) for row in given)
    for load in loads:
        for one in load:
            assert one and (len(one) == 1 or sum(len(row.ids) for row in one) <= limit)
    sizes = [sum(len(row.ids) for one in load for row in one) for load in loads]
    assert max(sizes) - min(sizes) <= max(len(row.ids) for row in given)


def test_a_tree_is_cut_between_branches_that_share_least() -> None:
    """Two tasks' worth of branches under one root: the cut falls between them, not where a row happens to be full."""
    left = [Sample([1, 2, 2, 2], [token] * 3) for token in (1, 2, 3)]
    right = [Sample([1, 3, 3, 3], [token] * 3) for token in (1, 2, 3)]
    parts = list(split([*left, *right], 15))
    assert [len(part.ids) for part in parts] == [10, 10]
