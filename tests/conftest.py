"""What holds for every test: one thread each, no network, and no clock that could fail a slow machine."""

from __future__ import annotations

import fcntl
import gc
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

settings.register_profile("leafe", deadline=None, print_blob=True, max_examples=50)  # other ones in each run
settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=1000)  # pytest --hypothesis-profile=thorough
settings.load_profile("leafe")

# Begun first, since a file is run by one process: none of them is left at the end, when the other processes have nothing to do.
LONG = [
    "sandbox",
    "sharding",
    "jobs",
    "scienceworld",
    "cli",
    "programs",
    "serve",
    "placement",
    "reproduce",
    "serve_runs",
    "processes",
    "engine_transformers",
    "grpo",
    "second_stages",
    "trials",
    "trees",
    "engine_steps",
    "teachers",
    "sketches",
    "engine_scores",
]

Once = Callable[[str, Callable[[Path], object]], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take long first."""
    order = {f"test_{name}": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="module", autouse=True)
def _young() -> None:
    """Leaves what was imported, and what earlier files made, out of garbage collections, each of which would walk through all of it.

    A training ends with a whole collection, and PyTorch has a million objects.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes a folder by a name once for all files and all processes of a test run; nobody may write into it afterwards."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, partial = shared / f"once-{name}", shared / f"making-{name}"
        with open(shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                make(partial)
                partial.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def taught(once: Once) -> Path:
    """A small Llama that plays `lookup` a little, of `taught.teach`."""
    from taught import teach

    return once("taught", teach)
