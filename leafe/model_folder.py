"""The folder of a model (the bundled one, a path, or a name on the Hugging Face Hub), and the checks of its small files.

No library for models is loaded here, so that an unusable model is refused at once. Whether a model computes correctly is not tried.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from leafe.errors import CorruptFile, UserError

PIECES, PIECE = 256, 4096  # bytes of a file that `fingerprint` reads
SERVE = "serve it over HTTP instead (engine.kind=openai)"


def locate(model: str, bundled: Mapping[str, Path]) -> Path:
    """The folder of a checkpoint; `bundled` has those that ship, by name. A Hub name (`owner/name`) is downloaded into the Hub's own cache.

    Raises `UserError` when there is no such model.
    """
    if model in bundled:
        return _checked(
            bundled[model], f"the bundled model {model} is missing from this installation; type: leafe nano build WORLD"
        )
    folder = Path(model).expanduser()
    looks_local = folder.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1
    try:
        is_there = folder.exists()
    except OSError as error:  # a name that no folder can have
        raise UserError(f"no checkpoint in {model!r:.80}: {error.strerror}") from None
    if is_there or looks_local:
        return _checked(
            folder,
            f"no checkpoint in {model!r}: "
            + (what_it_is(folder) or f"wanted {' or '.join(bundled)}, a folder with config.json and safetensors, or a Hub name"),
        )
    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"no checkpoint in {model!r}: there is no such folder, and the Hub did not give it ({reason:.160})"
        ) from None


def _checked(folder: Path, sentence: str) -> Path:
    if not (folder / "config.json").is_file():
        raise UserError(sentence)
    return folder


def what_it_is(place: Path) -> str:
    """The kind of a folder or file without config.json, and what to do with it; empty where that is not known."""
    files = [place] if place.is_file() else sorted(place.glob("*")) if place.is_dir() else []
    if any(file.suffix.lower() == ".gguf" for file in files):
        return f"that is GGUF, which llama.cpp reads: {SERVE}, or give the folder with the model's safetensors"
    if any(file.name == "adapter_config.json" for file in files):
        return "that is an adapter: merge it into its model (peft: merge_and_unload) and save both as one folder"
    return ""


def check_small_files(place: Path) -> dict[str, Any]:
    """The configuration of a model that is sampled from and trained in this process, as its config.json has it.

    Raises `UserError` for an unusable kind and `CorruptFile` for a checkpoint that cannot be read or lacks weights.
    """
    if not (place / "config.json").is_file():
        wanted = what_it_is(place) or "wanted a directory with config.json, model.safetensors and a tokenizer"
        raise UserError(f"no checkpoint in {str(place)!r}: {wanted}.")
    try:
        config: dict[str, Any] = json.loads((place / "config.json").read_text(encoding="utf-8"))
        reason = _unusable(config)
    except (ValueError, RecursionError, AttributeError, OSError) as error:
        raise unreadable(place, error) from error
    if reason:
        raise UserError(f"the model in {str(place)!r} {reason}.")
    if not list(place.glob("*.safetensors")):
        others = next((file.name for pattern in ("*.bin", "*.pth", "*.gguf") for file in sorted(place.glob(pattern))), "no weights")
        raise CorruptFile(
            f"the checkpoint in {str(place)!r} has {others}; wanted model.safetensors: save it again by transformers 5."
        )
    return config


def fingerprint(place: Path) -> str:
    """A digest of a checkpoint's configuration and of pieces of its weights, or of small weights whole; its place does not matter."""
    sha = hashlib.sha256()
    for path in (*place.glob("config.json"), *sorted(place.glob("*.safetensors"))):
        size = path.stat().st_size
        sha.update(f"{path.name} {size} ".encode())
        with open(path, "rb") as file:
            for start in range(0, size, max(PIECE, size // PIECES)):
                file.seek(start)
                sha.update(file.read(PIECE))
    return sha.hexdigest()


def _unusable(config: Mapping[str, Any]) -> str:
    """Why a model of this configuration cannot be used, empty where it can."""
    for part in (config, config.get("text_config") or {}):
        quantised = part.get("quantization_config") or part.get("compression_config")
        if quantised:
            method = quantised.get("quant_method", "method not named")
            return f"is quantised ({method}) and cannot be trained; {SERVE}, or give whole weights"
    if config.get("is_encoder_decoder"):
        return f"({config.get('model_type')}) reads by an encoder; wanted a decoder-only model"
    return ""


def unreadable(place: Path, error: Exception) -> CorruptFile:
    """The refusal of a checkpoint that cannot be loaded, with the first line of the reason."""
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    if "trust_remote_code" in str(error):
        reason = f"it needs code that comes with it, which is never run here; {SERVE}"
    return CorruptFile(f"the checkpoint in {str(place)!r} cannot be loaded: {reason:.240}")
