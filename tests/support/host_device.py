"""The host device with its calls counted, and the values of its arrays in every number format."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediff.device.array import DeviceArray
from edgediff.device.host import HostDevice

DTYPES = {"float32": np.float32, "float16": np.float16, "int64": np.int64}


class CountingDevice(HostDevice):
    """A counting device counts what a GPU would be asked to do, by the method's name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def use(self) -> None:
        self.calls["use"] += 1
        super().use()

    def upload(self, address: int, values: NDArray[Any]) -> None:
        self.calls["upload"] += 1
        super().upload(address, values)

    def download(self, address: int, values: NDArray[Any]) -> None:
        self.calls["download"] += 1
        super().download(address, values)

    def capture(self, work: Callable[[], None]) -> Any:
        self.calls["capture"] += 1
        return super().capture(work)

    def launch(self, graph: Any) -> None:
        self.calls["launch"] += 1
        super().launch(graph)

    def mark(self) -> Any:
        self.calls["mark"] += 1
        return super().mark()

    def wait(self, mark: Any) -> None:
        self.calls["wait"] += 1
        super().wait(mark)


class OddDevice(CountingDevice):
    """Its blocks are aligned to 256 bytes, as a device promises, and never to more: nothing is aligned by luck."""

    def allocate(self, size: int) -> int:
        with self.lock:
            address = super().allocate(size + 256)
            odd = address if address % 512 else address + 256
            self.memory[odd] = self.memory.pop(address)
            return odd


def view(array: DeviceArray) -> NDArray[Any]:
    """The values of a ``DeviceArray`` of host memory."""
    buffer = memoryview((ctypes.c_char * array.nbytes).from_address(array.address))
    return np.ndarray(array.shape, DTYPES[array.dtype], buffer)


def narrowed(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """The values as a model of this type reads or writes them."""
    return values.astype(DTYPES[dtype])


def widened(values: NDArray[Any]) -> NDArray[np.float32]:
    """A model's values in float32."""
    with np.errstate(invalid="ignore"):  # Arm says so of NaN
        return values.astype(np.float32)
