"""The findings of `leafe check-env`: a verdict, one sentence, and the figures behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from leafe.envs.base import Fidelity

Verdict = Literal["pass", "fail", "skipped"]
Outcome = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its verdict, one sentence, and the figures behind it."""

    name: str
    verdict: Verdict
    sentence: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All findings about one environment. `measured` is the best fidelity seen to hold; `figures` are seconds and bytes."""

    name: str
    declared: Fidelity
    measured: Fidelity
    findings: tuple[Finding, ...]
    figures: Mapping[str, float]

    @property
    def passed(self) -> bool:
        """Whether no check failed. A skipped check is no failure."""
        return all(finding.verdict != "fail" for finding in self.findings)


class Failed(Exception):
    """A check's failure, in one sentence."""


class Skipped(Exception):
    """Why a check was not made, in one sentence."""
