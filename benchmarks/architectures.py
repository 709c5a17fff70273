"""Results of every decoder of the installed transformers in packed training and in the engine: equal, equal up to a length, or refused.

    python benchmarks/architectures.py                       # all of them, some minutes
    python benchmarks/architectures.py llama gemma2 --jsonl  # some, as lines of JSON
    python benchmarks/architectures.py --write docs/architectures.md

Each architecture is built small, with windows and chunks of a few tokens and random weights for which attention matters. Both trials run
as `leafe` runs them when it loads a model. Models that pass are then checked in another way: losses of many random trees against those of
their samples, and greedy replies of the batching engine against plain forward passes, with other ids, more of them, and up to the length
that the trial allows. A trial that passed a wrong model is called WRONG, an error that is no sentence TRACEBACK; either makes the exit
status 1.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from leafe.distillation.attention import tree_attention
from leafe.distillation.pack import Sample, collate, term_losses
from leafe.distillation.rows import split
from leafe.distillation.trial import choose_packing
from leafe.engines.batching import Batcher, Request
from leafe.engines.trial import give_back, take_over
from leafe.errors import UserError
from leafe.records import Ask, Sampling

MOST = 6_000_000  # the most weights of a built model
TOLERANCE = 2e-3  # of how much losses, or log-probabilities, vary
WINDOW = 24

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "index_topk": WINDOW,
    "keep_window_size": WINDOW,
    "local_attention": WINDOW,
    "attention_window_size": WINDOW,
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 4,
    "n_positions": 512,
    "n_ctx": 512,
    "rotary_dim": 8,
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 4,
    "ffn_dim": 96,
    "num_layers": 4,
    "num_heads": 4,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 32,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "qk_head_dim": 32,
    "n_group": 1,
    "topk_group": 1,
    "index_head_dim": 32,
    "index_n_heads": 4,
    "mamba_chunk_size": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_ssm": 128,
    "mamba_d_state": 16,
    "mamba_num_heads": 4,
    "mamba_head_dim": 32,
    "ssm_state_size": 16,
    "is_decoder": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3"))
# Sizes of the parts of a model for images and sound.
SENSES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "depth": 1,
    "num_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": 64,
    "embed_dim": 32,
    "vision_output_dim": 64,
    "base_channels": 32,
    "d_model": 32,
    "encoder_layers": 1,
}
PAIRS = ["sliding_attention", "full_attention"] * 2
# Settings that an architecture needs beside or instead of these sizes.
SPECIAL: dict[str, dict[str, Any]] = {
    **{name: {"num_key_value_heads": 4} for name in (*LATENT, "longcat_flash", "youtu", "hy_v4", "dots3_note_text")},
    "big_bird": {"attention_type": "original_full"},
    "cpmant": {"dim_ff": 96, "dim_head": 16, "position_bias_max_distance": 64},
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "gemma3n_text": {
        "layer_types": PAIRS,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 300,
        "hidden_size_per_layer_input": 16,
        "laurel_rank": 8,
        "intermediate_size": 96,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {
        "layer_types": PAIRS,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 300,
        "hidden_size_per_layer_input": 16,
        "global_head_dim": 32,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "inkling_text": {"vocab_size": 300, "unpadded_vocab_size": 300, "sliding_window_size": WINDOW},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "llama4_text": {"floor_scale": 48, "attn_scale": 0.5, "intermediate_size_mlp": 96},
    "minimax_m3_vl_text": {"index_block_size": 8, "index_topk_blocks": 3},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16, "chunk_size": 8},
    "nemotron_h": {"n_groups": 1, "chunk_size": 8},
    "phi3": {"original_max_position_embeddings": 512, "sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 2},
    "reformer": {"axial_pos_embds": False},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zaya": {"num_experts_per_tok": 1},
}
ROPE = {"rope_theta": 10000.0}
# Further forms of an architecture: its name and its configuration.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, dynamic rope": (
        "llama",
        {"max_position_embeddings": 64, "rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 4.0}},
    ),
    "llama, yarn": (
        "llama",
        {"rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    ),
    "llama, llama3 rope": (
        "llama",
        {
            "rope_parameters": {
                **ROPE,
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "phi3, longrope": (
        "phi3",
        {
            "sliding_window": None,
            "original_max_position_embeddings": 48,
            "rope_parameters": {
                **ROPE,
                "rope_type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [4.0] * 8,
                "original_max_position_embeddings": 48,
            },
        },
    ),
    "qwen2, no window": ("qwen2", {"use_sliding_window": False}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
}


@dataclass(frozen=True)
class Verdict:
    """The result for one use: `word` is equal, refused, WRONG or TRACEBACK."""

    word: str
    said: str
    difference: float = 0.0


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    name: str
    model: str
    packing: Verdict
    engine: Verdict


def names() -> list[str]:
    """Every architecture that transformers maps to a causal model, and the further forms."""
    return [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS]


def build(name: str) -> Any:
    """The architecture, small, with random weights. Raises `ValueError` for one that cannot be built so."""
    base, more = VARIANTS.get(name, (name, {}))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = configuration(CONFIG_MAPPING[base], base, more)
            if getattr(config, "is_encoder_decoder", False):
                raise ValueError("an encoder and a decoder")
            with torch.device("meta"):
                weights = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
            if weights > MOST:
                raise ValueError(f"not small: {weights / 1e6:.0f} million weights with these sizes")
            model = AutoModelForCausalLM.from_config(config).float().eval()
    except Exception as error:  # a configuration or a model may raise anything for sizes that it does not take
        raise ValueError(first_line(error)) from error
    draw(model)
    return model


def configuration(kind: Any, name: str, more: dict[str, Any]) -> Any:
    """A small configuration, also of the parts of a model for several kinds of input."""
    parts = {}
    for key, part in getattr(kind, "sub_configs", {}).items():
        if "text" in key:
            parts[key] = configuration(part, getattr(part, "model_type", ""), {}).to_dict()
        elif part.__name__ != "AutoConfig":
            said = part().to_dict()
            parts[key] = {"model_type": part.model_type, **{field: value for field, value in SENSES.items() if field in said}}
    known = {*kind().to_dict(), *getattr(kind, "attribute_map", {})}
    sizes = {key: value for key, value in SIZES.items() if key in known}
    return kind(**{**sizes, **parts, **SPECIAL.get(name, {}), **more})


def draw(model: Any) -> None:
    """Draws weights for which attention matters, other than those of the trial's twins."""
    source = torch.Generator().manual_seed(11)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=source)
        with torch.no_grad():
            if weight.ndim < 2:
                weight += 0.1 * noise
            else:
                weight.copy_(noise * (1.2 if "emb" in name or "wte" in name else 1.3 * weight.shape[-1] ** -0.5))


