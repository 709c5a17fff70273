"""This machine: its cores, memory, bfloat16 multiplication, and Java. Facts alone; the doctor judges them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PROCESSOR = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is ARM's


def own_cores() -> int:
    """How many cores this process may use."""
    # Not every system can say which cores are this process's own.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def text_of(path: Path) -> str | None:
    """The text of a system file, None where it does not exist."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def bfloat16_flags(cpuinfo: str) -> list[str]:
    """The flags in a text such as `/proc/cpuinfo` by which every core multiplies bfloat16 itself; empty where there are none."""
    lines = [line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.startswith(("flags", "Features"))]
    return sorted(BFLOAT16_FLAGS.intersection(*lines)) if lines else []


def multiplies_bfloat16(processor: Path = PROCESSOR) -> bool:
    """Whether bfloat16 is worth using: emulated, a training step takes six times as long as in float32."""
    return bool(bfloat16_flags(text_of(processor) or ""))


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that could be taken without swapping; None where the system does not report them. `meminfo` is the file to read."""
    for line in (text_of(meminfo) or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def java_command() -> str | None:
    """The command `java`: that of JAVA_HOME where it is set and holds one, else the one on the path."""
    home = os.environ.get("JAVA_HOME")
    return (shutil.which("java", path=os.path.join(home, "bin")) if home else None) or shutil.which("java")
