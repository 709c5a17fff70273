"""`leafe doctor`. It imports nothing that may be broken, because it has to work then."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from leafe.cli.console import console, emit
from leafe.doctor import Finding, examine, sandbox_finding
from leafe.records import encode
from leafe.worlds.sandbox.probe import objection

SIGNS = {"ok": "[green]✓[/]", "missing": "[red]✗[/]", "optional": "–"}


def doctor(*, as_json: bool) -> int:
    """Prints the findings. Returns the exit status: 1 where something is missing."""
    refused = objection()
    contained = sandbox_finding(refused.why, refused.mend) if refused else sandbox_finding(None)
    findings = [*examine(Path("runs")), contained]
    if as_json:
        emit([encode(finding) for finding in findings])
    else:
        console.print(_table(findings))
    return int(any(finding.verdict == "missing" for finding in findings))


def _table(findings: list[Finding]) -> Table:
    table = Table(show_header=False, box=None)
    for finding in findings:
        table.add_row(SIGNS[finding.verdict], escape(finding.what), escape(finding.found), escape(finding.mend))
    return table