def first_line(error: Exception) -> str:
    """The first line of an error, shortened."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:160]


def judged(work: Callable[[], Verdict]) -> Verdict:
    """The verdict of some work: a refusal in one sentence is one, any other error is the worst one."""
    try:
        return work()
    except UserError as error:
        said = str(error)
        return Verdict("TRACEBACK" if "\n" in said else "refused", said)
    except Exception as error:
        return Verdict("TRACEBACK", f"{type(error).__name__}: {first_line(error)}")


def packing_verdict(model: Any, tries: int) -> Verdict:
    """The trial of packed training, then random trees."""
    found = choose_packing(model)
    row, path = found.cap.tokens or 300, min(found.cap.path or 90, found.cap.tokens or 90)
    off = max(trees_differ(model, found.kind, random.Random(seed), row=row, path=path) for seed in range(tries))
    limit = (
        f", rows of up to {found.cap.tokens}"
        if found.cap.tokens
        else f", paths of up to {found.cap.path}"
        if found.cap.path
        else ""
    )
    return Verdict("equal" if off <= TOLERANCE else "WRONG", found.kind + limit, max(off, found.difference))


@torch.no_grad()
def trees_differ(model: Any, kind: Any, source: random.Random, *, row: int, path: int) -> float:
    """The difference of the losses of random trees from those of their samples, in standard deviations of the losses."""
    samples = list(grown(source, path))
    apart = []
    for sample in samples:
        ids = [*sample.prompt, *sample.target]
        logits = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0].float().log_softmax(-1)
        apart += [-float(logits[place - 1, ids[place]]) for place in range(len(sample.prompt), len(ids))]
    packed = collate(list(split(sorted(samples), row)))
    with tree_attention(model, kind):
        # Passes of as many rows as fit, as in training: here one row at a time, or all if there is no limit.
        rows = list(split(sorted(samples), row))
        batches = [packed] if row >= 300 else [collate([one]) for one in rows]
        losses = [
            (term, float(loss)) for batch in batches for term, loss in zip(batch.term_kind, term_losses(model, batch), strict=True)
        ]
    order = {kind: [loss for name, loss in losses if name == kind] for kind in {name for name, _ in losses}}
    together = [loss for sample in samples for loss in order[sample.kind]]
    wanted = torch.tensor(apart)
    return float((torch.tensor(together) - wanted).abs().max() / wanted.std())


def grown(source: random.Random, longest: int) -> Iterator[Sample]:
    """Samples of a few turns that branch off each other, some of maximal length."""
    known: list[list[int]] = [[source.randrange(10, 290) for _ in range(max(1, longest // 6))]]
    for number in range(7):
        start = source.choice(known)
        start = start[: source.randint(1, len(start))]
        length = longest + 1 if number < 2 else source.randint(min(len(start) + 2, longest), longest + 1)
        ids = [*start, *(source.randrange(10, 290) for _ in range(max(2, length - len(start))))][: longest + 1]
        cut = max(1, len(ids) - source.randint(1, 4))
        known.append(ids[:cut])
        yield Sample(ids[:cut], ids[cut:], kind=str(number))


def engine_verdict(model: Any, prompts: int) -> Verdict:
    """The trial of the engine, then greedy replies."""
    taken = take_over(model)
    longest = min(taken.longest or 120, 120)
    source = random.Random(5)
    stem = [source.randrange(10, 290) for _ in range(longest // 2)]
    asked = [
        [
            *stem[: source.randrange(len(stem))],
            *(source.randrange(10, 290) for _ in range(source.randint(1, max(1, longest // 2 - 10)))),
        ]
        for _ in range(prompts)
    ]
    try:
        with torch.inference_mode():
            replies = replied(model, asked, longest, min(50, taken.most or 50))
    finally:
        give_back(model, taken.attention)
    off = max(reply_differs(model, request) for request in replies)
    limit = f"conversations of up to {taken.longest}" if taken.longest else ""
    return Verdict("equal" if off <= TOLERANCE else "WRONG", limit, max(off, taken.difference))


def replied(model: Any, prompts: Sequence[list[int]], longest: int, most: int) -> list[Request]:
    """Greedy replies of the batching engine, with little memory so that requests wait, are cut and reuse each other's blocks."""
    batcher: Batcher[Request] = Batcher(model, (), slots=4, blocks=13, tokens_per_pass=most)
    ask = Ask((), Sampling(0.0, 1.0, 8), 0)
    for prompt in prompts:
        size = min(8, longest - len(prompt))
        batcher.waiting.append(Request(Ask(ask.messages, Sampling(0.0, 1.0, size), 0), list(prompt), len(prompt)))
    done: list[Request] = []
    while not batcher.idle:
        done += batcher.step()
    return done


