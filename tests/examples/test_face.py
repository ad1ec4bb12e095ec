"""What a reader may copy: short files on the public face alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import edgediff
from edgediff import examples

FILES = sorted(p for p in Path(examples.__path__[0]).glob("*.py") if p.name != "__init__.py")


def test_there_are_examples() -> None:
    assert [p.stem for p in FILES] == ["batch", "desktop", "service"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_short_and_public(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 80
    used = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.startswith("edgediff.")]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert not (node.module or "").startswith("edgediff")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "edgediff":
            used.add(node.attr)
    assert "load" in used
    assert used <= set(edgediff.__all__)
