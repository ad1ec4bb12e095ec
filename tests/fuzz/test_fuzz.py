"""Some cases of every kind, always the same; ``python -m tests.fuzz --cases 10000`` is the long run."""

from __future__ import annotations

from pathlib import Path

import pytest

from .__main__ import fuzz, kind_of

CASES = {"bundles": 200, "foreign": 50, "manifests": 500, "arguments": 500, "lines": 100, "pictures": 100, "loras": 50}
NEEDS = {
    "foreign": ("onnx",),
    "pictures": ("onnx", "PIL"),
    "loras": ("torch", "diffusers"),
    "arguments": ("hypothesis",),
    "lines": ("hypothesis",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_found(name: str, tmp_path: Path) -> None:
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    outcomes = fuzz(kind_of(name), range(CASES[name]), 0, tmp_path)
    assert [outcome for outcome in outcomes if not outcome.fine] == []
    assert sum(outcome.verdict == "worked" for outcome in outcomes) >= CASES[name] // 20, "the damage is too great"
    assert sum(outcome.verdict == "refused" for outcome in outcomes) >= CASES[name] // 20, "there is no damage"