@torch.no_grad()
def reply_differs(model: Any, request: Request) -> float:
    """The difference of a reply's log-probabilities from the plain ones, and of its choices from the likeliest, in standard deviations."""
    logits = model(input_ids=torch.tensor([request.ids[:-1]]), use_cache=False).logits[0, request.prompt - 1 :].float()
    wanted = logits.log_softmax(-1)
    chosen = wanted.gather(1, torch.tensor(request.ids[request.prompt :])[:, None])[:, 0]
    off = torch.maximum((chosen - torch.tensor(request.logprobs)).abs().max(), (wanted.max(-1).values - chosen).max())
    return float(off / wanted.std())


def examine(name: str, *, tries: int = 4, prompts: int = 10) -> Line:
    """One row of the table. Raises `ValueError` for an architecture that cannot be built small."""
    model = build(name)
    return Line(
        name,
        type(model).__name__,
        judged(lambda: packing_verdict(model, tries)),
        judged(lambda: engine_verdict(model, prompts)),
    )


def cell(verdict: Verdict) -> str:
    """A verdict as a cell of the table."""
    said = verdict.said.replace("|", "/")
    if verdict.word == "equal":
        return f"equal{': ' + said if said else ''} ({verdict.difference:.0e})"
    return f"{verdict.word}: {said}"


