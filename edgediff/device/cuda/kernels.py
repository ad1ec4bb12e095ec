"""The kernels on an NVIDIA GPU, launched through the driver."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...cache_folder import default_cache_folder
from ...errors import EngineError
from ..array import Block
from ..base import PreparedUpdate
from ..geometry import BLOCK, Geometry, check_pixels, check_unscale
from .machine_code import KernelCode, kernel_codes

SHORT = {"float32": "f32", "float16": "f16"}
MOST_BLOCKS = 65536  # of a launch over plain values
PROBED = "step_1_f32_f32"


class KernelDevice(Protocol):
    """What the kernels need of ``CudaDevice``, and what its attributes say."""

    driver: Any
    name: str
    stream: int
    multiprocessors: int
    compute_capability: tuple[int, int]
    driver_version: tuple[int, int]
    cache_folder: Path | None

    def use(self) -> None: ...

    def call(self, function: Any, *args: Any) -> Any: ...


class CudaKernels:
    """``CudaKernels`` loads the kernels' code on a device and launches them on its stream.

    Args:
        device: which outlives this.

    Raises:
        EngineError: there is no code for this GPU, or its driver refuses it.
    """

    def __init__(self, device: KernelDevice) -> None:
        self._device, self._driver = device, device.driver
        self._functions: dict[str, Any] = {}
        self._code, self.origin = self._loaded()

    def update(self, geometry: Geometry, buffers: Mapping[str, Block], emulated: int = 0) -> PreparedUpdate:
        state = geometry.state(buffers)
        x, y, pack = geometry.grid(state, self._device.multiprocessors)
        given, made = SHORT[geometry.input], SHORT[geometry.output]
        begin, step = self._function(f"begin_{pack}_{given}"), self._function(f"step_{pack}_{given}_{made}")
        return CudaUpdate(Launch(self, begin, (x, y), state), Launch(self, step, (x, y), state))

    def unscale(self, x: Block, z: Block, dtype: str, count: int, scale: float, shift: float) -> None:
        check_unscale(x, z, dtype, count)
        values = (np.uint64(x.address), np.uint64(z.address), np.int64(count), np.float32(scale), np.float32(shift))
        Launch(self, self._function(f"unscale_{SHORT[dtype]}"), blocks(count), *values)()

    def to_uint8(self, decoded: Block, pixels: Block, header: Block, dtype: str, images: int, area: int) -> None:
        check_pixels(decoded, pixels, header, dtype, images, area)
        places = (np.uint64(decoded.address), np.uint64(pixels.address))
        values = (*places, np.int64(images * area), np.int64(area), np.uint64(header.address))
        Launch(self, self._function(f"pixels_{SHORT[dtype]}"), blocks(images * area), *values)()

    def launch(self, function: Any, grid: tuple[int, int], arguments: int) -> None:
        """Enqueue a kernel. ``arguments`` is the address of the addresses of its arguments."""
        stream = self._device.stream
        self._device.call(self._driver.cuLaunchKernel, function, *grid, 1, BLOCK, 1, 1, 0, stream, arguments, 0)

    def _loaded(self) -> tuple[Any, str]:
        device, reasons = self._device, []
        folder = device.cache_folder
        with suppress(EngineError):  # no home: they are compiled each time
            folder = folder or default_cache_folder()
        for code in kernel_codes(device.compute_capability, device.driver_version, folder):
            if isinstance(code, KernelCode):
                try:
                    return self._load(code), code.origin
                except Exception as error:  # cuda-core's own kinds
                    reasons.append(f"{code.origin}: {' '.join(str(error).split())}")
            else:
                reasons.append(str(code))
        raise EngineError(f"no CUDA kernels for {device.name}: {'; '.join(reasons)}")

    def _load(self, code: KernelCode) -> Any:
        from cuda.core import ObjectCode

        self._device.use()
        loaded = getattr(ObjectCode, f"from_{code.kind}")(code.data)
        self._functions[PROBED] = self._handle(loaded, PROBED)  # which makes the driver read the code
        return loaded

    def _function(self, name: str) -> Any:
        if name not in self._functions:
            try:
                self._device.use()
                self._functions[name] = self._handle(self._code, name)
            except Exception as error:
                said = " ".join(str(error).split())
                raise EngineError(f"kernel {name} ({self.origin}) cannot be loaded: {said}") from error
        return self._functions[name]

    def _handle(self, code: Any, name: str) -> Any:
        """A kernel's handle, as the driver's launch takes it."""
        return self._driver.CUfunction(int(code.get_kernel(name).handle))


class Launch:
    """A launch is a kernel with its grid and arguments laid out; calling it enqueues it.

    Args:
        kernels: whose.
        function: the driver's handle.
        grid: blocks along x and y.
        arguments: NumPy scalars, or structures as arrays of one; held here.
    """

    def __init__(self, kernels: CudaKernels, function: Any, grid: tuple[int, int], *arguments: Any) -> None:
        self._kernels, self._function, self._grid = kernels, function, grid
        self._held = [np.ascontiguousarray(value) for value in arguments]
        self._places = (ctypes.c_void_p * len(self._held))(*(value.ctypes.data for value in self._held))
        self._address = ctypes.addressof(self._places)

    def __call__(self) -> None:
        self._kernels.launch(self._function, self._grid, self._address)


class CudaUpdate:
    """A loop's launches on a GPU."""

    def __init__(self, begin: Launch, step: Launch) -> None:
        self.begin, self.step = begin, step


def blocks(count: int) -> tuple[int, int]:
    """The grid over ``count`` plain values."""
    return min(-(-count // BLOCK), MOST_BLOCKS), 1
