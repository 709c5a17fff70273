"""Small copies of a model for trials: the same attention, few layers, random weights, and limits so short that a few tokens pass them.

A window, a chunk or an original context changes attention only beyond so many tokens, often too many to try. `limits` returns the limits
in a configuration; `twin` builds the model anew with one of them cut to a few tokens, so that the same code runs beyond it in milliseconds.
The weights are drawn so that attention matters, or a trial could not fail.

A limit in the code of a model that its configuration lacks is not found.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.utils import logging

# Fields of configurations with numbers of tokens beyond which attention is computed differently.
LIMIT = re.compile(
    r"(window|chunk)(_size|_len|_length)?$|^local_attention$|floor_scale|n_floor$|^original_max_position_embeddings$"
    r"|^index_topk$|^rel_extent$|max_distance$|context_length$|^mem_len$|^block_size$|^index_block_size$"
)
WIDTH = re.compile(r"(intermediate|ffn|feed_forward).*(size|dim)$|^(n_inner|d_ff|dff|ffn_dim)$")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
VOCABULARY = 256
MOST = 400_000_000  # the most weights of a twin


def limits(config: Any) -> dict[str, int]:
    """The lengths in tokens that a model's configuration names, by the path of the field, as `rope_parameters.original_max...`."""
    text = text_config(config)
    found = {path: value for path, value in _numbers(text.to_dict()) if LIMIT.search(path.rsplit(".", 1)[-1]) and value > 1}
    if any(isinstance(kind, str) and kind == "dynamic" for kind in _rope_types(text)):
        found["max_position_embeddings"] = text.max_position_embeddings
    return found


def text_config(config: Any) -> Any:
    """The configuration of the decoder, also in a model for several kinds of input."""
    try:
        return config.get_text_config(decoder=True)
    except ValueError:  # several fit
        return config


def decoder(model: Any) -> Any:
    """The part of a model that attends to text and whose attention can be set; the model itself if it has no such part."""
    try:
        part = model.get_decoder()
    except Exception:  # a class without a decoder may raise anything
        return model
    return part if isinstance(part, PreTrainedModel) else model


def architecture(model: Any) -> tuple[Any, ...]:
    """All that a model computes by, its weights aside: what a trial has shown of one model holds for every other one of the same."""
    config, text = model.config, decoder(model).config
    kinds = frozenset((weight.dtype, weight.device) for weight in model.parameters())
    chosen = text._attn_implementation, getattr(text, "_experts_implementation", None), torch.get_float32_matmul_precision()
    return type(model), config.to_json_string(), repr(getattr(model, "peft_config", None)), chosen, model.dtype, model.device, kinds


@torch.no_grad()
def computes(model: Any) -> bool:
    """Whether a model gives numbers at all, which is a matter of its weights."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()  # what is dropped at random would change what is drawn next
    try:
        ids = torch.tensor([random_ids(model, 4, 7)], device=model.device)
        return bool(model(input_ids=ids, use_cache=False).logits.isfinite().all())
    except Exception:  # whatever a foreign forward pass raises; the trial says what it is
        return False
    finally:
        for part, training in modes:
            part.training = training


def vocabulary(model: Any) -> int:
    """The number of ids that a model embeds."""
    size = getattr(text_config(model.config), "vocab_size", None)
    return int(model.get_input_embeddings().weight.shape[0] if size is None else size)


def random_ids(model: Any, length: int, seed: int) -> list[int]:
    """Ids of ordinary tokens: none that the configuration names, such as those of padding and of images."""
    config = model.config.to_dict()
    special = {value for path, value in _numbers(config) if path.rsplit(".", 1)[-1].endswith(("token_id", "token_index"))}
    size = vocabulary(model)
    allowed = [number for number in range(min(size, 4096)) if number not in special]
    source = torch.Generator().manual_seed(seed)
    return [allowed[place] for place in torch.randint(len(allowed), (length,), generator=source).tolist()]


def twin(model: Any, limit: str = "", tokens: int = 0, *, device: str | None = None) -> Any | None:
    """A small model of the same class in float32, with random weights and the field `limit` set to `tokens`; None if it cannot be built.

    It is on the `device`, or on that of the model.
    """
    for kind, given in _forms(model):
        for narrow in (True, False):
            config = copy.deepcopy(given)
            try:
                _shrink(config, narrow=narrow)
                if limit:
                    _set(text_config(config), limit, tokens)
                with torch.device("meta"):
                    weights = sum(weight.numel() for weight in _built(kind, config).parameters())
                if weights <= MOST:
                    return _built(kind, config).to(device or model.device, torch.float32).eval()
            except Exception:  # a class may raise anything for unexpected sizes
                continue
    return None


def _forms(model: Any) -> Iterator[tuple[Any, Any]]:
    """Class and configuration: of the decoder alone, where a model has other parts, then of the whole model."""
    text = text_config(model.config)
    if text is not model.config and type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
        yield MODEL_FOR_CAUSAL_LM_MAPPING[type(text)], text
    yield type(model), model.config


def _built(kind: Any, config: Any) -> Any:
    """A model whose weights depend only on its configuration."""
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = kind(config)
        _draw(built)
    return built


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the library's warnings."""
    loudness = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(loudness)


