"""The map from computed prefixes to blocks of the key-value cache: a tree of blocks shared by all requests.

A node is one block: `size` consecutive tokens, or fewer in a tail, whose keys and values depend on the path from the root. Full blocks
are shared as they are. A request that leaves a known path in the middle of a block gets a copy of that block and writes into the copy,
so that a node's tokens never change. Nodes that no request holds are forgotten, least recently used first.

This file handles token ids and block numbers, no tensors. It is used by one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass


class Node:
    """A block of computed tokens. `users` counts the requests that hold it and the nodes below it."""

    __slots__ = ("block", "branches", "full", "parent", "tokens", "users")

    def __init__(self, parent: Node | None, tokens: tuple[int, ...], block: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.block = block
        self.users = 0
        self.full: dict[tuple[int, ...], Node] = {}  # the children that fill their block
        self.branches: dict[int, list[Node]] = {}  # all children, by their first token


@dataclass(slots=True)
class Match:
    """The longest computed prefix: full blocks down to `node`, then `extra` tokens of the block of `tail`."""

    node: Node
    depth: int
    tail: Node | None
    extra: int

    def length(self, size: int) -> int:
        """The number of tokens that need not be computed."""
        return self.depth * size + self.extra


@dataclass(frozen=True, slots=True)
class Copy:
    """The first `count` tokens of the block `source` are needed in the block `target`."""

    source: int
    target: int
    count: int


@dataclass(slots=True)
class Lease:
    """The blocks of one request: the first `depth` belong to the tree, the next may be a tail that it extends, the rest are its own."""

    node: Node
    depth: int
    blocks: list[int]
    source: Node | None = None  # held until the copy of its block is made
    tail: Node | None = None
    copy: Copy | None = None


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    length = min(len(left), len(right))
    if left[:length] == right[:length]:
        return length
    return next(index for index in range(length) if left[index] != right[index])


class PrefixTree:
    """The tree, its free blocks, and the order in which unused nodes are forgotten. Block 0 is never given out."""

    def __init__(self, blocks: int, size: int) -> None:
        self.size = size
        self.blocks = blocks
        self.clear()

    def clear(self) -> None:
        """Forgets everything; leases given out before must not be used any more."""
        self._root = Node(None, (), 0)
        self._root.users = 1
        self._free = list(range(self.blocks - 1, 0, -1))
        self._idle: OrderedDict[Node, None] = OrderedDict()

    def match(self, ids: tuple[int, ...], limit: int) -> Match:
        """The longest computed prefix of `ids[:limit]`."""
        node, depth, size = self._root, 0, self.size
        while (depth + 1) * size <= limit and (child := node.full.get(ids[depth * size : (depth + 1) * size])) is not None:
            node, depth = child, depth + 1
        wanted = ids[depth * size : min(limit, (depth + 1) * size)]
        best, extra = None, 0
        for child in reversed(node.branches.get(wanted[0], ())) if wanted else ():
            length = _common(child.tokens, wanted)
            if length > extra:
                best, extra = child, length
                if extra == len(wanted):
                    break
        return Match(node, depth, best, extra)

    def lease(self, match: Match, total: int) -> Lease:
        """Blocks for a request that starts at `match` and grows to `total` tokens. The tree must be large enough for its leases."""
        tail = match.tail
        adopted = tail is not None and tail.users == 0 and match.extra == len(tail.tokens) < self.size
        self._hold(match.node)
        if tail is not None:
            self._hold(tail)
        own = self._take(-(-total // self.size) - match.depth - adopted)
        path: list[int] = []
        node = match.node
        while node.parent is not None:
            path.append(node.block)
            node = node.parent
        if tail is not None and adopted:  # the usual next turn: no other request uses this block, so it is continued in place
            return Lease(match.node, match.depth, [*reversed(path), tail.block, *own], tail=tail)
        lease = Lease(match.node, match.depth, [*reversed(path), *own])
        if tail is not None:
            lease.source, lease.copy = tail, Copy(tail.block, own[0], match.extra)
        return lease

    def copied(self, lease: Lease) -> None:
        """Marks the copy that `lease.copy` asked for as made."""
        if lease.source is not None:
            self._drop(lease.source)
        lease.source = lease.copy = None

    def register(self, lease: Lease, ids: Sequence[int], computed: int) -> None:
        """Makes the first `computed` tokens of the request known to others."""
        size = self.size
        while (lease.depth + 1) * size <= computed:
            tokens = tuple(ids[lease.depth * size : (lease.depth + 1) * size])
            self._forget_tail(lease)
            child = lease.node.full.get(tokens)
            if child is None:
                child = self._attach(lease.node, tokens, lease.blocks[lease.depth])
            else:  # another request computed the same block meanwhile: both hold the same numbers
                self._free.append(lease.blocks[lease.depth])
                lease.blocks[lease.depth] = child.block
            self._hold(child)
            self._drop(lease.node)
            lease.node, lease.depth = child, lease.depth + 1
        rest = tuple(ids[lease.depth * size : computed])
        if rest and lease.tail is None:
            lease.tail = self._attach(lease.node, rest, lease.blocks[lease.depth])
            self._hold(lease.tail)
        elif rest and lease.tail is not None:
            lease.tail.tokens = rest
        if rest:
            self._forget_shorter(lease.node, rest)

    def release(self, lease: Lease) -> None:
        """Gives the blocks back. Registered prefixes stay until their blocks are needed."""
        self.copied(lease)
        kept = lease.depth + (lease.tail is not None)
        self._free += lease.blocks[kept:]
        if lease.tail is not None:
            self._drop(lease.tail)
        self._drop(lease.node)

    def _forget_tail(self, lease: Lease) -> None:
        """Removes the lease's tail from the tree; its block belongs to the lease again."""
        if lease.tail is not None:
            self._detach(lease.tail)
            lease.tail = None

    def _forget_shorter(self, parent: Node, tokens: tuple[int, ...]) -> None:
        """Drops idle tails that hold nothing but the beginning of `tokens`."""
        for child in list(parent.branches[tokens[0]]):
            if child.users == 0 and len(child.tokens) <= len(tokens) and child.tokens == tokens[: len(child.tokens)]:
                self._evict(child)

    def _attach(self, parent: Node, tokens: tuple[int, ...], block: int) -> Node:
        node = Node(parent, tokens, block)
        parent.branches.setdefault(tokens[0], []).append(node)
        if len(tokens) == self.size:
            parent.full[tokens] = node
        parent.users += 1
        return node

    def _detach(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        same = parent.branches[node.tokens[0]]
        same.remove(node)
        if not same:
            del parent.branches[node.tokens[0]]
        parent.full.pop(node.tokens, None)
        parent.users -= 1
        if parent.users == 0:
            self._idle[parent] = None
            self._idle.move_to_end(parent, last=False)  # nothing below it was used later than the forgotten node

    def _evict(self, node: Node) -> None:
        del self._idle[node]
        self._detach(node)
        self._free.append(node.block)

    def _hold(self, node: Node) -> None:
        node.users += 1
        self._idle.pop(node, None)

    def _drop(self, node: Node) -> None:
        node.users -= 1
        if node.users == 0:
            self._idle[node] = None

    def _take(self, count: int) -> list[int]:
        while len(self._free) < count:
            self._evict(next(iter(self._idle)))
        return [self._free.pop() for _ in range(count)]
