"""The programs that a run may start as its server, vLLM and SGLang, and the options by which each receives a recipe's settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

ADAPTER = "adapter"  # the folder of a checkpoint with the adapter that was merged into it
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # ranks that vLLM can reserve room for


@dataclass(frozen=True)
class Told:
    """The settings for any program: the precision, the longest context in tokens (0 for the model's), the number of GPUs that the model is
    split over, the share of each GPU's memory that it takes. With `rank` it takes adapters of that rank while it runs."""

    dtype: str
    max_context: int
    tensor_parallel: int
    memory_share: float
    rank: int = 0


@dataclass(frozen=True)
class Program:
    """A server's program. `ours` are the options that a run sets itself, with what to type in place of each, empty for nothing.

    `key` is the environment variable that it reads its key from; without one the key is passed in a file for its option `--config`.
    `version` is the path that returns its version, in a field of that name.
    """

    kind: str
    title: str
    name: str
    module: tuple[str, ...]
    install: str
    model: str
    ours: Mapping[str, str]
    options: Callable[[Told], tuple[str, ...]]
    surroundings: Mapping[str, str]
    version: str
    key: str = ""

    @property
    def command(self) -> str:
        """The setting to type for a program in a separate environment."""
        return f"engine.command=[{self.kind}-env/bin/{self.name}]"


def _vllm(told: Told) -> tuple[str, ...]:
    return (
        *("--dtype", told.dtype),
        *(("--max-model-len", str(told.max_context)) if told.max_context else ()),
        *("--tensor-parallel-size", str(told.tensor_parallel)),
        *("--gpu-memory-utilization", f"{told.memory_share:g}"),
        "--enable-prefix-caching",
        *("--logprobs-mode", "processed_logprobs"),
        *("--generation-config", "vllm"),  # not the model's config, whose limit of tokens would cut replies
        "--disable-uvicorn-access-log",
        *(("--enable-lora", "--max-lora-rank", str(min(rank for rank in RANKS if rank >= told.rank))) if told.rank else ()),
    )


def _sglang(told: Told) -> tuple[str, ...]:
    return (
        *("--dtype", told.dtype),
        *(("--context-length", str(told.max_context)) if told.max_context else ()),
        *("--tp-size", str(told.tensor_parallel)),
        *("--mem-fraction-static", f"{told.memory_share:g}"),
        *("--sampling-defaults", "openai"),  # not the model's config
        *("--log-level-http", "warning"),
    )


SET_BY_NOBODY = dict.fromkeys(("--api-key", "--config", "--host", "--port", "--served-model-name", "--trust-remote-code"), "")
VLLM = Program(
    kind="vllm",
    title="vLLM",
    name="vllm",
    module=("-m", "vllm.entrypoints.openai.api_server"),
    install="python -m venv vllm-env && vllm-env/bin/pip install vllm==0.30.0",  # the version that was tried
    model="--model",
    ours={
        "--model": "model=",
        "--model-tag": "model=",
        "--dtype": "engine.dtype=",
        "--max-model-len": "engine.max_context=",
        "--tensor-parallel-size": "engine.tensor_parallel=",
        "-tp": "engine.tensor_parallel=",
        "--gpu-memory-utilization": "engine.memory_share=",
        "--disable-uvicorn-access-log": "",
        "--enable-lora": "train.lora.keep=",
        "--max-lora-rank": "train.lora.rank=",
        "--enable-prefix-caching": "",
        "--generation-config": "",
        "--headless": "",
        "--logprobs-mode": "",
        "--no-enable-prefix-caching": "",
        "--root-path": "",
        "--ssl-certfile": "",
        "--ssl-keyfile": "",
        "--uds": "",
        **SET_BY_NOBODY,
    },
    options=_vllm,
    surroundings={"VLLM_NO_USAGE_STATS": "1"},
    version="/version",
    key="VLLM_API_KEY",
)
SGLANG = Program(
    kind="sglang",
    title="SGLang",
    name="sglang",
    module=("-m", "sglang.launch_server"),
    install="python -m venv sglang-env && sglang-env/bin/pip install sglang",
    model="--model-path",
    ours={
        "--model": "model=",
        "--model-path": "model=",
        "--dtype": "engine.dtype=",
        "--context-length": "engine.max_context=",
        "--tp-size": "engine.tensor_parallel=",
        "--tp": "engine.tensor_parallel=",
        "--tensor-parallel-size": "engine.tensor_parallel=",
        "--mem-fraction-static": "engine.memory_share=",
        "--log-level-http": "",
        "--sampling-defaults": "",
        "--skip-tokenizer-init": "",
        "--ssl-certfile": "",
        "--ssl-keyfile": "",
        **SET_BY_NOBODY,
    },
    options=_sglang,
    surroundings={},
    version="/get_server_info",
)
PROGRAMS = {program.kind: program for program in (VLLM, SGLANG)}
