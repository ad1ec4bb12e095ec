"""Normal noise equal to PyTorch's generators, without PyTorch.

``torch.Generator("cpu")`` is MT19937, seeded by Knuth's initialisation with the low 32 bits of the seed, which is what
``numpy.random.RandomState(int)`` does too. ``torch.randn`` shapes its raw 32-bit draws by Box-Muller in one of two
ways, by size (ATen/native/cpu/DistributionTemplates.h).

``torch.Generator("cuda")`` is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): every
GPU thread has a counter of its own, so a large draw depends on how many threads the GPU holds
(ATen/native/cuda/DistributionTemplates.h, cuRAND's curand_normal.h).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..checks import is_whole, one_of
from ..errors import ArgumentError, shown

Float64 = NDArray[np.float64]
TWO_PI = float(np.float32(2 * math.pi))  # as torch and cuRAND have it
BLOCK = 256  # CUDA threads
HALF, MASK = np.uint64(32), np.uint64(0xFFFFFFFF)


class Generator(Protocol):
    """One random stream."""

    def randn(self, shape: tuple[int, ...]) -> Float32:
        """The next standard normal values, ``shape`` float32 in C order."""


class TorchCpuGenerator:
    """A random stream: ``TorchCpuGenerator(7).randn(shape)`` is ``torch.randn(shape, generator=...)`` for seed 7.

    Equal to within float32 rounding: 1e-6, or 4e-6 where torch runs without AVX2 and takes the angle in double.
    ``ArgumentError`` for a seed outside 0 .. 2**64 - 1. Not shared between threads.
    """

    def __init__(self, seed: int) -> None:
        self._twister = np.random.RandomState(_checked_seed(seed) & 0xFFFFFFFF)
        self._cached: float | None = None  # the scalar path's second normal

    def _raw(self, n: int) -> NDArray[np.uint32]:
        return np.frombuffer(self._twister.bytes(4 * n), dtype="<u4")

    def randn(self, shape: tuple[int, ...]) -> Float32:
        """Standard normal float32 values of ``shape``, in C order."""
        n = math.prod(shape)
        out = self._blocks(n) if n >= 16 else self._scalars(n)
        return out.reshape(shape).astype(np.float32)

    def _uniform24(self, n: int) -> Float64:
        return (self._raw(n) & 0xFFFFFF).astype(np.float64) * 2.0**-24

    def _uniform53(self, n: int) -> Float64:
        high, low = self._raw(2 * n).astype(np.uint64).reshape(-1, 2).T
        return ((high << HALF | low) & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53

    def _blocks(self, n: int) -> Float64:
        out = _box_muller(self._uniform24(n)[: n - n % 16].reshape(-1, 16)).reshape(-1)
        if n % 16:
            # torch redraws the last 16 outputs from fresh values when the size is not a multiple of 16.
            out = np.concatenate([out[: n - 16], _box_muller(self._uniform24(16).reshape(1, 16))[0]])
        return out

    def _scalars(self, n: int) -> Float64:
        out = np.empty(n)
        for k in range(n):
            if self._cached is not None:
                out[k], self._cached = self._cached, None
                continue
            u1, u2 = (float(u) for u in self._uniform53(2))
            radius, theta = math.sqrt(-2 * math.log1p(-u2)), 2 * math.pi * u1
            out[k], self._cached = radius * math.cos(theta), radius * math.sin(theta)
        return out


def _rounded(values: NDArray[Any]) -> Float64:
    return values.astype(np.float32).astype(np.float64)


def _box_muller(u: Float64) -> Float64:
    """Blocks of 16: the first 8 uniforms give the radius, the last 8 the angle, which torch rounds to float32."""
    radius = np.sqrt(-2 * np.log1p(-u[:, :8]))
    theta = _rounded(TWO_PI * u[:, 8:])
    return np.concatenate([radius * np.cos(theta), radius * np.sin(theta)], axis=1)


class TorchCudaGenerator:
    """This is one random stream: ``torch.randn(shape, generator=..., device="cuda")`` of torch 2.13, by seed and GPU.

    ``multiprocessors`` and ``threads_per_multiprocessor`` are the GPU's (``torch.cuda.get_device_properties``); the
    defaults are an H100 or H200. They matter for draws of more values than the GPU holds threads.
    Equal to the GPU's values but for the error of its fast sine and cosine (``__sincosf``), about 1e-6.
    ``ArgumentError`` for a seed outside 0 .. 2**64 - 1 or a GPU without room for one block. Not shared between threads.
    """

    def __init__(self, seed: int, multiprocessors: int = 132, threads_per_multiprocessor: int = 2048) -> None:
        self._key = _checked_seed(seed)
        if not is_whole(multiprocessors, 1, 1 << 20) or not is_whole(threads_per_multiprocessor, BLOCK, 1 << 20):
            raise ArgumentError(
                f"{shown(multiprocessors)} multiprocessors of {shown(threads_per_multiprocessor)} threads; "
                f"there must be at least 1, of at least {BLOCK}"
            )
        self._blocks = int(multiprocessors) * (int(threads_per_multiprocessor) // BLOCK)
        self._counter = 0  # torch's offset / 4

    @property
    def seed(self) -> int:
        return self._key

    def place(self, n: int) -> tuple[int, int | None]:
        """The GPU's threads in a draw of ``n`` values, and how many such draws were made; None where others were."""
        threads = self._threads(n)
        draws, rest = divmod(self._counter, draw_rounds(n, threads))
        return threads, None if rest else draws

    def skip(self, n: int, draws: int) -> None:
        """Go on as if ``draws`` draws of ``n`` values had been made."""
        self._counter += draws * draw_rounds(n, self._threads(n))

    def _threads(self, n: int) -> int:
        return BLOCK * min(self._blocks, -(-n // BLOCK))

    def randn(self, shape: tuple[int, ...]) -> Float32:
        """Standard normal float32 values of ``shape``, in C order. At most 2**29 of them: torch splits larger draws."""
        n = math.prod(shape)
        if n <= 0:
            return np.empty(shape, np.float32)  # torch leaves the offset where it is; NumPy refuses a negative size
        threads = self._threads(n)
        rounds = draw_rounds(n, threads)
        counter = np.zeros((4, threads), np.uint64)
        counter[2] = np.arange(threads)
        out = np.empty((rounds, 4, threads), np.float32)  # a thread's four normals lie a grid apart
        for k in range(rounds):
            counter[0], counter[1] = self._counter & 0xFFFFFFFF, self._counter >> 32
            out[k] = _sin_cos(philox4x32(counter, self._key))
            self._counter += 1
        return out.reshape(-1)[:n].reshape(shape)


def draw_rounds(n: int, threads: int) -> int:
    """How far a draw of ``n`` values moves each thread's counter on: a thread makes four values a round."""
    return -(-n // (4 * threads))


def philox4x32(counter: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Ten rounds of Philox on words below 2**32: counter (4, ...), key of 64 bits -> (4, ...)."""
    a, b, c, d = counter
    low, high = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        p, q = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (q >> HALF) ^ b ^ np.uint64(low), q & MASK, (p >> HALF) ^ d ^ np.uint64(high), p & MASK
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([a, b, c, d])


def _sin_cos(raw: NDArray[np.uint64]) -> Float32:
    """cuRAND's Box-Muller: words 0 and 2 give the radius, 1 and 3 the angle. (4, ...) u32 -> (4, ...) f32."""
    x, y = _rounded(raw[0::2]), _rounded(raw[1::2])
    # Rounded as on the GPU: near u = 1 the radius turns 2**-25 into 1e-4.
    radius = np.sqrt(-2 * np.log(_rounded(x * 2.0**-32 + 2.0**-33)))
    theta = _rounded((y * 2.0**-32 + 2.0**-33) * TWO_PI)
    return np.stack([radius * np.sin(theta), radius * np.cos(theta)], axis=1).astype(np.float32).reshape(raw.shape)


GeneratorName = Literal["torch-cpu", "torch-cuda"]
GENERATORS: dict[str, Callable[[int], Generator]] = {"torch-cpu": TorchCpuGenerator, "torch-cuda": TorchCudaGenerator}


def find_generator(name: str | Callable[[int], Generator]) -> Callable[[int], Generator]:
    """The generator called ``name``, by seed; ``ArgumentError`` with the choices otherwise. A function of the seed is
    its own (``lambda seed: TorchCudaGenerator(seed, 48, 1536)`` for a GPU of other size); what it gives is checked.
    """
    if callable(name):
        return partial(_own_generator, name)
    return GENERATORS[one_of("rng", name, GENERATORS, ", or a function from a seed to a generator")]


@dataclass(frozen=True)
class _Checked:
    """A caller's generator, whose values are what they must be."""

    made: Generator

    def randn(self, shape: tuple[int, ...]) -> Float32:
        values = self.made.randn(shape)
        if not isinstance(values, np.ndarray) or values.shape != shape or values.dtype != np.float32:
            kind = f"{values.dtype}{values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
            raise ArgumentError(f"a generator of rng gave {kind}; its randn must give float32{shape}")
        if not np.isfinite(values).all():
            raise ArgumentError("a generator of rng gave values that are not finite")
        return values


def _own_generator(function: Callable[[int], Generator], seed: int) -> Generator:
    made = function(seed)
    if isinstance(made, (TorchCpuGenerator, TorchCudaGenerator)):
        return made
    if not callable(getattr(made, "randn", None)):
        raise ArgumentError(f"rng gave {type(made).__name__}; it must give a generator, with a method randn(shape)")
    return _Checked(made)


def _checked_seed(seed: int) -> int:
    if not is_whole(seed, 0, 2**64 - 1):
        raise ArgumentError(f"seed is {shown(seed)}; it must be a whole number from 0 to 2**64 - 1")
    return int(seed)
