"""The bundled models: curricula made with solvers, a tokenizer, and the build that trains the checkpoints shipped beside this file."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
# By the names that `model=` takes; each is the base of one world.
CHECKPOINTS = {"nano": _HERE / "checkpoint", "nano-household": _HERE / "checkpoint_household"}
