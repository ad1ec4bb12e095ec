"""Noise against published golden values and against torch itself."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from edgediff import ArgumentError
from edgediff.rng import TorchCpuGenerator


@pytest.mark.parametrize(
    ("seed", "n", "golden"),
    [
        (0, 16, [-1.1258, -1.1524, -0.2506, -0.4339]),
        (42, 16, [1.9269, 1.4873]),
        (0, 3, [1.5410, -0.2934, -2.1788]),
    ],
)
def test_golden(seed: int, n: int, golden: list[float]) -> None:
    assert TorchCpuGenerator(seed).randn((n,))[: len(golden)] == pytest.approx(golden, abs=5e-5)


def test_equals_torch() -> None:
    rng = random.Random(0)
    for case in range(200):
        seed = rng.choice([0, 1, 2**32 - 1, 2**32, 2**63, rng.randrange(2**64)])
        generator, ours = (
            torch.Generator().manual_seed(seed - 2**64 if seed >= 2**63 else seed),
            TorchCpuGenerator(seed),
        )
        for _ in range(3):  # successive draws of mixed sizes share one stream (and the scalar path's cached value)
            shape = tuple(rng.randint(1, 7) for _ in range(rng.randint(1, 4)))
            expected = torch.randn(shape, generator=generator).numpy()
            np.testing.assert_allclose(ours.randn(shape), expected, atol=2e-6, rtol=0, err_msg=f"{case} {seed} {shape}")


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "7"])
def test_bad_seed(seed: object) -> None:
    with pytest.raises(ArgumentError, match="seed is"):
        TorchCpuGenerator(seed)  # type: ignore[arg-type]
