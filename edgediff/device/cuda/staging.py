"""Uploads go through pinned memory, so that no copy waits for the device.

From pageable memory, the driver may wait for the stream and copy by itself first. From pinned memory it enqueues the
copy and returns, and the GPU reads the memory when the stream gets there.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError

SEGMENT = 1 << 20  # bytes
SEGMENTS = 4
SMALL = 1 << 14  # bytes; below, one more copy on the host is cheaper than NumPy's views
ALIGNMENT = 64


class StagingRing:
    """A ring of pinned memory is written round and round, in front of the copies that read it.

    It has a few segments. An event is recorded where a segment is left, and waited for before the segment is written
    again. So an upload waits for the device only where more than the other segments is still on its way.

    Args:
        driver: cuda-bindings' driver.
        device, stream: cuda-core's; the device's context is current, here and in every method.
        blocking: cuda-core's options of events that block.

    Raises:
        EngineError, CUDAError: no pinned memory.
    """

    def __init__(self, driver: Any, device: Any, stream: Any, blocking: Any) -> None:
        from cuda.core import LegacyPinnedMemoryResource

        self._copy, self._success = driver.cuMemcpyHtoDAsync, driver.CUresult.CUDA_SUCCESS
        self._stream, self._handle = stream, stream.handle
        self._events = [
            device.create_event(blocking) for _ in range(SEGMENTS)
        ]  # first: what fails here leaves no memory
        self._buffer = LegacyPinnedMemoryResource().allocate(SEGMENTS * SEGMENT)
        self._base = int(self._buffer.handle)
        pinned = (ctypes.c_uint8 * (SEGMENTS * SEGMENT)).from_address(self._base)
        self._view = memoryview(pinned).cast("B")
        self._bytes = np.frombuffer(self._view, np.uint8)
        self._at, self._end = 0, SEGMENT  # where the next bytes go, and where the segment ends

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Enqueue a copy of ``values`` to the device; they may be changed afterwards."""
        size = values.nbytes
        if size > SMALL:
            self._upload_pieces(address, np.ascontiguousarray(values).reshape(-1).view(np.uint8))
        elif size:
            if self._at + size > self._end:
                self._leave_segment()
            at, end = self._at, self._at + size
            self._view[at:end] = values.tobytes()
            (error,) = self._copy(address, self._base + at, size, self._handle)
            if error is not self._success:
                raise EngineError(f"cuMemcpyHtoDAsync gave {error.name}")
            self._at = (end + ALIGNMENT - 1) & -ALIGNMENT

    def _upload_pieces(self, address: int, values: NDArray[np.uint8]) -> None:
        sent = 0
        while sent < values.size:
            if self._at == self._end:
                self._leave_segment()
            at, size = self._at, min(values.size - sent, self._end - self._at)
            self._bytes[at : at + size] = values[sent : sent + size]
            self._send(address + sent, at, size)
            sent += size

    def _send(self, address: int, at: int, size: int) -> None:
        (error,) = self._copy(address, self._base + at, size, self._handle)
        if error != self._success:
            raise EngineError(f"cuMemcpyHtoDAsync gave {error.name}")
        self._at = (at + size + ALIGNMENT - 1) & -ALIGNMENT

    def _leave_segment(self) -> None:
        """Go on in the next segment, once what was sent from there has been read."""
        k = self._end // SEGMENT - 1
        self._stream.record(self._events[k])
        k = (k + 1) % SEGMENTS
        self._events[k].sync()
        self._at, self._end = k * SEGMENT, (k + 1) * SEGMENT

    def close(self) -> None:
        """Give the memory back, once the stream has been waited for."""
        self._view.release()
        self._bytes = np.empty(0, np.uint8)
        self._events.clear()
        self._buffer.close(self._stream)  # cuda-core would wait for another one
