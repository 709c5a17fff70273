"""The weights between two checkpoints of one model, read from and written to safetensors, one file at a time.

Every weight is averaged in float32 (in float64 if it is kept so) and keeps the precision of the second model's file; tensors that are not
floating-point are the second model's. Weights that are tied in the second model stay tied, since its files hold one of them. If the first
model's files name weights differently, as its library may, it is loaded and saved once, as training does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from leafe.engines.loading import load_checkpoint, load_config
from leafe.engines.serve_programs import ADAPTER
from leafe.engines.twin import quiet, text_config
from leafe.errors import CorruptFile, UserError
from leafe.jsonl import told_if_unwritable
from leafe.training.weights import untie_embeddings

INDEX = "model.safetensors.index.json"


class Weights:
    """The tensors in a checkpoint's folder by name, read on demand. Raises `CorruptFile` for unreadable ones."""

    def __init__(self, folder: Path, files: ExitStack, *, named: Path | None = None) -> None:
        self.folder = named or folder  # in messages
        self._where: dict[str, Any] = {}
        self.files: dict[str, list[str]] = {}
        try:
            for name in _files_of(folder):
                opened = files.enter_context(safe_open(folder / name, framework="pt"))
                self.files[name] = list(opened.keys())
                self._where |= dict.fromkeys(self.files[name], opened)
        except (OSError, ValueError, SafetensorError, KeyError, AttributeError) as error:
            raise CorruptFile(f"the weights in {str(folder)!r} cannot be read ({error!s:.160}); restore the folder") from None

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Each name's shape."""
        return {name: opened.get_slice(name).get_shape() for name, opened in self._where.items()}

    def of(self, name: str) -> Tensor:
        """A tensor by its name."""
        tensor: Tensor = self._where[name].get_tensor(name)
        return tensor


def _files_of(folder: Path) -> list[str]:
    """The files that hold a checkpoint's weights: those that its index names, or its only one."""
    if (folder / INDEX).is_file():
        index: Mapping[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return sorted(set(index["weight_map"].values()))
    return ["model.safetensors"]


def average_checkpoints(first: Path, second: Path, out: Path, share: float) -> None:
    """Writes `(1 - share) * first + share * second` into the folder `out`, which is otherwise a copy of `second` without its adapter.

    At a share of 0 or 1 the weights are those of one of the two, to the bit if both have the same precision. Raises `UserError` for
    checkpoints of different models and `CorruptFile` for weights that cannot be read.
    """
    with ExitStack() as files, told_if_unwritable(out):
        one, other = Weights(first, files), Weights(second, files)
        if one.shapes != other.shapes:
            one = _as_saved(first, second, files)
        _check_same(one, other)
        for file in second.iterdir():
            if file.name not in other.files and file.name != ADAPTER:  # which is that of the second model alone
                _copy(file, out / file.name)
        for name, tensors in other.files.items():
            mixed = {tensor: _between(one.of(tensor), other.of(tensor), share) for tensor in tensors}
            save_file(mixed, out / name, metadata={"format": "pt"})


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def _between(one: Tensor, other: Tensor, share: float) -> Tensor:
    if not other.is_floating_point():
        return other
    exact = torch.float64 if other.dtype == torch.float64 else torch.float32
    return torch.lerp(one.to(exact), other.to(exact), share).to(other.dtype).contiguous()


def _check_same(one: Weights, other: Weights) -> None:
    before, after = one.shapes, other.shapes
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            found = " and ".join(
                f"{shapes.get(name) or 'no such weight'} in {weights.folder}" for shapes, weights in ((before, one), (after, other))
            )
            raise UserError(f"an average wants two checkpoints of one model, and {name} is {found}")


def _as_saved(first: Path, second: Path, files: ExitStack) -> Weights:
    """The first model with its weights named as training names them, untied if the second model's are."""
    folder = Path(files.enter_context(TemporaryDirectory()))
    model, _ = load_checkpoint(first)
    if not text_config(load_config(second)).tie_word_embeddings:
        untie_embeddings(model)
    with quiet():
        model.save_pretrained(folder)
    return Weights(folder, files, named=first)
