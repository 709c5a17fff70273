"""Modules and packages that come while a process lives."""

from __future__ import annotations

from pathlib import Path

import pytest

from leafe.imports import offered


def test_a_package_that_is_installed_meanwhile_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert offered("leafe.tested") == offered("leafe.tested") == ()
    package = tmp_path / "mine-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[leafe.tested]\nmaze = mine:Maze\n")
    assert [(point.name, point.value) for point in offered("leafe.tested")] == [("maze", "mine:Maze")]