def _draw(model: nn.Module) -> None:
    """Draws weights for which scores, values and gates have about the size that they have in a trained model."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for weight in model.parameters():
        if weight.ndim < 2:
            with torch.no_grad():
                weight.add_(torch.randn_like(weight), alpha=0.1)
        elif id(weight) in embeddings:
            nn.init.normal_(weight)
        else:
            nn.init.normal_(weight, std=1.5 * weight.shape[-1] ** -0.5)


def _shrink(config: Any, *, narrow: bool) -> None:
    text = text_config(config)
    _shorten(text)
    if narrow:
        _narrow_heads(text)
        for path, value in list(_numbers(text.to_dict())):
            if "." not in path and WIDTH.search(path) and value > 64:
                setattr(text, path, 16 if "moe" in path or "expert" in path else 64)
    text.vocab_size = min(text.vocab_size, VOCABULARY)
    for part in {id(part): part for part in (config, text)}.values():
        for path, value in list(_numbers(part.to_dict())):
            if path.endswith("token_id") and "." not in path and value >= text.vocab_size:
                setattr(part, path, 0 if path == "pad_token_id" else None)


def _shorten(config: Any) -> None:
    """Keeps the first layers, up to two of each kind; fields with one entry per layer are cut alike."""
    name = next((name for name in LAYERS if isinstance(getattr(config, name, None), int)), None)
    if name is None:
        return
    layers = getattr(config, name)
    lists = {key: value for key, value in vars(config).items() if isinstance(value, list | tuple) and len(value) == layers}
    kinds = [value for key, value in lists.items() if all(isinstance(item, str | bool) for item in value)]
    kept = _prefix([tuple(kind) for kind in zip(*kinds, strict=True)]) if kinds else min(4, layers)
    setattr(config, name, kept)
    for key, value in lists.items():
        setattr(config, key, value[:kept])


def _prefix(kinds: Sequence[tuple[Any, ...]]) -> int:
    """The length of the shortest prefix with two of each kind that occurs, or with all there are."""
    seen: dict[tuple[Any, ...], list[int]] = {}
    for place, kind in enumerate(kinds):
        seen.setdefault(kind, []).append(place)
    return max(places[:2][-1] for places in seen.values()) + 1


def _narrow_heads(config: Any) -> None:
    """Keeps at most two heads of keys, and as many of queries to each as before; the size of a head stays."""
    heads, hidden = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(hidden, int):
        return
    shared = getattr(config, "num_key_value_heads", None) or heads
    kept = heads // shared * min(shared, 2) if heads % shared == 0 else heads
    if kept < heads and hidden * kept % heads == 0:
        config.num_attention_heads, config.hidden_size = kept, hidden * kept // heads
        if getattr(config, "num_key_value_heads", None):
            config.num_key_value_heads = min(shared, 2)


def _numbers(fields: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, int]]:
    """Whole numbers in nested fields, by their paths."""
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{path}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{path}{key}", value


def _rope_types(config: Any) -> Iterator[Any]:
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *(part for part in rope.values() if isinstance(part, Mapping))):
        yield part.get("rope_type")


def _set(config: Any, path: str, value: int) -> None:
    *way, name = path.split(".")
    if not way:
        setattr(config, name, value)
        return
    fields = getattr(config, way[0])
    for key in way[1:]:
        fields = fields[key]
    fields[name] = value


def spread(logits: Iterable[Tensor]) -> float:
    """How much logits after the same token differ with what came before it: the measure of attention's effect. `(vocabulary,)` each."""
    stacked = torch.stack([one.float() for one in logits])
    return float((stacked - stacked.mean(0)).square().mean().sqrt())
