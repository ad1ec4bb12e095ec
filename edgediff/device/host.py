"""A device in host memory: the kernels' CPU twin does the work, where there is no GPU."""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediff.device.base import DeviceArray

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int64": np.int64, "int32": np.int32}


class HostDevice:
    """A captured graph is the work itself, done again at every launch."""

    ordinal, stream = -1, 0

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.capturing = False
        self.lock = threading.RLock()

    def use(self) -> None:
        self.calls["use"] += 1

    def allocate(self, size: int) -> int:
        assert not self.capturing
        block = np.zeros(size + 256, np.uint8)
        address = -(-block.ctypes.data // 256) * 256
        self.memory[address] = block
        return address

    def free(self, address: int) -> None:
        assert not self.capturing
        del self.memory[address]

    def upload(self, address: int, values: NDArray[Any]) -> None:
        assert not self.capturing
        self.calls["upload"] += 1
        values = np.ascontiguousarray(values)
        ctypes.memmove(address, values.ctypes.data, values.nbytes)

    def download(self, address: int, values: NDArray[Any]) -> None:
        assert not self.capturing
        self.calls["download"] += 1
        ctypes.memmove(values.ctypes.data, address, values.nbytes)

    def capture(self, work: Callable[[], None]) -> Any:
        self.calls["capture"] += 1
        return work

    def launch(self, graph: Any) -> None:
        self.calls["launch"] += 1
        self.capturing = True  # what a graph cannot hold must not happen in it
        try:
            graph()
        finally:
            self.capturing = False

    def mark(self) -> Any:
        self.calls["mark"] += 1

    def wait(self, mark: Any) -> None:
        self.calls["wait"] += 1

    def close(self) -> None:
        self.memory.clear()


def view(array: DeviceArray) -> NDArray[Any]:
    """The values of a ``DeviceArray`` of host memory; bfloat16 as uint16."""
    dtype: np.dtype[Any] = np.dtype(DTYPES[array.dtype])
    count = int(np.prod(array.shape))
    buffer = (ctypes.c_char * (count * dtype.itemsize)).from_address(array.address)
    values: NDArray[Any] = np.frombuffer(buffer, dtype)  # type: ignore[call-overload]
    return values.reshape(array.shape)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to nearest even, as bits."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


def narrowed(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """As the model reads or writes it."""
    return to_bfloat16(values) if dtype == "bfloat16" else values.astype(DTYPES[dtype])


def widened(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):  # Arm says so of NaN
        return values.astype(np.float32)
