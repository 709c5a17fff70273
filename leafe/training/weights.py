"""The trained weights of a model, and the check that the saved model computes the same.

An adapter is merged into the weights of its layers. If input and output embeddings are one weight and an adapter is on one of them, they
are two weights after that, so the model is saved untied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from leafe.engines.serve_programs import ADAPTER
from leafe.engines.twin import quiet, random_ids, text_config
from leafe.errors import UserError
from leafe.settings import LoraSettings

IDS = 16
TOLERANCE = 1e-3  # of how much logits vary; merging an adapter rounds by 1e-6


def with_adapter(model: Any, settings: LoraSettings) -> Any:
    """The model with an adapter on every linear layer, or on the layers that the settings name.

    Raises `UserError` for layers that do not exist.
    """
    targets = list(settings.targets) or "all-linear"
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, task_type="CAUSAL_LM")
    untie(model, settings.targets)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"train.lora.targets: wanted names of linear layers of the model, found {targets}: {error}") from None


def untie(model: Any, targets: tuple[str, ...]) -> None:
    """Makes two weights of tied embeddings if the targets name one of them."""
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is inner or module is outer]
    if any(name == target or name.endswith(f".{target}") for name in names for target in targets):
        untie_embeddings(model)


def untie_embeddings(model: Any) -> None:
    """Makes two weights of tied embeddings."""
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    if outer is None or inner is None or outer.weight is not inner.weight:
        return
    outer.weight = nn.Parameter(outer.weight.detach().clone())
    model.config.tie_word_embeddings = text_config(model.config).tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def save(model: Any, out: Path, *, use_cache: bool | None, keep: bool = False) -> None:
    """Saves a trained model whole, an adapter merged into it, so that every tool loads the result; `use_cache` is for its configuration.

    With `keep` the adapter is saved as well, in the folder `ADAPTER` of `out`.

    Raises `UserError` if the saved model does not compute what the trained one does.
    """
    trained = _logits(model)
    if hasattr(model, "merge_and_unload"):
        if keep:
            model.save_pretrained(out / ADAPTER)
            (out / ADAPTER / "README.md").unlink(missing_ok=True)  # a template of a model card
        model = model.merge_and_unload()
    if use_cache is not None:
        model.config.use_cache = use_cache
    model.save_pretrained(out)
    with quiet():
        saved = AutoModelForCausalLM.from_pretrained(out, dtype=model.dtype, use_safetensors=True, local_files_only=True)
    difference = float((_logits(saved) - trained).square().mean().sqrt() / trained.std())
    if not difference <= TOLERANCE:
        raise UserError(
            f"the saved model's logits are off by {difference:.2g} of their spread from the trained one's; set train.lora.targets to layers"
            " that the model shares with nothing, or leave train.lora out"
        )


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """Logits on some ids, `(ids, vocabulary)`, on the CPU."""
    training = model.training
    model.eval()
    ids = torch.tensor([random_ids(model, IDS, 7)], device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0].float().cpu()
    model.train(training)
    return logits
