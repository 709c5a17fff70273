"""Folds over sequences that mostly extend an earlier one by a few items, as a conversation does at its next turn.

The result is that of going through the whole sequence, whatever is remembered; only the work differs. Items are compared by Python's
equality, identical objects at next to no cost.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

State = TypeVar("State")
BACK = (2, 4, 3, 1, 6, 5)  # positions, from the end, at which the last item of an earlier sequence is looked for; a turn adds two


class Growing(Generic[State]):
    """Folds `step(state, item)` over sequences, from `start`. A step does not change the state that it receives.

    `remembered` is how many sequences are kept, each without its last item, which seldom stays.

    >>> total = Growing(0, lambda sum, item: sum + item)
    >>> total.of((1, 2, 3)), total.of((1, 2, 3, 4, 5))
    (6, 15)
    """

    def __init__(self, start: State, step: Callable[[State, Any], State], *, remembered: int = 2048) -> None:
        self._start, self._step, self._remembered = start, step, remembered
        # By the identity of the last item, which the sequence keeps alive.
        self._known: OrderedDict[int, tuple[tuple[Any, ...], State]] = OrderedDict()

    def of(self, sequence: Sequence[Any]) -> State:
        """The state after the whole of a sequence."""
        items = tuple(sequence)
        if not items:
            return self._start
        done, state = self._longest(items)
        for item in items[done:-1]:
            state = self._step(state, item)
        if len(items) > 1:
            self._remember(items[:-1], state, forget=items[done - 1] if done else None)
        return self._step(state, items[-1])

    def _longest(self, items: tuple[Any, ...]) -> tuple[int, State]:
        """How many items an earlier sequence went through already, and the state after them."""
        for back in BACK:
            known = self._known.get(id(items[-back])) if back <= len(items) else None
            if known is not None and len(known[0]) < len(items) and items[: len(known[0])] == known[0]:
                return len(known[0]), known[1]
        return 0, self._start

    def _remember(self, items: tuple[Any, ...], state: State, *, forget: Any) -> None:
        if forget is not None:
            self._known.pop(id(forget), None)  # a sequence that was continued is seldom needed again
        self._known[id(items[-1])] = items, state
        self._known.move_to_end(id(items[-1]))
        if len(self._known) > self._remembered:
            self._known.popitem(last=False)
