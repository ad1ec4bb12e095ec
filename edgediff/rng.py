"""Normal noise equal to PyTorch's CPU generator, without PyTorch.

``torch.Generator("cpu")`` is MT19937, seeded by Knuth's initialisation with the low 32 bits of the seed, which is what
``numpy.random.RandomState(int)`` does too. ``torch.randn`` shapes its raw 32-bit draws by Box-Muller in one of two
ways, by size (ATen/native/cpu/DistributionTemplates.h).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .errors import ArgumentError

Float32 = NDArray[np.float32]


class TorchCpuGenerator:
    """One random stream: ``TorchCpuGenerator(7).randn(shape)`` is ``torch.randn(shape, generator=...)`` for seed 7.

    Equal to within float32 rounding of log, sin and cos (about 1e-6). Not shared between threads.
    """

    def __init__(self, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
            raise ArgumentError(f"seed is {seed!r}; it must be a whole number from 0 to 2**64 - 1")
        self._twister = np.random.RandomState(int(seed) & 0xFFFFFFFF)
        self._cached: float | None = None  # the scalar path's second normal

    def _raw(self, n: int) -> NDArray[np.uint32]:
        return np.frombuffer(self._twister.bytes(4 * n), dtype="<u4")

    def randn(self, shape: tuple[int, ...]) -> Float32:
        """Standard normal float32 values of ``shape``, in C order."""
        n = math.prod(shape)
        return (self._blocks(n) if n >= 16 else self._scalars(n)).reshape(shape)

    def _blocks(self, n: int) -> Float32:
        out = _box_muller(self._raw(n)[: n - n % 16].reshape(-1, 16)).reshape(-1)
        if n % 16:
            # torch redraws the last 16 outputs from fresh values when the size is not a multiple of 16.
            out = np.concatenate([out[: n - 16], _box_muller(self._raw(16).reshape(1, 16))[0]])
        return out

    def _scalars(self, n: int) -> Float32:
        out = np.empty(n, np.float32)
        for k in range(n):
            if self._cached is not None:
                out[k], self._cached = self._cached, None
                continue
            high1, low1, high2, low2 = (int(v) for v in self._raw(4))
            u1, u2 = _uniform53(high1, low1), _uniform53(high2, low2)
            radius, theta = math.sqrt(-2 * math.log1p(-u2)), 2 * math.pi * u1
            out[k], self._cached = radius * math.cos(theta), radius * math.sin(theta)
        return out


def _uniform53(high: int, low: int) -> float:
    return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def _box_muller(raw: NDArray[np.uint32]) -> Float32:
    """Blocks of 16: the first 8 uniforms give the radius, the last 8 the angle. (k, 16) u32 -> (k, 16) f32."""
    u = (raw & 0xFFFFFF).astype(np.float64) * 2.0**-24
    radius, theta = np.sqrt(-2 * np.log1p(-u[:, :8])), 2 * math.pi * u[:, 8:]
    return np.concatenate([radius * np.cos(theta), radius * np.sin(theta)], axis=1).astype(np.float32)
