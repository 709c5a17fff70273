"""New weights for a running engine: those of another checkpoint of the same model, proved to fit before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from leafe.engines.loading import end_tokens, load_checkpoint
from leafe.errors import UserError

ANOTHER = "load it with a separate engine"
# Fields of a configuration that do not change what is computed.
IDLE = frozenset(
    ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache", "initializer_range")
)
IDLE |= {"eos_token_id", "bos_token_id", "pad_token_id", "attention_dropout"}


def weights_for(model: Any, tokenizer: Any, folder: str | Path) -> tuple[Mapping[str, torch.Tensor], frozenset[int]]:
    """The weights in a folder, by name and on the processor, and the end tokens that its generation config names.

    Raises as `load_checkpoint` does, and `UserError` when model or tokenizer are of another kind than those given.
    """
    fresh, fresh_tokenizer = load_checkpoint(folder, dtype=model.dtype)
    _check_config(model.config.to_dict(), fresh.config.to_dict(), folder)
    weights = fresh.state_dict()
    check_shapes(model, {name: weight.shape for name, weight in weights.items()}, f"the checkpoint in {str(folder)!r}")
    ids, fresh_ids = (
        one.get_vocab().items() for one in (tokenizer, fresh_tokenizer)
    )  # a loaded one may have gained a special token
    if not (ids <= fresh_ids or fresh_ids <= ids) or fresh_tokenizer.chat_template != tokenizer.chat_template:
        raise UserError(
            f"the checkpoint in {str(folder)!r} has another tokenizer or chat template than the engine's model; {ANOTHER}"
        )
    return weights, end_tokens(getattr(fresh.generation_config, "eos_token_id", None))


def check_given(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Raises `UserError` for weights that do not fit a model, or of which two differ that are one in the model, as tied embeddings are."""
    what = "what the engine was given"
    shapes = getattr(weights, "shapes", None) or {name: weight.shape for name, weight in weights.items()}
    check_shapes(model, shapes, what)
    places: dict[int, str] = {}
    for name, weight in model.state_dict().items():
        first = places.setdefault(weight.data_ptr(), name)
        if first != name and not torch.equal(weights[first], weights[name]):
            raise UserError(f"{what} has two weights {first} and {name}, which are one in the engine's model; {ANOTHER}")


def check_shapes(model: Any, shapes: Mapping[str, torch.Size], what: str) -> None:
    """Raises `UserError` for weights of other names or shapes than those of a model; `what` is their name in the message."""
    own = model.state_dict()
    for name in sorted(set(shapes) ^ set(own)):
        have, want = ("has", "lacks") if name in shapes else ("lacks", "has")
        raise UserError(f"{what} {have} the weights {name}, which the engine's model {want}; {ANOTHER}")
    for name, shape in shapes.items():
        if shape != own[name].shape:
            raise UserError(f"{what} has {name} of shape {list(shape)}, wanted {list(own[name].shape)}; {ANOTHER}")


def _check_config(own: Mapping[str, Any], fresh: Mapping[str, Any], folder: str | Path) -> None:
    for name in sorted((set(own) | set(fresh)) - IDLE):
        found, wanted = fresh.get(name), own.get(name)
        if found != wanted:
            where = f"the checkpoint in {str(folder)!r} is of another shape or kind"
            raise UserError(f"{where}: config.json has {name} {found!r:.60}, the engine's model {wanted!r:.60}; {ANOTHER}")
