"""A model and its tokenizer from a folder, ready to be sampled from and trained, or one sentence with the reason why not.

Only safetensors are read and no code that comes with a model is run. A folder is judged by its small files before any weights
are read. Whether the model computes what it should is not tried here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from leafe.errors import CorruptFile, UserError
from leafe.model_folder import SERVE, check_small_files, unreadable

UNTOLD_CONTEXT = 4096  # for a configuration that names no maximal length
OPTIONS: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


def load_checkpoint(path: str | Path, *, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The model and the tokenizer in the folder `path`.

    Raises `UserError` when there is none or its kind cannot be used here, `CorruptFile` when it cannot be read.
    """
    place = Path(path)
    _check_kind(place)
    tokenizer = load_tokenizer(place)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, use_safetensors=True, output_loading_info=True, **OPTIONS
        )
    except Exception as error:  # json, safetensors and the library's own code all raise errors of their own
        raise unreadable(place, error) from error
    model, found = loaded
    absent = sorted(str(name) for kind in ("missing_keys", "mismatched_keys") for name in found[kind])
    if absent:
        raise CorruptFile(f"the checkpoint in {str(path)!r} lacks weights that its config.json describes, such as {absent[0]}.")
    _check_vocabulary(place, tokenizer, model.get_input_embeddings().weight.shape[0])
    _check_end_tokens(place, model)
    return model, tokenizer


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer in the folder `path`. Raises `CorruptFile` when there is no usable one."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(Path(path), **OPTIONS)
    except Exception as error:  # as above
        raise unreadable(Path(path), error) from error
    letter = tokenizer.decode(tokenizer("a", add_special_tokens=False)["input_ids"], skip_special_tokens=True)
    if "a" not in letter.lower():  # a tokenizer without its files loads all the same, with an empty vocabulary
        raise CorruptFile(f"the checkpoint in {str(path)!r} has no usable tokenizer; wanted tokenizer.json beside config.json.")
    return tokenizer


def load_config(path: str | Path) -> Any:
    """The configuration of the model in the folder `path`, without its weights. Raises as `load_checkpoint` does."""
    place = Path(path)
    _check_kind(place)
    try:
        return AutoConfig.from_pretrained(place, **OPTIONS)
    except Exception as error:  # as above
        raise unreadable(place, error) from error


def _check_kind(place: Path) -> None:
    """Refuses a model that, by its small files, cannot be used."""
    config = check_small_files(place)
    kind = config.get("model_type")
    if config.get("auto_map") and kind not in CONFIG_MAPPING:
        raise UserError(
            f"the model in {str(place)!r} ({kind}) needs code that comes with it, which is never run here; {SERVE}, or give a model that"
            " transformers knows."
        )
    try:
        known = AutoConfig.from_pretrained(place, **OPTIONS)
    except Exception as error:  # configurations check themselves, by any code
        raise unreadable(place, error) from error
    if type(known) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"the model in {str(place)!r} ({known.model_type}) is no decoder that continues text; wanted a causal model."
        )


def _check_vocabulary(place: Path, tokenizer: Any, rows: int) -> None:
    """Refuses a tokenizer whose ids have no embedding. A special token that neither a text nor the template produces does no harm."""
    if len(tokenizer) <= rows:
        return
    added = tokenizer.added_tokens_decoder
    template = str(tokenizer.chat_template)
    for token, number in tokenizer.get_vocab().items():
        unused = number in added and added[number].special and token not in template and number != tokenizer.eos_token_id
        if number >= rows and not unused:
            raise CorruptFile(
                f"the tokenizer in {str(place)!r} has the token {token!r} with id {number} and the model has embeddings for {rows}; "
                "give the tokenizer that it was trained with, or resize_token_embeddings and train."
            )


def _check_end_tokens(place: Path, model: Any) -> None:
    value = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    wrong = [one for one in end_tokens(value) if isinstance(one, bool) or not isinstance(one, int)]
    if wrong:
        raise CorruptFile(f"generation_config.json in {str(place)!r} has eos_token_id {value!r}; wanted an id or a list of ids.")


def end_tokens(value: Any) -> frozenset[int]:
    """The ids of an `eos_token_id`, which is one, several or none."""
    return frozenset(() if value is None else value if isinstance(value, Iterable) and not isinstance(value, str) else [value])


def context_of(config: Any, cap: int = 0) -> int:
    """The longest conversation, in tokens, that a model's configuration allows, at most `cap` unless that is 0."""
    own = int(
        getattr(config.get_text_config(), "max_position_embeddings", None) or 0
    )  # the text part of a model that also takes images
    return min(own or cap, cap or own) or UNTOLD_CONTEXT
