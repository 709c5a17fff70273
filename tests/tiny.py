"""A tokenizer and models small enough to build inside a test: random weights, no files, no network.

The tokenizer is a byte-level BPE with one special token per role and one that ends a message. It says nothing about real models.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
WORDS = [
    "go left",
    "go right",
    "go up",
    "go down",
    "you see a box and a wall",
    "the door is closed",
    "nothing happens",
    "what now?",
]


def tiny_tokenizer(*, vocabulary: int = 300, template: str = TEMPLATE, corpus: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary` ids with a chat template; `corpus` adds text to learn merges from."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator([*WORDS, *corpus], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(
    kind: str = "qwen2", *, vocabulary: int = 300, seed: int = 0, heads: int = 4, shared_heads: int = 2
) -> PreTrainedModel:
    """A two-layer causal model of the family `kind` (`qwen2` or `llama`) with `heads / shared_heads` queries per key head."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": shared_heads,
        "max_position_embeddings": 2048,
        "initializer_range": 0.3,
        "eos_token_id": SPECIAL.index("<|end|>"),
        "pad_token_id": SPECIAL.index("<|pad|>"),
        "bos_token_id": None,
    }
    model = LlamaForCausalLM(LlamaConfig(**sizes)) if kind == "llama" else Qwen2ForCausalLM(Qwen2Config(**sizes))
    return model.eval()


@cache
def precise_model(kind: str, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """Random weights over 12 ids, in float64 to the last operation; the seed also decides how many queries share a key."""
    network = tiny_model(kind, vocabulary=12, seed=seed, shared_heads=(2, 4, 1)[seed % 3]).to(dtype)
    if dtype is torch.float64:  # the library's own norms go through float32
        for name, _ in list(network.named_modules()):
            if name.endswith("norm"):
                network.set_submodule(name, torch.nn.RMSNorm(64, eps=1e-6, dtype=dtype))
    return network


def gradients(network: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradient of every weight of a network."""
    network.zero_grad(set_to_none=True)
    loss.backward()
    return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}
