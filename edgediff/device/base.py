"""The device loop runs on a device: memory, one stream and captured graphs."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}
FLOAT_TYPES = ("float32", "float16", "bfloat16")


class Block(NamedTuple):
    """A block is a piece of device memory; the kernels take it as this pair."""

    address: int
    nbytes: int


@dataclass(frozen=True)
class DeviceArray:
    """A device array is values in device memory, in C order."""

    address: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * BYTES[self.dtype]

    @property
    def block(self) -> Block:
        return Block(self.address, self.nbytes)


class Device(Protocol):
    """A device works in the order of one stream. Only ``download``, ``wait`` and ``close`` let the host wait."""

    ordinal: int  # of the CUDA device, as edgediff_kernels counts; -1 is the host
    stream: int  # the stream's address
    lock: threading.RLock  # held while work is enqueued that belongs together; the methods below take it themselves

    def use(self) -> None:
        """Make this the calling thread's device, for libraries that take the current one."""

    def allocate(self, size: int) -> int:
        """The address of ``size`` fresh bytes, zero, aligned to 256; they live until ``free`` or ``close``."""

    def free(self, address: int) -> None:
        """Give memory back, once what is enqueued has run."""

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Copy to the device; ``values`` may be changed afterwards."""

    def download(self, address: int, values: NDArray[Any]) -> None:
        """Copy from the device into ``values`` and wait for it."""

    def capture(self, work: Callable[[], None]) -> Any:
        """The graph of what ``work`` enqueues on the stream; nothing runs."""

    def launch(self, graph: Any) -> None:
        """Enqueue a captured graph."""

    def mark(self) -> Any:
        """A point in the stream, for ``wait``."""

    def wait(self, mark: Any) -> None:
        """Wait until the stream has passed ``mark``."""

    def close(self) -> None:
        """Wait for the stream and free the memory."""
