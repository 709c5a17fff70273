"""The reasons against a configuration that are known without a library for models.

The folder of its model, its environment, tasks and prompts are checked; whether the model can be loaded is not.
"""

from __future__ import annotations

from pathlib import Path

from leafe.envs import registry
from leafe.envs.settled import drawn, let_go
from leafe.model_folder import check_small_files, locate
from leafe.nano import CHECKPOINTS
from leafe.prompts import load_prompts
from leafe.run import RunDirectory, check_checkpoint
from leafe.settings import RunConfig


def refuse(config: RunConfig, out: Path | None = None) -> None:
    """Raises `UserError` for a configuration that cannot be carried out, and for a folder `out` that holds something else."""
    base = check_checkpoint(locate(config.model, CHECKPOINTS))
    if config.engine.kind == "transformers":
        check_small_files(base)
    environment = registry.make(config.environment.name, config.environment.args)
    try:
        load_prompts(config.prompts, environment.name, remind=config.remind, actions_help=environment.actions_help)
        for split in dict.fromkeys((config.tasks.train_split, config.tasks.test_split)):
            drawn(environment, split, 1, config.tasks.seed)
    finally:
        let_go(environment)
    if out and out.is_dir() and any(entry.name not in ("lock", "config.yaml.tmp") for entry in out.iterdir()):
        RunDirectory.open(out, config).close()
