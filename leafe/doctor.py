"""The findings on this machine, each with the command that fixes it.

Looks at metadata and at the system's own files, and tries imports in a process of their own, so it answers where libraries are broken.
The requirements are read from the package's own metadata and nowhere else.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.resources import files
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from leafe.hardware import PROCESSOR, available_memory, bfloat16_flags, java_command, own_cores, text_of
from leafe.imports import CHECKOUT, install_command

GIB = 2**30
JAVA_INSTALL = "apt-get install default-jre-headless (or: conda install openjdk)"
HEAVY = ("pydantic", "torch", "transformers", "peft")  # libraries with a part that is compiled, or that import one
PATIENCE = 120  # seconds that an import may take on a slow disk


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing examined. `missing` keeps leafe from working, `optional` does not; `mend` is the remedy, empty for none."""

    what: str
    found: str
    verdict: Literal["ok", "missing", "optional"]
    mend: str = ""


def examine(runs: Path = Path("runs")) -> list[Finding]:
    """All findings, the necessary first. `runs` is where run directories are to go."""
    return [
        python_finding(sys.version_info[:3]),
        *_own_findings(),
        *import_findings(),
        model_finding(Path(str(files("leafe"))) / "nano"),
        writable_finding(runs),
        cores_finding(own_cores()),
        bfloat16_finding(text_of(PROCESSOR)),
        memory_finding(available_memory()),
        accelerator_finding(Path("/dev")),
        java_finding(java_command()),
    ]


def python_finding(found: tuple[int, ...]) -> Finding:
    """The interpreter; `found` is its version."""
    ok = found >= (3, 11)
    mend = "" if ok else "make a new environment with Python 3.11 or later"
    return Finding("Python", ".".join(map(str, found)), "ok" if ok else "missing", mend)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _own_findings() -> Iterator[Finding]:
    if not _installed("leafe"):
        yield Finding("leafe", "on the path and not installed", "missing", install_command())
        return
    yield from package_findings(metadata("leafe").get_all("Requires-Dist") or [])


def package_findings(requirements: list[str], installed: Callable[[str], str | None] = _installed) -> Iterator[Finding]:
    """One finding for each requirement of the package, those of extras after the necessary ones.

    >>> list(package_findings(["rich>=14"], {"rich": "15.0"}.get))
    [Finding(what='rich', found='15.0', verdict='ok', mend='')]
    """
    parsed = [Requirement(text) for text in requirements]
    for requirement in sorted(parsed, key=lambda one: (_extra(one), one.name.lower())):
        found, extra = installed(requirement.name), _extra(requirement)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if found is not None and requirement.specifier.contains(found, prereleases=True):
            yield Finding(requirement.name, found, "ok")
            continue
        wanted = f"{found or 'not installed'}, wanted {requirement.specifier or 'any version'}"
        mend = install_command(extra)
        yield Finding(requirement.name, wanted, "optional" if extra else "missing", mend)


def import_findings(names: Sequence[str] = HEAVY) -> Iterator[Finding]:
    """One finding for each library that is installed and cannot be imported; none where all can."""
    if _import_fault(", ".join(names)) is None:
        return
    for name in names:
        fault = _import_fault(name) if _installed(name) else None
        if fault is not None:
            yield Finding(f"import {name}", fault, "missing", install_command(again=name))


def _import_fault(names: str) -> str | None:
    """The error of an import in a process of its own, None for none."""
    command = [sys.executable, "-P", "-c", f"import {names}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return f"takes more than {PATIENCE} seconds"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return f"{lines[-1]:.200}" if done.returncode > 0 and lines else f"ends with status {done.returncode}"


def _extra(requirement: Requirement) -> str:
    """The extra that a requirement belongs to, empty for a necessary one."""
    _, found, name = str(requirement.marker or "").partition("extra == ")
    return name.strip("\"' )").partition('"')[0] if found else ""


def model_finding(folder: Path) -> Finding:
    """The bundled model; `folder` holds its checkpoints."""
    checkpoints = sorted(path.parent for path in folder.glob("checkpoint*/model.safetensors"))
    if checkpoints:
        return Finding("bundled model", ", ".join(path.name for path in checkpoints), "ok")
    restore = "git restore leafe/nano" if (CHECKOUT / ".git").exists() else "pip install --force-reinstall --no-deps leafe"
    return Finding("bundled model", "no weights in the package", "missing", restore)


def writable_finding(runs: Path) -> Finding:
    """Whether run directories can be made in `runs`, which need not exist yet."""
    place = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return Finding("run directories", f"{runs} can be written", "ok")
    return Finding(
        "run directories", f"{place} cannot be written", "missing", "give another directory: leafe run RECIPE --out DIRECTORY"
    )


def cores_finding(cores: int) -> Finding:
    """How many cores this process may use."""
    return Finding("processor cores", str(cores), "ok")


def bfloat16_finding(cpuinfo: str | None) -> Finding:
    """Whether the processor multiplies bfloat16 itself; `cpuinfo` is the text of `/proc/cpuinfo`, None where there is none."""
    if cpuinfo is None:
        return Finding("bfloat16 on the processor", f"unknown on {platform.system()}", "optional")
    having = bfloat16_flags(cpuinfo)
    if having:
        return Finding("bfloat16 on the processor", ", ".join(having), "ok")
    return Finding("bfloat16 on the processor", "not in hardware; float32 is faster", "optional", "keep engine.dtype=float32")


def memory_finding(available: int | None) -> Finding:
    """How much memory is free, in bytes; None where it is unknown."""
    if available is None:
        return Finding("free memory", f"unknown on {platform.system()}", "optional")
    if available >= 2 * GIB:
        return Finding("free memory", f"{available / GIB:.1f} GiB", "ok")
    return Finding("free memory", f"{available / GIB:.1f} GiB, wanted 2", "optional", "close other programs, or lower engine.slots")


def accelerator_finding(devices: Path) -> Finding:
    """Whether there is a GPU; `devices` is the folder of device files. The bundled model needs none."""
    count = len([path for path in devices.glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal()])
    if count or (devices / "kfd").exists():
        return Finding("accelerator", f"{count} NVIDIA" if count else "AMD", "ok")
    return Finding("accelerator", "none; the bundled model needs none", "optional")


def java_finding(command: str | None) -> Finding:
    """Whether there is Java, which only scienceworld needs; `command` is its path."""
    if command:
        return Finding("Java", command, "ok")
    return Finding("Java", "none; only scienceworld needs it", "optional", JAVA_INSTALL)


def sandbox_finding(why: str | None, mend: str = "") -> Finding:
    """Whether programs that a model wrote can be run; `why` is the reason if not. Only the environments of programs need it."""
    if why is None:
        return Finding("sandbox for programs", "contained its trial program", "ok")
    return Finding("sandbox for programs", why, "optional", mend)
