"""The floors of the house: each module imports from lower floors only, type-only imports included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "leafe"

# The first part of a module's name below `leafe`, and its floor.
FLOORS = {
    "": 0,
    "records": 0,
    "encoding": 0,
    "errors": 0,
    "digest": 0,
    "jsonl": 0,
    "manifest": 0,
    "growing": 0,
    "yaml_text": 0,
    "address": 0,
    "lifeline": 0,
    "loops": 0,
    "imports": 0,
    "controls": 0,
    "hardware": 0,
    "model_folder": 0,
    "group": 0,
    "shown": 0,
    "folders": 0,
    "config": 1,
    "settings": 1,
    "differing": 1,
    "known_methods": 1,
    "stages": 1,
    "run": 1,
    "recall": 1,
    "replies": 1,
    "chat": 1,
    "comparing": 1,
    "history": 1,
    "progress": 1,
    "doctor": 1,
    "envs": 2,
    "engines": 2,
    "prompts": 2,
    "forest": 3,
    "worlds": 3,
    "distillation": 4,
    "training": 5,
    "evaluation": 5,
    "nano": 5,
    "proofs": 6,
    "lab": 6,
    "on_policy": 6,
    "sent": 6,
    "tracked": 6,
    "results": 6,
    "preflight": 6,
    "experiment": 6,
    "measuring": 6,
    "memory": 6,
    "methods": 7,
    "viewer": 7,
    "scale": 7,
    "compose": 8,
    "serving": 8,
    "launching": 8,
    "spreading": 8,
    "trackers": 8,
    "terminal": 8,
    "refusals": 8,
    "reproduce": 9,
    "api": 9,
    "cli": 9,
    "__main__": 9,
}

# Folders on these floors do not know of each other, so that each can be replaced alone.
APART = {2, 3, 5, 7}

# The only modules that may import torch: everything else works where it is not installed.
TORCH = (
    "leafe.engines.loading",
    "leafe.engines.transformers",
    "leafe.engines.slots",
    "leafe.engines.sampling",
    "leafe.engines.scores",
    "leafe.engines.steps",
    "leafe.engines.paged",
    "leafe.engines.exchange",
    "leafe.engines.trial",
    "leafe.engines.twin",
    "leafe.training",
    "leafe.trackers",
    "leafe.nano",
    "leafe.distillation.attention",
    "leafe.distillation.pack",
    "leafe.distillation.passes",
    "leafe.distillation.trial",
)


def module_name(path: Path, package: Path = PACKAGE) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """The folder or file below `leafe` that a module belongs to."""
    return [*module.split("."), ""][1]


def imports(tree: ast.AST, module: str, is_package: bool = False) -> Iterator[str]:
    """Every module that a file names in an import, those inside functions and `if TYPE_CHECKING` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".") if is_package else module.split(".")[:-1]
            base = (
                ".".join([*above[: len(above) - node.level + 1], *filter(None, [node.module])]) if node.level else str(node.module)
            )
            # `from leafe import x` and `from leafe.methods import x` may name modules.
            yield from (f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base for alias in node.names)


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return name.startswith("leafe.") and (path.is_dir() or path.with_suffix(".py").is_file())


def objection(module: str, imported: str) -> str | None:
    """Why `module` may not import `imported`, or None."""
    if (module, imported) == ("leafe", "leafe.api"):  # the door, which is opened when somebody first asks
        return None
    mine, theirs = FLOORS.get(room(module)), FLOORS.get(room(imported))
    if mine is None or theirs is None:
        return f"{module} or {imported} has no floor; give it one in tests/test_layers.py"
    if theirs > mine:
        return f"{module} (floor {mine}) imports {imported} (floor {theirs})"
    if theirs == mine and mine in APART and room(module) != room(imported):
        return f"{module} and {imported} are siblings on floor {mine}"
    contract = ("leafe.methods", "leafe.methods.base")
    if room(module) == room(imported) == "methods" and module not in ("leafe.methods", imported) and imported not in contract:
        return f"{module} and {imported} are methods, each of which is read alone"
    return None


FILES = sorted(PACKAGE.rglob("*.py"))


@cache
def imported(path: Path) -> tuple[str, ...]:
    """Every module that a file of ours names in an import."""
    return tuple(imports(ast.parse(path.read_text(encoding="utf-8")), module_name(path), path.name == "__init__.py"))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_each_module_imports_from_lower_floors_only(path: Path) -> None:
    module = module_name(path)
    objections = [objection(module, named) for named in imported(path) if named.split(".")[0] == "leafe"]
    assert [reason for reason in objections if reason] == []


def test_torch_is_imported_where_models_are_and_nowhere_else() -> None:
    for path in FILES:
        module = module_name(path)
        named = {name.split(".")[0] for name in imported(path)}
        allowed = any(module == place or module.startswith(place + ".") for place in TORCH)
        assert allowed or "torch" not in named, f"{module} imports torch"


def test_ray_is_imported_in_one_place() -> None:
    importing = {module_name(path) for path in FILES if "ray" in {name.split(".")[0] for name in imported(path)}}
    assert importing == {"leafe.scale.cluster"}


def test_every_folder_with_code_is_a_package() -> None:
    assert [folder for folder in {path.parent for path in FILES} if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("leafe.forest.play", "from leafe.records import Task", ["leafe.records"]),
        ("leafe.forest.play", "from . import nothing", ["leafe.forest"]),
        ("leafe.forest.play", "from .tree import Tree", ["leafe.forest.tree"]),
        ("leafe.forest.play", "from ..training import nothing", ["leafe.training"]),
        ("leafe.forest.play", "def f():\n    from leafe.cli import main", ["leafe.cli"]),
        ("leafe.forest.play", "if TYPE_CHECKING:\n    import leafe.cli", ["leafe.cli"]),
        ("leafe.forest.play", "from leafe import training", ["leafe.training"]),
    ],
)
def test_an_import_is_seen_however_it_is_written(module: str, source: str, expected: list[str]) -> None:
    assert list(imports(ast.parse(source), module)) == expected


@pytest.mark.parametrize(
    ("module", "imported", "refused"),
    [
        ("leafe.config", "leafe.records", False),
        ("leafe.run", "leafe.config", False),
        ("leafe.records", "leafe.config", True),
        ("leafe.envs.world", "leafe.envs.base", False),
        ("leafe.envs.world", "leafe.engines.base", True),
        ("leafe.forest.play", "leafe.training", True),
        ("leafe.nano.build", "leafe.distillation.pack", False),
        ("leafe.nano.build", "leafe.training.sft", True),
        ("leafe.methods.leafe", "leafe.training.sft", False),
        ("leafe.methods.leafe", "leafe.methods.grpo", True),
        ("leafe.methods", "leafe.methods.grpo", False),
        ("leafe.methods.leafe", "leafe.methods.base", False),
        ("leafe.methods.leafe", "leafe.viewer", True),
        ("leafe.somewhere", "leafe.records", True),
    ],
)
def test_the_rule_refuses_what_it_should(module: str, imported: str, refused: bool) -> None:
    assert (objection(module, imported) is not None) == refused
