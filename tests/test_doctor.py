"""The doctor: every verdict, from what a machine could show."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from leafe.doctor import (
    GIB,
    Finding,
    accelerator_finding,
    bfloat16_finding,
    memory_finding,
    model_finding,
    package_findings,
    python_finding,
    writable_finding,
)
from leafe.imports import install_command


def test_an_old_python_is_missing() -> None:
    assert python_finding((3, 10, 2)).verdict == "missing"
    assert python_finding(sys.version_info[:3]).verdict == "ok"


@pytest.mark.parametrize(
    ("requirement", "installed", "expected"),
    [
        ("torch<3,>=2.13", "2.13.0+cpu", Finding("torch", "2.13.0+cpu", "ok")),
        ("torch<3,>=2.13", "2.9", Finding("torch", "2.9, wanted <3,>=2.13", "missing", "pip install -c constraints.txt -e .")),
        ("torch", None, Finding("torch", "not installed, wanted any version", "missing", "pip install -c constraints.txt -e .")),
        (
            'ruff>=0.14; extra == "test"',
            None,
            Finding("ruff", "not installed, wanted >=0.14", "optional", "pip install -c constraints.txt -e '.[test]'"),
        ),
        ('ruff>=0.14; extra == "test"', "0.15", Finding("ruff", "0.15", "ok")),
        (
            'vllm==0.30.0; sys_platform != "none" and extra == "vllm"',
            "0.31.0",
            Finding("vllm", "0.31.0, wanted ==0.30.0", "optional", "pip install -c constraints.txt -e '.[vllm]'"),
        ),
    ],
)
def test_a_requirement_is_held_against_what_is_installed(requirement: str, installed: str | None, expected: Finding) -> None:
    assert list(package_findings([requirement], lambda name: installed)) == [expected]


def test_what_is_typed_to_install_fits_where_leafe_lies(tmp_path: Path) -> None:
    assert install_command("ray", folder=tmp_path) == "pip install 'leafe[ray]'" and "leafe" in install_command(folder=tmp_path)
    assert "torch" in install_command(again="torch", folder=tmp_path) and "-e" not in install_command(folder=tmp_path)
    for name in ("constraints.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    assert all("-c constraints.txt" in install_command(extra, folder=tmp_path) for extra in ("", "ray"))


def test_a_requirement_of_another_system_is_not_looked_at() -> None:
    assert list(package_findings(['torch; sys_platform == "none"'], lambda name: None)) == []


def test_optional_packages_stand_after_the_necessary_ones() -> None:
    findings = package_findings(['aaa; extra == "test"', "zzz"], lambda name: None)
    assert [finding.verdict for finding in findings] == ["missing", "optional"]


def test_a_package_without_weights_lacks_its_model(tmp_path: Path) -> None:
    assert model_finding(tmp_path).verdict == "missing"
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "model.safetensors").touch()
    assert model_finding(tmp_path) == Finding("bundled model", "checkpoint", "ok")


def test_runs_may_go_where_a_directory_can_still_be_made(tmp_path: Path) -> None:
    assert writable_finding(tmp_path / "new" / "runs").verdict == "ok"
    (tmp_path / "file").touch()
    assert writable_finding(tmp_path / "file").verdict == "missing"
    assert writable_finding(tmp_path / "file" / "runs").verdict == "missing"


@pytest.mark.parametrize(
    ("cpuinfo", "verdict", "found"),
    [
        ("processor : 0\nflags\t\t: fpu avx512_bf16 amx_bf16\n", "ok", "amx_bf16, avx512_bf16"),
        ("Features\t: fp asimd bf16\n", "ok", "bf16"),
        ("flags : fpu avx512_bf16\nflags : fpu\n", "optional", "not in hardware; float32 is faster"),
        ("flags : fpu avx2\n", "optional", "not in hardware; float32 is faster"),
        ("", "optional", "not in hardware; float32 is faster"),
    ],
)
def test_bfloat16_wants_the_flag_on_every_core(cpuinfo: str, verdict: str, found: str) -> None:
    finding = bfloat16_finding(cpuinfo)
    assert (finding.verdict, finding.found) == (verdict, found)


def test_what_the_system_does_not_say_is_called_unknown() -> None:
    assert "unknown" in bfloat16_finding(None).found
    assert "unknown" in memory_finding(None).found


def test_little_memory_is_said_and_not_fatal() -> None:
    assert memory_finding(GIB).verdict == "optional"
    assert memory_finding(8 * GIB) == Finding("free memory", "8.0 GiB", "ok")


def test_gpus_are_counted_by_their_device_files(tmp_path: Path) -> None:
    assert accelerator_finding(tmp_path).verdict == "optional"
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    assert accelerator_finding(tmp_path) == Finding("accelerator", "2 NVIDIA", "ok")