def table(lines: Sequence[Line], absent: dict[str, str]) -> str:
    """The page."""
    equal = [sum(getattr(line, use).word == "equal" for line in lines) for use in ("packing", "engine")]
    rows = [f"| {line.name} | {cell(line.packing)} | {cell(line.engine)} |" for line in lines]
    missing = [f"- {name}: {reason}" for name, reason in absent.items()]
    return PAGE.format(
        version=transformers.__version__,
        count=len(lines),
        packing=equal[0],
        engine=equal[1],
        rows="\n".join(rows),
        missing="\n".join(missing),
    )


PAGE = """# Architectures

Which decoders of transformers {version} can be trained on packed trees and run in the in-process engine, as `python
benchmarks/architectures.py --write docs/architectures.md` found it: {count} forms, of which {packing} are equal in packed training and
{engine} in the engine. A model that is not equal is refused when it is loaded, with the sentence in the table.

There is no list of names. When `leafe` loads a model it tries random ids: a packed tree against its samples one by one, and the batched
engine against the plain forward pass, on the model itself and, beyond every window, chunk and original context that its configuration
names, on a small copy in which that limit is short. *equal* means that the trial passed and that a longer check with other ids agreed.
After it come the kind of attention, the length up to which it holds if there is one (windows, chunks and the like are {window} to 64 tokens
here), and the largest difference, in units of the effect of attention. Each model is small, with random weights, in float32 on a CPU.

A length depends on the model: if its chunks are 8,192 tokens, examples of up to 8,192 tokens are trained on and longer ones refused, and
the engine's `max_context` is cut to it. `train.attention=auto` takes the first of `tree` and `dense` that passes for any length, or else
the one that passes up to the greatest length (`flex` comes before them on a GPU; this table was made on a CPU).

| architecture | packed training | engine |
|---|---|---|
{rows}

## Left out

Encoders with decoders, and architectures that cannot be built with these sizes:

{missing}
""".replace("{window}", str(WINDOW))


def main(arguments: Sequence[str] | None = None) -> int:
    """Examines the named architectures, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures; all by default")
    parser.add_argument("--jsonl", action="store_true", help="lines of JSON as they are found")
    parser.add_argument("--write", default="", help="the page that the table is written to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    warnings.simplefilter("ignore")
    lines, absent = [], {}
    for name in options.names or names():
        try:
            lines.append(examine(name))
        except ValueError as error:
            absent[name] = str(error)
            continue
        print(
            json.dumps(asdict(lines[-1])) if options.jsonl else f"{name}: {cell(lines[-1].packing)} | {cell(lines[-1].engine)}",
            flush=True,
        )
    if options.write:
        with open(options.write, "w", encoding="utf-8") as page:
            page.write(table(lines, absent))
    bad = [line.name for line in lines if {line.packing.word, line.engine.word} & {"WRONG", "TRACEBACK"}]
    print(f"{len(lines)} tried, {len(absent)} not built, wrong: {', '.join(bad) or 'none'}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
