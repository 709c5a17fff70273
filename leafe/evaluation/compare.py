"""Arms side by side: Pass@k of each, and the paired difference to the arm that training started from.

A k is absent if an arm, or the base it is compared with, has fewer attempts than that. Fractions become percent only in the formatting
functions at the end, which the terminal and the page share. Nothing is read or printed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leafe.errors import UnknownName, UserError
from leafe.evaluation.outcomes import ArmOutcomes
from leafe.evaluation.passk import Counts, Interval, Resampling, mean_pass_at_k, paired_difference, powers_of_two_up_to
from leafe.forest.faults import Faults, loud
from leafe.records import encode


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm. `minus_base` is empty for the base itself and if there is no base; `turns` and `tokens` are totals."""

    name: str
    pass_at_k: Mapping[int, Interval]
    minus_base: Mapping[int, Interval]
    turns: int
    tokens: int
    errors: Mapping[str, int]
    tasks: int
    samples: int
    faults: Faults = Faults()
    rollbacks: int = 0  # during measurement


@dataclass(frozen=True, slots=True)
class Comparison:
    """The arms in the given order, the confidence of every interval, and the arm that is subtracted."""

    arms: tuple[ArmResult, ...]
    confidence: float = 0.95
    base: str | None = "base"

    @property
    def ks(self) -> tuple[int, ...]:
        """Every k that some arm was measured at, ascending."""
        return tuple(sorted({k for arm in self.arms for k in arm.pass_at_k}))

    def __str__(self) -> str:
        """The table as text, its columns aligned."""
        rows = table_rows(self)
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)

    def as_json(self) -> dict[str, Any]:
        """The comparison as JSON, k as text, fractions in 0 .. 1."""
        return {
            "arms": [
                {
                    "name": arm.name,
                    "pass_at_k": {str(k): encode(interval) for k, interval in arm.pass_at_k.items()},
                    "minus_base": {str(k): encode(interval) for k, interval in arm.minus_base.items()},
                    "turns": arm.turns,
                    "tokens": arm.tokens,
                    "errors": dict(arm.errors),
                    "faults": encode(arm.faults),
                    **({"rollbacks": arm.rollbacks} if arm.rollbacks else {}),
                }
                for arm in self.arms
            ]
        }


def compare(
    arms: Sequence[ArmOutcomes], *, base: str | None = "base", ks: Sequence[int] = (), how: Resampling = Resampling()
) -> Comparison:
    """Pass@k of every arm at `ks` (by default the powers of two up to its number of samples), and its difference to `base`.

    An arm named `RUN:arm` is compared with `base` if an arm has exactly that name, and with `RUN:base` of its run otherwise.
    With `base` None nothing is subtracted. Raises `UserError` for an unfinished evaluation, a repeated arm, a missing base, a `k` in
    `ks` beyond an arm's samples, and arms that were not measured on their base's tasks.
    """
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"the arm {name!r} occurs twice; give each run once")
    counts = {arm.name: arm.counts() for arm in arms}
    bases = {name: None if base is None else counts[_base_of(name, names, base)] for name in names}
    return Comparison(tuple(_result(arm, counts[arm.name], bases[arm.name], ks=ks, how=how) for arm in arms), how.confidence, base)


def _base_of(name: str, names: Sequence[str], base: str) -> str:
    run, colon, _ = name.rpartition(":")
    for candidate in (base, f"{run}{colon}{base}"):
        if candidate in names:
            return candidate
    raise UnknownName("arm", f"{run}{colon}{base}", names)


def _result(arm: ArmOutcomes, counts: Counts, base: Counts | None, *, ks: Sequence[int], how: Resampling) -> ArmResult:
    own = tuple(ks) or powers_of_two_up_to(counts.samples)
    shared = [] if base is None or base is counts else [k for k in own if k <= base.samples]
    return ArmResult(
        name=arm.name,
        pass_at_k={k: mean_pass_at_k(counts, k, how) for k in own},
        minus_base={k: paired_difference(counts, base, k, how) for k in shared if base is not None},
        turns=arm.turns,
        tokens=arm.tokens,
        errors=arm.errors,
        tasks=len(counts.successes),
        samples=counts.samples,
        faults=arm.faults,
        rollbacks=arm.rollbacks,
    )


def percent(value: float) -> str:
    """A fraction in percent with one digit, as `41.7`."""
    return f"{100 * value:z.1f}"


def points(value: float) -> str:
    """A difference of fractions in percentage points with its sign, as `+3.2`."""
    return f"{100 * value:+z.1f}"


def with_bounds(interval: Interval, *, signed: bool = False) -> str:
    """An interval in percent, as `41.7 [36.0, 47.1]`, or `+3.2 [+0.4, +6.1]` when it is a difference."""
    form = points if signed else percent
    return f"{form(interval.value)} [{form(interval.low)}, {form(interval.high)}]"


def rolled_back(arm: ArmResult) -> str:
    """The note beside the figures of an arm that was rolled back during measurement; empty for any other."""
    return f"; {arm.rollbacks:,} rollbacks at test time" if arm.rollbacks else ""


def table_rows(comparison: Comparison) -> tuple[tuple[str, ...], ...]:
    """A heading and two rows an arm, at k = 1 and at the largest k of all, in percent: narrow enough for eighty characters."""
    shown = dict.fromkeys(comparison.ks[:1] + comparison.ks[-1:])
    heading = ("arm", "k", "Pass@k", f"- {comparison.base or 'base'}", "turns", "tokens", "errors")
    return (heading, *(row for arm in comparison.arms for row in _rows(arm, [*shown])))


def _rows(arm: ArmResult, shown: Sequence[int]) -> Iterator[tuple[str, ...]]:
    number, attempts = sum(arm.errors.values()), arm.faults.attempts
    classes = (f"{count} {name}" for name, count in arm.errors.items())
    told = (f"{number} of {attempts} broke: {', '.join(classes)}",) if number else ()
    broken = ", ".join((*told, *loud(arm.faults))) or "none"
    broken += rolled_back(arm)
    for number, k in enumerate(shown):
        value = with_bounds(arm.pass_at_k[k]) if k in arm.pass_at_k else "-"
        gain = with_bounds(arm.minus_base[k], signed=True) if k in arm.minus_base else "-"
        tokens = f"{arm.tokens:,}" if arm.tokens < 1e6 else f"{arm.tokens / 1e6:.2f}M"
        turns = f"{arm.turns:,}" if arm.turns < 1e5 else f"{arm.turns / 1e3:,.0f}k"
        spent = ("", "", "") if number else (turns, tokens, broken)
        yield ("" if number else arm.name, str(k), value, gain, *spent)
