"""A decoder's pictures have the size that was asked for, or it is said that they have not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import edgediff
from edgediff import EngineError


@pytest.mark.parametrize("factor", [2, 8, 16])
def test_a_factor_that_the_decoder_does_not_have(damaged: Callable[[], Path], factor: int) -> None:
    """Its graph leaves sizes open, so that only its pictures tell."""
    root = damaged()
    data = json.loads((root / "bundle.json").read_text(encoding="utf-8"))
    data["latent"] |= {"factor": factor, "size_multiple": 16}
    (root / "bundle.json").write_text(json.dumps(data), encoding="utf-8")
    said = r"vae_decoder gave float32\[1, 3, \d+, \d+\] as sample; it must be float32\[1, 3, 32, 32\]"
    with pytest.raises(EngineError, match=said):
        edgediff.load(root)("a cat", seed=1, num_inference_steps=1)
