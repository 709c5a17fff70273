"""The shape of the code: the few numbers that the project keeps, and habits that a program can see."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
Function = ast.FunctionDef | ast.AsyncFunctionDef

SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted((ROOT / "leafe").rglob("*.py"))}


@cache
def trees() -> dict[str, ast.Module]:
    """Parsed when it is first asked for, since every process of a test run imports this file and one runs it."""
    return {name: ast.parse(text) for name, text in SOURCES.items() if text.strip()}


@cache
def tests() -> dict[str, ast.Module]:
    """The tests, likewise."""
    return {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "tests").rglob("*.py"))}


def lines() -> dict[str, int]:
    return {name: SOURCES[name].count("\n") for name in trees()}


def functions() -> Iterator[tuple[str, Function]]:
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield f"{name}:{node.lineno} {node.name}", node


def length(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def public(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Public functions and classes of a module, and the public methods of its public classes."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{prefix}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}.{node.name}")


def own_arguments(node: Function) -> list[ast.arg]:
    positional = [*node.args.posonlyargs, *node.args.args]
    return positional[1:] if positional and positional[0].arg in {"self", "cls"} else positional


def test_no_file_is_longer_than_400_lines() -> None:
    assert {name: count for name, count in lines().items() if count > 400} == {}


def test_the_median_file_has_at_most_150_lines() -> None:
    assert median(lines().values()) <= 150


def test_no_function_is_longer_than_60_lines() -> None:
    assert {name: length(node) for name, node in functions() if length(node) > 60} == {}


def test_the_median_function_has_at_most_10_lines() -> None:
    assert median(length(node) for _, node in functions()) <= 10


def test_every_module_has_a_docstring() -> None:
    assert [name for name, tree in trees().items() if not ast.get_docstring(tree)] == []


def test_public_names_have_docstrings() -> None:
    named = [item for name, tree in trees().items() for item in public(tree.body, name)]
    bare = [name for name, node in named if not ast.get_docstring(node)]
    assert len(bare) <= 0.05 * len(named), bare


def test_every_argument_and_result_is_annotated() -> None:
    bare = []
    for name, node in functions():
        arguments = [*own_arguments(node), *node.args.kwonlyargs, *filter(None, [node.args.vararg, node.args.kwarg])]
        if node.returns is None or any(argument.annotation is None for argument in arguments):
            bare.append(name)
    assert bare == []


def test_functions_take_at_most_four_positional_arguments() -> None:
    kernels = ("_part", "_join")  # triton takes what a kernel is given by position only
    counts = {
        name: len(own_arguments(node))
        for name, node in functions()
        if not (name.startswith("leafe/engines/paged.py") and node.name in kernels)
    }
    assert {name: count for name, count in counts.items() if count > 4} == {}


def test_nothing_but_the_command_line_prints() -> None:
    def prints(tree: ast.AST) -> bool:
        return any(
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" for node in ast.walk(tree)
        )

    assert [name for name, tree in trees().items() if prints(tree) and not name.startswith("leafe/cli/")] == []


def named_in(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield "leafe" if node.level else str(node.module)
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_our_own_modules_are_imported_at_the_top() -> None:
    lazy = [
        f"{name} imports {module}"
        for name, function in functions()
        for node in ast.walk(function)
        for module in named_in(node)
        if module.split(".")[0] == "leafe"
        and not name.startswith("leafe/cli/__init__.py")  # commands are loaded when they are called
    ]
    assert lazy == []


def test_nothing_is_mocked() -> None:
    mocking = [
        name
        for name, tree in {**trees(), **tests()}.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and "unittest.mock" in ",".join(named_in(node))
    ]
    assert mocking == []


def test_test_names_are_sentences() -> None:
    short = []
    for name, tree in tests().items():
        for node in ast.walk(tree) if name.startswith("test_") else ():
            if isinstance(node, Function) and node.name.startswith("test_") and node.name.count("_") < 3:
                short.append(f"{name}: {node.name}")
    assert short == []
