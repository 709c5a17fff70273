"""The command that starts a server for this run: which program, with which options. Nothing is started here, and no shell reads it.

What the options say follows from the recipe, so that a server that is started again samples as the one before it did. `arguments` are the
user's own and may not repeat what is set here. The key is no part of the command: whoever lists processes would see it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leafe.errors import UserError

VERSION = "0.30.0"  # what this was tried with
MODULE = ("-m", "vllm.entrypoints.openai.api_server")
INSTALL = f"python -m venv vllm-env && vllm-env/bin/pip install vllm=={VERSION}"
COMMAND = "engine.command=[vllm-env/bin/vllm]"

# Options that are set here, and what to type instead where something can be.
OURS = {
    "--model": "model=",
    "--model-tag": "model=",
    "--dtype": "engine.dtype=",
    "--max-model-len": "engine.max_context=",
    "--tensor-parallel-size": "engine.tensor_parallel=",
    "-tp": "engine.tensor_parallel=",
    "--gpu-memory-utilization": "engine.memory_share=",
    "--api-key": "",
    "--config": "",
    "--disable-uvicorn-access-log": "",
    "--enable-prefix-caching": "",
    "--generation-config": "",
    "--headless": "",
    "--host": "",
    "--logprobs-mode": "",
    "--no-enable-prefix-caching": "",
    "--port": "",
    "--root-path": "",
    "--served-model-name": "",
    "--ssl-certfile": "",
    "--ssl-keyfile": "",
    "--trust-remote-code": "",
    "--uds": "",
}


@dataclass(frozen=True)
class ServeCommand:
    """What a recipe says about a server that it starts. Raises `UserError` for arguments that cannot be passed on.

    `command` is the program with its first arguments: empty for the `vllm` beside this Python or on PATH, a Python that has vLLM, or
    whatever else takes vLLM's options. `max_context` is in tokens, 0 for what the model has; `memory_share` is of each GPU.
    """

    command: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    max_context: int = 0
    tensor_parallel: int = 1
    memory_share: float = 0.9

    def __post_init__(self) -> None:
        for name, texts in {"command": self.command, "arguments": self.arguments}.items():
            if broken := [text for text in texts if not text or not text.isprintable()]:
                raise UserError(f"engine.{name}: wanted texts without line breaks, found {broken[0]!r:.80}")
        _check_arguments(self.arguments)

    def program(self) -> tuple[str, ...]:
        """The program and its first arguments. Raises `UserError` where it is missing or cannot be run."""
        if not self.command:
            if not (found := shutil.which(str(Path(sys.executable).parent / "vllm")) or shutil.which("vllm")):
                raise UserError(
                    "engine.kind=vllm starts the program vllm, which is neither beside this Python nor on PATH; give it an environment of"
                    f" its own ({INSTALL}) and type {COMMAND}"
                )
            return (found, "serve")
        named, *more = self.command
        if not (found := shutil.which(str(Path(named).expanduser()) if "/" in named else named)):
            raise UserError(f"engine.command names {named!r:.200}, which is no program that can be run; {_mend(named)}")
        if more:
            return (found, *more)
        # A name that is not resolved: the Python of an environment is a link to one outside of it.
        return (found, *MODULE) if Path(named).name.startswith("python") else (found, "serve")

    def line(self, model: Path, name: str, port: int) -> list[str]:
        """The whole command for a server that listens on this machine alone and serves the folder `model` as `name`."""
        program = self.program()
        return [
            *program,
            *((str(model.absolute()),) if program[-1] == "serve" else ("--model", str(model.absolute()))),
            *("--served-model-name", name),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--dtype", self.dtype),
            *(("--max-model-len", str(self.max_context)) if self.max_context else ()),
            *("--tensor-parallel-size", str(self.tensor_parallel)),
            *("--gpu-memory-utilization", f"{self.memory_share:g}"),
            "--enable-prefix-caching",
            *("--logprobs-mode", "processed_logprobs"),
            *("--generation-config", "vllm"),  # not the model's own, whose limit of tokens would cut replies
            "--disable-uvicorn-access-log",
            *self.arguments,
        ]


def _mend(named: str) -> str:
    if Path(named).expanduser().is_file():
        return f"type: chmod +x {named}"
    return f"make an environment for vLLM ({INSTALL}) and type {COMMAND}"


def _check_arguments(arguments: Sequence[str]) -> None:
    """Refuses options that are set here, however they are written: with `=`, with underscores, or cut short."""
    if arguments and not arguments[0].startswith("-"):
        raise UserError(
            f"engine.arguments: wanted options of vllm serve, as [--max-num-seqs, '64'], found {arguments[0]!r:.80} first"
        )
    for argument in arguments:
        option = argument.partition("=")[0].replace("_", "-")
        for ours, instead in OURS.items():
            if option == ours or (len(option) > 2 and option.startswith("--") and ours.startswith(option)):
                mend = f"type {instead}VALUE" if instead else "leave it out"
                raise UserError(f"engine.arguments: {argument!r:.80} is set by leafe itself ({ours}); {mend}")
