"""torch's CUDA noise: the kernels' Philox against the NumPy generator, which is held against published GPU values."""

from __future__ import annotations

import numpy as np
import pytest

from edgediff.sampling.rng import TorchCudaGenerator, philox4x32

kernels = pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")

# One GPU smaller than a latent, odd sizes, sizes of several rounds.
CASES = [(7, 132, 16384), (0, 132, 65536), (2**63 + 11, 2, 20000), (2**32 + 5, 1, 10001), (1, 16, 3), (42, 2, 1)]


@pytest.mark.parametrize(("seed", "multiprocessors", "size"), CASES)
def test_draws_equal_the_generator(seed: int, multiprocessors: int, size: int) -> None:
    generator = TorchCudaGenerator(seed, multiprocessors)
    for draw in range(3):
        threads, made = generator.place(size)
        assert made == draw
        out = np.full(size, np.nan, np.float32)
        kernels.normals(seed=seed, draw=draw, threads=threads, out=out)
        np.testing.assert_allclose(out, generator.randn((size,)), rtol=0, atol=4e-6)


def test_golden_values() -> None:
    """Seed 0 on a large GPU (stored by other projects from torch itself)."""
    out = np.empty(16384, np.float32)
    kernels.normals(seed=0, draw=0, threads=TorchCudaGenerator(0).place(out.size)[0], out=out)
    np.testing.assert_allclose(out[:4], [-0.9247, -0.4253, -2.6438, 0.1452], atol=5e-5)


@pytest.mark.parametrize("threads", [1, 3, 100, 256])
def test_neighbours_in_different_turns(threads: int) -> None:
    """The host draws 64 neighbours at once, which lie in one turn of the threads or in many."""
    values = np.empty(1000, np.float32)
    kernels.normals(seed=5, draw=2, threads=threads, out=values)
    rounds = -(-values.size // (4 * threads))
    counter = np.zeros((4, rounds, threads), np.uint64)
    counter[0], counter[2] = 2 * rounds + np.arange(rounds)[:, None], np.arange(threads)
    x, y = np.moveaxis(philox4x32(counter, 5).astype(np.float32).reshape(2, 2, rounds, threads), 1, 0)
    radius = np.sqrt(-2 * np.log((x * 2.0**-32 + 2.0**-33).astype(np.float32).astype(np.float64)))
    angle = 2 * np.pi * (y.astype(np.float64) * 2.0**-32 + 2.0**-33)
    pairs = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)  # first and second pair, sine and cosine
    expected = np.moveaxis(pairs.reshape(4, rounds, threads), 0, 1).reshape(-1)[: values.size]
    np.testing.assert_allclose(values, expected, rtol=0, atol=4e-6)


def test_a_draw_of_another_size_has_no_place() -> None:
    generator = TorchCudaGenerator(3, 1)
    generator.randn((10,))
    assert generator.place(10)[1] == 1
    assert generator.place(100_000)[1] is None


@pytest.mark.parametrize("threads", [0, -1, 2**40])
def test_bad_threads(threads: int) -> None:
    with pytest.raises((ValueError, TypeError)):
        kernels.normals(seed=0, draw=0, threads=threads, out=np.empty(4, np.float32))
