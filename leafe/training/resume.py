"""The folder from which a killed training resumes: the trained weights, the optimiser's moments, the random state.

If weights are sharded each process writes its shards; else the first one writes all. `state.json` is written last and in place of the
old one, and names the folder of its step, so a kill at any moment leaves a complete state. A training may resume with another number of
processes: shards are put together and cut anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from leafe.digest import canonical, digest
from leafe.errors import CorruptFile, RunConflict, UserError
from leafe.jsonl import told_if_unwritable, write_text_atomically
from leafe.manifest import change, described
from leafe.training.precision import SplitOptimizer, join, split

SCHEMA = "leafe.training/1"
STATE = "state.json"
LOW, RANDOM, RANDOM_GPU = ":low", ":random", ":random-gpu"  # beside the names of weights and `weight:moment`


@dataclass(frozen=True)
class Trained:
    """The objects of a training: a model, its optimiser, and the lower halves of split weights."""

    model: Any
    optimizer: torch.optim.Optimizer
    low: Mapping[Tensor, Tensor] = field(default_factory=dict)

    def weights(self) -> dict[str, Tensor]:
        """The weights that are trained, by name."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def moments(self, weight: Tensor) -> dict[str, Any]:
        """The optimiser's state of a weight; changes to it take effect."""
        inner = self.optimizer
        found: dict[str, Any] = inner.moments(weight) if isinstance(inner, SplitOptimizer) else inner.state[weight]
        return found

    def settle(self, weight: Tensor, moment: Tensor) -> Tensor:
        """A moment as the optimiser wants it, or its number of steps, which a fused one counts on the device of its state."""
        inner = self.optimizer
        place = inner.place(weight) if isinstance(inner, SplitOptimizer) else weight.device
        fused = any(group.get("fused") for group in inner.param_groups)
        return moment.to(place) if fused or moment.shape == weight.shape else moment

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by the names under which they are kept."""
        found: dict[str, Tensor] = {}
        for name, weight in self.weights().items():
            found[name] = weight.detach()
            found.update({f"{name}{LOW}": self.low[weight]} if weight in self.low else {})
            found.update({f"{name}:{key}": value for key, value in self.moments(weight).items()})
        return found


@dataclass(frozen=True)
class Begun:
    """The contents of a state: how many steps are done, and the sum of their losses. `sharded` names the tensors that are in all files."""

    step: int
    loss: float
    by_kind: Mapping[str, float]
    files: tuple[str, ...]
    sharded: frozenset[str]
    names: frozenset[str]


@dataclass(frozen=True)
class State:
    """The state of one training in a folder. `job` identifies the training, in JSON; `gather` collects a value from all processes."""

    folder: Path
    job: Mapping[str, Any]
    rank: int = 0
    gather: Callable[[Any], list[Any]] = lambda value: [value]

    def read(self) -> Begun | None:
        """The state in the folder, None if there is none. Raises `CorruptFile` if a file was changed since it was written, `RunConflict` if
        it is another training's."""
        path = self.folder / STATE
        if not path.exists():
            return None
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            if said["schema"] != SCHEMA or said.pop("digest") != digest(said, length=32):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CorruptFile(f"{path} is no {SCHEMA}; delete {self.folder} and the training begins anew") from None
        if found := next((change(self.folder / name, before) for name, before in said["files"].items()), ""):
            raise CorruptFile(f"{self.folder} is not as the training left it: {found}; delete it and the training begins anew")
        if said["job"] != digest(self.job, length=32):
            raise RunConflict(f"{self.folder} holds the state of another training; delete it, or give another folder")
        return Begun(
            said["step"], said["loss"], said["by_kind"], tuple(said["files"]), frozenset(said["sharded"]), frozenset(said["names"])
        )

    def write(self, step: int, trained: Trained, *, loss: float, by_kind: Mapping[str, float]) -> None:
        """Writes the state after a step, in place of an earlier one; all processes call it. Raises `UserError` in all if one fails."""
        tensors = trained.tensors()
        sharded = {name for name, value in tensors.items() if isinstance(value, DTensor)}
        files = self._agreed(lambda: self._write_part(step, tensors, sharded))
        said = {
            "schema": SCHEMA,
            "job": digest(self.job, length=32),
            "step": step,
            "loss": loss,
            "by_kind": dict(by_kind),
            "files": dict(files),
            "sharded": sorted(sharded),
            "names": sorted(tensors),
        }
        self._agreed(lambda: self._name(said))

    def _write_part(self, step: int, tensors: Mapping[str, Tensor], sharded: Set[str]) -> tuple[str, dict[str, Any]]:
        """Writes this process's tensors; returns the name and the description of their file."""
        path = self.folder / f"step-{step:08}" / f"part-{self.rank:05}.safetensors"
        own = {name: _local(value) for name, value in tensors.items() if name in sharded or not self.rank}
        own[RANDOM] = torch.get_rng_state()
        if torch.cuda.is_initialized():
            own[RANDOM_GPU] = torch.cuda.get_rng_state()
        with told_if_unwritable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: value.detach().cpu().contiguous() for name, value in own.items()}, path)
            return path.relative_to(self.folder).as_posix(), described(path)

    def _name(self, said: Mapping[str, Any]) -> None:
        """Makes the written files the current state, and removes earlier ones."""
        if self.rank:
            return
        with told_if_unwritable(self.folder / STATE):
            write_text_atomically(self.folder / STATE, canonical({**said, "digest": digest(said, length=32)}) + "\n")
        for old in self.folder.glob("step-*"):
            if old.name != f"step-{said['step']:08}":
                shutil.rmtree(old, ignore_errors=True)

    def _agreed(self, work: Callable[[], Any]) -> list[Any]:
        """The results of the work in all processes. If one of them refuses, all of them raise, so that none waits for it."""
        try:
            found: Any = work()
        except UserError as error:
            found = error
        everywhere = self.gather(found)
        if refused := next((one for one in everywhere if isinstance(one, UserError)), None):
            raise refused
        return everywhere

    @torch.no_grad()
    def take(self, begun: Begun, trained: Trained) -> None:
        """Loads a state into a training, each process its part."""
        weights = trained.weights()
        if not weights.keys() <= begun.names:
            raise RunConflict(f"{self.folder} holds the weights of another model; delete it, or give another folder")
        for name, weight in weights.items():
            self._take_weight(begun, name, weight, trained.low.get(weight))
            kept = {one.removeprefix(f"{name}:") for one in begun.names if one.startswith(f"{name}:")} - {LOW[1:]}
            for key in sorted(kept):
                found = self._whole(begun, f"{name}:{key}")
                if found.shape == weight.shape and isinstance(weight, DTensor):
                    moment = torch.zeros_like(weight, dtype=found.dtype)
                    _fill(moment, found)
                    found = moment
                trained.moments(weight)[key] = found if isinstance(found, DTensor) else trained.settle(weight, found)

    def _take_weight(self, begun: Begun, name: str, weight: Tensor, low: Tensor | None) -> None:
        """Loads a weight, which may be kept whole or in two halves and wanted as the other."""
        whole = self._whole(begun, name)
        rest = self._whole(begun, f"{name}{LOW}") if f"{name}{LOW}" in begun.names else None
        if low is None:
            _fill(weight, whole if rest is None else join(whole, rest))
            return
        high, rest = (whole, rest) if rest is not None else split(whole)
        _fill(weight, high)
        _fill(low, rest)

    def draw_on(self, begun: Begun) -> None:
        """Restores the random state; a process beyond the former number takes that of the last one."""
        with safe_open(self.folder / begun.files[min(self.rank, len(begun.files) - 1)], "pt") as file:
            torch.set_rng_state(file.get_tensor(RANDOM))
            if RANDOM_GPU in file.keys() and torch.cuda.is_available():  # noqa: SIM118  # not a mapping
                torch.cuda.set_rng_state(file.get_tensor(RANDOM_GPU))

    def _whole(self, begun: Begun, name: str) -> Tensor:
        parts = []
        for file in begun.files if name in begun.sharded else begun.files[:1]:
            with safe_open(self.folder / file, "pt") as opened:
                parts.append(opened.get_tensor(name))
        return torch.cat(parts) if name in begun.sharded else parts[0]


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _fill(place: Tensor, whole: Tensor) -> None:
    """Copies a tensor, or this process's rows of it."""
    if not isinstance(place, DTensor):
        place.copy_(whole)
        return
    rows = -(-len(whole) // place.device_mesh.size())
    place.to_local().copy_(whole[rows * place.device_mesh.get_local_rank() :][:rows])
