"""The script for a GPU runs from its first line to its last where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_on_a_processor_and_nothing_of_it_fails(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path), "--shape", "tiny", "--device", "cpu"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [one["failed"] for one in found if "failed" in one] == []
    losses = {one["name"]: one["loss"] for one in found if one["name"] in ("tiny padded", "tiny tree", "tiny dense")}
    assert len(losses) == 3 and max(losses.values()) - min(losses.values()) < 1e-4
