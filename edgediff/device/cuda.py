"""The device loop runs on an NVIDIA GPU, by cuda-core."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, EdgediffError, EngineError
from .driver import probe

INSTALL = "the package cuda-core is not installed; run: pip install cuda-core cuda-bindings"


class CudaDevice:
    """``CudaDevice`` runs the device loop on an NVIDIA GPU.

    Args:
        ordinal: which one, from 0.

    Raises:
        EngineError: no driver, no device, edgediff-kernels or cuda-core missing or built without CUDA.
        ArgumentError: no device of this number.
    """

    def __init__(self, ordinal: int = 0) -> None:
        driver, CoreDevice = _open_driver(ordinal)
        self.ordinal = ordinal
        self._driver = driver
        self._buffers: dict[int, Any] = {}
        self._sent: deque[tuple[Any, NDArray[Any]]] = deque()  # what copies may still read, and the mark behind each
        self.lock = threading.RLock()
        with _typed(f"opening CUDA device {ordinal}"):
            self._device = CoreDevice(ordinal)
            self._device.set_current()
            self._stream = self._device.create_stream()
            self.stream = int(self._stream.handle)
            self.multiprocessors = int(self._device.properties.multiprocessor_count)
            self.threads_per_multiprocessor = int(self._device.properties.max_threads_per_multiprocessor)
            self.name = str(self._device.name)

    def use(self) -> None:
        with _typed(f"turning to CUDA device {self.ordinal}"):
            self._device.set_current()

    def allocate(self, size: int) -> int:
        with self.lock, _typed(f"allocating {size / 1e6:.1f} MB on CUDA device {self.ordinal}"):
            self._device.set_current()
            buffer = self._device.allocate(max(size, 256), stream=self._stream)
            address = int(buffer.handle)
            self._buffers[address] = buffer
            self._call(self._driver.cuMemsetD8Async, address, 0, max(size, 256), self.stream)
        return address

    def free(self, address: int) -> None:
        with self.lock, _typed("freeing memory"):
            self._device.set_current()
            self._buffers.pop(address).close(self._stream)

    def upload(self, address: int, values: NDArray[Any]) -> None:
        values = np.array(values, order="C")  # where the GPU reads the host's memory itself, it may do so later
        with self.lock, _typed("copying to the device"):
            self._device.set_current()
            while self._sent and self._sent[0][0].is_done:
                self._sent.popleft()
            self._call(self._driver.cuMemcpyHtoDAsync, address, values.ctypes.data, values.nbytes, self.stream)
            self._sent.append((self._stream.record(), values))

    def download(self, address: int, values: NDArray[Any]) -> None:
        if not values.flags.c_contiguous:
            raise ArgumentError("values must be contiguous")
        with self.lock, _typed("waiting for the device"):
            self._device.set_current()
            self._call(self._driver.cuMemcpyDtoHAsync, values.ctypes.data, address, values.nbytes, self.stream)
            self._stream.sync()
            self._sent.clear()

    def capture(self, work: Callable[[], None]) -> Any:
        with self.lock, _typed("capturing a CUDA graph"):
            self._device.set_current()
            builder = self._stream.create_graph_builder()
            try:
                builder.begin_building("thread_local")  # other threads may go on allocating
                work()
                graph = builder.end_building().complete()
            except BaseException:
                with suppress(Exception):  # it ends the capture, and complains of what broke it once more
                    builder.close()
                raise
            builder.close()
            return graph

    def launch(self, graph: Any) -> None:
        with self.lock, _typed("launching a CUDA graph"):
            self._device.set_current()
            graph.launch(self._stream)

    def mark(self) -> Any:
        with self.lock, _typed("marking the stream"):
            self._device.set_current()
            return self._stream.record()

    def wait(self, mark: Any) -> None:
        with _typed("waiting for the device"):
            mark.sync()

    def close(self) -> None:
        """Wait for the stream and free the memory; the object is of no use afterwards."""
        with self.lock, _typed("closing the device"):
            self._device.set_current()
            self._stream.sync()
            self._sent.clear()
            while self._buffers:
                self._buffers.popitem()[1].close(self._stream)
            self._stream.close()

    def _call(self, function: Any, *args: Any) -> None:
        (error,) = function(*args)
        if error != self._driver.CUresult.CUDA_SUCCESS:
            raise EngineError(f"{function.__name__} gave {error.name}")


def why_no_device(ordinal: int = 0) -> str:
    """Why this CUDA device cannot be opened, or an empty string. Opens nothing."""
    try:
        _open_driver(ordinal)
    except EdgediffError as error:
        return str(error)
    return ""


def _open_driver(ordinal: int) -> tuple[Any, Any]:
    """Open cuda-bindings' driver and cuda-core's Device; errors as ``CudaDevice``."""
    probe(ordinal)
    try:
        from cuda.bindings import driver
        from cuda.core import Device as CoreDevice
    except ImportError as error:
        raise EngineError(INSTALL) from error
    return driver, CoreDevice


class _typed:
    """``_typed`` turns what cuda-core raises into ``EngineError``. It is a class, as a generator would cost each launch
    a microsecond.
    """

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, EdgediffError):
            raise EngineError(f"{self.doing}: {error}") from error
