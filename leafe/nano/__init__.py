"""The bundled model: a curriculum made with a solver, a tokenizer, and the build that trains the checkpoint shipped beside this file."""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
