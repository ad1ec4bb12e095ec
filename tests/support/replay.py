"""A stand-in U-Net with the same bits on every device, and the host loop's run with it."""

from __future__ import annotations

import ctypes
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediff.device.array import DeviceArray
from edgediff.device.model import Capture
from edgediff.sampling import loop as host
from edgediff.sampling.planning import Plan
from edgediff.sampling.rng import Generator
from tests.support.host_device import DTYPES, narrowed, widened

Float32 = NDArray[np.float32]
Shape = tuple[int, int, int, int]
CALLS = 16  # the most that a run of these checks makes


def copy(device: Any, to: int, source: int, size: int) -> None:
    """Enqueue a copy of ``size`` bytes within the device's memory."""
    if device.ordinal < 0:
        ctypes.memmove(to, source, size)
        return
    from cuda.bindings import driver

    (error,) = driver.cuMemcpyDtoDAsync(to, source, size, device.stream)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"cuMemcpyDtoDAsync gave {error.name}")


def fetched(device: Any, array: DeviceArray) -> NDArray[Any]:
    """The values of an array in device memory."""
    out: NDArray[Any] = np.empty(array.shape, DTYPES[array.dtype])
    device.download(array.address, out)
    return out


class Replay:
    """A stand-in U-Net: call k gives back values that were made beforehand, on the device and on the host alike.

    With ``fixed`` every call gives those of call 0, so that it can be part of a graph.
    """

    def __init__(self, device: Any, shape: Shape, dtype: str, fixed: bool = False, seed: int = 0) -> None:
        self.device, self.fixed, self.warm_runs = device, fixed, 1
        self.capture: Capture = "always" if fixed else "never"
        calls = 1 if fixed else CALLS
        values = np.random.default_rng(seed).standard_normal((calls, 2, *shape)).astype(np.float32)
        self.memory = narrowed(values, dtype)
        self.values = widened(self.memory)
        self.address = device.allocate(self.memory.nbytes)
        device.upload(self.address, self.memory)
        self.call = 0

    @property
    def key(self) -> Hashable:
        return int(self.address)

    def _next(self) -> int:
        self.call += 1
        return 0 if self.fixed else self.call - 1

    def enqueue(self, sample: DeviceArray, timestep: DeviceArray, output: DeviceArray, stream: int) -> None:
        half = self.memory[0, 0].nbytes
        guided = output.nbytes == 2 * half
        copy(self.device, output.address, self.address + (2 * self._next() + (not guided)) * half, output.nbytes)

    def denoise(self, x: Float32, t: float, guided: bool) -> tuple[Float32 | None, Float32]:
        """The same values for the host loop."""
        u, c = self.values[self._next()]
        return (u if guided else None), c

    def close(self) -> None:
        """Give the values' memory back."""
        self.device.free(self.address)


class Tape:
    """A generator whose draws, all of one shape, are kept, so that many runs can begin at its start."""

    def __init__(self, generator: Generator) -> None:
        self.generator, self.drawn, self.at = generator, list[Float32](), 0

    def randn(self, shape: tuple[int, ...]) -> Float32:
        if self.at == len(self.drawn):
            self.drawn.append(self.generator.randn(shape))
        self.at += 1
        return self.drawn[self.at - 1]

    def rewound(self) -> Tape:
        self.at = 0
        return self


def on_host(table: Plan, model: Replay, shape: Shape, streams: Sequence[Generator]) -> host.LoopStep:
    """The last step of the host loop."""

    def draw() -> Float32:
        return np.concatenate([s.randn((1, *shape[1:])) for s in streams])

    model.call = 0
    *_, last = host.run(table, model.denoise, table.start * draw(), draw)
    return last


def largest_error(found: Float32, expected: Float32) -> float:
    """Give max|dx| / max|x|; infinite where a value is not finite."""
    error = np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max()
    return float(error) if np.isfinite(error) else float("inf")
