"""The device loop runs in host memory, where there is no GPU: the kernels' CPU twin does the work."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, EngineError
from .host_kernels import HostKernels

ALIGNMENT = 256


class HostDevice:
    """``HostDevice`` runs the device loop where there is no GPU, to try a model's ``enqueue`` or to test it.

    Its addresses are those of the host's memory, and work is done when it is enqueued. A captured graph is the work
    itself, done again at every launch; what a GPU's graph cannot hold is refused in it.

    Example:
        loop = DeviceLoop(HostDevice(), unet, (1, 4, 64, 64))

    Raises:
        EngineError: memory is allocated or copied in a graph; anything is done after ``close``.
        ArgumentError: a download into values that are not contiguous.
    """

    ordinal, stream = -1, 0

    def __init__(self) -> None:
        self.memory: dict[int, NDArray[np.uint8]] = {}  # blocks by address
        self.lock = threading.RLock()
        self._launching = self._closed = False
        self._kept: list[NDArray[np.uint8]] = []  # kernels that run while it is closed may still write there

    @cached_property
    def kernels(self) -> HostKernels:
        return HostKernels()

    def use(self) -> None:
        self._refuse_closed()

    def allocate(self, size: int) -> int:
        with self.lock:
            self._refuse_in_graph("allocating memory")
            block = np.zeros(size + ALIGNMENT, np.uint8)
            address = -(-block.ctypes.data // ALIGNMENT) * ALIGNMENT
            self.memory[address] = block
            return address

    def free(self, address: int) -> None:
        with self.lock:
            if not self._closed:  # or it has been given back
                del self.memory[address]

    def trim(self) -> None:
        """There is nothing to do: memory goes back when it is freed, and the device is never behind."""
        with self.lock:
            self._refuse_in_graph("waiting for the device")

    def upload(self, address: int, values: NDArray[Any]) -> None:
        with self.lock:
            self._refuse_in_graph("copying to the device")
            values = np.ascontiguousarray(values)
            ctypes.memmove(address, values.ctypes.data, values.nbytes)

    def download(self, address: int, values: NDArray[Any]) -> None:
        if not values.flags.c_contiguous:
            raise ArgumentError("values must be contiguous")
        with self.lock:
            self._refuse_in_graph("waiting for the device")
            ctypes.memmove(values.ctypes.data, address, values.nbytes)

    def capture(self, work: Callable[[], None]) -> Any:
        self._refuse_closed()
        return work

    def launch(self, graph: Any) -> None:
        with self.lock:
            self._refuse_closed()
            self._launching = True
            try:
                graph()
            finally:
                self._launching = False

    def mark(self) -> Any:
        self._refuse_closed()

    def wait(self, mark: Any) -> None:
        self._refuse_closed()

    def close(self) -> None:
        with self.lock:
            self._closed = True
            self._kept += self.memory.values()
            self.memory.clear()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise EngineError("the device is closed")

    def _refuse_in_graph(self, doing: str) -> None:
        self._refuse_closed()
        if self._launching:
            raise EngineError(f"{doing}: a captured graph cannot hold it")
