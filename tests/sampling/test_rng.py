"""Noise against published golden values, against torch itself, and against a scalar twin of torch's CUDA kernel."""

from __future__ import annotations

import math
import random
from types import ModuleType

import numpy as np
import pytest

from edgediff import ArgumentError
from edgediff.sampling.rng import GENERATORS, TorchCpuGenerator, TorchCudaGenerator, find_generator, philox4x32


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


def test_equals_torch(torch: ModuleType) -> None:
    # Without AVX2 (on Arm, say) torch takes the angle in double precision, and the last digits differ.
    vectorised = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    rng = random.Random(0)
    for case in range(200):
        seed = rng.choice([0, 1, 2**32 - 1, 2**32, 2**63, rng.randrange(2**64)])
        theirs = torch.Generator().manual_seed(seed - 2**64 if seed >= 2**63 else seed)
        ours = TorchCpuGenerator(seed)
        for _ in range(3):  # successive draws of mixed sizes share one stream (and the scalar path's cached value)
            if case % 10:
                shape = tuple(rng.randint(1, 7) for _ in range(rng.randint(1, 4)))
            else:
                shape = tuple(rng.randint(1, 40) for _ in range(3))
            expected, got = torch.randn(shape, generator=theirs).numpy(), ours.randn(shape)
            assert got.shape == shape
            assert np.abs(got - expected).max() <= (1e-6 if vectorised else 4e-6), (seed, shape)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # Random123's kat_vectors for philox4x32-10
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox(counter: str, key: str, words: str) -> None:
    low, high = (int(k, 16) for k in key.split())
    column = np.array([[int(c, 16)] for c in counter.split()], np.uint64)
    assert [f"{w:08x}" for w in philox4x32(column, high << 32 | low)[:, 0].tolist()] == words.split()


@pytest.mark.parametrize(
    ("seed", "calls"),
    [  # printed by torch on GPUs, for draws that every GPU has threads for
        (0, [[-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284]]),
        (
            42,
            [[0.1940, 2.1614, -0.1721, 0.8491], [0.1391, -0.1082, -0.7174, 0.7566], [-0.5187, 1.2268, 0.6255, -0.9117]],
        ),
    ],
)
def test_golden_cuda(seed: int, calls: list[list[float]]) -> None:
    generator = TorchCudaGenerator(seed)
    for golden in calls:
        assert generator.randn((len(golden),)) == pytest.approx(golden, abs=6e-5)


@pytest.mark.parametrize(
    ("seed", "n", "gpu", "tail"),
    [  # the ends of draws of more values than the GPU has threads; the first was drawn with mean 5, variance 5
        (14, 100_000, (48, 1536), [8.2207, 6.5395, 4.2604]),  # RTX A4000, github.com/pytorch/pytorch/issues/97097
        (1, 49 * 12 * 112 * 144, (108, 2048), [0.1549, -0.6797, -0.1656]),  # A100, pytorch/pytorch/issues/143086
        (1, 49 * 12 * 112 * 144, (132, 2048), [-0.6970, -0.7780, 0.3267]),  # H100, the same
    ],
)
def test_golden_by_gpu(seed: int, n: int, gpu: tuple[int, int], tail: list[float]) -> None:
    got = TorchCudaGenerator(seed, *gpu).randn((n,))[-3:]
    assert (got * 5**0.5 + 5 if seed == 14 else got) == pytest.approx(tail, abs=6e-5)


def scalar_kernel(seed: int, offset: int, n: int, multiprocessors: int, per_multiprocessor: int) -> tuple[list, int]:
    """torch's distribution_elementwise_grid_stride_kernel over curand_normal4, by thread; and the next offset."""
    f = np.float32
    grid = min(multiprocessors * (per_multiprocessor // 256), (n + 255) // 256)
    stride = 256 * grid
    rounded = ((n - 1) // (stride * 4) + 1) * stride * 4
    out: list[float] = [math.nan] * n
    for thread in range(stride):
        counter = thread << 64 | offset // 4
        for linear in range(thread, rounded, stride * 4):
            words = [counter >> 32 * k & 0xFFFFFFFF for k in range(4)]
            k0, k1 = seed & 0xFFFFFFFF, seed >> 32
            for _ in range(10):
                p, q = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57
                words = [q >> 32 ^ words[1] ^ k0, q & 0xFFFFFFFF, p >> 32 ^ words[3] ^ k1, p & 0xFFFFFFFF]
                k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
            counter += 1
            normals = []
            for x, y in (words[:2], words[2:]):
                scale = f(2.3283064e-10) * f(6.2831855)
                u, v = f(x) * f(2.3283064e-10) + f(1.1641532e-10), f(float(f(y)) * float(scale) + float(scale) / 2)
                radius = math.sqrt(-2 * math.log(u))
                normals += [radius * math.sin(v), radius * math.cos(v)]
            for k in range(4):
                if linear + stride * k < n:
                    out[linear + stride * k] = normals[k]
    return out, offset + ((n - 1) // (stride * 4) + 1) * 4


@pytest.mark.parametrize("gpu", [(1, 256), (1, 1000), (2, 512)])
@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (2**64 - 3, 0), (2**32 + 7, 4 * (2**32 - 2))])
def test_equals_scalar_kernel(seed: int, offset: int, gpu: tuple[int, int]) -> None:
    generator = TorchCudaGenerator(seed, *gpu)
    generator._counter = offset // 4
    for n in (1, 255, 1025, 257, 3001, 4096, 7):
        expected, offset = scalar_kernel(seed, offset, n, *gpu)
        assert np.abs(generator.randn((n,)) - expected).max() <= 1e-6, n


def test_empty_draw_leaves_the_stream() -> None:
    generator = TorchCudaGenerator(3)
    assert generator.randn((2, 0)).shape == (2, 0)
    assert np.array_equal(generator.randn((5,)), TorchCudaGenerator(3).randn((5,)))


@pytest.mark.parametrize("name", GENERATORS)
def test_is_standard_normal(name: str) -> None:
    x = find_generator(name)(11).randn((1000, 999))
    assert (x.shape, x.dtype) == ((1000, 999), np.float32)
    assert abs(x.mean()) < 5e-3
    assert abs(x.var() - 1) < 1e-2
    assert abs(np.corrcoef(x[:, :-1].ravel(), x[:, 1:].ravel())[0, 1]) < 5e-3


@pytest.mark.parametrize("generator", GENERATORS.values())
@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "7"])
def test_bad_seed(seed: object, generator: type) -> None:
    with pytest.raises(ArgumentError, match=r"seed is .*; it must be a whole number from 0 to 2\*\*64 - 1"):
        generator(seed)


@pytest.mark.parametrize("gpu", [(0, 2048), (-1, -256), (132, 255)])
def test_bad_gpu(gpu: tuple[int, int]) -> None:
    with pytest.raises(ArgumentError, match="there must be at least 1, of at least 256"):
        TorchCudaGenerator(0, *gpu)


@pytest.mark.parametrize("name", ["torch", None, []])
def test_bad_name(name: object) -> None:
    with pytest.raises(ArgumentError, match=r"no rng .*; choose from torch-cpu, torch-cuda"):
        find_generator(name)  # type: ignore[arg-type]
