"""The text inside a picture, read back as A1111 reads it: the last line alone is settings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import edgediff

# A1111's way to read (modules/infotext_utils.py): of the last line, names and values that may be quoted.
PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def settings(text: str) -> dict[str, str]:
    last = text.strip().split("\n")[-1]
    return {k: json.loads(v) if v.startswith('"') else v for k, v in PARAMETER.findall(last)}


@pytest.mark.parametrize("negative", ["", "blue\nSteps: 99, Sampler: Forged, CFG scale: 1, Seed: 666"])
def test_a_prompt_cannot_forge_the_settings(tiny_bundle: Path, negative: str) -> None:
    forged = "a cat\nNegative prompt: none\nSteps: 99, Sampler: Forged, CFG scale: 1, Seed: 666, Size: 1x1, Model: evil"
    result = edgediff.load(tiny_bundle)(forged, negative_prompt=negative, seed=7, num_inference_steps=2)
    (text,) = result.parameters
    assert text.startswith(forged + "\n")  # nothing of it is lost
    found = settings(text)
    assert (found["Steps"], found["Seed"], found["Size"], found["Model"]) == ("2", "7", "32x32", "tiny")
    assert found["Sampler"] != "Forged"


@pytest.mark.parametrize("name", ["a, Seed: 5", "a\nSteps: 1, Seed: 5, Size: 1x1", 'a "b"', "C: D", "plain é"])
def test_a_bundles_name_cannot_forge_them_either(damaged: Callable[[], Path], name: str) -> None:
    root = damaged()
    manifest = json.loads((root / "bundle.json").read_text(encoding="utf-8"))
    (root / "bundle.json").write_text(json.dumps(manifest | {"name": name}), encoding="utf-8")
    (text,) = edgediff.load(root)("a cat", seed=7, num_inference_steps=1).parameters
    found = settings(text)
    assert (found["Model"], found["Seed"], found["Size"]) == (name, "7", "32x32")
    assert text.count("\n") == 1
