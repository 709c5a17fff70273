"""The folder from which a learner resumes: its description, the weights that it trains, and its optimiser's moments.

It is replaced as a whole, so a kill at any moment leaves the old one or the new one, and proved before it is used. Tensors are
safetensors, all else is JSON; the random state is a function of the seed and of the number of the step and need not be kept. Weights are
kept in float32, also those that the learner holds in two halves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from leafe.digest import canonical, digest
from leafe.errors import CorruptFile, RunConflict, UserError
from leafe.folders import settle_folder, whole_folder
from leafe.jsonl import told_if_unwritable, write_text_atomically
from leafe.manifest import change, manifest_of
from leafe.training.precision import SplitOptimizer, join, split
from leafe.training.resume import Trained

SCHEMA = "leafe.learner/2"
STATE, WEIGHTS, OPTIMIZER = "learner.json", "weights.safetensors", "optimizer.safetensors"
SEAL = "digest"

Weights = Mapping[str, Tensor]  # trained weights, by name


def write_state(folder: Path, told: Mapping[str, Any], trained: Trained) -> None:
    """Writes a state into the folder in place of an earlier one. Raises `UserError` for a folder that holds anything else."""
    settle_folder(folder)
    strange = sorted({path.name for path in folder.iterdir()} - {STATE, WEIGHTS, OPTIMIZER}) if folder.is_dir() else []
    if strange:
        raise UserError(f"{folder} holds {strange[0]}, which is no part of a learner's state; give a folder for the state alone")
    weights = trained.weights()
    moments = {f"{name}.{key}": value for name, weight in weights.items() for key, value in trained.moments(weight).items()}
    low = trained.low
    whole_weights = {name: join(one.data.cpu(), low[one].cpu()) if one in low else one for name, one in weights.items()}
    with told_if_unwritable(folder), whole_folder(folder) as unfinished:
        _write(unfinished / WEIGHTS, whole_weights)
        _write(unfinished / OPTIMIZER, moments)
        files = manifest_of(unfinished, [unfinished / WEIGHTS, unfinished / OPTIMIZER])
        whole = {"schema": SCHEMA, **told, "files": files}
        write_text_atomically(unfinished / STATE, canonical({**whole, SEAL: digest(whole, length=32)}) + "\n")


def has_state(folder: Path) -> bool:
    """Whether there is a state in the folder. A state that a kill left beside it is first moved into it."""
    settle_folder(folder)
    return (folder / STATE).is_file()


def read_state(folder: Path) -> dict[str, Any]:
    """The description of a state. Raises `UserError` if there is none, `CorruptFile` if a file was changed since it was written."""
    if not has_state(folder):
        raise UserError(f"{folder} holds no state of a learner; make a Learner(checkpoint, ...) and write its state there first")
    try:
        told = json.loads((folder / STATE).read_text(encoding="utf-8"))
        whole = {name: value for name, value in told.items() if name != SEAL}
        is_whole = told["schema"] == SCHEMA and told[SEAL] == digest(whole, length=32)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise CorruptFile(f"{folder / STATE} is no {SCHEMA} as a learner writes it; restore it, or start the learner anew")
    for name, before in whole["files"].items():
        if found := change(folder / name, before):
            raise CorruptFile(f"{folder / name} is not as the learner left it: {found}; restore it, or start the learner anew")
    return whole


def take_state(folder: Path, trained: Trained) -> None:
    """Loads the weights and moments of a state. Raises `RunConflict` if they are another model's."""
    weights, optimizer = trained.weights(), trained.optimizer
    optimizer = optimizer.inner if isinstance(optimizer, SplitOptimizer) else optimizer
    kept, moments = load_file(folder / WEIGHTS), load_file(folder / OPTIMIZER)
    if {name: value.shape for name, value in kept.items()} != {name: value.shape for name, value in weights.items()}:
        raise RunConflict(
            f"the weights in {folder} are those of another model; put back the one that it was kept with, or start anew"
        )
    order = [weight for group in trained.optimizer.param_groups for weight in group["params"]]  # it knows weights by number
    numbers = {weight: number for number, weight in enumerate(order)}
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in moments.items():
        owner, _, key = name.rpartition(".")
        state.setdefault(numbers[weights[owner]], {})[key] = value
    with torch.no_grad():
        for name, weight in weights.items():
            high, rest = split(kept[name]) if weight in trained.low else (kept[name], None)
            weight.copy_(high)
            if rest is not None:
                trained.low[weight].copy_(rest)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _write(path: Path, tensors: Weights) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
