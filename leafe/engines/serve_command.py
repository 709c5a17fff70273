"""The command that starts a server for this run: which program, with which options. Nothing is started here, and no shell reads it.

The options follow from the recipe, so that a restarted server samples as the one before it did. `arguments` are the user's and may not
repeat options that are set here. The key is no part of the command, since it would be visible in the list of processes.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leafe.engines.serve_programs import RANKS, VLLM, Program, Told
from leafe.errors import UserError


@dataclass(frozen=True)
class ServeCommand:
    """A recipe's settings of the server that it starts. Raises `UserError` for arguments that cannot be passed on.

    `command` is the program with its first arguments: empty for the one beside this Python or on PATH, a Python that has it, or
    any other program with the same options. `max_context` is in tokens, 0 for that of the model; `memory_share` is of each GPU; `rank` is
    that of the adapters that it takes while it runs, 0 for none.
    """

    command: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    max_context: int = 0
    tensor_parallel: int = 1
    memory_share: float = 0.9
    server: Program = VLLM
    rank: int = 0

    def __post_init__(self) -> None:
        for name, texts in {"command": self.command, "arguments": self.arguments}.items():
            if broken := [text for text in texts if not text or not text.isprintable()]:
                raise UserError(f"engine.{name}: wanted texts without line breaks, found {broken[0]!r:.80}")
        _check_arguments(self.arguments, self.server)
        if self.rank > RANKS[-1]:
            raise UserError(
                f"train.lora.rank: wanted at most {RANKS[-1]}, which is the most that {self.server.title} takes, found {self.rank};"
                " type a smaller one, or train.lora.keep=false to serve merged weights"
            )

    def program(self) -> tuple[str, ...]:
        """The program and its first arguments. Raises `UserError` where it is missing or cannot be run."""
        server = self.server
        if not self.command:
            if not (found := shutil.which(str(Path(sys.executable).parent / server.name)) or shutil.which(server.name)):
                raise UserError(
                    f"engine.kind={server.kind} starts the program {server.name}, which is neither beside this Python nor on PATH; make"
                    f" an environment for it ({server.install}) and type {server.command}"
                )
            return (found, "serve")
        named, *more = self.command
        if not (found := shutil.which(str(Path(named).expanduser()) if "/" in named else named)):
            raise UserError(f"engine.command names {named!r:.200}, which is no program that can be run; {self._mend(named)}")
        if more:
            return (found, *more)
        # The link is not resolved: the Python of an environment is a link to one outside of it.
        return (found, *server.module) if Path(named).name.startswith("python") else (found, "serve")

    def line(self, model: Path, name: str, port: int, key_file: Path | None = None) -> list[str]:
        """The whole command for a server that listens on this machine only and serves the folder `model` as `name`.

        `key_file` is a file of options with the key, for a program that does not read the key from an environment variable.
        """
        program, folder = self.program(), str(model.absolute())
        told = Told(self.dtype, self.max_context, self.tensor_parallel, self.memory_share, self.rank)
        by_place = program[-1] == "serve" and self.server is VLLM
        return [
            *program,
            *((folder,) if by_place else (self.server.model, folder)),
            *("--served-model-name", name),
            *("--host", "127.0.0.1", "--port", str(port)),
            *self.server.options(told),
            *(("--config", str(key_file)) if key_file else ()),
            *self.arguments,
        ]

    def in_settings(self, words: str) -> str:
        """The settings for options that a server's last words name, as the end of a sentence; empty if they name none."""
        said = re.sub(r"[\s_]", "-", words.lower())
        # Of several words, since every sentence may hold `model`.
        named = {option[2:]: setting[:-1] for option, setting in self.server.ours.items() if setting and "-" in option[2:]}
        return "".join(f"; {setting} sets {option}" for option, setting in named.items() if option in said)

    def _mend(self, named: str) -> str:
        if Path(named).expanduser().is_file():
            return f"type: chmod +x {named}"
        return f"make an environment for {self.server.title} ({self.server.install}) and type {self.server.command}"


def _check_arguments(arguments: Sequence[str], server: Program) -> None:
    """Refuses options that are set here, however they are written: with `=`, with underscores, or abbreviated."""
    if arguments and not arguments[0].startswith("-"):
        raise UserError(
            f"engine.arguments: wanted options of {server.name} serve, as [--max-num-seqs, '64'], found {arguments[0]!r:.80} first"
        )
    for argument in arguments:
        option = argument.partition("=")[0].replace("_", "-")
        for ours, instead in server.ours.items():
            if option == ours or (len(option) > 2 and option.startswith("--") and ours.startswith(option)):
                mend = f"type {instead}VALUE" if instead else "leave it out"
                raise UserError(f"engine.arguments: {argument!r:.80} is set by leafe itself ({ours}); {mend}")
