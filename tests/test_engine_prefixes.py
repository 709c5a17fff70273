"""The tree of computed prefixes against a plain list of everything that was ever computed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leafe.engines.prefixes import Lease, PrefixTree

SIZE = 4
sequences = st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=14), min_size=1, max_size=30)


def compute(tree: PrefixTree, ids: list[int], content: dict[tuple[int, int], tuple[int, ...]]) -> tuple[Lease, int]:
    """Leases, copies and fills blocks as the engine does; `content` maps (block, offset) to the prefix that was written there."""
    match = tree.match(tuple(ids), len(ids) - 1)
    known = match.length(SIZE)
    lease = tree.lease(match, len(ids))
    if lease.copy is not None:
        made = lease.copy
        content.update({(made.target, offset): content[made.source, offset] for offset in range(made.count)})
    tree.copied(lease)
    for index in range(known, len(ids)):
        content[lease.blocks[index // SIZE], index % SIZE] = tuple(ids[: index + 1])
    return lease, known


def holds(lease: Lease, ids: list[int], content: dict[tuple[int, int], tuple[int, ...]]) -> bool:
    return all(content[lease.blocks[index // SIZE], index % SIZE] == tuple(ids[: index + 1]) for index in range(len(ids)))


@given(sequences, st.integers(1, 4), st.data())
def test_a_matched_prefix_always_holds_what_was_computed_for_it(
    conversations: list[list[int]], slots: int, data: st.DataObject
) -> None:
    tree = PrefixTree(slots * 4 + 2, SIZE)  # one block for nobody, one to copy from
    content: dict[tuple[int, int], tuple[int, ...]] = {}
    active: list[tuple[Lease, list[int]]] = []
    for ids in conversations:
        while active and (len(active) == slots or data.draw(st.booleans())):
            tree.release(active.pop(data.draw(st.integers(0, len(active) - 1)))[0])
        lease, _ = compute(tree, ids, content)
        tree.register(lease, ids, data.draw(st.integers(1, len(ids))))
        tree.register(lease, ids, len(ids))
        active.append((lease, ids))
        assert all(holds(lease, held, content) for lease, held in active)


@given(sequences)
def test_with_room_enough_the_longest_prefix_ever_computed_is_found(conversations: list[list[int]]) -> None:
    tree = PrefixTree(400, SIZE)
    content: dict[tuple[int, int], tuple[int, ...]] = {}
    seen: list[list[int]] = []
    for ids in conversations:
        lease, known = compute(tree, ids, content)
        common = [
            next((i for i, (a, b) in enumerate(zip(ids, old, strict=False)) if a != b), min(len(ids), len(old))) for old in seen
        ]
        assert known == min(max(common, default=0), len(ids) - 1)
        tree.register(lease, ids, len(ids))
        tree.release(lease)
        seen.append(ids)


def test_blocks_are_never_lost() -> None:
    tree = PrefixTree(10, SIZE)
    for round_ in range(50):
        ids = [round_ % 3, *[round_ % 7] * 20]
        lease = tree.lease(tree.match(tuple(ids), len(ids) - 1), 32)
        assert len(set(lease.blocks)) == 8 and 0 not in lease.blocks
        tree.register(lease, ids, len(ids))
        tree.release(lease)
