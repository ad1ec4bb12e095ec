"""Benchmarks may use what tests hold; a test never imports a benchmark. It may run one as a process of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(TESTS.rglob("*.py"))


def imported(source: str) -> Iterator[str]:
    """The absolute names that a file imports, by statement or by a call such as ``import_module("...")``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "importorskip", "__import__", "run_module"):
                yield str(node.args[0].value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_no_test_imports_a_benchmark(path: Path) -> None:
    found = {name for name in imported(path.read_text(encoding="utf-8")) if name.split(".")[0] == "benchmarks"}
    assert found == set()


@pytest.mark.parametrize(
    "source",
    [
        "import benchmarks.common as c",
        "def f():\n    from benchmarks.common import table",
        "importlib.import_module('benchmarks.gpu')",
        "x = pytest.importorskip('benchmarks')",
    ],
)
def test_imports_are_found(source: str) -> None:
    assert {name.split(".")[0] for name in imported(source)} == {"benchmarks"}
