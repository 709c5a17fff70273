"""Guesses of the next tokens, from what was sampled before: replies of agents say the same things again and again.

A guess is computed in the pass that computes the last token, and the token after it is drawn in the same pass if the guess was right. What
is drawn does not depend on guesses: the seed decides each token as before, and a guess that is not what it decides is forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence

BEFORE = 4  # a guess is what followed the same tokens, so many of them, before
MOST = 3  # with the token before them they fill the rows that attention computes anyway, `slots.QUERY_MULTIPLE`
SURE, SUREST, LOSS = 2, 8, 2  # a guess is made from so many points on; each hit adds one, each miss takes some away
KEPT = 1 << 18  # contexts


class Drafts:
    """What followed each few tokens, with points for how often it was right."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], tuple[int, int]] = {}

    def after(self, ids: Sequence[int], most: int) -> list[int]:
        """At most `most` guesses of the tokens after `ids`, or `MOST` if that is less."""
        context, found = tuple(ids[-BEFORE:]), list[int]()
        while len(found) < min(most, MOST):
            token, points = self._seen.get(context, (0, 0))
            if points < SURE:
                break
            found.append(token)
            context = (*context[1:], token)
        return found

    def learn(self, ids: Sequence[int]) -> None:
        """Notes what the last of `ids` followed."""
        context, token = tuple(ids[-BEFORE - 1 : -1]), ids[-1]
        guess, points = self._seen.get(context, (token, 0))
        if guess == token:
            self._seen[context] = (token, min(points + 1, SUREST))
        elif points > LOSS:
            self._seen[context] = (guess, points - LOSS)
        else:
            self._seen[context] = (token, 1)
        if len(self._seen) > KEPT:
            self._seen.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._seen.clear()
